//! Reads the fields of a map and collects what is wrong with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::address::{PipePath, PipePathError};
use crate::config::source::document::{Entry, Node, Value};
use crate::snapshot::Severity;

/// Names further apart than this are not taken for one another.
const TYPO_DISTANCE_MAX: usize = 3;

/// What stands before the path of a Unix socket.
pub(super) const UNIX: &str = "unix://";

/// 10,000 years, as in protobuf: the clock can count to so far a deadline, not to any.
const DURATION_MAX: Duration = Duration::from_secs(315_576_000_000);

/// What is wrong with one place of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// From 1, counted from the first line of the document's part.
    pub(crate) line: u64,
    /// `spec.servers[0].tls.mode`; empty for the whole document.
    pub(crate) field: String,
    pub(crate) what: String,
    pub(crate) cause: String,
}

/// What was found, in the order it was found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub(crate) findings: Vec<Finding>,
}

impl Problems {
    /// Whether a finding leaves the resource out.
    pub(crate) fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// An error in `field`.
    pub(crate) fn error(&mut self, field: &Field<'_>, what: impl Into<String>, cause: &str) {
        self.add(Severity::Error, field, what.into(), cause);
    }

    /// A warning about `field`.
    pub(crate) fn warn(&mut self, field: &Field<'_>, what: impl Into<String>, cause: &str) {
        self.add(Severity::Warning, field, what.into(), cause);
    }

    fn add(&mut self, severity: Severity, field: &Field<'_>, what: String, cause: &str) {
        let (line, field) = (field.line, field.path.clone());
        self.findings.push(Finding { severity, line, field, what, cause: cause.to_owned() });
    }
}

/// A value and the line that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located<T> {
    /// From 1, counted from the first line of the document's part.
    pub(crate) line: u64,
    pub(crate) value: T,
}

/// A value and the way to it.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    /// `spec.servers[0].hosts`.
    pub(crate) path: String,
    /// The line of its key, or of the item of a list.
    pub(crate) line: u64,
    pub(crate) node: &'a Node,
}

impl<'a> Field<'a> {
    /// The document itself.
    pub(crate) fn root(node: &'a Node) -> Self {
        Self { path: String::new(), line: node.line, node }
    }

