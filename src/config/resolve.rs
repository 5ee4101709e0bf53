//! DNS: from the names that routes lead to, to their addresses.
//!
//! - Lookups run beside the control loop, through the system's resolver (so `/etc/hosts` and
//!   `resolv.conf` mean what they always do). It does not tell how long an answer holds, so names
//!   are looked up again every [`REFRESH`].
//! - A resolver of our own, or a library's, would tell; but it would have to read the hosts file,
//!   search domains and whatever else the host's administrator set up, as the system's does, or
//!   names would mean something else here than to every other program. That the addresses of a name
//!   are up to [`REFRESH`] old is the price.
//! - Addresses that were found once stay while later lookups fail.
//! - IP addresses and `localhost` need no lookup.
//!
//! Deliberately not here: what a name without an address means for a route; `compile` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

/// How old an answer gets: the time to live that cluster DNS gives its own names.
const REFRESH: Duration = Duration::from_secs(30);

/// From the first failed lookup to the next try; doubles with each failure up to [`REFRESH`].
const RETRY_MIN: Duration = Duration::from_secs(1);

/// A lookup occupies a thread until the system's resolver gives up.
const LOOKUPS_MAX: usize = 16;

/// The names that are wanted, and what is known about each.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    names: BTreeMap<String, Name>,
    lookups: JoinSet<Answer>,
}

/// The end of one lookup.
#[derive(Debug)]
struct Answer {
    name: String,
    addresses: io::Result<Vec<IpAddr>>,
}

#[derive(Debug)]
struct Name {
    /// Sorted, distinct, not empty; `None` until a lookup succeeded.
    addresses: Option<Vec<IpAddr>>,
    /// Failed lookups since the last that succeeded.
    failures: u32,
    /// When to look it up; `None` while that is under way, or when it is never needed.
    due: Option<Instant>,
    /// Whether a lookup ended since the name became wanted, or none is needed.
    is_answered: bool,
}

impl Resolver {
    /// From now on exactly `names` are of interest. Returns whether an address is known now that
    /// was not before.
    pub(crate) fn want(&mut self, names: &BTreeSet<String>, now: Instant) -> bool {
        self.names.retain(|name, _| names.contains(name));
        let mut learned = false;
        for name in names {
            self.names.entry(name.clone()).or_insert_with(|| {
                let entry = Name::new(name, now);
                learned |= entry.addresses.is_some();
                entry
            });
        }
        learned
    }

    /// The addresses of `name`, as far as they are known.
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.names.get(name)?.addresses.clone()
    }

    /// Returns when the addresses of a wanted name are different. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        while !self.step().await {}
    }

    /// Returns when every wanted name was looked up at least once, or after `within`; says whether
    /// addresses are different.
    pub(crate) async fn settle(&mut self, within: Duration) -> bool {
        let mut differs = false;
        let all = async {
            while self.names.values().any(|name| !name.is_answered) {
                differs |= self.step().await;
            }
        };
        // What is not known by then arrives through `changed`.
        let _ = tokio::time::timeout(within, all).await;
        differs
    }

    /// Waits for one thing to happen; says whether addresses are different. Cancel-safe.
    async fn step(&mut self) -> bool {
        self.start_lookups(Instant::now());
        let next = match self.lookups.len() {
            LOOKUPS_MAX.. => None,
            _ => self.names.values().filter_map(|name| name.due).min(),
        };
        tokio::select! {
            Some(answer) = self.lookups.join_next() => {
                answer.is_ok_and(|answer| self.learn(answer, Instant::now()))
            }
            () = sleep_until(next) => false,
        }
    }

    fn start_lookups(&mut self, now: Instant) {
        for (name, entry) in &mut self.names {
            if self.lookups.len() >= LOOKUPS_MAX {
                return;
            }
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = None;
                self.lookups.spawn(look_up(name.clone()));
            }
        }
    }

    fn learn(&mut self, answer: Answer, now: Instant) -> bool {
        let Some(name) = self.names.get_mut(&answer.name) else {
            return false;
        };
        match answer.addresses {
            Ok(addresses) if !addresses.is_empty() => name.found(addresses, now),
            Ok(_) => name.failed(&answer.name, "it has no address", now),
            Err(error) => name.failed(&answer.name, &error.to_string(), now),
        }
    }
}

impl Name {
    fn new(name: &str, now: Instant) -> Self {
        let addresses = without_lookup(name).map(|address| vec![address]);
        let is_answered = addresses.is_some();
        let due = (!is_answered).then_some(now);
        Self { addresses, failures: 0, due, is_answered }
    }

