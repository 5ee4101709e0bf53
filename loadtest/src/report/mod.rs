//! The record of a run: a README that a person reads, the raw numbers, plots.
//!
//! Records are never changed: a second run on one day has a directory of its own.

mod overview;
mod plot;

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine;
use crate::measure::{Figures, Measurement};
use crate::peer::Peer;
use crate::results::Results;
use crate::scenario::{Figure, Scenario};
use crate::statistics::Spread;
use crate::target::{self, Verdict};

/// Everything about one run.
#[derive(Debug)]
pub(crate) struct Record {
    pub facts: Vec<(&'static str, String)>,
    pub note: Option<String>,
    pub command: String,
    pub took: Duration,
    pub scenarios: Vec<Scenario>,
    pub results: Results,
}

impl Record {
    /// Writes it to a new directory below `out`, which is returned.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write(&self, out: &Path) -> io::Result<PathBuf> {
        let dir = fresh_directory(out)?;
        fs::write(dir.join("results.csv"), self.csv())?;
        for scenario in &self.scenarios {
            fs::write(dir.join(format!("{}.svg", scenario.name)), self.plot(scenario))?;
        }
        fs::write(dir.join(OVERVIEW), overview::picture(&target::comparisons(&self.results)))?;
        fs::write(dir.join("README.md"), self.readme())?;
        Ok(dir)
    }

    /// The targets and what came of them, as a table.
    pub(crate) fn targets(&self) -> String {
        let verdicts = target::verdicts(&self.results);
        let measured = verdicts.iter().filter(|verdict| verdict.measured.is_some()).count();
        let met = verdicts.iter().filter(|verdict| verdict.met).count();
        let all = verdicts.len();
        let mut text = format!("{met} of {all} targets are met");
        if measured < all {
            write!(text, "; {} were not measured", all - measured).ok();
        }
        text.push_str(".\n\n| target | wanted | measured | against | |\n|---|---|---|---|---|\n");
        for Verdict { target, wanted, measured, met } in verdicts {
            let (found, against, verdict) = match measured {
                Some((found, against)) => {
                    let verdict = if met { "met" } else { "**missed**" };
                    (format!("{found:.2}"), against, verdict)
                }
                None => ("-".to_owned(), String::new(), "not measured"),
            };
            writeln!(text, "| {target} | {wanted} | {found} | {against} | {verdict} |").ok();
        }
        text
    }

    /// Every scenario's ratios, as a table.
    fn ratios(&self) -> String {
        let (own, others) = (self.results.own(), self.others());
        let mut text = format!("| scenario | {own} | | {} |\n", others.join(" | "));
        writeln!(text, "|---|---|---|{}", "---|".repeat(others.len())).ok();
        for Scenario { name, figure, .. } in &self.scenarios {
            let value = self.results.spread(name, own);
            write!(text, "| {name} | {} | {} |", cell(value, 1), figure.unit()).ok();
            for other in &others {
                let ratio = self.results.ratio((name, other), (name, own));
                write!(text, " {} |", cell(ratio, 2)).ok();
            }
            text.push('\n');
        }
        text
    }

    fn readme(&self) -> String {
        let date = self.facts.first().map_or("", |(_, date)| date);
        let mut text = format!("# Load test of {date}\n\n```\n{}\n```\n\n", self.command);
        if let Some(note) = &self.note {
            write!(text, "**{note}**\n\n").ok();
        }
        write!(text, "## Targets\n\n{}\n![overview]({OVERVIEW})\n\n", self.targets()).ok();
        write!(text, "{READING}\n## Where and with what\n\n| | |\n|---|---|\n").ok();
        for (name, value) in &self.facts {
            writeln!(text, "| {name} | {value} |").ok();
        }
        writeln!(text, "| took | {} min |", self.took.as_secs().div_ceil(60)).ok();
        for peer in &self.results.peers {
            writeln!(text, "| {} | {} |", peer.name, peer.version).ok();
        }
        write!(text, "\n## All scenarios\n\n{RATIOS}\n{}", self.ratios()).ok();
        for scenario in &self.scenarios {
            text.push_str(&self.section(scenario));
        }
        text
    }

