//! From a value as written to a value as used. An error says what would have been right, to be
//! read as `<key>: <error>, not <value>`.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Network;
use super::written::Value;

/// More workers than this is a typo: no machine has as many CPUs for one process.
const WORKERS_MAX: usize = 1024;

/// Real chains of proxies are far shorter: more hops is a typo.
pub(super) const PROXIES_MAX: u32 = 100;

/// hyper refuses to work with a smaller buffer for a request head.
const HEAD_BYTES_MIN: usize = 8 * 1024;

/// Heads are held in memory for every open request.
const HEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What the `http` crate's map of headers can hold.
const HEADER_FIELDS_MAX: usize = 24 * 1024;

/// Most of a request body that is kept for another attempt; every request under way may take it.
const RETRY_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The initial window of RFC 9113, which a connection's cannot go below.
const H2_WINDOW_MIN: u32 = 65_535;

/// The largest window of RFC 9113.
const H2_WINDOW_MAX: u32 = i32::MAX as u32;

/// Larger than every machine, and far from overflow.
const AMOUNT_MAX: usize = 1_000_000_000;

/// Longer than any uptime; still far from overflow when added to a point in time.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

pub(super) fn auto_or_count(value: &Value) -> Result<Option<usize>, String> {
    if is_word(value, "auto") {
        return Ok(None);
    }
    let expected = |_| format!("must be `auto` or a number from 1 to {WORKERS_MAX}");
    number(value, 1..=WORKERS_MAX).map(Some).map_err(expected)
}

pub(super) fn auto_or_bool(value: &Value) -> Result<Option<bool>, String> {
    if let Value::Bool(value) = value {
        return Ok(Some(*value));
    }
    let expected = || "must be `auto`, `true` or `false`".to_owned();
    is_word(value, "auto").then_some(None).ok_or_else(expected)
}

/// The meaning of the one of `names` that stands here, in quotes or not.
pub(super) fn one_of<T: Copy>(value: &Value, names: &[(&str, T)]) -> Result<T, String> {
    let written = scalar(value);
    let found = names.iter().find(|(name, _)| Some(*name) == written.as_deref());
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("must be {}", names.join(" or "))
    })
}

pub(super) fn number<T>(value: &Value, range: RangeInclusive<T>) -> Result<T, String>
where
    T: Copy + Display + PartialOrd + TryFrom<i64>,
{
    let number = if let Value::Integer(number) = value { T::try_from(*number).ok() } else { None };
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
}

pub(super) fn amount(value: &Value) -> Result<usize, String> {
    number(value, 1..=AMOUNT_MAX)
}

pub(super) fn amount_or_zero(value: &Value) -> Result<usize, String> {
    number(value, 0..=AMOUNT_MAX)
}

pub(super) fn retry_body_bytes(value: &Value) -> Result<usize, String> {
    size(value, 0..=RETRY_BODY_BYTES_MAX)
}

pub(super) fn header_fields(value: &Value) -> Result<usize, String> {
    number(value, 1..=HEADER_FIELDS_MAX)
}

pub(super) fn h2_streams(value: &Value) -> Result<u32, String> {
    number(value, 1..=H2_WINDOW_MAX)
}

pub(super) fn h2_window(value: &Value) -> Result<u32, String> {
    let bytes = size(value, H2_WINDOW_MIN as usize..=H2_WINDOW_MAX as usize)?;
    Ok(u32::try_from(bytes).expect("it is at most H2_WINDOW_MAX"))
}

pub(super) fn head_bytes(value: &Value) -> Result<usize, String> {
    size(value, HEAD_BYTES_MIN..=HEAD_BYTES_MAX)
}

/// Bytes, as a number or with one of the units `KiB`, `MiB` and `GiB`.
fn size(value: &Value, range: RangeInclusive<usize>) -> Result<usize, String> {
    const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let bytes = match value {
        Value::Integer(bytes) => usize::try_from(*bytes).ok(),
        Value::Text(text) => in_units(text, &UNITS).and_then(|bytes| usize::try_from(bytes).ok()),
        Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Mapping(_) | Value::Nothing => {
            None
        }
    };
    bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
        let (start, end) = (range.start(), range.end());
        format!("must be bytes or a size such as `64KiB`, from {start} to {end} bytes")
    })
}

pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let millis = if let Value::Text(text) = value { in_units(text, &UNITS) } else { None };
    millis
        .map(Duration::from_millis)
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "must be a duration such as `500ms`, `15s`, `1m` or `1h`".to_owned())
}

pub(super) fn duration_above_zero(value: &Value) -> Result<Duration, String> {
    let duration = duration(value)?;
    if duration.is_zero() {
        return Err("must be longer than nothing".to_owned());
    }
    Ok(duration)
}

/// A whole number directly followed by one of the units.
fn in_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

pub(super) fn port(value: &Value) -> Result<u16, String> {
    number(value, 1..=u16::MAX)
}

pub(super) fn port_or_zero(value: &Value) -> Result<u16, String> {
    number(value, 0..=u16::MAX)
}

pub(super) fn ip_address(value: &Value) -> Result<IpAddr, String> {
    let expected = "must be an IP address such as `0.0.0.0` or `::`";
    text(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| expected.to_owned())
}

/// An address, or a range of them.
pub(super) fn network(value: &Value) -> Result<Network, String> {
    let parse = |text: String| {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.as_str(), None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
        (prefix <= bits).then_some(Network { address, prefix })
    };
    let expected = "must be an IP address or a range of them such as `10.0.0.0/8`";
    text(value).ok().and_then(parse).ok_or_else(|| expected.to_owned())
}

/// A DNS server, on port 53 unless it says otherwise.
pub(super) fn dns_server(value: &Value) -> Result<SocketAddr, String> {
    let expected =
        "must be an IP address such as `10.0.0.10`, or one with a port, `10.0.0.10:5353`";
    let parse = |text: String| {
        let address = text.parse().map(|address: IpAddr| SocketAddr::new(address, 53));
        address.or_else(|_| text.parse()).ok()
    };
    text(value).ok().and_then(parse).ok_or_else(|| expected.to_owned())
}

pub(super) fn socket_address(value: &Value) -> Result<SocketAddr, String> {
    let expected = "must be an IP address and port such as `127.0.0.1:15000` or `[::1]:15000`";
    text(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| expected.to_owned())
}

/// Text that YAML does not take for something else.
pub(super) fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Float(_) | Value::Integer(_) => {
            Err("must be text, put it in quotes".to_owned())
        }
        Value::List(_) | Value::Mapping(_) | Value::Nothing => Err("must be text".to_owned()),
    }
}

/// A name of Kubernetes.
pub(super) fn name(value: &Value) -> Result<String, String> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let name = scalar(value).filter(|name| !name.is_empty() && name.bytes().all(legal));
    name.ok_or_else(|| "must be a name of lower-case letters, digits and `-`".to_owned())
}

const LOCALITY: &str = "must be a region, or `region/zone`, or `region/zone/subzone`";

/// Where something is; nothing is not known.
pub(super) fn locality(value: &Value) -> Result<String, String> {
    let is_good = |text: &String| {
        let parts = text.split('/');
        text.is_empty() || parts.clone().count() <= 3 && !parts.into_iter().any(str::is_empty)
    };
    let locality = text(value)?;
    Some(locality).filter(is_good).ok_or_else(|| LOCALITY.to_owned())
}

/// The same as somebody else has put it together, who may not have known each part.
pub(super) fn locality_told(told: &str) -> Result<String, String> {
    if told.split('/').count() > 3 {
        return Err(format!("{LOCALITY}, not `{told}`"));
    }
    Ok(told.trim_end_matches('/').to_owned())
}

pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    let path = text(value).ok().filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| "must be a path".to_owned())
}

/// `off` and the empty path mean: none.
pub(super) fn path_or_off(value: &Value) -> Result<Option<PathBuf>, String> {
    // YAML 1.1 takes a bare `off` for `false`.
    let is_off = matches!(value, Value::Nothing | Value::Bool(false))
        || is_word(value, "off")
        || is_word(value, "");
    if is_off {
        return Ok(None);
    }
    path(value).map(Some).map_err(|_| "must be a path or `off`".to_owned())
}

fn is_word(value: &Value, word: &str) -> bool {
    matches!(value, Value::Text(text) if text == word)
}

/// A single value as text, whatever YAML took it for.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(_) | Value::Float(_) | Value::Integer(_) | Value::Text(_) => {
            Some(value.to_string())
        }
        Value::List(_) | Value::Mapping(_) | Value::Nothing => None,
    }
}
