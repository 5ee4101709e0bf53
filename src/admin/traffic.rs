//! What a DestinationRule asks of a cluster, as `/config_dump` shows it. What is not said is left
//! out.

use serde_json::{Map, Value, json};

use crate::snapshot::{
    Balance, Group, GroupOrder, Grouping, HashKey, HashPolicy, OutlierDetection, PoolLimits,
    ProtocolChoice, ProxyVersion, Spread, Traffic,
};

/// All of it.
pub(super) fn dump(traffic: &Traffic) -> Value {
    let policy = &traffic.policy;
    let warmup = policy.warmup.map(|warmup| {
        json!({
            "duration_ms": milliseconds(warmup.duration),
            "minimum_percent": warmup.minimum_percent,
            "aggression": warmup.aggression,
        })
    });
    let budget = policy
        .retry_budget
        .map(|budget| json!({ "percent": budget.percent, "retries_min": budget.retries_min }));
    said([
        ("balance", Some(balance(&policy.balance))),
        ("weights", (!traffic.weights.is_empty()).then(|| json!(traffic.weights))),
        ("groups", traffic.grouping.as_deref().map(groups)),
        ("warmup", warmup),
        ("limits", Some(limits(&policy.pool))),
        ("outlier_detection", policy.outliers.as_ref().map(outliers)),
        ("retry_budget", budget),
        (
            "proxy_protocol",
            policy.proxy_protocol.map(|version| match version {
                ProxyVersion::V1 => json!("V1"),
                ProxyVersion::V2 => json!("V2"),
            }),
        ),
    ])
}

/// The groups, with the places of their endpoints in the cluster's list.
fn groups(grouping: &Grouping) -> Value {
    let group = |group: &Group| json!({ "weight": group.weight, "endpoints": group.places });
    let groups: Vec<_> = grouping.groups.iter().map(group).collect();
    match grouping.order {
        GroupOrder::Nearest => json!({ "nearest_first": groups }),
        GroupOrder::Shares => json!({ "by_weight": groups }),
    }
}

fn said<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(fields.collect::<Map<_, _>>())
}

fn milliseconds(duration: std::time::Duration) -> String {
    duration.as_millis().to_string()
}

fn balance(balance: &Balance) -> Value {
    match balance {
        Balance::LeastRequest => json!("LEAST_REQUEST"),
        Balance::RoundRobin => json!("ROUND_ROBIN"),
        Balance::Random => json!("RANDOM"),
        Balance::Hash(HashPolicy { key, spread }) => {
            let key = match key {
                HashKey::Header(name) => json!({ "header": name.as_str() }),
                HashKey::Cookie(cookie) => json!({ "cookie": cookie.name }),
                HashKey::SourceAddress => json!("source address"),
                HashKey::QueryParameter(name) => json!({ "query_parameter": name }),
            };
            let spread = match spread {
                Spread::Ring(points) => json!({ "ring": points }),
                Spread::Maglev(size) => json!({ "maglev": size }),
            };
            json!({ "hash": { "key": key, "spread": spread } })
        }
    }
}

fn limits(pool: &PoolLimits) -> Value {
    let count = |limit: Option<u32>| limit.map(|limit| json!(limit));
    let time = |limit: Option<_>| limit.map(|limit| json!(milliseconds(limit)));
    let protocol = match pool.protocol {
        ProtocolChoice::OfPort | ProtocolChoice::Http2 => None,
        ProtocolChoice::OfClient => Some(json!("the client's")),
    };
    said([
        ("connections_max", count(pool.connections_max)),
        ("connection_age_max_ms", time(pool.connection_age_max)),
        ("tcp_idle_timeout_ms", time(pool.tcp_idle_timeout)),
        ("pending_max", count(pool.pending_max)),
        ("requests_max", count(pool.requests_max)),
        ("requests_per_connection_max", count(pool.requests_per_connection_max)),
        ("retries_max", count(pool.retries_max)),
        ("idle_timeout_ms", time(pool.idle_timeout)),
        ("streams_max", count(pool.streams_max)),
        ("ping_interval_ms", time(pool.pings.map(|pings| pings.interval))),
        ("ping_timeout_ms", time(pool.pings.map(|pings| pings.timeout))),
        ("protocol", protocol),
    ])
}

fn outliers(detection: &OutlierDetection) -> Value {
    json!({
        "server_errors": detection.server_errors,
        "gateway_errors": detection.gateway_errors,
        "local_failures": detection.local_failures,
        "splits_local": detection.splits_local,
        "interval_ms": milliseconds(detection.interval),
        "ejection_time_ms": milliseconds(detection.ejection_time),
        "ejected_percent_max": detection.ejected_percent_max,
        "healthy_percent_min": detection.healthy_percent_min,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TrafficPolicy;

    #[test]
    fn what_is_not_said_is_left_out() {
        let mut policy = TrafficPolicy { balance: Balance::RoundRobin, ..TrafficPolicy::default() };
        policy.pool.connections_max = Some(7);
        let shown = dump(&Traffic::new(policy, Box::default(), None));
        assert_eq!(shown, json!({ "balance": "ROUND_ROBIN", "limits": { "connections_max": 7 } }));
    }

    #[test]
    fn a_hash_is_shown_with_its_key_and_its_table() {
        let hash = HashPolicy { key: HashKey::SourceAddress, spread: Spread::Maglev(251) };
        let policy = TrafficPolicy {
            balance: Balance::Hash(hash),
            outliers: Some(OutlierDetection::default()),
            ..TrafficPolicy::default()
        };
        let shown = dump(&Traffic::new(policy, [1, 3].into(), None));
        let hash = json!({ "hash": { "key": "source address", "spread": { "maglev": 251 } } });
        assert_eq!(shown["balance"], hash);
        assert_eq!(shown["weights"], json!([1, 3]));
        assert_eq!(shown["outlier_detection"]["ejection_time_ms"], "30000");
    }

    #[test]
    fn groups_are_shown_by_the_places_of_their_endpoints() {
        let group = |places: &[usize]| Group {
            weight: 1,
            places: places.into(),
            traffic: Traffic::default(),
        };
        let groups = [group(&[1]), group(&[0, 2])].into();
        let grouping = Some(Box::new(Grouping { order: GroupOrder::Nearest, groups }));
        let shown = dump(&Traffic { grouping, ..Traffic::default() });
        let expected = json!({ "nearest_first": [
            { "weight": 1, "endpoints": [1] },
            { "weight": 1, "endpoints": [0, 2] },
        ] });
        assert_eq!(shown["groups"], expected);
    }
}
