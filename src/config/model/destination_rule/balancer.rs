//! `loadBalancer` of a policy.

use ::http::HeaderName;

use crate::config::model::fields::{Field, Fields, Problems};
use crate::config::model::locality::{self, LocalityRule};
use crate::snapshot::{Balance, HashCookie, HashKey, HashPolicy, Spread, Warmup};

/// Istio's, for a ring that does not say its size.
const RING_SIZE: u32 = 1024;

/// More points would be no better spread.
const RING_SIZE_MAX: u32 = 1 << 20;

/// Istio's bound of Maglev's table; itself a prime.
const TABLE_SIZE_MAX: u32 = 5_000_011;

/// Istio's, for a table that does not say its size.
const TABLE_SIZE: u32 = 65_537;

/// The share of a new endpoint that Istio begins with.
const WARMUP_PERCENT: f64 = 10.0;

/// What a policy says of the choice of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Balancer {
    pub(crate) balance: Balance,
    pub(crate) warmup: Option<Warmup>,
    /// `None` for the nearest endpoints, where outliers are detected.
    pub(crate) locality: Option<LocalityRule>,
}

pub(super) fn read(
    field: &Field<'_>,
    has_outliers: bool,
    problems: &mut Problems,
) -> Option<Balancer> {
    let mut fields = field.fields(problems)?;
    let (simple, hash) = (fields.take("simple"), fields.take("consistentHash"));
    if let (Some(_), Some(hash)) = (&simple, &hash) {
        problems.error(hash, "there may be `simple` or `consistentHash`, not both", "");
    }
    let simple = simple.map(|field| read_simple(&field, problems));
    let hash = hash.map(|field| read_hash(&field, problems));
    let locality = fields.take("localityLbSetting");
    let locality = locality.map(|field| locality::read_rule(&field, has_outliers, problems));
    let zones = fields.take("zoneAwareLbSetting");
    if let (Some(_), Some(zones)) = (&locality, &zones) {
        problems.error(zones, "cannot stand beside `localityLbSetting`", "");
    }
    let zones = zones.map(|field| locality::read_zone_rule(&field, has_outliers, problems));
    let warmup = fields.take("warmup").map(|field| read_warmup(&field, problems));
    let old = fields.take("warmupDurationSecs");
    let old = old.map(|field| {
        let duration = field.duration(problems)?;
        Some(Warmup { duration, minimum_percent: WARMUP_PERCENT, aggression: 1.0 })
    });
    fields.finish(problems);
    Some(Balancer {
        balance: hash.or(simple).unwrap_or_else(|| Some(Balance::default()))?,
        warmup: warmup.or(old).map_or(Some(None), |warmup| warmup.map(Some))?,
        locality: locality.or(zones).flatten(),
    })
}

fn read_simple(field: &Field<'_>, problems: &mut Problems) -> Option<Balance> {
    let choices = [
        ("LEAST_REQUEST", "LEAST_REQUEST"),
        ("ROUND_ROBIN", "ROUND_ROBIN"),
        ("RANDOM", "RANDOM"),
        ("PASSTHROUGH", "PASSTHROUGH"),
        ("UNSPECIFIED", "UNSPECIFIED"),
        ("LEAST_CONN", "LEAST_CONN"),
    ];
    Some(match field.one_of(&choices, problems)? {
        "ROUND_ROBIN" => Balance::RoundRobin,
        "RANDOM" => Balance::Random,
        "PASSTHROUGH" => {
            let cause = "the address that clients ask for is the gateway's own; LEAST_REQUEST is \
                         used";
            problems.warn(field, "PASSTHROUGH has no effect", cause);
            Balance::LeastRequest
        }
        _ => Balance::LeastRequest,
    })
}

fn read_hash(field: &Field<'_>, problems: &mut Problems) -> Option<Balance> {
    let mut fields = field.fields(problems)?;
    let key = read_key(&mut fields, problems);
    let spread = read_spread(&mut fields, problems);
    fields.finish(problems);
    Some(Balance::Hash(HashPolicy { key: key?, spread: spread? }))
}

