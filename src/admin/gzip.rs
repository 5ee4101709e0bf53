//! Whether a client takes gzip, and packing a page for it.
//!
//! Deliberately not here: other codings. Prometheus and browsers take this one.

use std::io::Write;

use ::http::{HeaderMap, header};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes from which a page is packed; what is smaller fits into a packet or two as it is.
pub(super) const WORTH_IT: usize = 1024;

/// Whether a client that sent `headers` takes gzip. One that does not say gets it plain, and so
/// does one that says it in a way that is not understood.
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let codings = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let mut any = false;
    for coding in codings {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let name = name.trim();
        if ["gzip", "x-gzip"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return is_wanted(parameters);
        }
        if name == "*" {
            any = is_wanted(parameters);
        }
    }
    any
}

/// Whether a weight is above zero; without one it is 1.
fn is_wanted(parameters: &str) -> bool {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return true;
    }
    let weight =
        parameters.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let weight = weight.and_then(|(_, weight)| weight.trim().parse::<f32>().ok());
    weight.is_some_and(|weight| weight > 0.0)
}

/// `content` packed, in a way that takes little time.
pub(super) fn pack(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(content).and_then(|()| encoder.finish());
    packed.expect("writing to memory does not fail")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use ::http::HeaderValue;
    use flate2::read::GzDecoder;

    use super::*;

    fn accepted(values: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
        }
        is_accepted(&headers)
    }

    #[test]
    fn gzip_is_for_clients_that_name_it() {
        for values in [
            &["gzip"][..],
            &["deflate, gzip, br"],
            &["br", "GZip;q=0.001"],
            &["gzip ; q=1.0"],
            &["x-gzip"],
            &["*"],
            &["*;q=0, gzip"],
            &["identity;q=1, *;q=0.5"],
        ] {
            assert!(accepted(values), "{values:?}");
        }
    }

    #[test]
    fn everyone_else_gets_it_plain() {
        for values in [
            &[][..],
            &[""],
            &["identity"],
            &["br, deflate"],
            &["gzip;q=0"],
            &["gzip; Q=0.000"],
            &["gzip;q=0, *"],
            &["*, gzip;q=0"],
            &["*;q=0"],
            &["gzip;q=much"],
            &["gzip;q=NaN"],
            &["gzip;level=9"],
            &["gzipped"],
        ] {
            assert!(!accepted(values), "{values:?}");
        }
    }

    #[test]
    fn what_is_packed_is_small_and_unpacks_to_the_same() {
        let content = "envoy_cluster_upstream_rq{name=\"a\"} 1\n".repeat(10_000);
        let packed = pack(content.as_bytes());
        assert!(packed.len() * 20 < content.len(), "{}", packed.len());
        let mut unpacked = String::new();
        GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, content);
    }
}
