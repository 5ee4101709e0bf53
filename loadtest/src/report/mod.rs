//! The record of a run: a README that a person reads, the raw numbers, plots.
//!
//! Records are never changed: a second run on one day has a directory of its own.

mod plot;

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine;
use crate::measure::{Figures, Measurement};
use crate::peer::{Kind, Peer};
use crate::scenario::Scenario;
use crate::statistics::Spread;

/// Everything about one run.
#[derive(Debug)]
pub(crate) struct Record {
    pub facts: Vec<(&'static str, String)>,
    pub note: Option<String>,
    pub command: String,
    pub scenarios: Vec<Scenario>,
    pub peers: Vec<Peer>,
    pub measurements: Vec<Measurement>,
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
        fs::write(dir.join("README.md"), self.readme())?;
        Ok(dir)
    }

    /// The ratios, as a table.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::from("| scenario | ringgate |");
        let others: Vec<_> = self.others().collect();
        for kind in &others {
            write!(text, " {} / ringgate | wanted |", kind.name()).ok();
        }
        text.push_str("\n|---|---|");
        others.iter().for_each(|_| text.push_str("---|---|"));
        for scenario in &self.scenarios {
            let own = Spread::of(self.values(scenario, Kind::Ringgate).into_iter().flatten());
            let own = own.map_or_else(|| "-".to_owned(), |own| own.to_string());
            write!(text, "\n| {} | {own} {} |", scenario.name, scenario.figure.unit()).ok();
            for &kind in &others {
                text.push_str(&self.ratio_cells(scenario, kind));
            }
        }
        text.push('\n');
        text
    }

    fn ratio_cells(&self, scenario: &Scenario, kind: Kind) -> String {
        let target = scenario.targets.iter().find(|(of, _)| *of == kind).map(|(_, ratio)| *ratio);
        let ratio = Spread::of(self.ratios(scenario, kind));
        let cell = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let verdict = match (ratio, target) {
            (Some(ratio), Some(target)) if ratio.median >= target => format!("{target:.2}: met"),
            (_, Some(target)) => format!("{target:.2}: **missed**"),
            (_, None) => String::new(),
        };
        format!(" {cell} | {verdict} |")
    }

    fn readme(&self) -> String {
        let date = self.facts.first().map_or("", |(_, date)| date);
        let mut text = format!("# Load test of {date}\n\n```\n{}\n```\n\n", self.command);
        if let Some(note) = &self.note {
            write!(text, "**{note}**\n\n").ok();
        }
        text.push_str("| | |\n|---|---|\n");
        for (name, value) in &self.facts {
            writeln!(text, "| {name} | {value} |").ok();
        }
        for peer in &self.peers {
            writeln!(text, "| {} | {} |", peer.kind.name(), peer.version).ok();
        }
        write!(text, "\n{READING}\n").ok();
        text.push_str(&self.summary());
        for scenario in &self.scenarios {
            text.push_str(&self.section(scenario));
        }
        text
    }

    fn section(&self, scenario: &Scenario) -> String {
        let Scenario { name, what, .. } = scenario;
        let mut text = format!("\n## {name}\n\n{what}\n\n![{name}]({name}.svg)\n\n{COLUMNS}");
        for peer in &self.peers {
            let figures: Vec<_> = self.valid(scenario, peer.kind).collect();
            let spread = |digits: usize, value: fn(&Figures) -> f64| {
                Spread::of(figures.iter().map(|figures| value(figures)))
                    .map_or_else(|| "-".to_owned(), |spread| format!("{spread:.digits$}"))
            };
            let cells = [
                spread(1, |f| f.cpu_micros),
                spread(0, |f| f.per_second),
                spread(0, |f| f.latency.p50.as_secs_f64() * 1e6),
                spread(0, |f| f.latency.p99.as_secs_f64() * 1e6),
                spread(0, |f| f.latency.p999.as_secs_f64() * 1e6),
                spread(0, |f| 100.0 * f.gateway_busy),
                spread(0, |f| 100.0 * f.generator_busy),
                spread(0, |f| f.upstream_connections as f64),
                spread(1, |f| f.pss_kib as f64 / 1_024.0),
                spread(0, |f| f.started_in.as_secs_f64() * 1e3),
            ];
            writeln!(text, "| {} | {} |", peer.kind.name(), cells.join(" | ")).ok();
        }
        for Measurement { round, kind, fault, .. } in self.of(scenario) {
            if let Some(fault) = fault {
                let fault = fault.replace('\n', " ");
                write!(text, "\nInvalid: {} in round {round}: {fault}\n", kind.name()).ok();
            }
        }
        text
    }

    fn csv(&self) -> String {
        let mut text = String::from(CSV_HEAD);
        for measurement in &self.measurements {
            let Measurement { scenario, kind, round, figures, fault } = measurement;
            write!(text, "{scenario},{},{round},", kind.name()).ok();
            match figures {
                Some(figures) => text.push_str(&csv_figures(figures)),
                None => text.push_str(",,,,,,,,,,,"),
            }
            let fault = fault.as_deref().unwrap_or_default().replace(['"', '\n'], " ");
            writeln!(text, ",\"{fault}\"").ok();
        }
        text
    }

    fn plot(&self, scenario: &Scenario) -> String {
        let bars = self.peers.iter().filter_map(|peer| {
            let spread = Spread::of(self.values(scenario, peer.kind).into_iter().flatten())?;
            Some(plot::Bar { label: peer.kind.name(), spread })
        });
        let bars: Vec<_> = bars.collect();
        plot::bars(&format!("{}: {}", scenario.what, scenario.figure.unit()), &bars)
    }

    fn others(&self) -> impl Iterator<Item = Kind> {
        self.peers.iter().map(|peer| peer.kind).filter(|kind| *kind != Kind::Ringgate)
    }

    fn of(&self, scenario: &Scenario) -> impl Iterator<Item = &Measurement> {
        let name = scenario.name;
        self.measurements.iter().filter(move |measurement| measurement.scenario == name)
    }

    fn valid(&self, scenario: &Scenario, kind: Kind) -> impl Iterator<Item = &Figures> {
        self.of(scenario).filter(move |m| m.kind == kind).filter_map(Measurement::valid)
    }

    /// One for each round; `None` where the measurement is not valid.
    fn values(&self, scenario: &Scenario, kind: Kind) -> Vec<Option<f64>> {
        let of_kind = self.of(scenario).filter(|measurement| measurement.kind == kind);
        of_kind.map(|measurement| measurement.valid().map(|figures| figures.value)).collect()
    }

    /// One for each round in which both are valid.
    fn ratios(&self, scenario: &Scenario, kind: Kind) -> Vec<f64> {
        let own = self.values(scenario, Kind::Ringgate);
        let pairs = own.into_iter().zip(self.values(scenario, kind));
        pairs.filter_map(|(own, other)| Some(other? / own?)).collect()
    }
}