/// Exactly one.
fn read_key(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<HashKey> {
    let header = fields.take("httpHeaderName");
    let cookie = fields.take("httpCookie");
    let address = fields.take("useSourceIp");
    let parameter = fields.take("httpQueryParameterName");
    let all = [&header, &cookie, &address, &parameter];
    if let Some(second) = all.into_iter().flatten().nth(1) {
        problems.error(second, "there may be only one key", "");
        return None;
    }
    if let Some(header) = header {
        return read_header(&header, problems).map(HashKey::Header);
    }
    if let Some(cookie) = cookie {
        return read_cookie(&cookie, problems).map(|cookie| HashKey::Cookie(Box::new(cookie)));
    }
    if let Some(parameter) = parameter {
        let name = parameter.string(problems)?;
        if name.is_empty() {
            problems.error(&parameter, "must not be empty", "");
        }
        return Some(HashKey::QueryParameter(name.to_owned()));
    }
    if let Some(address) = address
        && address.boolean(problems)?
    {
        return Some(HashKey::SourceAddress);
    }
    let what = "needs `httpHeaderName`, `httpCookie`, `useSourceIp: true` or \
                `httpQueryParameterName`";
    problems.error(&fields.parent, what, "");
    None
}

fn read_header(field: &Field<'_>, problems: &mut Problems) -> Option<HeaderName> {
    let text = field.string(problems)?;
    let name = text.parse().ok();
    if name.is_none() {
        problems.error(field, format!("`{text}` is no name of a header"), "");
    }
    name
}

fn read_cookie(field: &Field<'_>, problems: &mut Problems) -> Option<HashCookie> {
    let mut cookie = field.fields(problems)?;
    let name = cookie.require("name", problems);
    let path = cookie.take("path");
    let ttl = cookie.take("ttl").map(|field| field.duration_or_zero(problems));
    let items = cookie.take("attributes").map(|f| f.items(problems)).unwrap_or_default();
    let attributes: Vec<_> = items.iter().map(|item| read_attribute(item, problems)).collect();
    cookie.finish(problems);
    let path = path.map(|field| read_cookie_text(&field, problems));
    Some(HashCookie {
        name: read_cookie_name(&name?, problems)?,
        path: path.unwrap_or_else(|| Some(String::new()))?,
        ttl: ttl.map_or(Some(None), |ttl| ttl.map(Some))?,
        attributes: attributes.into_iter().collect::<Option<_>>()?,
    })
}

fn read_attribute(item: &Field<'_>, problems: &mut Problems) -> Option<(String, String)> {
    let mut fields = item.fields(problems)?;
    let (name, value) = (fields.require("name", problems), fields.take("value"));
    fields.finish(problems);
    let value = value.map(|field| read_cookie_text(&field, problems));
    Some((read_cookie_name(&name?, problems)?, value.unwrap_or_else(|| Some(String::new()))?))
}

/// A token (RFC 6265, section 4.1.1).
fn read_cookie_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.string(problems)?;
    // A header's name is one, too.
    if text.parse::<HeaderName>().is_err() {
        problems.error(field, format!("`{text}` is no name of a cookie or attribute"), "");
        return None;
    }
    Some(text.to_owned())
}

fn read_cookie_text(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.string(problems)?;
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b';') {
        problems.error(field, "must be printable ASCII without `;`", "");
        return None;
    }
    Some(text.to_owned())
}

fn read_spread(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Spread> {
    let (ring, maglev) = (fields.take("ringHash"), fields.take("maglev"));
    let old = fields.take("minimumRingSize");
    let all = [&ring, &maglev, &old];
    if let Some(second) = all.into_iter().flatten().nth(1) {
        let what = "there may be only one of `ringHash`, `maglev` and `minimumRingSize`";
        problems.error(second, what, "");
        return None;
    }
    if let Some(old) = old {
        return old.integer(0..=RING_SIZE_MAX, problems).map(Spread::Ring);
    }
    if let Some(maglev) = maglev {
        let mut maglev = maglev.fields(problems)?;
        let size = maglev.take("tableSize").map(|field| read_table_size(&field, problems));
        maglev.finish(problems);
        return size.unwrap_or(Some(TABLE_SIZE)).map(Spread::Maglev);
    }
    let Some(ring) = ring else { return Some(Spread::Ring(RING_SIZE)) };
    let mut ring = ring.fields(problems)?;
    let size = ring.take("minimumRingSize").map(|f| f.integer(0..=RING_SIZE_MAX, problems));
    ring.finish(problems);
    size.unwrap_or(Some(RING_SIZE)).map(Spread::Ring)
}

fn read_table_size(field: &Field<'_>, problems: &mut Problems) -> Option<u32> {
    let size = field.integer(2..=TABLE_SIZE_MAX, problems)?;
    let is_prime = (2..).take_while(|n| n * n <= size).all(|n| !size.is_multiple_of(n));
    if !is_prime {
        problems.error(field, format!("must be a prime, not {size}"), "for example 65537");
        return None;
    }
    Some(size)
}

fn read_warmup(field: &Field<'_>, problems: &mut Problems) -> Option<Warmup> {
    let mut fields = field.fields(problems)?;
    let duration = fields.require("duration", problems).map(|field| field.duration(problems));
    let minimum = fields.take("minimumPercent").map(|field| field.number(0.0..=100.0, problems));
    let aggression = fields.take("aggression").map(|field| field.number(1.0..=1000.0, problems));
    fields.finish(problems);
    Some(Warmup {
        duration: duration??,
        minimum_percent: minimum.unwrap_or(Some(WARMUP_PERCENT))?,
        aggression: aggression.unwrap_or(Some(1.0))?,
    })
}
