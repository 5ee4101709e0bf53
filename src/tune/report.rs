//! Looks at every knob and tells what was found, as a table for people or as JSON for programs.

use std::fmt;

use serde::Serialize;

use super::host::{Host, Unseen};
use super::knob::{Check, Finding, Knob, Matters};
use super::{cpu, network, process, sysctl};

/// What every knob of a host is, in the order in which the tables show them.
#[derive(Debug)]
pub struct Report {
    pub(super) rows: Vec<Row>,
}

/// Looks at every knob of `host`.
#[must_use]
pub fn compare(host: &Host) -> Report {
    Report { rows: knobs().flat_map(|knob| look(knob, host)).collect() }
}

pub(super) fn knobs() -> impl Iterator<Item = &'static Knob> {
    const ALL: [&[Knob]; 4] = [&process::KNOBS, &sysctl::KNOBS, &cpu::KNOBS, &network::KNOBS];
    ALL.into_iter().flatten()
}

fn look(knob: &Knob, host: &Host) -> Vec<Row> {
    match knob.check {
        Check::Host(check) => vec![Row::new(knob, None, check(host))],
        Check::Card(check) => match network::cards(host) {
            Ok(cards) => cards
                .into_iter()
                .map(|card| Row::new(knob, Some(card.clone()), check(host, &card)))
                .collect(),
            Err(unseen) => vec![Row::new(knob, None, Err(unseen))],
        },
    }
}

/// One knob, of one card if there is one for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) knob: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) card: Option<String>,
    pub(super) state: State,
    pub(super) matters: Matters,
    /// The value; or, when it cannot be seen, why.
    pub(super) now: String,
    pub(super) advice: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    AsAdvised,
    Differs,
    Unseen,
}

impl Row {
    fn new(knob: &Knob, card: Option<String>, found: Result<Finding, Unseen>) -> Self {
        let (state, now, command) = match found {
            Ok(Finding { now, command: None }) => (State::AsAdvised, now, None),
            Ok(Finding { now, command }) => (State::Differs, now, command),
            Err(Unseen(why)) => (State::Unseen, why, None),
        };
        let Knob { name, matters, advice, .. } = *knob;
        Self { knob: name, card, state, matters, now, advice, command }
    }

    fn name(&self) -> String {
        self.card
            .as_ref()
            .map_or_else(|| self.knob.to_owned(), |card| format!("{} {card}", self.knob))
    }
}

impl Report {
    /// The same for programs: an array with an object for each row.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.rows).expect("text and names of variants")
    }

    fn of(&self, state: State, matters: Option<Matters>) -> Vec<&Row> {
        let wanted =
            |row: &&Row| row.state == state && matters.is_none_or(|matters| row.matters == matters);
        self.rows.iter().filter(wanted).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let differing = [
            (Matters::Always, "Differs from the advice, and matters on every host:"),
            (Matters::Sometimes, "Differs from the advice, and matters in some cases:"),
        ];
        for (matters, title) in differing {
            let rows = self.of(State::Differs, Some(matters));
            let cells = rows.iter().map(|row| {
                let command = row.command.clone().unwrap_or_default();
                vec![row.name(), row.now.clone(), row.advice.to_owned(), command]
            });
            table(f, title, &["KNOB", "NOW", "ADVICE", "COMMAND"], cells.collect())?;
        }
        let rest = [(State::AsAdvised, "As advised:"), (State::Unseen, "Cannot be seen here:")];
        for (state, title) in rest {
            let rows = self.of(state, None);
            let cells = rows.iter().map(|row| vec![row.name(), row.now.clone()]);
            table(f, title, &[], cells.collect())?;
        }
        f.write_str(
            "Nothing was changed. tuning/KNOB.md explains each knob: when it matters, what was \
             measured,\nhow to keep a change over a reboot, and how to undo it.\n",
        )
    }
}

/// `cells` below `heading` in columns that are as wide as they must be; nothing without cells.
fn table(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    heading: &[&str],
    mut cells: Vec<Vec<String>>,
) -> fmt::Result {
    if cells.is_empty() {
        return Ok(());
    }
    if !heading.is_empty() {
        cells.insert(0, heading.iter().map(|cell| (*cell).to_owned()).collect());
    }
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| cells.iter().map(|row: &Vec<String>| row[column].chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    writeln!(f, "{title}\n")?;
    for row in &cells {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "  {}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    writeln!(f)
}