    /// Whether `addresses` are different from those before.
    fn found(&mut self, mut addresses: Vec<IpAddr>, now: Instant) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        self.is_answered = true;
        self.failures = 0;
        self.due = Some(now + REFRESH);
        let differs = self.addresses.as_ref() != Some(&addresses);
        self.addresses = Some(addresses);
        differs
    }

    /// Never changes the addresses; returns false, as [`found`](Self::found) does then.
    fn failed(&mut self, name: &str, why: &str, now: Instant) -> bool {
        if self.failures == 0 {
            let kept = if self.addresses.is_some() { ", its last addresses are kept" } else { "" };
            tracing::warn!("the name {name} cannot be resolved{kept}: {why}");
        }
        self.is_answered = true;
        let wait = RETRY_MIN.saturating_mul(1 << self.failures.min(10)).min(REFRESH);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait);
        false
    }
}

/// An address that is its own name, and `localhost` (RFC 6761, section 6.3), which is IPv4 here:
/// what listens on `::1` alone is named by its address.
fn without_lookup(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let host = name.strip_suffix('.').unwrap_or(name);
    let local = host == "localhost" || host.ends_with(".localhost");
    bare.parse().ok().or_else(|| local.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

async fn look_up(name: String) -> Answer {
    let found = tokio::net::lookup_host((name.as_str(), 0)).await;
    let addresses = found.map(|found| found.map(|address| address.ip()).collect());
    Answer { name, addresses }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn answer(name: &str, addresses: io::Result<&[&str]>) -> Answer {
        let parse = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect();
        Answer { name: name.to_owned(), addresses: addresses.map(parse) }
    }

    fn failure(name: &str) -> Answer {
        answer(name, Err(io::Error::other("no such name")))
    }

    fn known(resolver: &Resolver, name: &str) -> Vec<String> {
        let addresses = resolver.addresses(name).unwrap_or_default();
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_and_localhost_are_known_at_once() {
        let (mut resolver, now) = (Resolver::default(), Instant::now());
        let wanted = names(&["10.1.2.3", "::1", "[::2]", "localhost", "app.localhost.", "a.test"]);
        assert!(resolver.want(&wanted, now));
        assert_eq!(known(&resolver, "10.1.2.3"), ["10.1.2.3"]);
        assert_eq!(known(&resolver, "::1"), ["::1"]);
        assert_eq!(known(&resolver, "[::2]"), ["::2"]);
        assert_eq!(known(&resolver, "localhost"), ["127.0.0.1"]);
        assert_eq!(known(&resolver, "app.localhost."), ["127.0.0.1"]);
        assert_eq!(resolver.addresses("a.test"), None);
        assert!(!resolver.want(&wanted, now), "nothing is new");
    }

    #[test]
    fn the_same_addresses_in_another_order_are_no_change() {
        let (mut resolver, now) = (Resolver::default(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        assert!(resolver.learn(answer("a.test", Ok(&["10.0.0.2", "10.0.0.1"])), now));
        let again = answer("a.test", Ok(&["10.0.0.1", "10.0.0.2", "10.0.0.1"]));
        assert!(!resolver.learn(again, now));
        assert!(resolver.learn(answer("a.test", Ok(&["10.0.0.3"])), now));
        assert_eq!(known(&resolver, "a.test"), ["10.0.0.3"]);
        assert_eq!(resolver.names["a.test"].due, Some(now + REFRESH));
    }

    #[test]
    fn the_last_addresses_stay_while_lookups_fail() {
        let (mut resolver, now) = (Resolver::default(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        resolver.learn(answer("a.test", Ok(&["10.0.0.1"])), now);
        assert!(!resolver.learn(failure("a.test"), now));
        assert!(!resolver.learn(answer("a.test", Ok(&[])), now));
        assert_eq!(known(&resolver, "a.test"), ["10.0.0.1"]);
    }

    #[test]
    fn tries_after_failures_become_rarer() {
        let (mut resolver, now) = (Resolver::default(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            resolver.learn(failure("a.test"), now);
            assert_eq!(resolver.names["a.test"].due, Some(now + Duration::from_secs(seconds)));
        }
        resolver.learn(answer("a.test", Ok(&["10.0.0.1"])), now);
        resolver.learn(failure("a.test"), now);
        assert_eq!(resolver.names["a.test"].due, Some(now + RETRY_MIN));
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten() {
        let (mut resolver, now) = (Resolver::default(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        resolver.want(&names(&["localhost"]), now);
        assert!(!resolver.learn(answer("a.test", Ok(&["10.0.0.1"])), now), "a late answer");
        assert_eq!(resolver.addresses("a.test"), None);
    }

    #[tokio::test]
    async fn a_lookup_that_fails_settles_too() {
        let mut resolver = Resolver::default();
        // No resolver is asked about a name with an empty label.
        resolver.want(&names(&["not..a.name", "127.0.0.1"]), Instant::now());
        resolver.settle(Duration::from_secs(60)).await;
        assert!(resolver.names.values().all(|name| name.is_answered));
        assert_eq!(resolver.addresses("not..a.name"), None);
    }
}
