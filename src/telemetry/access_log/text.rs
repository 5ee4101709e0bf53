//! Envoy's default text format of an access log line.
//!
//! - What came from the network cannot forge a line or a field: quotes, backslashes, control
//!   characters and bytes beyond ASCII are written as `\xHH`, in unquoted fields spaces too.
//! - Formatting allocates nothing but the growth of the buffer.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::address::Address;
use crate::telemetry::date;
use crate::telemetry::request::Record;

/// Formats start times; the part up to the second is made once per second.
#[derive(Debug)]
pub(super) struct Stamp {
    second: u64,
    /// `2024-01-31T12:00:00` of `second`.
    text: [u8; 19],
}

impl Stamp {
    pub(super) fn new() -> Self {
        Self { second: 0, text: date::second(0) }
    }

    pub(super) fn write(&mut self, out: &mut Vec<u8>, time: SystemTime) {
        let (second, millisecond) = date::since_epoch(time);
        if second != self.second {
            *self = Self { second, text: date::second(second) };
        }
        let mut fraction = *b".000Z";
        date::digits(&mut fraction[1..4], u64::from(millisecond));
        out.extend_from_slice(&self.text);
        out.extend_from_slice(&fraction);
    }
}

/// Appends the line of `record`, with its line feed.
pub(super) fn write_line(out: &mut Vec<u8>, stamp: &mut Stamp, record: &Record<'_>) {
    out.push(b'[');
    stamp.write(out, record.start);
    out.extend_from_slice(b"] \"");
    bare(out, record.method.as_bytes());
    out.push(b' ');
    bare(out, record.path.as_bytes());
    out.push(b' ');
    ours(out, record.protocol.as_bytes());
    out.extend_from_slice(b"\" ");
    write_outcome(out, record);
    write_sizes(out, record);
    write_request(out, record);
    write_route(out, record);
    out.push(b'\n');
}

fn write_outcome(out: &mut Vec<u8>, record: &Record<'_>) {
    number(out, record.status.into());
    out.push(b' ');
    record.flags.write(out);
    out.push(b' ');
    ours(out, record.details.as_bytes());
    out.push(b' ');
    field(out, record.termination_details.as_bytes());
    quoted(out, record.upstream_failure.as_bytes());
}

fn write_sizes(out: &mut Vec<u8>, record: &Record<'_>) {
    number(out, record.bytes_received);
    out.push(b' ');
    number(out, record.bytes_sent);
    out.push(b' ');
    number(out, milliseconds(record.duration));
    out.push(b' ');
    match record.upstream_time {
        Some(time) => number(out, milliseconds(time)),
        None => out.push(b'-'),
    }
    out.push(b' ');
}

fn write_request(out: &mut Vec<u8>, record: &Record<'_>) {
    quoted(out, record.forwarded_for);
    quoted(out, record.user_agent);
    out.push(b'"');
    ours(out, record.request_id);
    out.extend_from_slice(b"\" ");
    quoted(out, record.authority.as_bytes());
}

fn write_route(out: &mut Vec<u8>, record: &Record<'_>) {
    out.push(b'"');
    address(out, record.upstream_host);
    out.extend_from_slice(b"\" ");
    field(out, record.upstream_cluster.as_bytes());
    for end in [record.upstream_local, record.downstream_local, record.downstream_remote] {
        address(out, end);
        out.push(b' ');
    }
    field(out, record.server_name.as_bytes());
    bare(out, record.route_name.as_bytes());
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn address(out: &mut Vec<u8>, address: Option<Address>) {
    let address = match address {
        Some(Address::Ip(address)) => address,
        Some(Address::Pipe(path)) => return bare(out, path.as_str().as_bytes()),
        None => return out.push(b'-'),
    };
    let IpAddr::V4(ip) = address.ip() else {
        // Rare enough for the slow way; writing into a vector cannot fail.
        let _ = write!(out, "{address}");
        return;
    };
    // Put together apart, so that the buffer is asked for room once.
    let mut text = [0; "255.255.255.255:".len()];
    let mut end = 0;
    for octet in ip.octets() {
        let (digits, len) = OCTETS[usize::from(octet)];
        text[end..end + 4].copy_from_slice(&digits);
        end += usize::from(len);
    }
    text[end - 1] = b':';
    out.extend_from_slice(&text[..end]);
    number(out, address.port().into());
}

/// Each octet in decimal with a dot behind it, and how long that is: four are copied in the time
/// that one takes to be divided.
static OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([b'.'; 4], 0); 256];
    let mut octet: u8 = 0;
    loop {
        let (digits, len) = &mut octets[octet as usize];
        let mut unit = 100;
        while unit > 0 {
            if octet >= unit || unit == 1 {
                digits[*len as usize] = b'0' + octet / unit % 10;
                *len += 1;
            }
            unit /= 10;
        }
        *len += 1;
        if octet == u8::MAX {
            break octets;
        }
        octet += 1;
    }
};