    fn section(&self, scenario: &Scenario) -> String {
        let Scenario { name, what, .. } = scenario;
        let mut text = format!("\n## {name}\n\n{what}\n\n![{name}]({name}.svg)\n\n");
        let columns: Vec<_> = COLUMNS.iter().filter(|(_, _, of)| of(scenario)).collect();
        let names: Vec<_> = columns.iter().map(|(name, ..)| *name).collect();
        writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len())).ok();
        for peer in self.able(scenario) {
            write!(text, "| {} |", peer.name).ok();
            for (_, (digits, value), _) in &columns {
                let values = self.results.valid(name, &peer.name).map(value);
                write!(text, " {} |", cell(Spread::of(values), *digits)).ok();
            }
            text.push('\n');
        }
        for Measurement { round, peer, fault, .. } in self.results.of(name) {
            if let Some(fault) = fault {
                let fault = fault.trim().replace('\n', " ");
                write!(text, "\nInvalid: {peer} in round {round}: {fault}\n").ok();
            }
        }
        text
    }

    fn csv(&self) -> String {
        let mut text = String::from(CSV_HEAD);
        for measurement in &self.results.measurements {
            let Measurement { scenario, peer, round, figures, fault, .. } = measurement;
            write!(text, "{scenario},{peer},{round},").ok();
            match figures {
                Some(figures) => text.push_str(&csv_figures(figures)),
                None => text.push_str(",,,,,,,,,,,,,,"),
            }
            let fault = fault.as_deref().unwrap_or_default().replace(['"', '\n'], " ");
            writeln!(text, ",\"{}\"", fault.trim()).ok();
        }
        text
    }

    fn plot(&self, scenario: &Scenario) -> String {
        let bars = self.able(scenario).filter_map(|peer| {
            let spread = self.results.spread(scenario.name, &peer.name)?;
            Some(plot::Bar { label: &peer.name, spread })
        });
        let bars: Vec<_> = bars.collect();
        plot::bars(scenario.what, scenario.figure.unit(), &bars)
    }

    fn others(&self) -> Vec<&str> {
        self.results.peers.iter().skip(1).map(|peer| peer.name.as_str()).collect()
    }

    fn able(&self, scenario: &Scenario) -> impl Iterator<Item = &Peer> {
        self.results.peers.iter().filter(|peer| peer.takes(scenario))
    }
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{spread:.digits$}"))
}

