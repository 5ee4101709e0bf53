//! DNS: from the names that routes lead to, to their addresses.
//!
//! - Lookups run beside the control loop. A name is looked up again when its answer has ended, but
//!   neither sooner than after [`TTL_MIN`] nor later than after [`TTL_MAX`].
//! - Nobody is flooded: at most [`LOOKUPS_MAX`] names are looked up at a time, and those whose
//!   answers ended together are spread by chance. Names that were not found the last time are at
//!   most half of them: where nobody answers, each lasts long, and the others must not wait for it.
//! - Addresses stay while nobody knows better: a server that fails or does not answer takes none
//!   away. One that says that a name has no address does, once it has said so twice: the addresses
//!   may be somebody else's by then.
//! - IP addresses and `localhost` need no lookup.
//!
//! Deliberately not here: how one lookup is done (`lookup`), and what a name without an address
//! means for a route; `compile` decides.

mod lookup;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::compile::{Wanted, WantedNames};
use crate::telemetry::SharedCounters;
use lookup::{Answer, Found, Host};

/// Servers say 0 for answers that must not be kept at all; asking for each request is no choice
/// here.
const TTL_MIN: Duration = Duration::from_secs(1);

/// Somebody may have written days and regret it.
const TTL_MAX: Duration = Duration::from_secs(300);

/// From the first failed lookup to the next try; doubles with each failure up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);

/// The time to live that cluster DNS gives its own names: what appears is seen as soon as it would
/// be if it had been there before.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How often in a row a name must be said to have no address.
const ABSENCES_MIN: u32 = 2;

/// A lookup is two questions, of some hundred bytes each.
const LOOKUPS_MAX: usize = 32;

/// Of these, lookups of names that were not found the last time.
const DOUBTFUL_MAX: usize = LOOKUPS_MAX / 2;

/// Changes of so many names as happen within it are one: each makes a snapshot.
const GATHER: Duration = Duration::from_millis(200);

/// How often the files of the host are looked at.
const FILES_CHECK: Duration = Duration::from_secs(5);

/// The names that are wanted, and what is known about each.
#[derive(Debug)]
pub(crate) struct Resolver {
    host: Host,
    /// When the files of the host were looked at last.
    checked: Instant,
    names: BTreeMap<Arc<str>, Name>,
    /// New names, and those that were found the last time.
    found: Lane,
    /// Those that were not.
    doubtful: Lane,
    /// Since when there are addresses that the caller was not told of.
    untold: Option<Instant>,
    counters: SharedCounters,
}

/// Names that wait for their lookups, and lookups.
#[derive(Debug, Default)]
struct Lane {
    /// When names are due. Those of names that are due at another time mean nothing.
    queue: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    lookups: JoinSet<(Arc<str>, Answer)>,
}

impl Lane {
    fn push(&mut self, name: &Arc<str>, due: Instant) {
        self.queue.push(Reverse((due, Arc::clone(name))));
    }

    /// The next name if it is due `now`, and when it was due.
    fn pop_due(&mut self, now: Instant) -> Option<(Instant, Arc<str>)> {
        self.next_due().filter(|due| *due <= now)?;
        self.queue.pop().map(|Reverse(next)| next)
    }

    fn next_due(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((due, _))| *due)
    }
}

#[derive(Debug)]
struct Name {
    /// Sorted, distinct; empty while none is known.
    addresses: Vec<IpAddr>,
    /// Where in `addresses` that stands with which the newest answer begins.
    first: usize,
    wanted: Wanted,
    /// Lookups without an address since the last that found one.
    failures: u32,
    /// How many of them, in a row up to now, ended with the word that it has none.
    absences: u32,
    /// When to look it up; `None` while that is under way, or when it is never needed.
    due: Option<Instant>,
    /// Whether a lookup ended since the name became wanted, or none is needed.
    is_answered: bool,
}

