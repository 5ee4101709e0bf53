//! Consistent hashing: from a hash to an endpoint, the same on every worker and every gateway.
//!
//! - Built once, with the cluster; a look-up allocates nothing.
//! - When an endpoint comes or goes, few other hashes lead elsewhere.
//! - An endpoint's share grows with its weight.

use crate::address::Address;

use super::traffic::Spread;

/// Points of a ring in all, about; more cannot be asked for.
const POINTS_MAX: u64 = 1 << 20;

/// From hashes to the places of endpoints.
///
/// Having one tells you that there is an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashTable {
    /// Points on a ring by hash, each with the endpoint that takes what lies before it.
    Ring(Box<[(u64, u32)]>),
    /// Maglev's: a hash's remainder is a place.
    Maglev(Box<[u32]>),
}

impl HashTable {
    /// The table for `endpoints`, each with its weight, or all the same if there are no `weights`;
    /// `None` if there is no endpoint.
    #[must_use]
    pub fn new(endpoints: &[Address], weights: &[u32], spread: Spread) -> Option<Self> {
        if endpoints.is_empty() {
            return None;
        }
        let weight = |place: usize| u64::from(weights.get(place).copied().unwrap_or(1).max(1));
        let weights: Vec<_> = (0..endpoints.len()).map(weight).collect();
        Some(match spread {
            Spread::Ring(points) => Self::Ring(ring(endpoints, &weights, points)),
            Spread::Maglev(size) => Self::Maglev(maglev(endpoints, &weights, size)),
        })
    }

    /// The places of endpoints for `hash`, best first, each many times.
    pub fn places(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let (start, len) = match self {
            Self::Ring(points) => (points.partition_point(|(at, _)| *at < hash), points.len()),
            Self::Maglev(table) => (remainder(hash, table.len()), table.len()),
        };
        (0..len).map(move |step| {
            let slot = (start + step) % len;
            let place = match self {
                Self::Ring(points) => points[slot].1,
                Self::Maglev(table) => table[slot],
            };
            place as usize
        })
    }
}

/// A hash of `bytes` that is the same everywhere: FNV-1a, finished as SplitMix64 does, which tells
/// what differs only in the last byte well apart.
#[must_use]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    seeded_hash(bytes, 0)
}

/// The hash by which a client at `address` is told from others; `None` of one without an IP
/// address.
#[must_use]
pub fn client_hash(address: Address) -> Option<u64> {
    address.canonical_ip().map(|ip| stable_hash(ip.to_string().as_bytes()))
}

fn seeded_hash(bytes: &[u8], seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed;
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(start, fnv))
}

fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn remainder(hash: u64, len: usize) -> usize {
    usize::try_from(hash % len as u64).expect("less than a length")
}

/// At least `points` of them, unless weights are too far apart for that.
///
/// The lightest endpoint has a power of two of them, so that their number, and with it all others'
/// points, stays the same while few endpoints come and go.
fn ring(endpoints: &[Address], weights: &[u64], points: u32) -> Box<[(u64, u32)]> {
    let sum: u64 = weights.iter().sum();
    let lightest = weights.iter().min().copied().unwrap_or(1);
    let least = (u64::from(points) * lightest).div_ceil(sum).next_power_of_two();
    let (least, whole) =
        if least * (sum / lightest) <= POINTS_MAX { (least, lightest) } else { (POINTS_MAX, sum) };
    let mut ring = Vec::new();
    for ((endpoint, weight), place) in endpoints.iter().zip(weights).zip(0..) {
        let name = endpoint.to_string();
        let own = (least * weight / whole).max(1);
        ring.extend((0..own).map(|number| (mix(seeded_hash(name.as_bytes(), number)), place)));
    }
    ring.sort_unstable();
    ring.into()
}

