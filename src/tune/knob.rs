//! What a knob is, and what is found when it is looked at.

use serde::Serialize;

use super::host::{Host, Unseen};

/// One knob of the host.
#[derive(Debug)]
pub(super) struct Knob {
    /// `tuning/NAME.md` explains it.
    pub(super) name: &'static str,
    pub(super) matters: Matters,
    /// The value, or the state, that is wanted.
    pub(super) advice: &'static str,
    pub(super) check: Check,
}

/// Whether a host that differs is worse off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Matters {
    /// On every host.
    Always,
    /// In cases that the knob's file tells.
    Sometimes,
}

/// Looks at a host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Check {
    /// There is one of it.
    Host(fn(&Host) -> Result<Finding, Unseen>),
    /// There is one for each network card, of which this is the name.
    Card(fn(&Host, &str) -> Result<Finding, Unseen>),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The value or state, for people.
    pub(super) now: String,
    /// What would make it as advised; nothing when it is.
    pub(super) command: Option<String>,
}

impl Finding {
    pub(super) fn as_advised(now: impl Into<String>) -> Self {
        Self { now: now.into(), command: None }
    }

    /// `command` as it stands in the knob's file, each word in capitals replaced by its value.
    pub(super) fn differs(now: impl Into<String>, command: &str, values: &[(&str, &str)]) -> Self {
        let command =
            values.iter().fold(command.to_owned(), |text, (word, value)| text.replace(word, value));
        Self { now: now.into(), command: Some(command) }
    }

    pub(super) fn when(advised: bool, now: impl Into<String>, command: &str) -> Self {
        if advised { Self::as_advised(now) } else { Self::differs(now, command, &[]) }
    }
}
