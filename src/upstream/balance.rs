//! Which endpoint gets a request: pure functions of what is known about the endpoints.
//!
//! - What cannot be used is never chosen; what had better not be is chosen only if there is nothing
//!   else.
//! - Shares follow weights, and rise with time while an endpoint is warming up.
//! - A choice takes constant time, or the logarithm of the number of endpoints where they have
//!   weights; only where nearly all of them cannot be used does it look at each.

use std::cell::Cell;

use crate::snapshot::{Balance, Traffic};

/// How often a random endpoint is drawn before all of them are looked at.
const DRAWS_MAX: u32 = 5;

/// What is known about the endpoints of a cluster, by their places.
pub(super) trait Endpoints {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether it may be chosen.
    fn standing(&self, place: usize) -> Standing;

    /// Requests under way at it.
    fn load(&self, place: usize) -> usize;

    /// The part of its share that it gets now, from 0 to 1.
    fn warmth(&self, place: usize) -> f64;
}

/// Whether an endpoint may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Good,
    /// Only if there is none in better standing.
    Avoided,
    /// Not at all.
    Out,
}

/// Random numbers; nothing but balance depends on them.
pub(super) trait Random {
    /// Less than `bound`, which is not zero.
    fn below(&self, bound: u64) -> u64;
}

/// The less busy of two random endpoints, or of those that rank before the others by `load`; there
/// is at least one endpoint.
pub(super) fn less_busy<L: PartialOrd>(
    len: usize,
    random: &impl Random,
    load: impl Fn(usize) -> L,
) -> usize {
    if len == 1 {
        return 0;
    }
    let start = place_below(random, len);
    // Distinct from `start`.
    let step = 1 + place_below(random, len - 1);
    let [first, second] = [start, (start + step) % len];
    if load(second) < load(first) { second } else { first }
}

/// Points of a hash table that are looked at for each endpoint there is. One good endpoint of a
/// hundred is missed by so many about once in ten million times, and then the best is taken.
const STEPS_PER_ENDPOINT: usize = 16;

/// The endpoint for a request, with `key` where it has one to be hashed; `None` if there is none
/// that may be chosen. Where each endpoint has its turn, `turns` moves on by one, and by one more
/// for each that is passed over: what one does not get is shared by all others.
pub(super) fn choose(
    traffic: &Traffic,
    endpoints: &impl Endpoints,
    key: Option<u64>,
    turns: &Cell<u64>,
    random: &impl Random,
) -> Option<usize> {
    if endpoints.len() == 0 {
        return None;
    }
    let choice = Choice { traffic, endpoints, random };
    let place = match (&traffic.policy.balance, key) {
        (Balance::LeastRequest, _) => choice.drawn(Choice::less_busy),
        (Balance::Random | Balance::Hash(_), None) | (Balance::Random, _) => {
            choice.drawn(Choice::any)
        }
        (Balance::RoundRobin, _) => choice.first_good(choice.in_turn(turns)),
        (Balance::Hash(_), Some(key)) => return choice.by_hash(key),
    };
    place.or_else(|| choice.best(place_below(random, endpoints.len())))
}

struct Choice<'a, E, R> {
    traffic: &'a Traffic,
    endpoints: &'a E,
    random: &'a R,
}

