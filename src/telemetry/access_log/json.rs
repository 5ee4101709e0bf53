//! An access log line as a JSON object with Istio's keys, for `access_log.format: json`.
//!
//! - Numbers are those that Envoy writes as numbers; `upstream_service_time` is a header's value
//!   and so a string, as there. What there was not is `null`; no flags are `"-"`.
//! - Every line is valid JSON and printable ASCII, whatever the network sent: other characters are
//!   escaped, and bytes that are not UTF-8 become U+FFFD.
//! - Formatting allocates nothing but the growth of the buffer.

use super::text::{Stamp, address, harmful, has_none, milliseconds, number};
use crate::address::Address;
use crate::telemetry::request::Record;

/// Appends the line of `record`, with its line feed.
pub(super) fn write_line(out: &mut Vec<u8>, stamp: &mut Stamp, record: &Record<'_>) {
    out.extend_from_slice(b"{\"start_time\":\"");
    stamp.write(out, record.start);
    out.push(b'"');
    write_request(out, record);
    write_outcome(out, record);
    write_sizes(out, record);
    write_ends(out, record);
    write_names(out, record);
    out.extend_from_slice(b"}\n");
}

fn write_request(out: &mut Vec<u8>, record: &Record<'_>) {
    for (key, value) in [
        (&b",\"method\":"[..], record.method.as_bytes()),
        (b",\"path\":", record.path.as_bytes()),
        (b",\"protocol\":", record.protocol.as_bytes()),
        (b",\"authority\":", record.authority.as_bytes()),
        (b",\"user_agent\":", record.user_agent),
        (b",\"x_forwarded_for\":", record.forwarded_for),
        (b",\"request_id\":", record.request_id),
    ] {
        out.extend_from_slice(key);
        string(out, value);
    }
}

fn write_outcome(out: &mut Vec<u8>, record: &Record<'_>) {
    out.extend_from_slice(b",\"response_code\":");
    number(out, record.status.into());
    out.extend_from_slice(b",\"response_flags\":\"");
    record.flags.write(out);
    out.push(b'"');
    for (key, value) in [
        (&b",\"response_code_details\":"[..], record.details),
        (b",\"connection_termination_details\":", record.termination_details),
        (b",\"upstream_transport_failure_reason\":", record.upstream_failure),
    ] {
        out.extend_from_slice(key);
        string(out, value.as_bytes());
    }
}

