//! Which endpoints of a cluster are new, and what part of their share they get.

use std::collections::HashMap;
use std::time::Instant;

use crate::address::Address;
use crate::snapshot::Warmup;

/// The endpoints of one cluster, and since when those are there that came later.
#[derive(Debug, Default)]
pub(super) struct Newcomers(Option<HashMap<Address, Option<Instant>, foldhash::fast::RandomState>>);

impl Newcomers {
    /// These are all endpoints now. Those of the first list are nothing new.
    pub(super) fn see(&mut self, endpoints: &[Address], now: Instant) {
        let before = self.0.take();
        let since = |endpoint: &Address| match &before {
            None => None,
            Some(known) => known.get(endpoint).copied().unwrap_or(Some(now)),
        };
        self.0 = Some(endpoints.iter().map(|endpoint| (*endpoint, since(endpoint))).collect());
    }

    /// Whether `endpoint` is there now.
    pub(super) fn knows(&self, endpoint: Address) -> bool {
        self.0.as_ref().is_some_and(|known| known.contains_key(&endpoint))
    }

    /// The part of its share that `endpoint` gets, as Envoy reckons it.
    pub(super) fn warmth(&self, warmup: &Warmup, endpoint: Address, now: Instant) -> f64 {
        let since = self.0.as_ref().and_then(|known| known.get(&endpoint).copied().flatten());
        let Some(age) = since.map(|since| now.saturating_duration_since(since)) else { return 1.0 };
        if age >= warmup.duration {
            return 1.0;
        }
        let part = age.as_secs_f64() / warmup.duration.as_secs_f64();
        part.powf(1.0 / warmup.aggression).max(warmup.minimum_percent / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn who_comes_later_begins_small_and_grows() {
        let [old, new] = [1, 2].map(|port| Address::from(([10, 0, 0, 1], port)));
        let warmup =
            Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
        let (mut newcomers, start) = (Newcomers::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        newcomers.see(&[old], start);
        newcomers.see(&[old, new], after(50));
        newcomers.see(&[old, new], after(60));
        let warmth = |seconds| newcomers.warmth(&warmup, new, after(seconds));
        assert_eq!([50, 55, 75, 150].map(warmth), [0.1, 0.1, 0.25, 1.0]);
        assert_eq!(newcomers.warmth(&warmup, old, after(50)), 1.0);
        let steep = Warmup { aggression: 2.0, ..warmup };
        assert_eq!(newcomers.warmth(&steep, new, after(75)), 0.5);
        newcomers.see(&[old], after(60));
        newcomers.see(&[old, new], after(200));
        assert_eq!(newcomers.warmth(&warmup, new, after(200)), 0.1);
    }
}