impl Resolver {
    /// Asks `servers`, or those of the host if there are none. Lookups are counted in `counters`.
    pub(crate) fn new(servers: &[SocketAddr], counters: SharedCounters) -> Self {
        Self {
            host: Host::new(servers.to_vec()),
            checked: Instant::now(),
            names: BTreeMap::new(),
            found: Lane::default(),
            doubtful: Lane::default(),
            untold: None,
            counters,
        }
    }

    /// Asks `servers` from now on, as in [`new`](Self::new), and about every name.
    pub(crate) fn ask(&mut self, servers: &[SocketAddr], now: Instant) {
        self.host = Host::new(servers.to_vec());
        self.look_up_all(now);
    }

    /// From now on exactly `names` are of interest. Returns whether an address is known now that
    /// was not before.
    pub(crate) fn want(&mut self, names: &WantedNames, now: Instant) -> bool {
        self.names.retain(|name, _| names.contains_key(&**name));
        let mut learned = false;
        for (name, wanted) in names {
            if let Some(entry) = self.names.get_mut(name.as_str()) {
                entry.wanted = *wanted;
                continue;
            }
            let (name, entry): (Arc<str>, _) =
                (name.as_str().into(), Name::new(name, *wanted, now));
            learned |= !entry.addresses.is_empty();
            entry.due.inspect(|due| self.found.push(&name, *due));
            self.names.insert(name, entry);
        }
        self.count_names();
        learned
    }

    fn count_names(&self) {
        let names = self.names.iter().filter(|(name, _)| without_lookup(name).is_none());
        let unresolved = names.clone().filter(|(_, entry)| entry.is_doubtful());
        self.counters.names.set(names.count() as u64);
        self.counters.names_unresolved.set(unresolved.count() as u64);
    }