    /// The string that it has to be.
    pub(crate) fn string(&self, problems: &mut Problems) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                let what = format!("must be a string, not {}", self.node.value.kind());
                problems.error(self, what, "put it in quotes");
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) => self.wrong_type("a string", problems),
        }
    }

    /// The string, with its line.
    pub(crate) fn located(&self, problems: &mut Problems) -> Option<Located<Arc<str>>> {
        let value = self.string(problems)?.into();
        Some(Located { line: self.line, value })
    }

    /// The boolean that it has to be.
    pub(crate) fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            Value::Null
            | Value::Integer(_)
            | Value::Float(_)
            | Value::String(_)
            | Value::List(_)
            | Value::Map(_) => self.wrong_type("true or false", problems),
        }
    }

    /// The whole number that it has to be.
    pub(crate) fn integer<T: TryFrom<i64> + Into<i64> + Copy>(
        &self,
        range: RangeInclusive<T>,
        problems: &mut Problems,
    ) -> Option<T> {
        let (low, high) = ((*range.start()).into(), (*range.end()).into());
        let Value::Integer(number) = self.node.value else {
            return self.wrong_type(&format!("a whole number from {low} to {high}"), problems);
        };
        let value = Some(number).filter(|number| (low..=high).contains(number));
        if value.is_none() {
            problems.error(self, format!("must be from {low} to {high}, not {number}"), "");
        }
        value.and_then(|number| T::try_from(number).ok())
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    /// Whether it is a text without a character.
    fn is_empty(&self) -> bool {
        matches!(&self.node.value, Value::String(text) if text.is_empty())
    }

    /// The number that it has to be.
    pub(crate) fn number(
        &self,
        range: RangeInclusive<f64>,
        problems: &mut Problems,
    ) -> Option<f64> {
        let (low, high) = (*range.start(), *range.end());
        let number = match self.node.value {
            #[allow(clippy::cast_precision_loss, reason = "only small ones are in a range of ours")]
            Value::Integer(number) => number as f64,
            Value::Float(number) => number,
            Value::Null | Value::Bool(_) | Value::String(_) | Value::List(_) | Value::Map(_) => {
                return self.wrong_type(&format!("a number from {low} to {high}"), problems);
            }
        };
        let is_in = range.contains(&number);
        if !is_in {
            problems.error(self, format!("must be from {low} to {high}, not {number}"), "");
        }
        is_in.then_some(number)
    }

    /// The duration that it has to be, as Go writes them: `1.5s`, `1h30m`; at least 1 ms.
    pub(crate) fn duration(&self, problems: &mut Problems) -> Option<Duration> {
        let text = self.string(problems)?;
        let duration = parse_duration(text);
        match duration {
            None => {
                let what =
                    format!("must be a duration such as `500ms`, `5s` or `1h30m`, not `{text}`");
                problems.error(self, what, "");
            }
            Some(duration) if duration < Duration::from_millis(1) => {
                problems.error(self, format!("must be at least 1ms, not `{text}`"), "");
            }
            Some(duration) if has_part_of_a_millisecond(duration) => {
                let what = format!("must be a whole number of milliseconds, not `{text}`");
                problems.error(self, what, "");
            }
            Some(_) => {}
        }
        duration
    }

    /// The same, or zero, which here stands for no limit.
    pub(crate) fn duration_or_zero(&self, problems: &mut Problems) -> Option<Duration> {
        let is_zero = matches!(&self.node.value, Value::String(text)
            if parse_duration(text) == Some(Duration::ZERO));
        if is_zero { Some(Duration::ZERO) } else { self.duration(problems) }
    }

    /// Labels as Kubernetes has them.
    pub(crate) fn labels(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let labels = self.strings(problems);
        for (name, value) in &labels {
            if !is_label_name(name) {
                let cause = "up to 63 letters, digits, `-`, `_` and `.`, after a DNS name and `/` \
                             if need be";
                problems.error(self, format!("`{name}` is no name of a label"), cause);
            }
            if !value.is_empty() && !is_qualified(value) {
                let cause = "letters, digits, `-`, `_` and `.`, with a letter or digit at each end";
                problems.error(self, format!("`{value}` is no value of a label"), cause);
            }
        }
        labels
    }

    /// Labels that select workloads.
    pub(crate) fn selector(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let labels = self.strings(problems);
        if labels.iter().any(|(name, value)| name.contains('*') || value.contains('*')) {
            problems.error(self, "`*` is no wildcard in labels", "leave the label out");
        }
        if labels.contains_key("") {
            problems.error(self, "a label has no name", "remove it");
        }
        if let Some(long) = labels.values().find(|value| value.len() > LABEL_BYTES_MAX) {
            let cause = "Kubernetes has none with more than 63 letters";
            problems.error(self, format!("`{long}` is no value of a label"), cause);
        }
        labels
    }

    /// The strings of a map of them.
    pub(crate) fn strings(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let Some(fields) = self.fields(problems) else { return BTreeMap::new() };
        fields
            .all()
            .filter_map(|(name, value)| Some((name.to_owned(), value.string(problems)?.to_owned())))
            .collect()
    }

    /// A port.
    pub(crate) fn port(&self, problems: &mut Problems) -> Option<u16> {
        self.integer(1..=u16::MAX, problems)
    }

    /// An IP address.
    pub(crate) fn address(&self, problems: &mut Problems) -> Option<IpAddr> {
        let text = self.string(problems)?;
        let address = text.parse().ok();
        if address.is_none() {
            problems.error(self, format!("must be an IP address, not `{text}`"), "");
        }
        address
    }

    /// The Unix socket at `path`, which stands behind [`UNIX`] in this field.
    pub(crate) fn pipe(&self, path: &str, problems: &mut Problems) -> Option<PipePath> {
        let cause = |error| match error {
            PipePathError::NotAbsolute => "as in `unix:///run/app.sock` or `unix://@app`",
            PipePathError::TooLong(_) => "a symbolic link to its directory makes it shorter",
            PipePathError::Control => "",
            PipePathError::TooMany => "restart ringgate",
        };
        match PipePath::new(path) {
            Ok(path) => Some(path),
            Err(error) => {
                problems.error(self, format!("`{UNIX}{path}` {error}"), cause(error));
                None
            }
        }
    }

    /// One of the words of `choices`.
    pub(crate) fn one_of<T: Copy>(
        &self,
        choices: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<T> {
        let text = self.string(problems)?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            let what = format!("must be {}, not `{text}`", one_of(&names));
            problems.error(self, what, &did_you_mean(text, names.iter().copied()));
        }
        found
    }

    /// The items of the list that it has to be.
    pub(crate) fn items(&self, problems: &mut Problems) -> Vec<Self> {
        let Value::List(items) = &self.node.value else {
            let cause = "start each item with `- `";
            problems.error(self, format!("must be a list, not {}", self.node.value.kind()), cause);
            return Vec::new();
        };
        let item = |(index, node)| self.item(index, node);
        items.iter().enumerate().map(item).collect()
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        Self { path: format!("{}[{index}]", self.path), line: node.line, node }
    }

    /// The fields of the map that it has to be.
    pub(crate) fn fields(&self, problems: &mut Problems) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return self.wrong_type("a map", problems);
        };
        Some(Fields { parent: self.clone(), entries, known: Vec::new() })
    }

    fn wrong_type<T>(&self, wanted: &str, problems: &mut Problems) -> Option<T> {
        let what = format!("must be {wanted}, not {}", self.node.value.kind());
        problems.error(self, what, "");
        None
    }
}

