//! From the localities of endpoints to groups of them, as Istio sends them to Envoy.
//!
//! - With shares, each locality that has one is a group; endpoints elsewhere get nothing.
//! - Else, where outliers are detected, those are a group that are as near to the gateway; without
//!   such detection nobody would know when to go further.
//! - Where regions alone count, each distance between regions is a group, with detection or not.

use std::collections::BTreeMap;

use super::GatewayIdentity;
use super::backend::Candidate;
use crate::config::model::{Distribution, Failover, Locality, LocalityRule};
use crate::snapshot::GroupOrder;

/// Labels that say where an endpoint is, beside what it says of that itself.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// Pods say by this where they are, if they are not where their node is.
const LOCALITY: &str = "istio-locality";

/// The distance to an endpoint of the same region in another zone.
const SAME_REGION: u32 = 2;

/// A group's weight, and the places of its endpoints.
pub(super) type Groups = (GroupOrder, Vec<(u32, Vec<usize>)>);

/// The groups of `endpoints`, if there is anything to choose; those that are in none are removed.
pub(super) fn group<'a>(
    endpoints: &mut Vec<Candidate<'a>>,
    rule: Option<&LocalityRule>,
    detects_outliers: bool,
    gateway: &'a GatewayIdentity,
) -> Option<Groups> {
    let nearest = Failover::default();
    let here = Locality::parse(&gateway.locality);
    for endpoint in endpoints.iter_mut() {
        endpoint.locality = place(endpoint, here);
    }
    match rule {
        Some(LocalityRule::Off) => None,
        Some(LocalityRule::Distribute(ways)) => {
            let way = ways.iter().find(|way| here.is_in(&way.from))?;
            Some((GroupOrder::Shares, distribute(endpoints, way)))
        }
        Some(LocalityRule::Regions(failover)) => {
            let by_region = |there: Locality<'_>| distance(there, failover, here).max(SAME_REGION);
            by_nearness(endpoints, failover, by_region, here, gateway)
        }
        _ if !detects_outliers => None,
        Some(LocalityRule::Failover(failover)) => {
            // As in Istio, labels stand for localities; with regions beside them both count.
            let is_counted = failover.labels.is_empty() || !failover.regions.is_empty();
            let by_place =
                |there: Locality<'_>| if is_counted { distance(there, failover, here) } else { 0 };
            by_nearness(endpoints, failover, by_place, here, gateway)
        }
        None => {
            let by_place = |there: Locality<'_>| distance(there, &nearest, here);
            by_nearness(endpoints, &nearest, by_place, here, gateway)
        }
    }
}

/// Where `endpoint` is: what it says, what its labels say. Kubernetes tells the zone alone; one
/// that is the gateway's is in the gateway's region.
fn place<'a>(endpoint: &Candidate<'a>, here: Locality<'a>) -> Locality<'a> {
    let label = |name| endpoint.labels.get(name).map(String::as_str).unwrap_or_default();
    let Locality { mut region, mut zone, mut subzone } = endpoint.locality;
    let own = label(LOCALITY);
    if region.is_empty() && !own.is_empty() {
        let mut parts = own.splitn(3, ['.', '/']);
        let mut next = || parts.next().unwrap_or_default();
        return Locality { region: next(), zone: next(), subzone: next() };
    }
    if zone.is_empty() {
        zone = label(ZONE);
    }
    if subzone.is_empty() {
        subzone = label(SUBZONE);
    }
    if region.is_empty() {
        region = label(REGION);
    }
    if region.is_empty() && !zone.is_empty() && zone == here.zone {
        region = here.region;
    }
    Locality { region, zone, subzone }
}