impl<E: Endpoints, R: Random> Choice<'_, E, R> {
    /// The first good one of a few that `draw` yields.
    fn drawn(&self, draw: impl Fn(&Self) -> usize) -> Option<usize> {
        (0..DRAWS_MAX).map(|_| draw(self)).find(|place| self.is_good(*place))
    }

    fn is_good(&self, place: usize) -> bool {
        self.endpoints.standing(place) == Standing::Good
    }

    /// The first good one of `places`; of as many as there are points, each endpoint is one.
    fn first_good(&self, mut places: impl Iterator<Item = usize>) -> Option<usize> {
        places.find(|place| self.is_good(*place))
    }

    /// The one that `key` leads to, or the next good one behind it. Where so many are not that
    /// looking on would cost more than the request, the best, beginning where the key says.
    fn by_hash(&self, key: u64) -> Option<usize> {
        let len = self.endpoints.len();
        let places = self.traffic.table.iter().flat_map(|table| table.places(key));
        let near = self.first_good(places.take(STEPS_PER_ENDPOINT * len));
        near.or_else(|| self.best(usize::try_from(key % len as u64).unwrap_or(0)))
    }

    /// The best of all, beginning at `start`.
    fn best(&self, start: usize) -> Option<usize> {
        let len = self.endpoints.len();
        let places = (0..len).map(|step| (start + step) % len);
        let best = places.min_by_key(|place| self.endpoints.standing(*place))?;
        (self.endpoints.standing(best) != Standing::Out).then_some(best)
    }

    /// Any endpoint, by its share.
    fn any(&self) -> usize {
        let mut place = self.any_by_weight();
        for _ in 1..DRAWS_MAX {
            let warmth = self.endpoints.warmth(place);
            if warmth >= 1.0 || self.fraction() < warmth {
                break;
            }
            place = self.any_by_weight();
        }
        place
    }

    fn any_by_weight(&self) -> usize {
        match self.traffic.sums.last() {
            None => place_below(self.random, self.endpoints.len()),
            Some(sum) => self.place_at(self.random.below(*sum)),
        }
    }

    /// The endpoint to which `point` of the sum of all weights belongs.
    fn place_at(&self, point: u64) -> usize {
        self.traffic.sums.partition_point(|sum| *sum <= point)
    }

    fn fraction(&self) -> f64 {
        const STEPS: u32 = 1 << 20;
        #[allow(clippy::cast_precision_loss, reason = "both are small")]
        let fraction = self.random.below(u64::from(STEPS)) as f64 / f64::from(STEPS);
        fraction
    }

    /// The less busy of two for its weight.
    fn less_busy(&self) -> usize {
        let [first, second] = [self.any(), self.any()];
        let rank = |place: usize| (self.endpoints.standing(place), self.burden(place));
        if rank(second) < rank(first) { second } else { first }
    }

    /// Requests under way, one more counted, by the endpoint's share.
    #[allow(clippy::cast_precision_loss, reason = "only compared")]
    fn burden(&self, place: usize) -> f64 {
        let weight = self.traffic.weights.get(place).copied().unwrap_or(1);
        let share = f64::from(weight) * self.endpoints.warmth(place).max(f64::MIN_POSITIVE);
        (self.endpoints.load(place) + 1) as f64 / share
    }

    /// The endpoints whose turn it is after `turns`, each as often as its weight says. One that is
    /// warming up is passed over now and then.
    fn in_turn(&self, turns: &Cell<u64>) -> impl Iterator<Item = usize> {
        let len = self.endpoints.len() as u64;
        let sum = self.traffic.sums.last().copied();
        // Whole strides meet every point of the sum once, and those of one endpoint far apart.
        let stride = sum.map_or(1, stride);
        let points = (0..len).map(move |_| {
            let turn = turns.replace(turns.get().wrapping_add(1));
            let point = u128::from(turn) * u128::from(stride);
            let point = point % u128::from(sum.unwrap_or(len));
            u64::try_from(point).expect("less than a u64")
        });
        points
            .map(move |point| match sum {
                None => usize::try_from(point).expect("less than a usize"),
                Some(_) => self.place_at(point),
            })
            .filter(|place| {
                let warmth = self.endpoints.warmth(*place);
                warmth >= 1.0 || self.fraction() < warmth
            })
    }
}