    /// The addresses of `name`, as far as they are known: that with which the newest answer begins,
    /// then the others.
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let Name { addresses, first, .. } = self.names.get(name)?;
        let mut addresses = addresses.clone();
        addresses.get_mut(..=*first)?.rotate_right(1);
        Some(addresses)
    }

    /// Returns when the addresses of wanted names are different. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let since = loop {
            match self.untold {
                Some(since) => break since,
                None => self.step().await,
            }
        };
        let more = async {
            loop {
                self.step().await;
            }
        };
        let _: Result<(), _> = tokio::time::timeout_at((since + GATHER).into(), more).await;
        self.untold = None;
    }

    /// Returns when every wanted name was looked up at least once, or after `within`; says whether
    /// addresses are different.
    pub(crate) async fn settle(&mut self, within: Duration) -> bool {
        let all = async {
            while self.names.values().any(|name| !name.is_answered) {
                self.step().await;
            }
        };
        // What is not known by then arrives through `changed`.
        let _ = tokio::time::timeout(within, all).await;
        self.untold.take().is_some()
    }

    /// Waits for one thing to happen. Cancel-safe.
    async fn step(&mut self) {
        self.check_files(Instant::now());
        self.start_lookups(Instant::now());
        let lanes = [(false, &self.found), (true, &self.doubtful)];
        let next = lanes.into_iter().filter(|(is_doubtful, _)| self.has_room(*is_doubtful));
        let next = next.filter_map(|(_, lane)| lane.next_due());
        let check = (!self.names.is_empty()).then(|| self.checked + FILES_CHECK);
        let next = next.chain(check).min();
        let ended = tokio::select! {
            Some(ended) = self.found.lookups.join_next() => ended,
            Some(ended) = self.doubtful.lookups.join_next() => ended,
            () = sleep_until(next) => return,
        };
        if let Ok((name, answer)) = ended {
            self.learn(&name, answer, Instant::now());
        }
    }

    /// After a change every name may mean something else.
    fn check_files(&mut self, now: Instant) {
        if now < self.checked + FILES_CHECK {
            return;
        }
        self.checked = now;
        if self.host.read_again() {
            self.look_up_all(now);
        }
    }

    fn look_up_all(&mut self, now: Instant) {
        // What is under way asks as before.
        (self.found, self.doubtful) = (Lane::default(), Lane::default());
        for (name, entry) in &mut self.names {
            entry.due = without_lookup(name).is_none().then_some(now);
            let lane = if entry.is_doubtful() { &mut self.doubtful } else { &mut self.found };
            entry.due.inspect(|due| lane.push(name, *due));
        }
    }

    fn start_lookups(&mut self, now: Instant) {
        // Doubtful names first, as the others may never leave room for them.
        for is_doubtful in [true, false] {
            while self.has_room(is_doubtful)
                && let Some((due, name)) = self.lane(is_doubtful).pop_due(now)
            {
                if let Some(entry) = self.names.get_mut(&name)
                    && entry.due == Some(due)
                {
                    entry.due = None;
                    let directory = self.host.directory();
                    self.counters.lookups.increment();
                    self.lane(is_doubtful).lookups.spawn(async move {
                        let answer = caught(directory.look_up(&name)).await;
                        (name, answer)
                    });
                }
            }
        }
    }

    fn lane(&mut self, is_doubtful: bool) -> &mut Lane {
        if is_doubtful { &mut self.doubtful } else { &mut self.found }
    }

    /// Whether there may be one more lookup of such a name.
    fn has_room(&self, is_doubtful: bool) -> bool {
        let doubtful = self.doubtful.lookups.len();
        self.found.lookups.len() + doubtful < LOOKUPS_MAX
            && (!is_doubtful || doubtful < DOUBTFUL_MAX)
    }

    fn learn(&mut self, name: &Arc<str>, answer: Answer, now: Instant) {
        let counters = &self.counters;
        let counter = match &answer {
            Answer::Found(_) => &counters.lookups_found,
            Answer::Absent => &counters.lookups_absent,
            Answer::Failed(_) => &counters.lookups_failed,
        };
        counter.increment();
        let Some(entry) = self.names.get_mut(name) else { return };
        let was_doubtful = entry.is_doubtful();
        let (differs, wait) = match answer {
            Answer::Found(found) => entry.found(found),
            Answer::Absent => entry.absent(name),
            Answer::Failed(why) => entry.failed(name, &why),
        };
        match (was_doubtful, entry.is_doubtful()) {
            (false, true) => counters.names_unresolved.increment(),
            (true, false) => counters.names_unresolved.decrement(),
            (false, false) | (true, true) => {}
        }
        let due = now + spread(wait);
        entry.due = Some(due);
        entry.is_answered = true;
        let is_doubtful = entry.is_doubtful();
        self.lane(is_doubtful).push(name, due);
        if differs {
            self.untold.get_or_insert(now);
        }
    }
}

/// What `lookup` finds. One that panics has failed: its name is tried again as after any failure.
async fn caught(lookup: impl Future<Output = Answer>) -> Answer {
    let mut lookup = pin!(lookup);
    // After a panic it is polled no more.
    poll_fn(|cx| {
        catch_unwind(AssertUnwindSafe(|| lookup.as_mut().poll(cx))).unwrap_or_else(|_| {
            Poll::Ready(Answer::Failed("the lookup panicked, which is a bug".to_owned()))
        })
    })
    .await
}

/// Each says whether the addresses are different, and how long to wait for the next lookup.
impl Name {
    fn new(name: &str, wanted: Wanted, now: Instant) -> Self {
        let addresses: Vec<_> = without_lookup(name).into_iter().collect();
        let is_answered = !addresses.is_empty();
        let due = (!is_answered).then_some(now);
        Self { addresses, first: 0, wanted, failures: 0, absences: 0, due, is_answered }
    }

    fn found(&mut self, found: Found) -> (bool, Duration) {
        let mut addresses = found.addresses;
        let first = addresses.first().copied();
        // What is not known stays.
        if let Some(family) = found.unknown {
            addresses.extend(self.addresses.iter().filter(|address| family.has(address)));
        }
        addresses.sort_unstable();
        addresses.dedup();
        (self.failures, self.absences) = (0, 0);
        let before = self.addresses.get(self.first).copied();
        let differs =
            self.addresses != addresses || (self.wanted == Wanted::First && before != first);
        let place = first.and_then(|first| addresses.binary_search(&first).ok());
        (self.addresses, self.first) = (addresses, place.unwrap_or_default());
        (differs, found.ttl.clamp(TTL_MIN, TTL_MAX))
    }