/// A value that the gateway made, so that there is nothing in it to escape.
fn ours(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(if value.is_empty() { b"-" } else { value });
}

/// An unquoted value and the space behind it.
fn field(out: &mut Vec<u8>, value: &[u8]) {
    bare(out, value);
    out.push(b' ');
}

fn bare(out: &mut Vec<u8>, value: &[u8]) {
    escaped(out, value, |word| harmful(word) | equal(word, b' '));
}

/// A value in quotes and the space behind it.
fn quoted(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    escaped(out, value, harmful);
    out.extend_from_slice(b"\" ");
}

/// Appends `value`, or `-` when it is empty, without what is `harmful`.
fn escaped(out: &mut Vec<u8>, value: &[u8], harmful: impl Fn(u64) -> u64) {
    if value.is_empty() {
        return out.push(b'-');
    }
    if has_none(value, &harmful) {
        out.extend_from_slice(value);
    } else {
        escape(out, value, harmful);
    }
}

/// Whether nothing in `value` is `harmful`. Nearly always so, and eight bytes at a time say it.
pub(super) fn has_none(value: &[u8], harmful: impl Fn(u64) -> u64) -> bool {
    let look = |found, word: &[u8; 8]| found | harmful(u64::from_ne_bytes(*word));
    // The last eight may have been looked at in part: cheaper than to copy the rest.
    if let Some(last) = value.last_chunk() {
        let (words, _) = value.as_chunks();
        return words.iter().fold(look(0, last), look) == 0;
    }
    let mut few = [b'a'; 8];
    few.iter_mut().zip(value).for_each(|(place, byte)| *place = *byte);
    look(0, &few) == 0
}