/// As in the paper (Eisenbud et al. 2016, section 3.4): each endpoint in turn takes the next free
/// place of a permutation of its own; one of less weight than the heaviest passes in between.
fn maglev(endpoints: &[Address], weights: &[u64], size: u32) -> Box<[u32]> {
    let size = size as usize;
    const FREE: u32 = u32::MAX;
    let heaviest = weights.iter().max().copied().unwrap_or(1);
    let step_of = |endpoint: &Address| {
        let name = endpoint.to_string();
        let offset = remainder(seeded_hash(name.as_bytes(), 1), size);
        let skip = 1 + remainder(seeded_hash(name.as_bytes(), 2), (size - 1).max(1));
        (offset, skip)
    };
    let mut turns: Vec<_> = endpoints.iter().map(|e| (step_of(e), 0_u64)).collect();
    let mut table = vec![FREE; size];
    let mut free = size;
    loop {
        for ((((next, skip), credit), weight), place) in turns.iter_mut().zip(weights).zip(0..) {
            *credit += weight;
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            // The size is a prime, so that every place comes up.
            while table[*next] != FREE {
                *next = (*next + *skip) % size;
            }
            table[*next] = place;
            free -= 1;
            if free == 0 {
                return table.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SPREADS: [Spread; 2] = [Spread::Ring(1024), Spread::Maglev(65_537)];

    fn endpoints(count: u16) -> Vec<Address> {
        (1..=count).map(|port| Address::from(([10, 0, 0, 1], port))).collect()
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..20_000_u32).map(|key| stable_hash(&key.to_be_bytes()))
    }

    fn first(table: &HashTable, hash: u64) -> usize {
        table.places(hash).next().unwrap()
    }

    fn shares(table: &HashTable, endpoints: usize) -> Vec<usize> {
        let mut shares = vec![0; endpoints];
        keys().for_each(|key| shares[first(table, key)] += 1);
        shares
    }

    #[test]
    fn keys_are_spread_over_all_endpoints() {
        // A ring with a hundred points for each of ten is off by some tens of percent.
        for (spread, tolerance) in [(SPREADS[0], 700), (SPREADS[1], 200)] {
            let table = HashTable::new(&endpoints(10), &[], spread).unwrap();
            for share in shares(&table, 10) {
                assert!(share.abs_diff(2_000) < tolerance, "{spread:?}: {share}");
            }
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        for spread in SPREADS {
            let table = HashTable::new(&endpoints(3), &[1, 1, 8], spread).unwrap();
            let shares = shares(&table, 3);
            assert!(shares[2].abs_diff(16_000) < 1_000, "{spread:?}: {shares:?}");
            assert!(shares[0] > 1_000 && shares[1] > 1_000, "{spread:?}: {shares:?}");
        }
    }

    #[test]
    fn an_endpoint_that_goes_takes_only_its_own_keys_along() {
        for (spread, moved_max) in [(SPREADS[0], 0), (SPREADS[1], 600)] {
            let all = endpoints(10);
            let (before, after) = (
                HashTable::new(&all, &[], spread).unwrap(),
                HashTable::new(&all[..9], &[], spread).unwrap(),
            );
            let moved = keys().filter(|key| {
                let place = first(&before, *key);
                place != 9 && place != first(&after, *key)
            });
            // Maglev trades some stability for its even spread.
            assert!(moved.count() <= moved_max, "{spread:?}");
        }
    }

    #[test]
    fn every_endpoint_comes_up_in_the_end() {
        for spread in SPREADS {
            let table = HashTable::new(&endpoints(300), &[], spread).unwrap();
            let places: HashSet<_> = table.places(7).collect();
            assert_eq!(places.len(), 300, "{spread:?}");
        }
        assert_eq!(HashTable::new(&[], &[], SPREADS[0]), None);
    }

    #[test]
    fn a_small_table_holds_too() {
        for (spread, weights) in [
            (Spread::Ring(0), [5, 5, 5]),
            (Spread::Ring(1024), [1, u32::MAX, 1]),
            (Spread::Maglev(2), [5, 5, 5]),
            (Spread::Maglev(11), [1, u32::MAX, 1]),
        ] {
            let table = HashTable::new(&endpoints(3), &weights, spread).unwrap();
            assert!(first(&table, u64::MAX) < 3);
            assert!(first(&table, 0) < 3);
        }
    }

    #[test]
    fn a_hash_is_the_same_in_every_version() {
        assert_eq!(stable_hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(stable_hash(b"a"), mix(0xaf63_dc4c_8601_ec8c));
    }
}
