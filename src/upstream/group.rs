//! Which group of endpoints gets a request, as Envoy chooses among priorities and localities.
//!
//! - A group is as good as all of it while 100 of 140 parts of its endpoints are in; what it lacks
//!   beyond that goes to others.
//! - Pure: what is known of the groups in, the one that is chosen out. The cost grows with their
//!   number and with that of the endpoints that are out, not with that of those that are in.

use crate::snapshot::{Group, GroupOrder, Grouping};

/// What a group may lack: one of which `100 / 140` are in gets all that is for it.
const PROVISION_PERCENT: usize = 140;

/// The groups with the part of their share that each can take, from 0 to 100.
pub(super) struct Standings<'a> {
    grouping: &'a Grouping,
    /// Empty while each can take all of its share.
    healths: Vec<u64>,
}

impl<'a> Standings<'a> {
    /// While the endpoints at the places `out` are out.
    pub(super) fn new(grouping: &'a Grouping, out: &[usize]) -> Self {
        if out.is_empty() {
            return Self { grouping, healths: Vec::new() };
        }
        let health = |group: &Group| {
            let out = out.iter().filter(|place| group.places.binary_search(place).is_ok()).count();
            let percent =
                PROVISION_PERCENT * (group.places.len() - out) / group.places.len().max(1);
            percent.min(100) as u64
        };
        Self { grouping, healths: grouping.groups.iter().map(health).collect() }
    }

    /// The groups and their healths.
    fn all(&self) -> impl Iterator<Item = (&'a Group, u64)> {
        let healths = self.healths.iter().copied().chain(std::iter::repeat(100));
        self.grouping.groups.iter().zip(healths)
    }

    /// Whether they can take all requests together.
    pub(super) fn suffice(&self) -> bool {
        self.all().map(|(_, health)| health).sum::<u64>() >= 100
    }

    /// The group for a request; `point` yields a number below the one that it is given. `None` if
    /// all endpoints are out. A group that `is_left` says is left to others if there are any.
    pub(super) fn choose(
        &self,
        is_left: impl Fn(&Group) -> bool,
        point: impl FnOnce(u64) -> u64,
    ) -> Option<&'a Group> {
        let keeps_some = self.all().any(|(group, health)| health > 0 && !is_left(group));
        let share = |(group, health): (&Group, u64)| match self.grouping.order {
            _ if keeps_some && is_left(group) => 0,
            GroupOrder::Nearest => health,
            GroupOrder::Shares => health * u64::from(group.weight),
        };
        let sum: u64 = self.all().map(share).sum();
        let all = match self.grouping.order {
            // Beyond that the later ones are not needed.
            GroupOrder::Nearest => sum.min(100),
            GroupOrder::Shares => sum,
        };
        let mut left = (all > 0).then(|| point(all))?;
        let found = self.all().find(|one| {
            let share = share(*one);
            let is_here = left < share;
            left = left.saturating_sub(share);
            is_here
        });
        found.map(|(group, _)| group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Traffic;

    fn grouping(order: GroupOrder, groups: &[(u32, usize)]) -> Grouping {
        let mut next = 0;
        let groups = groups.iter().map(|(weight, len)| {
            let places = (next..next + len).collect();
            next += len;
            Group { weight: *weight, places, traffic: Traffic::default() }
        });
        Grouping { order, groups: groups.collect() }
    }

    /// How often each is chosen, in percent, if so many endpoints of each are in.
    fn shares(grouping: &Grouping, good: &[usize], left: &[usize]) -> Vec<usize> {
        let place = |group: &Group| {
            grouping.groups.iter().position(|other| other.places == group.places).unwrap()
        };
        let out = |(group, good): (&Group, &usize)| group.places[*good..].to_vec();
        let out: Vec<_> = grouping.groups.iter().zip(good).flat_map(out).collect();
        let standings = Standings::new(grouping, &out);
        let mut shares = vec![0; grouping.groups.len()];
        for part in 0..1_000 {
            let is_left = |group: &Group| left.contains(&place(group));
            if let Some(group) = standings.choose(is_left, |all| part * all / 1_000) {
                shares[place(group)] += 1;
            }
        }
        shares.into_iter().map(|share| (share + 5) / 10).collect()
    }

    #[test]
    fn the_nearest_gets_all_until_it_lacks_too_much() {
        let grouping = grouping(GroupOrder::Nearest, &[(1, 10), (1, 10), (1, 10)]);
        let cases: [([usize; 3], [usize; 3]); 7] = [
            ([10, 10, 10], [100, 0, 0]),
            ([8, 10, 10], [100, 0, 0]),
            ([5, 10, 10], [70, 30, 0]),
            ([0, 10, 10], [0, 100, 0]),
            ([1, 1, 10], [14, 14, 72]),
            ([1, 0, 1], [50, 0, 50]),
            ([0, 0, 0], [0, 0, 0]),
        ];
        for (good, expected) in cases {
            assert_eq!(shares(&grouping, &good, &[]), expected, "{good:?}");
        }
        assert_eq!(shares(&grouping, &[10; 3], &[0]), [0, 100, 0]);
        assert_eq!(shares(&grouping, &[10, 0, 0], &[0]), [100, 0, 0], "there is nobody else");
    }

    #[test]
    fn shares_follow_weights_and_what_is_in() {
        let grouping = grouping(GroupOrder::Shares, &[(80, 10), (20, 10)]);
        for (good, expected) in [([10, 10], [80, 20]), ([0, 10], [0, 100]), ([5, 10], [74, 26])] {
            assert_eq!(shares(&grouping, &good, &[]), expected, "{good:?}");
        }
    }

    #[test]
    fn groups_suffice_while_they_can_take_all_together() {
        let grouping = grouping(GroupOrder::Nearest, &[(1, 10), (1, 10)]);
        for (good, expected) in [(8, true), (4, true), (3, false), (0, false)] {
            let out: Vec<_> = (good..10).chain(10 + good..20).collect();
            assert_eq!(Standings::new(&grouping, &out).suffice(), expected, "{good}");
        }
    }
}