fn escape(out: &mut Vec<u8>, value: &[u8], harmful: impl Fn(u64) -> u64) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in value {
        if harmful(EACH * u64::from(*byte)) == 0 {
            out.push(*byte);
        } else {
            out.extend_from_slice(b"\\x");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
}

/// A one in each of the eight bytes of a word.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Not 0 if one of the eight bytes could end a quoted value or a line: if it is no visible ASCII
/// nor a space, or a quote or a backslash.
pub(super) fn harmful(word: u64) -> u64 {
    let control = word.wrapping_sub(EACH * u64::from(b' ')) & !word & (EACH << 7);
    let beyond = (word | word.wrapping_add(EACH)) & (EACH << 7);
    control | beyond | equal(word, b'"') | equal(word, b'\\')
}

/// Not 0 if one of the eight bytes is `byte`.
fn equal(word: u64, byte: u8) -> u64 {
    let difference = word ^ (EACH * u64::from(byte));
    difference.wrapping_sub(EACH) & !difference & (EACH << 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PipePath;
    use crate::telemetry::request::Flags;
    use std::time::UNIX_EPOCH;

    fn line(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        write_line(&mut out, &mut Stamp::new(), record);
        String::from_utf8(out).unwrap()
    }

    fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_706_702_400_123)
    }

    #[test]
    fn a_proxied_request() {
        let record = Record {
            duration: Duration::from_micros(5_900),
            method: "GET",
            path: "/status/418?a=b",
            protocol: "HTTP/2",
            status: 418,
            details: "via_upstream",
            bytes_received: 0,
            bytes_sent: 135,
            upstream_time: Some(Duration::from_millis(4)),
            forwarded_for: b"192.0.2.1",
            user_agent: b"curl/8.0 (x)",
            request_id: b"6a1c",
            authority: "httpbin.example.com:8443",
            upstream_host: Some(([127, 0, 0, 1], 8000).into()),
            upstream_cluster: "outbound|8000||httpbin.default.svc.cluster.local",
            upstream_local: Some(([127, 0, 0, 1], 40000).into()),
            downstream_local: Some((std::net::Ipv6Addr::LOCALHOST, 8443).into()),
            downstream_remote: Some(([192, 0, 2, 1], 50000).into()),
            server_name: "httpbin.example.com",
            ..Record::new(noon())
        };
        let expected = "[2024-01-31T12:00:00.123Z] \"GET /status/418?a=b HTTP/2\" 418 - \
            via_upstream - \"-\" 0 135 5 4 \"192.0.2.1\" \"curl/8.0 (x)\" \"6a1c\" \
            \"httpbin.example.com:8443\" \"127.0.0.1:8000\" \
            outbound|8000||httpbin.default.svc.cluster.local 127.0.0.1:40000 [::1]:8443 \
            192.0.2.1:50000 httpbin.example.com -\n";
        assert_eq!(line(&record), expected);
    }

    #[test]
    fn a_connection_without_a_server() {
        let record = Record {
            flags: Flags::NO_ROUTE,
            details: "filter_chain_not_found",
            ..Record::new(noon())
        };
        let expected = "[2024-01-31T12:00:00.123Z] \"- - -\" 0 NR filter_chain_not_found - \"-\" \
            0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - - - -\n";
        assert_eq!(line(&record), expected);
    }

    #[test]
    fn every_octet_is_written_as_others_write_it() {
        for octet in 0..=u8::MAX {
            let end = std::net::SocketAddr::from(([octet, 0, octet, 255], 80));
            let mut out = Vec::new();
            address(&mut out, Some(end.into()));
            assert_eq!(String::from_utf8(out).unwrap(), end.to_string());
        }
    }

    #[test]
    fn a_path_of_a_socket_stays_one_field() {
        let socket = |path| Some(Address::Pipe(PipePath::new(path).unwrap()));
        let ends = Record { upstream_local: socket("@a"), ..Record::new(noon()) };
        let line = line(&Record { upstream_host: socket("/run/a b\".sock"), ..ends });
        assert!(line.ends_with("\"/run/a\\x20b\\x22.sock\" - @a - - - -\n"), "{line}");
    }

    #[test]
    fn the_network_cannot_forge_a_line() {
        let record = Record {
            path: "/a b\"c\\",
            user_agent: b"x\" 200\r\n[2024\x00\x7f\xff ok",
            server_name: "a b",
            ..Record::new(noon())
        };
        let line = line(&record);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains("\"- /a\\x20b\\x22c\\x5C -\""), "{line}");
        assert!(line.contains("\"x\\x22 200\\x0D\\x0A[2024\\x00\\x7F\\xFF ok\""), "{line}");
        assert!(line.contains(" a\\x20b -\n"), "{line}");
    }

    #[test]
    fn every_harmful_byte_is_escaped_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let is_harmful = !(b' '..=b'~').contains(&byte) || matches!(byte, b'"' | b'\\');
            for (at, length) in [(0, 1), (0, 8), (7, 8), (3, 13), (12, 13)] {
                for neighbour in [b'!', b'~', b'#', b'a'] {
                    let mut value = vec![neighbour; length];
                    value[at] = byte;
                    let (mut in_quotes, mut unquoted) = (Vec::new(), Vec::new());
                    escaped(&mut in_quotes, &value, harmful);
                    bare(&mut unquoted, &value);
                    let intact = |out: Vec<u8>| out == value;
                    assert_eq!(intact(in_quotes), !is_harmful, "{byte} at {at} of {length}");
                    assert_eq!(intact(unquoted), !is_harmful && byte != b' ', "{byte}");
                }
            }
        }
    }

    #[test]
    fn the_stamp_follows_the_clock_both_ways() {
        let mut stamp = Stamp::new();
        let mut out = Vec::new();
        for seconds in [0, 61, 61, 60] {
            stamp.write(&mut out, UNIX_EPOCH + Duration::from_secs(seconds));
            out.push(b' ');
        }
        let expected = "1970-01-01T00:00:00.000Z 1970-01-01T00:01:01.000Z \
            1970-01-01T00:01:01.000Z 1970-01-01T00:01:00.000Z ";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