    fn absent(&mut self, name: &str) -> (bool, Duration) {
        self.absences = self.absences.saturating_add(1);
        if self.absences == ABSENCES_MIN {
            tracing::warn!("the name {name} does not exist, or has no address");
        }
        let is_gone = self.absences >= ABSENCES_MIN && !self.addresses.is_empty();
        if is_gone {
            self.addresses.clear();
        }
        (is_gone, self.wait())
    }

    fn failed(&mut self, name: &str, why: &str) -> (bool, Duration) {
        if self.failures == self.absences {
            let kept = if self.addresses.is_empty() { "" } else { ", its last addresses are kept" };
            tracing::warn!("the name {name} cannot be resolved{kept}: {why}");
        }
        self.absences = 0;
        (false, self.wait())
    }

    /// Whether it was not found the last time.
    fn is_doubtful(&self) -> bool {
        self.failures > 0
    }

    /// Until the lookup after one that found nothing.
    fn wait(&mut self) -> Duration {
        let wait = RETRY_MIN.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// A little more than `wait`: caches on the way to the server keep an answer as long as we do, and
/// to ask them before it ended would be to ask twice.
fn spread(wait: Duration) -> Duration {
    wait + wait.mul_f64(fastrand::f64() / 10.0)
}

/// An address that is its own name, and `localhost` (RFC 6761, section 6.3), which is IPv4 here:
/// what listens on `::1` alone is named by its address.
fn without_lookup(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let host = name.strip_suffix('.').unwrap_or(name);
    let local = host == "localhost" || host.ends_with(".localhost");
    bare.parse().ok().or_else(|| local.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::lookup::Family;
    use super::*;
    use crate::telemetry::Counters;

    fn resolver() -> Resolver {
        Resolver::new(&[], Counters::shared())
    }

    fn names(names: &[&str]) -> WantedNames {
        names.iter().map(|&name| (name.to_owned(), Wanted::All)).collect()
    }

    fn found_for(seconds: u64, addresses: &[&str]) -> Answer {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Answer::Found(Found { addresses, ttl: Duration::from_secs(seconds), unknown: None })
    }

    fn failure() -> Answer {
        Answer::Failed("no answer".to_owned())
    }

    /// Whether `answer` changes the addresses of `name`.
    fn learns(resolver: &mut Resolver, name: &str, answer: Answer, now: Instant) -> bool {
        resolver.untold = None;
        resolver.learn(&name.into(), answer, now);
        resolver.untold.is_some()
    }

    fn known(resolver: &Resolver, name: &str) -> Vec<String> {
        let addresses = resolver.addresses(name).unwrap_or_default();
        addresses.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn assert_due_after(resolver: &Resolver, name: &str, seconds: u64, now: Instant) {
        let due = resolver.names[name].due.unwrap();
        let wait = Duration::from_secs(seconds);
        assert!(due >= now + wait && due <= now + wait.mul_f64(1.1), "{:?}", due - now);
    }

    #[test]
    fn addresses_and_localhost_are_known_at_once() {
        let (mut resolver, now) = (resolver(), Instant::now());
        let wanted = names(&["10.1.2.3", "::1", "[::2]", "localhost", "app.localhost.", "a.test"]);
        assert!(resolver.want(&wanted, now));
        assert_eq!(known(&resolver, "10.1.2.3"), ["10.1.2.3"]);
        assert_eq!(known(&resolver, "::1"), ["::1"]);
        assert_eq!(known(&resolver, "[::2]"), ["::2"]);
        assert_eq!(known(&resolver, "localhost"), ["127.0.0.1"]);
        assert_eq!(known(&resolver, "app.localhost."), ["127.0.0.1"]);
        assert_eq!(resolver.addresses("a.test"), None);
        assert!(!resolver.want(&wanted, now), "nothing is new");
        assert_eq!(resolver.found.queue.len(), 1);
    }

    #[test]
    fn the_same_addresses_in_another_order_are_no_change() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        assert!(learns(&mut resolver, "a.test", found_for(9, &["10.0.0.2", "10.0.0.1"]), now));
        let again = found_for(9, &["10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert!(!learns(&mut resolver, "a.test", again, now));
        assert!(learns(&mut resolver, "a.test", found_for(9, &["10.0.0.3"]), now));
        assert_eq!(known(&resolver, "a.test"), ["10.0.0.3"]);
    }

    #[test]
    fn another_first_address_is_a_change_where_only_the_first_is_wanted() {
        let (mut resolver, now) = (resolver(), Instant::now());
        let mut wanted = names(&["a.test", "b.test"]);
        wanted.insert("b.test".to_owned(), Wanted::First);
        resolver.want(&wanted, now);
        for name in ["a.test", "b.test"] {
            learns(&mut resolver, name, found_for(9, &["10.0.0.2", "10.0.0.3", "10.0.0.1"]), now);
            assert_eq!(known(&resolver, name), ["10.0.0.2", "10.0.0.1", "10.0.0.3"]);
            let other = found_for(9, &["10.0.0.2", "10.0.0.1", "10.0.0.3"]);
            assert!(!learns(&mut resolver, name, other, now), "the first is the same");
            let first = found_for(9, &["10.0.0.3", "10.0.0.1", "10.0.0.2"]);
            assert_eq!(learns(&mut resolver, name, first, now), name == "b.test");
            assert_eq!(known(&resolver, name)[0], "10.0.0.3", "for who wants it next");
        }
    }

    #[test]
    fn an_answer_holds_as_long_as_it_says_within_bounds() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        for (ttl, wait) in [(0, 1), (1, 1), (7, 7), (300, 300), (86_400, 300)] {
            learns(&mut resolver, "a.test", found_for(ttl, &["10.0.0.1"]), now);
            assert_due_after(&resolver, "a.test", wait, now);
        }
    }

    #[test]
    fn the_last_addresses_stay_while_lookups_fail() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        learns(&mut resolver, "a.test", found_for(9, &["10.0.0.1"]), now);
        for answer in [failure(), failure(), Answer::Absent, failure(), Answer::Absent] {
            assert!(!learns(&mut resolver, "a.test", answer, now));
        }
        assert_eq!(known(&resolver, "a.test"), ["10.0.0.1"]);
    }

    #[test]
    fn a_name_that_is_said_twice_to_have_no_address_loses_its_addresses() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        assert!(!learns(&mut resolver, "a.test", Answer::Absent, now));
        learns(&mut resolver, "a.test", found_for(9, &["10.0.0.1"]), now);
        assert!(!learns(&mut resolver, "a.test", Answer::Absent, now));
        assert!(learns(&mut resolver, "a.test", Answer::Absent, now));
        assert!(!learns(&mut resolver, "a.test", Answer::Absent, now), "it has none already");
        assert_eq!(resolver.addresses("a.test"), None);
    }

    #[test]
    fn a_family_about_which_nobody_knows_keeps_its_addresses() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        learns(&mut resolver, "a.test", found_for(9, &["10.0.0.1", "fd00::1"]), now);
        let ttl = Duration::from_secs(9);
        let addresses = vec!["10.0.0.2".parse().unwrap()];
        let half = Answer::Found(Found { addresses, ttl, unknown: Some(Family::V6) });
        assert!(learns(&mut resolver, "a.test", half, now));
        assert_eq!(known(&resolver, "a.test"), ["10.0.0.2", "fd00::1"]);
    }

    #[test]
    fn tries_after_failures_become_rarer() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            learns(&mut resolver, "a.test", failure(), now);
            assert_due_after(&resolver, "a.test", seconds, now);
        }
        learns(&mut resolver, "a.test", found_for(9, &["10.0.0.1"]), now);
        learns(&mut resolver, "a.test", failure(), now);
        assert_due_after(&resolver, "a.test", 1, now);
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten() {
        let (mut resolver, now) = (resolver(), Instant::now());
        resolver.want(&names(&["a.test"]), now);
        resolver.want(&names(&["localhost"]), now);
        let late = found_for(9, &["10.0.0.1"]);
        assert!(!learns(&mut resolver, "a.test", late, now));
        assert_eq!(resolver.addresses("a.test"), None);
    }

