//! What is read of a gRPC call: how long it may take, and for the counts the messages of both
//! directions and the status that it ended with.
//!
//! Deliberately not here: reading messages. Only their lengths are looked at, as they pass.

use std::cell::Cell;

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};

use crate::telemetry::request::Grpc;

/// How a call ends, in the trailers or in a head without a body.
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// How long the client waits.
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The longest number that a timeout may have.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Longer timeouts are taken for this.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The highest status that there is; what is beyond is not told apart.
const STATUS_MAX: u8 = 16;

/// A flag and the length of the message.
const PREFIX_BYTES: usize = 5;

/// How long the client of a call with `headers` waits, in whole milliseconds; `None` if it says
/// nothing that can be understood, or zero, which is no limit as in Envoy.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    let number = digits.parse::<u32>().ok();
    let number = number.filter(|_| is_number && digits.len() <= TIMEOUT_DIGITS_MAX)?;
    let time = number
        * match unit {
            "H" => Duration::from_secs(3600),
            "M" => Duration::from_secs(60),
            "S" => Duration::from_secs(1),
            "m" => Duration::from_millis(1),
            "u" => Duration::from_micros(1),
            "n" => Duration::from_nanos(1),
            _ => return None,
        };
    let milliseconds = time.min(TIMEOUT_MAX).as_nanos().div_ceil(1_000_000);
    let milliseconds = u64::try_from(milliseconds).ok().filter(|number| *number > 0);
    milliseconds.map(Duration::from_millis)
}

/// Tells the upstream how long it is waited for.
pub(crate) fn expect_within(headers: &mut HeaderMap, limit: Duration) {
    let milliseconds = limit.as_millis();
    let text = if milliseconds < 10_u128.pow(8) {
        format!("{milliseconds}m")
    } else {
        format!("{}S", limit.min(TIMEOUT_MAX).as_secs())
    };
    headers.insert(TIMEOUT, HeaderValue::try_from(text).expect("digits and a letter"));
}

/// A call under way.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) request: Messages,
    pub(crate) response: Messages,
    status: Cell<Option<u8>>,
}

impl Call {
    /// Looks for the status in `headers` or trailers of the response.
    pub(crate) fn ends_with(&self, headers: &HeaderMap) {
        if let Some(value) = headers.get(STATUS) {
            let status = value.to_str().ok().and_then(|text| text.parse().ok());
            self.status.set(status.filter(|status| *status <= STATUS_MAX));
        }
    }

    /// What there is to say of it.
    pub(crate) fn record(&self) -> Grpc {
        Grpc {
            status: self.status.get(),
            request_messages: self.request.begun.get(),
            response_messages: self.response.begun.get(),
        }
    }
}

/// The messages of a body, counted as its bytes pass.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    begun: Cell<u64>,
    /// Bytes of a message that are still to come.
    left: Cell<u32>,
    /// What has come of the next message's prefix. Invariant: empty while `left` is not 0.
    prefix: Cell<([u8; PREFIX_BYTES], usize)>,
}

impl Messages {
    /// The next `bytes` of the body.
    pub(crate) fn pass(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(usize::try_from(self.left.get()).unwrap_or(usize::MAX));
            // It is at most `left`.
            self.left.set(self.left.get() - u32::try_from(skipped).unwrap_or(u32::MAX));
            bytes = self.take_prefix(&bytes[skipped..]);
        }
    }

    /// Takes what it can of a prefix off `bytes`, and begins the message of a whole one.
    fn take_prefix<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let (mut prefix, have) = self.prefix.get();
        let (taken, rest) = bytes.split_at(bytes.len().min(PREFIX_BYTES - have));
        prefix[have..have + taken.len()].copy_from_slice(taken);
        let have = have + taken.len();
        if have < PREFIX_BYTES {
            self.prefix.set((prefix, have));
            return rest;
        }
        let [_, length @ ..] = prefix;
        self.left.set(u32::from_be_bytes(length));
        self.begun.set(self.begun.get() + 1);
        self.prefix.set(Default::default());
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(pieces: &[&[u8]]) -> u64 {
        let messages = Messages::default();
        pieces.iter().for_each(|piece| messages.pass(piece));
        messages.begun.get()
    }

    #[test]
    fn a_timeout_is_read_as_it_is_meant_or_not_at_all() {
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(text))]);
            timeout(&headers).map(|time| time.as_millis())
        };
        let good = ["1H", "2M", "3S", "100m", "1500u", "1n", "00000001S"];
        let expected = [3_600_000, 120_000, 3_000, 100, 2, 1, 1_000];
        assert_eq!(good.map(read), expected.map(Some));
        assert_eq!(read("99999999H"), Some(TIMEOUT_MAX.as_millis()));
        for bad in ["", "S", "1", "1 S", "+1S", "-1S", "1.5S", "1s", "123456789S", "0m", "1\u{b5}"]
        {
            let headers = HeaderValue::from_bytes(bad.as_bytes()).map(|value| (TIMEOUT, value));
            assert_eq!(timeout(&HeaderMap::from_iter(headers)), None, "{bad}");
        }
    }

    #[test]
    fn what_the_upstream_is_told_is_read_again() {
        for milliseconds in [1, 250, 99_999_999, 100_000_000, 31_536_000_000] {
            let (limit, mut headers) = (Duration::from_millis(milliseconds), HeaderMap::new());
            expect_within(&mut headers, limit);
            assert_eq!(timeout(&headers), Some(limit), "{:?}", headers[TIMEOUT]);
        }
    }

    #[test]
    fn a_message_counts_once_however_it_is_cut() {
        assert_eq!(counted(&[b"\0\0\0\0\0"]), 1, "an empty one");
        assert_eq!(counted(&[b"\0\0\0\0"]), 0, "not begun");
        assert_eq!(counted(&[b"\0\0\0\0\x02ab\x01\0\0\0\0"]), 2);
        assert_eq!(counted(&[b"\0\0", b"\0\0\x02", b"a", b"", b"b\0\0\0\0", b"\0"]), 2);
    }

    #[test]
    fn the_last_status_counts_if_there_is_such_a_one() {
        let call = Call::default();
        assert_eq!(call.record().status, None);
        for (value, expected) in [("0", Some(0)), ("16", Some(16)), ("17", None), ("x", None)] {
            let headers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static(value))]);
            call.ends_with(&headers);
            call.ends_with(&HeaderMap::new());
            assert_eq!(call.record().status, expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_count_the_same_in_any_pieces(
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0), 1 => 0u8..9], 0..80),
            cut in 1usize..9,
        ) {
            let pieces: Vec<_> = bytes.chunks(cut).collect();
            prop_assert_eq!(counted(&pieces), counted(&[&bytes]));
        }
    }
}
