//! The targets: what ringgate is to reach, and whether it does.
//!
//! - One against a peer counts against the version of it that does best.
//! - The median over the rounds counts, if half of them are valid at least.

use crate::measure::Figures;
use crate::peer::Kind;
use crate::results::Results;
use crate::scenario;
use crate::statistics::Spread;

/// Many hosts, a few, and none.
const MANY: &str = "hosts-10000";
const FEW: &str = "hosts-10";
const NONE: &str = "hosts-0";

/// One thing that is wanted of ringgate in a scenario.
#[derive(Debug, Clone, Copy)]
struct Target {
    scenario: &'static str,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// The peer's figure is at least so many times ringgate's.
    Over(Kind, f64),
    /// ringgate's figure is at most so many times that of the best gateway.
    OfBest(f64),
    /// ringgate's figure is at most so many times the floor's.
    OfFloor(f64),
    /// ringgate alone.
    Own(Own),
}

#[derive(Debug, Clone, Copy)]
enum Own {
    StartSeconds(f64),
    MegabytesOverEmpty(f64),
    ReloadMillis(f64),
    CostOfFew(f64),
}

const fn over(scenario: &'static str, kind: Kind, ratio: f64) -> Target {
    Target { scenario, what: What::Over(kind, ratio) }
}

const fn own(what: Own) -> Target {
    Target { scenario: MANY, what: What::Own(what) }
}

const TARGETS: &[Target] = &[
    over("small-h1", Kind::Haproxy, 2.0),
    over("small-h1", Kind::Nginx, 2.2),
    over("small-h1", Kind::Envoy, 5.5),
    Target { scenario: "small-h1", what: What::OfFloor(1.4) },
    over("small-h1-1k", Kind::Haproxy, 2.0),
    over("small-h1-1k", Kind::Nginx, 2.2),
    over("small-h1-1k", Kind::Envoy, 5.5),
    over("small-h2", Kind::Haproxy, 1.4),
    over("small-h2", Kind::Nginx, 2.4),
    over("small-h2", Kind::Envoy, 5.0),
    over("small-h2-1x100", Kind::Haproxy, 1.4),
    over("small-h2-1x100", Kind::Nginx, 2.4),
    over("small-h2-1x100", Kind::Envoy, 5.0),
    over("full-ecdsa", Kind::Haproxy, 2.0),
    over("full-ecdsa", Kind::Nginx, 2.0),
    over("full-ecdsa", Kind::Envoy, 2.0),
    over("resumed", Kind::Haproxy, 2.0),
    over("resumed", Kind::Nginx, 1.8),
    over("resumed", Kind::Envoy, 2.0),
    over("bulk-16k", Kind::Haproxy, 2.0),
    over("bulk-16k", Kind::Nginx, 2.1),
    over("bulk-16k", Kind::Envoy, 3.5),
    over("bulk-1m", Kind::Haproxy, 1.5),
    over("bulk-1m", Kind::Nginx, 1.4),
    over("bulk-1m", Kind::Envoy, 1.4),
    Target { scenario: "idle-h1", what: What::OfBest(0.9) },
    Target { scenario: "latency", what: What::OfBest(1.1) },
    own(Own::StartSeconds(2.0)),
    own(Own::MegabytesOverEmpty(60.0)),
    own(Own::ReloadMillis(50.0)),
    own(Own::CostOfFew(1.05)),
];

/// A target and what came of it, for a table.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub target: String,
    pub wanted: String,
    /// What was measured and against whom, if it was.
    pub measured: Option<(Spread, String)>,
    pub met: bool,
}

/// Scenarios that vary another one, whose targets they have. A run that leaves them out is complete.
const VARIANTS: [&str; 2] = ["small-h1-1k", "small-h2-1x100"];

/// All targets.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let is_due = |target: &&Target| {
        let measured = results.of(target.scenario).next().is_some();
        measured || !VARIANTS.contains(&target.scenario)
    };
    TARGETS.iter().filter(is_due).map(|target| target.verdict(results)).collect()
}

/// A bar of the overview: a peer's figure by ringgate's, and how large that is to be.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub scenario: &'static str,
    /// What is compared, in a word.
    pub figure: &'static str,
    pub peer: String,
    pub ratio: Spread,
    pub wanted: f64,
}

/// All targets that are about other programs, as ratios of their figures by ringgate's.
pub(crate) fn comparisons(results: &Results) -> Vec<Comparison> {
    let rivals = [Kind::Haproxy, Kind::Nginx, Kind::Envoy];
    let mut found = Vec::new();
    for Target { scenario, what } in TARGETS {
        let (kinds, wanted) = match what {
            What::Over(kind, ratio) => (vec![*kind], *ratio),
            What::OfBest(ratio) => (rivals.to_vec(), 1.0 / ratio),
            What::OfFloor(ratio) => (vec![Kind::Floor], 1.0 / ratio),
            What::Own(_) => continue,
        };
        let figure = scenario::by_name(scenario).map_or("", |scenario| scenario.figure.word());
        let best = kinds.into_iter().filter_map(|kind| results.best_of(scenario, kind));
        found.extend(best.map(|(peer, ratio)| Comparison {
            scenario,
            figure,
            peer: peer.name.clone(),
            ratio,
            wanted,
        }));
    }
    found
}

