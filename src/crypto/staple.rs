//! OCSP responses that are stapled to a certificate: for how long one is good.
//!
//! Clients check what it says and who signed it. Here it only has to be one, for one certificate.

use rustls::pki_types::UnixTime;
use x509_parser::asn1_rs::FromDer;
use x509_parser::time::ASN1Time;

use super::der::{Value, contents, take};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const GENERALIZED_TIME: u8 = 0x18;

/// Status 0, `successful`.
const SUCCESSFUL: &[u8] = &[0x0a, 1, 0];

/// Tags 0 to 2 of a context, constructed.
const CONTEXT: [u8; 3] = [0xa0, 0xa1, 0xa2];

/// `good` and `unknown`, which are primitive.
const PLAIN_STATUS: [u8; 2] = [0x80, 0x82];

/// A response and the time in which it is good (RFC 6960, section 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staple {
    pub(super) der: Vec<u8>,
    pub(super) from: i64,
    /// `None` when newer information is always there.
    pub(super) until: Option<i64>,
}

impl Staple {
    /// Reads `der`; `None` if that is no response with an answer.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        let response = contents(der, SEQUENCE)?.strip_prefix(SUCCESSFUL)?;
        let mut outer = contents(contents(response, CONTEXT[0])?, SEQUENCE)?;
        take(&mut outer, OBJECT_IDENTIFIER)?;
        let mut basic = contents(contents(outer, OCTET_STRING)?, SEQUENCE)?;
        let mut data = take(&mut basic, SEQUENCE)?.contents;
        let _version = take(&mut data, CONTEXT[0]);
        take(&mut data, CONTEXT[1]).or_else(|| take(&mut data, CONTEXT[2]))?;
        time(&mut data)?;
        let mut answers = take(&mut data, SEQUENCE)?.contents;
        let mut answer = take(&mut answers, SEQUENCE)?.contents;
        take(&mut answer, SEQUENCE)?;
        status(&mut answer)?;
        let from = time(&mut answer)?;
        let until = match take(&mut answer, CONTEXT[0]) {
            Some(next) => Some(time(&mut &*next.contents)?),
            None => None,
        };
        Some(Self { der: der.to_vec(), from, until })
    }

    /// Whether clients take it at `now`.
    pub(super) fn is_good(&self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.from <= now && self.until.is_none_or(|until| now <= until)
    }
}

fn status<'a>(rest: &mut &'a [u8]) -> Option<Value<'a>> {
    let [good, unknown] = PLAIN_STATUS;
    take(rest, good).or_else(|| take(rest, unknown)).or_else(|| take(rest, CONTEXT[1]))
}

/// Seconds since 1970.
fn time(rest: &mut &[u8]) -> Option<i64> {
    let value = take(rest, GENERALIZED_TIME)?;
    let (_, time) = ASN1Time::from_der(value.whole).ok()?;
    Some(time.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// Made with `openssl ocsp`, see the README there.
    const RESPONSE: &[u8] = include_bytes!("testdata/staple.der");

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_response_is_good_between_its_two_times() {
        let staple = Staple::parse(RESPONSE).unwrap();
        let from = u64::try_from(staple.from).unwrap();
        let until = u64::try_from(staple.until.unwrap()).unwrap();
        assert_eq!(until - from, 30 * 24 * 60 * 60);
        assert!(!staple.is_good(at(from - 1)) && staple.is_good(at(from)));
        assert!(staple.is_good(at(until)) && !staple.is_good(at(until + 1)));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        // `tryLater`.
        assert_eq!(Staple::parse(&[0x30, 3, 0x0a, 1, 3]), None);
        for length in 0..RESPONSE.len() {
            assert_eq!(Staple::parse(&RESPONSE[..length]), None, "cut to {length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(index in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut changed = RESPONSE.to_vec();
            let length = changed.len();
            changed[index.index(length)] = byte;
            // Some changes are harmless; none may panic.
            let _ = Staple::parse(&changed);
        }
    }
}