/// A number near the golden section of `sum` that has no factor in common with it.
fn stride(sum: u64) -> u64 {
    let near = u64::try_from(u128::from(sum) * 618_034 / 1_000_000).unwrap_or(1).max(1);
    (near..).find(|stride| gcd(*stride, sum) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn place_below(random: &impl Random, len: usize) -> usize {
    usize::try_from(random.below(len as u64)).expect("less than a usize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::snapshot::{HashKey, HashPolicy, HashTable, Spread, TrafficPolicy, stable_hash};
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::sync::Arc;

    struct Known {
        standings: Vec<Standing>,
        loads: Vec<usize>,
        warmth: Vec<f64>,
    }

    impl Known {
        fn good(len: usize) -> Self {
            let (loads, warmth) = (vec![0; len], vec![1.0; len]);
            Self { standings: vec![Standing::Good; len], loads, warmth }
        }
    }

    impl Endpoints for Known {
        fn len(&self) -> usize {
            self.standings.len()
        }
        fn standing(&self, place: usize) -> Standing {
            self.standings[place]
        }
        fn load(&self, place: usize) -> usize {
            self.loads[place]
        }
        fn warmth(&self, place: usize) -> f64 {
            self.warmth[place]
        }
    }

    struct Seeded(Cell<u64>);

    impl Random for Seeded {
        fn below(&self, bound: u64) -> u64 {
            self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
            stable_hash(&self.0.get().to_be_bytes()) % bound
        }
    }

    /// Counts how often it is looked at.
    struct Counted(Known, Cell<usize>);

    impl Endpoints for Counted {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn standing(&self, place: usize) -> Standing {
            self.1.set(self.1.get() + 1);
            self.0.standing(place)
        }
        fn load(&self, place: usize) -> usize {
            self.0.load(place)
        }
        fn warmth(&self, place: usize) -> f64 {
            self.0.warmth(place)
        }
    }

    fn random() -> Seeded {
        Seeded(Cell::new(7))
    }

    fn traffic(balance: Balance, weights: &[u32]) -> Traffic {
        let ports = (1..).zip(weights).map(|(port, _)| port);
        let endpoints: Vec<_> = ports.map(|port| Address::from(([10, 0, 0, 1], port))).collect();
        let table = match &balance {
            Balance::Hash(hash) => HashTable::new(&endpoints, weights, hash.spread).map(Arc::new),
            Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
        };
        let is_plain = weights.iter().all(|weight| *weight == 1);
        let weights = if is_plain { Box::default() } else { weights.into() };
        let policy = TrafficPolicy { balance, ..TrafficPolicy::default() };
        Traffic::new(policy, weights, table)
    }

    fn balances() -> [Balance; 5] {
        let hash = |spread| Balance::Hash(HashPolicy { key: HashKey::SourceAddress, spread });
        [
            Balance::LeastRequest,
            Balance::RoundRobin,
            Balance::Random,
            hash(Spread::Ring(64)),
            hash(Spread::Maglev(251)),
        ]
    }

    /// How often each is chosen in `turns` turns, each with a key of its own.
    fn shares(traffic: &Traffic, known: &Known, turns: u32) -> Vec<u32> {
        let (mut shares, random) = (vec![0; known.len()], random());
        let gone = Cell::default();
        for turn in 0..turns {
            let key = stable_hash(&turn.to_be_bytes());
            let place = choose(traffic, known, Some(key), &gone, &random).unwrap();
            shares[place] += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_the_weights() {
        for (balance, tolerance) in balances().into_iter().zip([100, 1, 150, 1500, 300]) {
            let traffic = traffic(balance.clone(), &[1, 2, 7]);
            let mut known = Known::good(3);
            // As it would be under load.
            known.loads = vec![9, 19, 69];
            let shares = shares(&traffic, &known, 10_000);
            let expected = [1_000, 2_000, 7_000_u32];
            let near = shares.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= tolerance);
            // The less busy of two for its weight: any, where all are as busy.
            let near = near || matches!(balance, Balance::LeastRequest) && shares[2] > 6_000;
            assert!(near, "{balance:?}: {shares:?}");
        }
    }

    #[test]
    fn a_large_table_is_not_walked_for_good_ones_that_are_not_there() {
        for spread in [Spread::Ring(4096), Spread::Maglev(65_537)] {
            let hash = HashPolicy { key: HashKey::SourceAddress, spread };
            let traffic = traffic(Balance::Hash(hash), &[1; 3]);
            for (standing, found) in [(Standing::Out, false), (Standing::Avoided, true)] {
                let known = Known { standings: vec![standing; 3], ..Known::good(3) };
                let known = Counted(known, Cell::new(0));
                let chosen =
                    [0; 2].map(|_| choose(&traffic, &known, Some(9), &Cell::default(), &random()));
                assert_eq!(chosen[0].is_some(), found);
                assert_eq!(chosen[0], chosen[1], "the same for the same key");
                assert!(known.1.get() <= 120, "{spread:?}: {} looks", known.1.get());
            }
        }
    }

    #[test]
    fn each_in_turn_is_each_in_turn() {
        let traffic = traffic(Balance::RoundRobin, &[1, 1, 1]);
        let (known, random, turns) = (Known::good(3), random(), Cell::default());
        let place = || choose(&traffic, &known, None, &turns, &random).unwrap();
        assert_eq!([(); 7].map(|()| place()), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn the_turns_of_one_that_is_left_out_are_shared_by_all_others() {
        for (weights, expected) in [([1; 4], [100, 0, 100, 100]), ([1, 5, 1, 2], [75, 0, 75, 150])]
        {
            let traffic = traffic(Balance::RoundRobin, &weights);
            let mut known = Known::good(4);
            known.standings[1] = Standing::Out;
            let shares = shares(&traffic, &known, 300);
            let near = shares.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1);
            assert!(near, "{weights:?}: {shares:?}");
        }
    }

    #[test]
    fn the_less_busy_of_two_is_never_the_busiest_of_all() {
        let traffic = traffic(Balance::LeastRequest, &[1, 1]);
        let (mut known, random) = (Known::good(2), random());
        known.loads = vec![5, 0];
        // Drawing the same one twice is the only way to the busy one.
        let busy = (0..10_000)
            .filter(|_| choose(&traffic, &known, None, &Cell::default(), &random) == Some(0));
        assert!(busy.count().abs_diff(2_500) < 300);
        let place = less_busy(2, &random, |place| known.loads[place]);
        assert_eq!(place, 1, "two that are distinct");
    }

    #[test]
    fn an_endpoint_that_warms_up_gets_a_part_of_its_share() {
        for balance in [Balance::RoundRobin, Balance::Random] {
            let traffic = traffic(balance.clone(), &[1, 1]);
            let mut known = Known::good(2);
            known.warmth = vec![1.0, 0.25];
            let shares = shares(&traffic, &known, 10_000);
            let part = f64::from(shares[1]) / f64::from(shares[0]);
            assert!((0.1..0.4).contains(&part), "{balance:?}: {shares:?}");
        }
    }

    #[test]
    fn a_key_stays_where_it_is_while_others_go() {
        for balance in balances().into_iter().skip(3) {
            let traffic = traffic(balance.clone(), &[1; 10]);
            let (mut known, random) = (Known::good(10), random());
            let keys: Vec<_> = (0..500_u32).map(|key| stable_hash(&key.to_be_bytes())).collect();
            let turns = Cell::default();
            let place =
                |known: &Known, key: u64| choose(&traffic, known, Some(key), &turns, &random);
            let before: Vec<_> = keys.iter().map(|key| place(&known, *key)).collect();
            known.standings[3] = Standing::Out;
            for (key, before) in keys.iter().zip(before) {
                let after = place(&known, *key);
                assert!(after == before || before == Some(3), "{balance:?}");
                assert_ne!(after, Some(3));
            }
        }
    }

    proptest! {
        #[test]
        fn the_best_standing_is_chosen_and_none_that_is_out(
            endpoints in prop::collection::vec((0..3_u8, 0..5_usize, 1..4_u32, 0.0..=1.0), 1..12),
            key in any::<Option<u64>>(),
            turn in any::<u64>(),
            seed in any::<u64>(),
        ) {
            let standing = |number| match number {
                0 => Standing::Good,
                1 => Standing::Avoided,
                _ => Standing::Out,
            };
            let known = Known {
                standings: endpoints.iter().map(|e| standing(e.0)).collect(),
                loads: endpoints.iter().map(|e| e.1).collect(),
                warmth: endpoints.iter().map(|e| e.3).collect(),
            };
            let weights: Vec<_> = endpoints.iter().map(|e| e.2).collect();
            for balance in balances() {
                let traffic = traffic(balance, &weights);
                let random = Seeded(Cell::new(seed));
                let chosen = choose(&traffic, &known, key, &Cell::new(turn), &random);
                let best = *known.standings.iter().min().unwrap();
                let chosen = chosen.map(|place| known.standings[place]);
                prop_assert_eq!(chosen, Some(best).filter(|best| *best != Standing::Out));
            }
        }

        #[test]
        fn strides_meet_every_point(sum in 1..500_u64) {
            let mut points: Vec<_> = (0..sum).map(|turn| turn * stride(sum) % sum).collect();
            points.sort_unstable();
            prop_assert_eq!(points, (0..sum).collect::<Vec<_>>());
        }
    }
}