/// One group for each locality that has a share, which its endpoints divide by their weights.
fn distribute(endpoints: &mut Vec<Candidate<'_>>, way: &Distribution) -> Vec<(u32, Vec<usize>)> {
    let share_of =
        |locality: Locality<'_>| way.to.iter().position(|(pattern, _)| locality.is_in(pattern));
    endpoints.retain(|endpoint| share_of(endpoint.locality).is_some());
    let mut localities = BTreeMap::<_, Vec<usize>>::new();
    for (place, endpoint) in endpoints.iter().enumerate() {
        localities.entry(endpoint.locality).or_default().push(place);
    }
    let weight = |places: &[usize]| -> u64 {
        places.iter().map(|place| u64::from(endpoints[*place].weight)).sum()
    };
    let mut totals = vec![0; way.to.len()];
    for (locality, places) in &localities {
        totals[share_of(*locality).expect("the others are gone")] += weight(places);
    }
    let groups = localities.into_iter().map(|(locality, places)| {
        let share = share_of(locality).expect("the others are gone");
        let part = weight(&places) * u64::from(way.to[share].1);
        // At most 100: a part of its share.
        (u32::try_from(part.div_ceil(totals[share].max(1))).unwrap_or(100), places)
    });
    groups.collect()
}

/// One group for each distance at which there are endpoints, the nearest first.
fn by_nearness(
    endpoints: &[Candidate<'_>],
    failover: &Failover,
    by_place: impl Fn(Locality<'_>) -> u32,
    here: Locality<'_>,
    gateway: &GatewayIdentity,
) -> Option<Groups> {
    let mut groups = BTreeMap::<_, Vec<usize>>::new();
    for (place, endpoint) in endpoints.iter().enumerate() {
        let by_label = label_distance(endpoint, failover, here, gateway);
        groups.entry((by_label, by_place(endpoint.locality))).or_default().push(place);
    }
    let groups: Vec<_> = groups.into_values().map(|places| (1, places)).collect();
    (groups.len() > 1).then_some((GroupOrder::Nearest, groups))
}

/// From the same subzone to another region, and to one that is not the gateway's to fail over to.
fn distance(there: Locality<'_>, failover: &Failover, here: Locality<'_>) -> u32 {
    if there.region != here.region {
        let to = failover.regions.iter().find(|(from, _)| **from == *here.region);
        return if to.is_some_and(|(_, to)| **to != *there.region) { 4 } else { 3 };
    }
    match (there.zone == here.zone, there.subzone == here.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => SAME_REGION,
    }
}

/// How many labels, from the first that differs on, `endpoint` does not share.
fn label_distance(
    endpoint: &Candidate<'_>,
    failover: &Failover,
    here: Locality<'_>,
    gateway: &GatewayIdentity,
) -> usize {
    let same = failover.labels.iter().take_while(|(name, value)| {
        let wanted = value.as_deref();
        let wanted = wanted.unwrap_or_else(|| label(&gateway.labels, here, name));
        wanted == label(endpoint.labels, endpoint.locality, name)
    });
    failover.labels.len() - same.count()
}

/// A label, or what a locality says in its place.
fn label<'a>(labels: &'a BTreeMap<String, String>, locality: Locality<'a>, name: &str) -> &'a str {
    let own = labels.get(name).map(String::as_str);
    own.unwrap_or(match name {
        REGION => locality.region,
        ZONE => locality.zone,
        SUBZONE => locality.subzone,
        _ => "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::compile::tests::gateway;

    type Labels = BTreeMap<String, String>;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The groups of endpoints in `localities` for a gateway in r/z/s, by their places.
    fn grouped(
        localities: &[(&str, &Labels)],
        rule: Option<&LocalityRule>,
        detects: bool,
    ) -> Option<Vec<(u32, Vec<usize>)>> {
        let gateway = GatewayIdentity { locality: "r/z/s".to_owned(), ..gateway() };
        let endpoints = localities.iter().zip(1..).map(|((locality, labels), port)| Candidate {
            address: crate::address::Address::from(([10, 0, 0, 1], port)),
            weight: 1,
            labels,
            locality: Locality::parse(locality),
        });
        let mut endpoints = endpoints.collect();
        group(&mut endpoints, rule, detects, &gateway).map(|(_, groups)| groups)
    }

    fn failover(regions: &[(&str, &str)], labels: &[(&str, Option<&str>)]) -> LocalityRule {
        LocalityRule::Failover(Failover {
            regions: regions.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect(),
            labels: labels.iter().map(|(name, v)| ((*name).into(), v.map(Into::into))).collect(),
        })
    }

    #[test]
    fn the_nearest_are_first_where_outliers_are_detected() {
        let none = Labels::new();
        let all = ["q", "r/z/s", "r/y", "r/z/t", "p", "r/z/s"].map(|text| (text, &none));
        let nearest = [vec![1, 5], vec![3], vec![2], vec![0, 4]].map(|places| (1, places));
        assert_eq!(grouped(&all, None, true), Some(nearest.to_vec()));
        assert_eq!(grouped(&all, None, false), None);
        assert_eq!(grouped(&all, Some(&LocalityRule::Off), true), None);
        let to_p = failover(&[("x", "q"), ("r", "p")], &[]);
        let places: Vec<_> = grouped(&all, Some(&to_p), true).unwrap();
        assert_eq!(places[3..], [(1, vec![4]), (1, vec![0])]);
        assert_eq!(grouped(&all[..1], None, true), None, "one group is none");
    }

    #[test]
    fn regions_alone_may_count_with_detection_or_not() {
        let none = Labels::new();
        let all = ["q", "r/z/s", "r/y", "p", "r/z/t"].map(|text| (text, &none));
        let regions = |regions: &[(&str, &str)]| {
            let regions = regions.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect();
            LocalityRule::Regions(Failover { regions, labels: Vec::new() })
        };
        for detects in [true, false] {
            let groups = |rule| grouped(&all, Some(&rule), detects).unwrap();
            let expected = [vec![1, 2, 4], vec![0, 3]].map(|places| (1, places));
            assert_eq!(groups(regions(&[])), expected);
            let expected = [vec![1, 2, 4], vec![3], vec![0]].map(|places| (1, places));
            assert_eq!(groups(regions(&[("r", "p")])), expected);
        }
    }

    #[test]
    fn labels_stand_for_localities() {
        let [both, one, other] = [
            labels(&[("istio", "ingressgateway"), ("version", "v2")]),
            labels(&[("istio", "ingressgateway"), ("version", "v1")]),
            labels(&[("version", "v2")]),
        ];
        let all = [("q", &other), ("q", &one), ("r/z/s", &other), ("q", &both)];
        let rule = failover(&[], &[("istio", None), ("version", Some("v2"))]);
        let groups = [vec![3], vec![1], vec![0, 2]].map(|places| (1, places));
        assert_eq!(grouped(&all, Some(&rule), true), Some(groups.to_vec()));
        let region = failover(&[], &[(REGION, None)]);
        let groups = [vec![2], vec![0, 1, 3]].map(|places| (1, places));
        assert_eq!(grouped(&all, Some(&region), true), Some(groups.to_vec()));
    }

    #[test]
    fn shares_go_to_localities_by_the_weights_in_them() {
        let none = Labels::new();
        let all = ["q/a", "r/z/s", "q/b", "q/a", "x"].map(|text| (text, &none));
        let to = vec![("r/*".into(), 70), ("q".into(), 30)];
        let rule = LocalityRule::Distribute(vec![
            Distribution { from: "q".into(), to: Vec::new() },
            Distribution { from: "r/z".into(), to },
        ]);
        let groups = vec![(20, vec![0, 3]), (10, vec![2]), (70, vec![1])];
        assert_eq!(grouped(&all, Some(&rule), false), Some(groups));
        let elsewhere = LocalityRule::Distribute(Vec::new());
        assert_eq!(grouped(&all, Some(&elsewhere), true), None);
    }

    #[test]
    fn a_pod_says_where_it_is_by_labels() {
        let here = Locality::parse("r/z/s");
        let placed = |locality: &'static str, pairs: &[(&str, &str)]| {
            let (labels, address) = (labels(pairs), ([10, 0, 0, 1], 1).into());
            let locality = Locality::parse(locality);
            let endpoint = Candidate { address, weight: 1, labels: &labels, locality };
            let Locality { region, zone, subzone } = place(&endpoint, here);
            format!("{region}/{zone}/{subzone}")
        };
        assert_eq!(placed("/z", &[]), "r/z/");
        assert_eq!(placed("/y", &[]), "/y/");
        assert_eq!(placed("/y", &[(REGION, "q"), (SUBZONE, "t")]), "q/y/t");
        assert_eq!(placed("/y", &[(LOCALITY, "p.x.t")]), "p/x/t");
        assert_eq!(placed("a/b", &[(LOCALITY, "p.x.t"), (REGION, "q")]), "a/b/");
    }
}