    #[tokio::test]
    async fn a_lookup_that_panics_has_failed() {
        let answer = caught(async { panic!("a bug in a lookup") }).await;
        assert!(matches!(&answer, Answer::Failed(why) if why.contains("panicked")), "{answer:?}");
    }

    #[test]
    fn lookups_and_names_are_counted() {
        let (mut resolver, now) = (resolver(), Instant::now());
        let unresolved = |resolver: &Resolver| {
            let counters = &resolver.counters;
            (counters.names.value(), counters.names_unresolved.value())
        };
        resolver.want(&names(&["a.test", "b.test", "10.0.0.1", "localhost"]), now);
        assert_eq!(unresolved(&resolver), (2, 0));
        for answer in [failure(), Answer::Absent, failure()] {
            learns(&mut resolver, "a.test", answer, now);
            assert_eq!(unresolved(&resolver), (2, 1));
        }
        learns(&mut resolver, "b.test", failure(), now);
        assert_eq!(unresolved(&resolver), (2, 2));
        learns(&mut resolver, "a.test", found_for(9, &["10.0.0.1"]), now);
        assert_eq!(unresolved(&resolver), (2, 1));
        resolver.want(&names(&["a.test"]), now);
        assert_eq!(unresolved(&resolver), (1, 0), "what is not wanted is not missed");
        let counters = &resolver.counters;
        let ended = [&counters.lookups_found, &counters.lookups_absent, &counters.lookups_failed];
        assert_eq!(ended.map(|count| count.value()), [1, 1, 3]);
    }

