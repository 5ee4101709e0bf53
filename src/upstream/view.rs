//! What is known about the endpoints of a cluster with rules when a request for it has come: what
//! [`balance`] chooses by.

use std::time::Instant;

use crate::io::Net;
use crate::snapshot::{Group, Grouping, Traffic, UpstreamProtocol};

use super::To;
use super::balance::{self, Standing};
use super::group::Standings;
use super::pool::Own;

/// The endpoints of a cluster, for one request.
pub(super) struct View<'a, N: Net> {
    pub(super) own: &'a Own<N>,
    pub(super) traffic: &'a Traffic,
    pub(super) to: To<'a>,
    pub(super) kind: (UpstreamProtocol, u64),
    pub(super) name: Option<&'a str>,
    pub(super) now: Instant,
}

impl<N: Net> View<'_, N> {
    /// The place of the endpoint that gets it; `None` if there is none that may.
    pub(super) fn choose(&self, random: &impl balance::Random) -> Option<usize> {
        match &self.traffic.grouping {
            Some(grouping) => self.choose_in_group(grouping, random),
            None if self.panics() => self.choose_of(self.traffic, &All(self), random),
            None => self.choose_of(self.traffic, self, random),
        }
    }

    fn choose_of(
        &self,
        traffic: &Traffic,
        endpoints: &impl balance::Endpoints,
        random: &impl balance::Random,
    ) -> Option<usize> {
        balance::choose(traffic, endpoints, self.to.key, &self.own.tally.turns, random)
    }

    /// The same in the group that the request is for. Those that are out are looked at, not those
    /// that are in.
    fn choose_in_group(&self, grouping: &Grouping, random: &impl balance::Random) -> Option<usize> {
        let known = Standings::new(grouping, &self.places_out());
        let panics = !known.suffice() && self.panics();
        let standings = if panics { Standings::new(grouping, &[]) } else { known };
        let leave = self.to.leave;
        let is_left = |group: &Group| {
            let endpoint = |place: &usize| self.to.cluster.endpoints[*place];
            !leave.is_empty() && group.places.iter().any(|place| leave.contains(&endpoint(place)))
        };
        // The same group for the same key, while the same endpoints are in.
        let point = |all: u64| self.to.key.map_or_else(|| random.below(all), |key| key % all);
        let group = standings.choose(is_left, point)?;
        let place = if panics {
            self.choose_of(&group.traffic, &Part(&All(self), &group.places), random)
        } else {
            self.choose_of(&group.traffic, &Part(self, &group.places), random)
        };
        place.map(|place| group.places[place])
    }

    /// The places of the endpoints that are out.
    fn places_out(&self) -> Vec<usize> {
        let outliers = self.own.tally.outliers.borrow();
        let place = |endpoint| self.to.cluster.endpoints.binary_search(&endpoint).ok();
        outliers.out(self.now).filter_map(place).collect()
    }

    /// Whether so few endpoints are in that none is left out.
    fn panics(&self) -> bool {
        let (outliers, all) = (&self.own.tally.outliers, self.to.cluster.endpoints.len());
        self.traffic.policy.outliers.as_ref().is_some_and(|detection| {
            detection.healthy_percent_min > 0 && outliers.borrow().panics(detection, all, self.now)
        })
    }

    fn is_avoided(&self, place: usize) -> bool {
        self.to.avoid.contains(&self.to.cluster.endpoints[place])
    }
}

impl<N: Net> balance::Endpoints for View<'_, N> {
    fn len(&self) -> usize {
        self.to.cluster.endpoints.len()
    }

    fn standing(&self, place: usize) -> Standing {
        let is_out = self.traffic.policy.outliers.is_some() && {
            let outliers = self.own.tally.outliers.borrow();
            outliers.is_out(self.to.cluster.endpoints[place], self.now)
        };
        match (is_out, self.is_avoided(place)) {
            (true, _) => Standing::Out,
            (false, true) => Standing::Avoided,
            (false, false) => Standing::Good,
        }
    }

    fn load(&self, place: usize) -> usize {
        let (protocol, policy) = self.kind;
        let key = (self.to.cluster.endpoints[place], protocol, policy);
        self.own.shelf.active(&key, self.name)
    }

    fn warmth(&self, place: usize) -> f64 {
        let Some(warmup) = &self.traffic.policy.warmup else { return 1.0 };
        let newcomers = self.own.tally.newcomers.borrow();
        newcomers.warmth(warmup, self.to.cluster.endpoints[place], self.now)
    }
}

/// What is known about some of the endpoints.
struct Part<'a, E>(&'a E, &'a [usize]);

impl<E: balance::Endpoints> balance::Endpoints for Part<'_, E> {
    fn len(&self) -> usize {
        self.1.len()
    }

    fn standing(&self, place: usize) -> Standing {
        self.0.standing(self.1[place])
    }

    fn load(&self, place: usize) -> usize {
        self.0.load(self.1[place])
    }

    fn warmth(&self, place: usize) -> f64 {
        self.0.warmth(self.1[place])
    }
}

/// The same where too few are in for any to be left out.
struct All<'a, 'b, N: Net>(&'a View<'b, N>);

impl<N: Net> balance::Endpoints for All<'_, '_, N> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn standing(&self, place: usize) -> Standing {
        if self.0.is_avoided(place) { Standing::Avoided } else { Standing::Good }
    }

    fn load(&self, place: usize) -> usize {
        self.0.load(place)
    }

    fn warmth(&self, place: usize) -> f64 {
        self.0.warmth(place)
    }
}