impl Target {
    fn verdict(&self, results: &Results) -> Verdict {
        let Self { scenario, what } = *self;
        let verdict = match what {
            What::Over(kind, ratio) => {
                let best = results.best_of(scenario, kind);
                let measured = best.map(|(peer, ratio)| (ratio, peer.name.clone()));
                Verdict {
                    target: format!("{scenario}: {} / ringgate", kind.name()),
                    wanted: format!("at least {ratio}"),
                    met: measured.as_ref().is_some_and(|(found, _)| found.median >= ratio),
                    measured,
                }
            }
            What::OfBest(ratio) => {
                let best = results.best_rival(scenario).and_then(|(peer, _)| {
                    let above = (scenario, results.own());
                    let found = results.ratio(above, (scenario, &peer.name))?;
                    Some((found, peer.name.clone()))
                });
                at_most(format!("{scenario}: ringgate / best peer"), ratio, "", best)
            }
            What::OfFloor(ratio) => {
                let floor = Kind::Floor.name();
                let found = results.ratio((scenario, results.own()), (scenario, floor));
                let measured = found.map(|found| (found, floor.to_owned()));
                at_most(format!("{scenario}: ringgate / floor"), ratio, "", measured)
            }
            What::Own(own) => own.verdict(results),
        };
        verdict.if_enough(results)
    }
}

impl Verdict {
    fn if_enough(self, results: &Results) -> Self {
        let measured = self.measured.filter(|(spread, _)| results.is_enough(spread));
        Self { met: self.met && measured.is_some(), measured, ..self }
    }
}

impl Own {
    fn verdict(self, results: &Results) -> Verdict {
        let own = results.own();
        let spread = |value: fn(&Figures) -> Option<f64>| {
            Spread::of(results.valid(MANY, own).filter_map(value))
        };
        let (what, wanted, unit, found, against) = match self {
            Self::StartSeconds(wanted) => {
                let found = spread(|figures| Some(figures.started_in.as_secs_f64()));
                ("start", wanted, " s", found, "")
            }
            Self::MegabytesOverEmpty(wanted) => {
                let megabytes = |figures: &Figures| (figures.pss_kib * 1024) as f64 / 1e6;
                let found =
                    results.compare((MANY, own), (NONE, own), megabytes, |many, none| many - none);
                ("memory over a gateway without them", wanted, " MB", found, NONE)
            }
            Self::ReloadMillis(wanted) => {
                let found = spread(|figures| Some(figures.reloaded_in?.as_secs_f64() * 1e3));
                ("a changed certificate is served", wanted, " ms", found, "")
            }
            Self::CostOfFew(wanted) => {
                let found = results.ratio((MANY, own), (FEW, own));
                ("cost of a request / with ten hosts", wanted, "", found, FEW)
            }
        };
        let measured = found.map(|found| (found, against.to_owned()));
        at_most(format!("10,000 hosts: {what}"), wanted, unit, measured)
    }
}

fn at_most(target: String, wanted: f64, unit: &str, measured: Option<(Spread, String)>) -> Verdict {
    let met = measured.as_ref().is_some_and(|(found, _)| found.median <= wanted);
    Verdict { target, wanted: format!("at most {wanted}{unit}"), measured, met }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_about_scenarios_that_there_are() {
        for Target { scenario, .. } in TARGETS {
            assert!(scenario::by_name(scenario).is_some(), "{scenario}");
        }
        for name in [MANY, FEW, NONE].iter().chain(&VARIANTS) {
            assert!(scenario::by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_group_of_scenarios_has_all_that_targets_need() {
        let group = scenario::named(&["targets".to_owned()]);
        let is_there = |name: &str, kind: Option<Kind>| {
            let scenario = group.iter().find(|scenario| scenario.name == name);
            scenario.is_some_and(|scenario| kind.is_none_or(|kind| kind.is_for(scenario)))
        };
        for Target { scenario, what } in TARGETS {
            let kind = match what {
                What::Over(kind, _) => Some(*kind),
                What::OfFloor(_) => Some(Kind::Floor),
                What::OfBest(_) => Some(Kind::Nginx),
                What::Own(_) => None,
            };
            assert!(VARIANTS.contains(scenario) || is_there(scenario, kind), "{scenario}");
        }
        assert!(is_there(FEW, None) && is_there(NONE, None));
    }
}