    #[tokio::test]
    async fn a_lookup_that_fails_settles_too() {
        let mut resolver = resolver();
        // No server is asked about a name with an empty label.
        resolver.want(&names(&["not..a.name", "127.0.0.1"]), Instant::now());
        resolver.settle(Duration::from_secs(60)).await;
        assert!(resolver.names.values().all(|name| name.is_answered));
        assert_eq!(resolver.addresses("not..a.name"), None);
    }

    #[tokio::test]
    async fn many_names_are_not_looked_up_at_once() {
        // A server that never answers.
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut resolver = Resolver::new(&[server.local_addr().unwrap()], Counters::shared());
        let many = (0..10_000).map(|n| (format!("n{n}.many.test"), Wanted::All)).collect();
        resolver.want(&many, Instant::now());
        resolver.start_lookups(Instant::now());
        assert_eq!(resolver.found.lookups.len(), LOOKUPS_MAX);
        assert_eq!(resolver.found.queue.len(), 10_000 - LOOKUPS_MAX);
    }

    #[tokio::test]
    async fn names_about_which_nobody_answers_do_not_hold_up_the_others() {
        // A server that never answers.
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut resolver = Resolver::new(&[server.local_addr().unwrap()], Counters::shared());
        let (mut wanted, start) = (names(&["good.test"]), Instant::now());
        wanted.extend((0..1_000).map(|n| (format!("n{n}.dead.test"), Wanted::All)));
        resolver.want(&wanted, start);
        for name in wanted.keys() {
            let is_good = name == "good.test";
            let answer = if is_good { found_for(9, &["10.0.0.1"]) } else { failure() };
            learns(&mut resolver, name, answer, start);
        }
        let is_under_way = |resolver: &Resolver| resolver.names["good.test"].due.is_none();
        resolver.start_lookups(start + Duration::from_secs(5));
        assert!(!is_under_way(&resolver));
        resolver.start_lookups(start + Duration::from_secs(60));
        assert!(is_under_way(&resolver), "its turn does not come after that of the others");
    }
}