const READING: &str = "\
Medians of the rounds, smallest and largest in parentheses. A ratio is taken within each round; above
1, the peer costs more than ringgate. See `loadtest/README.md` for what is measured and why.
";
const COLUMNS: &str = "\
| | CPU us/operation | operations/s | p50 us | p99 us | p99.9 us | gateway busy % | generator busy % \
| upstream connections | PSS MiB | start ms |
|---|---|---|---|---|---|---|---|---|---|---|
";
const CSV_HEAD: &str = "\
scenario,gateway,round,value,cpu_micros,operations,per_second,p50_micros,p99_micros,p999_micros,\
gateway_busy,generator_busy,upstream_connections,pss_kib,start_micros,fault
";

fn csv_figures(figures: &Figures) -> String {
    let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
    let Figures { value, cpu_micros, operations, per_second, latency, .. } = figures;
    let Figures { gateway_busy, generator_busy, upstream_connections, pss_kib, .. } = figures;
    let started_in = micros(figures.started_in);
    format!(
        "{value:.3},{cpu_micros:.3},{operations},{per_second:.1},{:.1},{:.1},{:.1},\
         {gateway_busy:.3},{generator_busy:.3},{upstream_connections},{pss_kib},{started_in:.0}",
        micros(latency.p50),
        micros(latency.p99),
        micros(latency.p999)
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
    use crate::scenario;

    fn measurement(kind: Kind, round: usize, value: f64, fault: Option<&str>) -> Measurement {
        let figures = Figures {
            value,
            cpu_micros: value,
            operations: 1,
            per_second: 1.0,
            gateway_busy: 0.5,
            generator_busy: 0.5,
            upstream_connections: 1,
            latency: crate::statistics::Latency::default(),
            pss_kib: 1,
            started_in: Duration::ZERO,
        };
        let fault = fault.map(str::to_owned);
        Measurement { scenario: "small-h1", kind, round, figures: Some(figures), fault }
    }

    fn record() -> Record {
        let peer = |kind| Peer { kind, program: PathBuf::new(), version: "1".to_owned() };
        Record {
            facts: vec![("date", "today".to_owned())],
            note: None,
            command: String::new(),
            scenarios: scenario::named(&["small-h1".to_owned()]).unwrap(),
            peers: vec![peer(Kind::Ringgate), peer(Kind::Nginx)],
            measurements: vec![
                measurement(Kind::Ringgate, 1, 10.0, None),
                measurement(Kind::Nginx, 1, 30.0, None),
                measurement(Kind::Ringgate, 2, 20.0, None),
                measurement(Kind::Nginx, 2, 50.0, None),
                measurement(Kind::Ringgate, 3, 1.0, Some("5 requests failed")),
                measurement(Kind::Nginx, 3, 50.0, None),
            ],
        }
    }

    #[test]
    fn ratios_are_within_rounds_and_leave_out_what_is_invalid() {
        let summary = record().summary();
        assert!(summary.contains("| 2.75 (2.50-3.00) | 2.20: met |"), "{summary}");
        assert!(summary.contains("| 15.0 (10.0-20.0) CPU"), "{summary}");
        let readme = record().readme();
        assert!(readme.contains("Invalid: ringgate in round 3: 5 requests failed"), "{readme}");
    }

    #[test]
    fn a_record_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let first = record().write(dir.path()).unwrap();
        let second = record().write(dir.path()).unwrap();
        assert_ne!(first, second);
        let csv = fs::read_to_string(second.join("results.csv")).unwrap();
        let columns: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(columns, [16; 7]);
    }
}
