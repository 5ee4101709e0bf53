//! What was measured, and what can be asked of it.
//!
//! Ratios are taken within a round: a slow phase of the machine slows both sides of it.

use crate::measure::{Figures, Measurement};
use crate::peer::{Kind, Peer};
use crate::statistics::Spread;

/// All measurements of a run.
#[derive(Debug)]
pub(crate) struct Results {
    /// ringgate first.
    pub peers: Vec<Peer>,
    pub measurements: Vec<Measurement>,
}

impl Results {
    /// ringgate's column.
    pub(crate) fn own(&self) -> &str {
        self.peers.first().map_or("", |peer| &peer.name)
    }

    pub(crate) fn of(&self, scenario: &str) -> impl Iterator<Item = &Measurement> {
        self.measurements.iter().filter(move |measurement| measurement.scenario == scenario)
    }

    /// Those that count.
    pub(crate) fn valid(&self, scenario: &str, peer: &str) -> impl Iterator<Item = &Figures> {
        self.of(scenario).filter(move |m| m.peer == peer).filter_map(Measurement::valid)
    }

    /// The scenario's figure.
    pub(crate) fn spread(&self, scenario: &str, peer: &str) -> Option<Spread> {
        Spread::of(self.valid(scenario, peer).map(|figures| figures.value))
    }

    /// The figure of `above` by that of `below`, in the rounds in which both are valid. Each is a
    /// scenario and a column.
    pub(crate) fn ratio(&self, above: (&str, &str), below: (&str, &str)) -> Option<Spread> {
        self.compare(above, below, |figures| figures.value, |above, below| above / below)
    }

    /// As [`Results::ratio`], for any number and any way to hold two against each other.
    pub(crate) fn compare(
        &self,
        above: (&str, &str),
        below: (&str, &str),
        figure: impl Fn(&Figures) -> f64,
        compare: impl Fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let column = |(scenario, peer): (&str, &str)| -> Vec<(usize, f64)> {
            let of_peer = self.of(scenario).filter(|measurement| measurement.peer == peer);
            of_peer.filter_map(|m| Some((m.round, figure(m.valid()?)))).collect()
        };
        let (above, below) = (column(above), column(below));
        Spread::of(above.into_iter().filter_map(|(round, above)| {
            let (_, below) = below.iter().find(|(other, _)| *other == round)?;
            Some(compare(above, *below))
        }))
    }

    /// Whether `spread` is of half of the rounds at least: few that count may be the lucky ones.
    pub(crate) fn is_enough(&self, spread: &Spread) -> bool {
        let rounds = self.measurements.iter().map(|measurement| measurement.round).max();
        spread.count * 2 >= rounds.unwrap_or(0)
    }

    /// Of all versions of `kind`, the one whose figure is the smallest by ringgate's, and that ratio.
    pub(crate) fn best_of(&self, scenario: &str, kind: Kind) -> Option<(&Peer, Spread)> {
        self.best(scenario, |peer| peer.kind == kind)
    }

    /// The same of all rivals.
    pub(crate) fn best_rival(&self, scenario: &str) -> Option<(&Peer, Spread)> {
        self.best(scenario, |peer| peer.kind.is_rival())
    }

    fn best(&self, scenario: &str, among: impl Fn(&Peer) -> bool) -> Option<(&Peer, Spread)> {
        let own = (scenario, self.own());
        let able = self.peers.iter().filter(|peer| among(peer));
        able.filter_map(|peer| Some((peer, self.ratio((scenario, &peer.name), own)?)))
            .filter(|(_, ratio)| self.is_enough(ratio))
            .min_by(|(_, one), (_, other)| one.median.total_cmp(&other.median))
    }
}