const OVERVIEW: &str = "overview.svg";
const READING: &str = "\
Medians of the rounds, smallest and largest in parentheses. A ratio is taken within each round. A
target counts against the version of the peer that does best. See `loadtest/README.md` for what is
measured and why.
";
const RATIOS: &str = "\
ringgate's figure, and those of the others by it: above 1, the other one costs more.
";
/// A number in a scenario's table: its name, its decimals and where it is, the scenarios that have
/// it.
type Column = (&'static str, (usize, fn(&Figures) -> f64), fn(&Scenario) -> bool);
const COLUMNS: &[Column] = &[
    ("CPU us/operation", (1, |f| f.cpu_micros), is_load),
    ("operations/s", (0, |f| f.per_second), is_load),
    ("p50 us", (0, |f| micros(f.latency.p50)), is_load),
    ("p99 us", (0, |f| micros(f.latency.p99)), is_load),
    ("p99.9 us", (0, |f| micros(f.latency.p999)), is_load),
    ("KiB/connection", (1, |f| f.value), |scenario| !is_load(scenario)),
    ("busiest worker %", (1, |f| f.value), |scenario| scenario.figure == Figure::Busiest),
    ("gateway busy %", (0, |f| 100.0 * f.gateway_busy), is_load),
    ("generator busy %", (0, |f| 100.0 * f.generator_busy), is_load),
    ("others busy %", (0, |f| 100.0 * f.others_busy), is_load),
    ("generator late us", (0, |f| micros(f.generator_late)), |s| s.figure == Figure::Tail),
    ("upstream connections", (0, |f| f.upstream_connections as f64), is_load),
    ("PSS MiB", (1, |f| f.pss_kib as f64 / 1_024.0), |_| true),
    ("start ms", (0, |f| 1e3 * f.started_in.as_secs_f64()), |_| true),
    ("reload ms", (1, |f| f.reloaded_in.map_or(0.0, micros) / 1e3), |scenario| scenario.hosts > 0),
];

fn is_load(scenario: &Scenario) -> bool {
    scenario.figure != Figure::Memory
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

const CSV_HEAD: &str = "\
scenario,gateway,round,value,cpu_micros,operations,per_second,p50_micros,p99_micros,p999_micros,\
gateway_busy,generator_busy,upstream_connections,pss_kib,start_micros,reload_micros,others_busy,\
late_micros,fault
";

fn csv_figures(figures: &Figures) -> String {
    let Figures { value, cpu_micros, operations, per_second, latency, .. } = figures;
    let Figures { gateway_busy, generator_busy, upstream_connections, pss_kib, .. } = figures;
    let started_in = micros(figures.started_in);
    let reloaded_in =
        figures.reloaded_in.map_or_else(String::new, |time| format!("{:.0}", micros(time)));
    format!(
        "{value:.3},{cpu_micros:.3},{operations:.1},{per_second:.1},{:.1},{:.1},{:.1},\
         {gateway_busy:.3},{generator_busy:.3},{upstream_connections},{pss_kib},{started_in:.0},\
         {reloaded_in},{:.3},{:.1}",
        micros(latency.p50),
        micros(latency.p99),
        micros(latency.p999),
        figures.others_busy,
        micros(figures.generator_late)
    )
}

fn fresh_directory(out: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(out)?;
    let name = format!("{}-{}", machine::date(), machine::hostname());
    for number in 1.. {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let dir = out.join(format!("{name}{suffix}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| dir),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Kind;
    use crate::scenario;

    fn measurement(peer: &str, round: usize, value: f64, fault: Option<&str>) -> Measurement {
        let figures = Figures {
            value,
            cpu_micros: value,
            operations: 1.0,
            per_second: 1.0,
            gateway_busy: 0.5,
            generator_busy: 0.5,
            others_busy: 0.0,
            generator_late: Duration::ZERO,
            upstream_connections: 1,
            latency: crate::statistics::Latency::default(),
            pss_kib: 1,
            started_in: Duration::ZERO,
            reloaded_in: None,
        };
        let (fault, peer) = (fault.map(str::to_owned), peer.to_owned());
        let figures = Some(figures);
        Measurement { scenario: "small-h1", peer, round, figures, fault, disturbed: false }
    }

    fn record() -> Record {
        let peer = |kind, name: &str| Peer {
            kind,
            name: name.to_owned(),
            program: PathBuf::new(),
            version: "1".to_owned(),
            relay: None,
        };
        let peers = vec![
            peer(Kind::Ringgate, "ringgate"),
            peer(Kind::Nginx, "nginx 1"),
            peer(Kind::Nginx, "nginx 2"),
            peer(Kind::Floor, "floor"),
        ];
        let measurements = vec![
            measurement("ringgate", 1, 10.0, None),
            measurement("nginx 1", 1, 30.0, None),
            measurement("nginx 2", 1, 15.0, None),
            measurement("floor", 1, 5.0, None),
            measurement("ringgate", 2, 20.0, None),
            measurement("nginx 1", 2, 50.0, None),
            measurement("nginx 2", 2, 10.0, Some("5 requests failed")),
            measurement("floor", 2, 16.0, None),
            measurement("ringgate", 3, 1.0, Some("5 requests failed")),
            measurement("nginx 1", 3, 50.0, None),
        ];
        Record {
            facts: vec![("date", "today".to_owned())],
            note: None,
            command: String::new(),
            took: Duration::from_secs(61),
            scenarios: scenario::named(&["small-h1".to_owned()]),
            results: Results { peers, measurements },
        }
    }

    #[test]
    fn ratios_are_within_rounds_and_leave_out_what_is_invalid() {
        let ratios = record().ratios();
        assert!(ratios.contains("| 15.0 (10.0-20.0) | CPU us/operation |"), "{ratios}");
        assert!(ratios.contains("| 2.75 (2.50-3.00) | 1.50 (1.50-1.50) |"), "{ratios}");
        let readme = record().readme();
        assert!(readme.contains("Invalid: ringgate in round 3: 5 requests failed"), "{readme}");
        assert!(readme.contains("| took | 2 min |"), "{readme}");
    }

    #[test]
    fn a_target_counts_against_the_best_version() {
        let targets = record().targets();
        // The other one does better in one of three rounds and is invalid in the rest.
        let nginx =
            "| small-h1: nginx / ringgate | at least 2.2 | 2.75 (2.50-3.00) | nginx 1 | met |";
        assert!(targets.contains(nginx), "{targets}");
        let floor =
            "| small-h1: ringgate / floor | at most 1.4 | 1.62 (1.25-2.00) | floor | **missed** |";
        assert!(targets.contains(floor), "{targets}");
        assert!(targets.contains("haproxy / ringgate | at least 2 | - |  | not measured |"));
        assert!(targets.starts_with("1 of "), "{targets}");
    }

    #[test]
    fn a_record_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = record().write(dir.path()).unwrap();
        let second = record().write(dir.path()).unwrap();
        assert_ne!(first, second);
        let csv = fs::read_to_string(second.join("results.csv")).unwrap();
        let columns: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [19; 11]);
        assert!(second.join(OVERVIEW).exists());
    }
}