/// The fields of a map. What is not asked for by the end is reported.
pub(crate) struct Fields<'a> {
    /// The map itself.
    pub(crate) parent: Field<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The field `name`; one that is null counts as absent, as in Kubernetes.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.known.push(name);
        self.entries
            .iter()
            .find(|entry| entry.key == name)
            .filter(|entry| entry.node.value != Value::Null)
            .map(|entry| self.field(entry))
    }

    /// The same; a text without a character counts as absent, as in protobuf.
    pub(crate) fn take_filled(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.take(name).filter(|field| !field.is_empty())
    }

    /// The field `name`, which has to be there.
    pub(crate) fn require(
        &mut self,
        name: &'static str,
        problems: &mut Problems,
    ) -> Option<Field<'a>> {
        let found = self.take(name);
        match &found {
            None => problems.error(&self.parent, format!("`{name}` is missing"), ""),
            Some(field) if field.is_empty() => problems.error(field, "must not be empty", ""),
            Some(_) => return found,
        }
        None
    }

    /// Every field, whatever its name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), self.field(entry)))
    }

    fn field(&self, entry: &'a Entry) -> Field<'a> {
        let dot = if self.parent.path.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{}", self.parent.path, entry.key);
        Field { path, line: entry.line, node: &entry.node }
    }

    /// Reports those of `names`, which Istio has and this version has not; with them the whole
    /// resource is left out.
    pub(crate) fn refuse(&mut self, names: &[&'static str], problems: &mut Problems) {
        for name in names {
            if let Some(field) = self.take(name) {
                let consequence = "the whole resource is left out until this is removed";
                problems.error(&field, not_supported(&format!("`{name}`")), consequence);
            }
        }
    }

    /// Reports the fields that nobody asked for.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for entry in self.entries {
            if !self.known.contains(&entry.key.as_str()) {
                let cause = did_you_mean(&entry.key, self.known.iter().copied());
                let what = format!("there is no field `{}`", entry.key);
                problems.error(&self.field(entry), what, &cause);
            }
        }
    }
}

/// The message for what Istio has and this version has not.
pub(crate) fn not_supported(what: &str) -> String {
    format!("{what} is not supported by this version of ringgate")
}

/// Reads a duration of Go.
fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!text.is_empty() && duration <= DURATION_MAX).then_some(duration)
}

/// Istio refuses such. Of longer times than this a float does not tell nanoseconds.
fn has_part_of_a_millisecond(duration: Duration) -> bool {
    duration < Duration::from_secs(1_000_000) && !duration.subsec_nanos().is_multiple_of(1_000_000)
}

/// The longest DNS label; names and values of labels are as long.
const LABEL_BYTES_MAX: usize = 63;

/// Whether it is `name` or `prefix/name`, with a DNS name before the slash.
fn is_label_name(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(p, name)| (Some(p), name));
    let is_prefix = |text: &str| text.len() <= 253 && text.split('.').all(is_label);
    name.len() <= LABEL_BYTES_MAX && is_qualified(name) && prefix.is_none_or(is_prefix)
}

/// Whether it is made of letters, digits, `-`, `_` and `.`, without the last three at its ends.
fn is_qualified(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    is_end(text.bytes().next())
        && is_end(text.bytes().next_back())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Whether it is a DNS label (RFC 1123), as the name of a namespace or a port is.
pub(crate) fn is_label(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= LABEL_BYTES_MAX
        && is_end(text.bytes().next())
        && is_end(text.bytes().next_back())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// `A`, `A or B`, `A, B or C`.
fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// ``did you mean `x`?``, or nothing when no name is near.
pub(crate) fn did_you_mean<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> String {
    let near = names
        .map(|name| (distance(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= TYPO_DISTANCE_MAX.min(name.len() / 3))
        .min();
    near.map_or_else(String::new, |(_, name)| format!("did you mean `{name}`?"))
}

/// Levenshtein's distance, up to names of 64 bytes.
fn distance(a: &str, b: &str) -> usize {
    if a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [
            ("5s", Some(5_000)),
            ("0.5s", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("1m1s1ms", Some(61_001)),
            ("2000us", Some(2)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5 s", None),
            ("-5s", None),
            ("5d", None),
            ("1.2.3s", None),
            ("87660000h", Some(315_576_000_000_000)),
            ("87660001h", None),
            ("99999999999999999999999h", None),
        ];
        for (text, milliseconds) in cases {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }
}