fn write_sizes(out: &mut Vec<u8>, record: &Record<'_>) {
    out.extend_from_slice(b",\"bytes_received\":");
    number(out, record.bytes_received);
    out.extend_from_slice(b",\"bytes_sent\":");
    number(out, record.bytes_sent);
    out.extend_from_slice(b",\"duration\":");
    number(out, milliseconds(record.duration));
    out.extend_from_slice(b",\"upstream_service_time\":");
    match record.upstream_time {
        Some(time) => {
            out.push(b'"');
            number(out, milliseconds(time));
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

fn write_ends(out: &mut Vec<u8>, record: &Record<'_>) {
    for (key, end) in [
        (&b",\"upstream_host\":"[..], record.upstream_host),
        (b",\"upstream_local_address\":", record.upstream_local),
        (b",\"downstream_local_address\":", record.downstream_local),
        (b",\"downstream_remote_address\":", record.downstream_remote),
    ] {
        out.extend_from_slice(key);
        match end {
            Some(Address::Ip(_)) => {
                out.push(b'"');
                address(out, end);
                out.push(b'"');
            }
            Some(Address::Pipe(path)) => string(out, path.as_str().as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
    }
}

fn write_names(out: &mut Vec<u8>, record: &Record<'_>) {
    for (key, value) in [
        (&b",\"upstream_cluster\":"[..], record.upstream_cluster),
        (b",\"requested_server_name\":", record.server_name),
        (b",\"route_name\":", record.route_name),
    ] {
        out.extend_from_slice(key);
        string(out, value.as_bytes());
    }
}

/// `value` as a string, or `null` when it is empty; harmless bytes are copied at once.
fn string(out: &mut Vec<u8>, value: &[u8]) {
    if value.is_empty() {
        return out.extend_from_slice(b"null");
    }
    out.push(b'"');
    if has_none(value, harmful) {
        out.extend_from_slice(value);
    } else {
        escape(out, value);
    }
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        chunk.valid().chars().for_each(|character| escaped(out, character));
        if !chunk.invalid().is_empty() {
            unit(out, 0xfffd);
        }
    }
}

fn escaped(out: &mut Vec<u8>, character: char) {
    match character {
        '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
        ' '..='~' => out.push(character as u8),
        _ => character.encode_utf16(&mut [0; 2]).iter().for_each(|code| unit(out, *code)),
    }
}

/// `\u00e9`: a code unit of UTF-16.
fn unit(out: &mut Vec<u8>, code: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u");
    out.extend([12, 8, 4, 0].map(|shift| HEX[usize::from(code >> shift & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::request::Flags;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::time::{Duration, UNIX_EPOCH};

    fn line(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        write_line(&mut out, &mut Stamp::new(), record);
        String::from_utf8(out).unwrap()
    }

    fn parsed(record: &Record<'_>) -> Value {
        let line = line(record);
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{line:?}");
        assert_eq!(line.find('\n'), Some(line.len() - 1), "{line:?}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[test]
    fn a_path_of_a_socket_is_a_string() {
        let path = crate::address::PipePath::new("/run/a \"b.sock").unwrap();
        let line =
            line(&Record { upstream_host: Some(Address::Pipe(path)), ..Record::new(UNIX_EPOCH) });
        assert!(line.contains(r#""upstream_host":"/run/a \"b.sock","#), "{line}");
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
            bytes_received: 7,
            bytes_sent: 135,
            upstream_time: Some(Duration::from_millis(4)),
            forwarded_for: b"192.0.2.1",
            user_agent: b"curl/8.0 \"x\"",
            request_id: b"6a1c",
            authority: "httpbin.example.com:8443",
            upstream_host: Some(([127, 0, 0, 1], 8000).into()),
            upstream_cluster: "outbound|8000||httpbin.default.svc.cluster.local",
            upstream_local: Some(([127, 0, 0, 1], 40000).into()),
            downstream_local: Some((std::net::Ipv6Addr::LOCALHOST, 8443).into()),
            downstream_remote: Some(([192, 0, 2, 1], 50000).into()),
            server_name: "httpbin.example.com",
            route_name: "first",
            ..Record::new(UNIX_EPOCH + Duration::from_millis(1_706_702_400_123))
        };
        let expected = json!({
            "start_time": "2024-01-31T12:00:00.123Z",
            "route_name": "first",
            "method": "GET",
            "path": "/status/418?a=b",
            "protocol": "HTTP/2",
            "response_code": 418,
            "response_flags": "-",
            "response_code_details": "via_upstream",
            "connection_termination_details": null,
            "bytes_received": 7,
            "bytes_sent": 135,
            "duration": 5,
            "upstream_service_time": "4",
            "x_forwarded_for": "192.0.2.1",
            "user_agent": "curl/8.0 \"x\"",
            "request_id": "6a1c",
            "authority": "httpbin.example.com:8443",
            "upstream_host": "127.0.0.1:8000",
            "upstream_cluster": "outbound|8000||httpbin.default.svc.cluster.local",
            "upstream_local_address": "127.0.0.1:40000",
            "downstream_local_address": "[::1]:8443",
            "downstream_remote_address": "192.0.2.1:50000",
            "requested_server_name": "httpbin.example.com",
            "upstream_transport_failure_reason": null,
        });
        assert_eq!(parsed(&record), expected);
    }

    #[test]
    fn what_there_was_not_is_null() {
        let details = "filter_chain_not_found";
        let record = Record { flags: Flags::NO_ROUTE, details, ..Record::new(UNIX_EPOCH) };
        let found = parsed(&record);
        for (key, value) in found.as_object().unwrap() {
            let expected = match key.as_str() {
                "start_time" => json!("1970-01-01T00:00:00.000Z"),
                "response_code" | "bytes_received" | "bytes_sent" | "duration" => json!(0),
                "response_flags" => json!("NR"),
                "response_code_details" => json!(details),
                _ => Value::Null,
            };
            assert_eq!(*value, expected, "{key}");
        }
    }

    #[test]
    fn what_is_not_ascii_is_escaped() {
        let escaped = |value: &[u8]| {
            let mut out = Vec::new();
            string(&mut out, value);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(escaped("é\u{1f375}".as_bytes()), r#""\u00e9\ud83c\udf75""#);
        assert_eq!(escaped(b"a\n\x00\x7f\\\"b"), r#""a\u000a\u0000\u007f\\\"b""#);
        assert_eq!(escaped(b"a\xff\xc3"), r#""a\ufffd\ufffd""#);
    }

    proptest! {
        #[test]
        fn every_line_is_json_that_says_what_was_sent(
            bytes in proptest::collection::vec(any::<u8>(), 1..60),
            text in "\\PC{1,20}|[\\x00-\\x7f]{1,20}",
        ) {
            let record = Record {
                user_agent: &bytes,
                forwarded_for: &bytes,
                request_id: &bytes,
                method: &text,
                path: &text,
                authority: &text,
                server_name: &text,
                route_name: &text,
                upstream_failure: &text,
                ..Record::new(UNIX_EPOCH)
            };
            let found = parsed(&record);
            let lossy = String::from_utf8_lossy(&bytes);
            for key in ["user_agent", "x_forwarded_for", "request_id"] {
                prop_assert_eq!(found[key].as_str(), Some(&*lossy));
            }
            for key in ["method", "path", "authority", "requested_server_name", "route_name"] {
                prop_assert_eq!(found[key].as_str(), Some(text.as_str()));
            }
        }
    }
}
