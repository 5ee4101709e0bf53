//! A settings file as it was written: keys, values and their lines.
//!
//! - [`Section`] is read by asking for each key once. What nobody asked for is unknown, what stands
//!   twice is a mistake, and a mistake in one key does not hide those in others.
//! - A value that is wrong is replaced by its default, so that reading goes on; the problem that
//!   was noted keeps the result from being used.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer};
use serde_yaml::Spanned;
use serde_yaml::options::DuplicateKeyPolicy;

use super::{Problem, yaml};

/// Most edits between a typo and the key that was meant.
const TYPO_EDITS_MAX: usize = 2;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    /// From 1.
    line: u64,
    value: Value,
}

/// A value, before anything is known about what it should be.
#[derive(Debug)]
pub(super) enum Value {
    /// `true` or `false`, not in quotes.
    Bool(bool),
    /// A number with a fraction or exponent, not in quotes.
    Float(f64),
    /// A whole number, not in quotes.
    Integer(i64),
    /// `[...]` or lines that begin with `-`.
    List(Vec<Node>),
    /// Keys and values in the order of the file, equal keys included.
    Mapping(Vec<(Node, Node)>),
    /// `null`, `~` or nothing at all.
    Nothing,
    /// All else.
    Text(String),
}

/// Reads the document in `bytes`; `None` when it is no YAML mapping at all.
pub(super) fn document<T>(
    bytes: &[u8],
    problems: &mut Vec<Problem>,
    read: impl FnOnce(&mut Section<'_>) -> T,
) -> Option<T> {
    let options = serde_yaml::options! {
        // `Section` finds them all, the parser would stop at the first.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
    };
    match serde_yaml::from_slice_with_options(bytes, options) {
        Ok(node) if is_resource(&node) => {
            let what = "is a Kubernetes resource, not a settings file; resources belong below \
                        `source.directory`";
            problems.push(Problem { line: node.line, key: String::new(), what: what.to_owned() });
            None
        }
        Ok(node) => Some(Section::read(node, String::new(), problems, read)),
        Err(error) => {
            let line = error.location().map_or(0, |location| location.line());
            problems.push(Problem { line, key: String::new(), what: message(&error) });
            None
        }
    }
}

fn is_resource(node: &Node) -> bool {
    let Value::Mapping(pairs) = &node.value else { return false };
    ["apiVersion", "kind"].iter().all(|name| {
        pairs.iter().any(|(key, _)| matches!(&key.value, Value::Text(text) if text == name))
    })
}

/// The parser's own words where it has good ones, without the position that the problem has apart.
fn message(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = &text[..text.find(" at line ").unwrap_or(text.len())];
    if text.contains("multiple YAML documents") {
        return "holds several documents; a settings file is a single one".to_owned();
    }
    let text = text.trim_end_matches(" (block indentation)");
    let cure = yaml::cure(text).map_or_else(String::new, |cure| format!("; {cure}"));
    format!("is not YAML: {text}{cure}")
}

/// A mapping of the file that is being read, key by key.
pub(super) struct Section<'a> {
    /// The dotted key of the mapping itself; empty at the top.
    key: String,
    /// What nobody asked for yet; keys are distinct.
    entries: BTreeMap<String, (u64, Node)>,
    /// What was asked for.
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Section<'a> {
    fn read<T>(
        node: Node,
        key: String,
        problems: &'a mut Vec<Problem>,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let entries = distinct(pairs_of(node, &key, problems), &key, problems);
        let mut section = Section { key, entries, known: Vec::new(), problems };
        let result = read(&mut section);
        section.close();
        result
    }

    /// Reads the mapping at `key`; an absent one is read as an empty one.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let absent = Node { line: 0, value: Value::Nothing };
        let node = self.take(key).unwrap_or(absent);
        Section::read(node, dotted(&self.key, key), self.problems, read)
    }

    /// Reads the value at `key`. `read` says what would have been right.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        let Some(node) = self.take(key) else {
            return default;
        };
        read(&node.value).unwrap_or_else(|expected| {
            self.problems.push(node.problem(dotted(&self.key, key), &expected));
            default
        })
    }

    /// Reads the value at `key`, if there is one.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.value(key, None, |value| read(value).map(Some))
    }

    /// Reads the items of the list at `key`; it replaces the default as a whole.
    pub(super) fn items<T>(
        &mut self,
        key: &'static str,
        default: Vec<T>,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(node) = self.take(key) else {
            return default;
        };
        let path = dotted(&self.key, key);
        let Value::List(items) = node.value else {
            if !matches!(node.value, Value::Nothing) {
                self.problems.push(node.problem(path, "must be a list"));
            }
            return default;
        };
        let mut found = Vec::new();
        for (place, item) in items.iter().enumerate() {
            match read(&item.value) {
                Ok(value) => found.push(value),
                Err(expected) => {
                    self.problems.push(item.problem(format!("{path}[{place}]"), &expected));
                }
            }
        }
        found
    }

    /// Reads the mapping at `key`, whose keys are the operator's own. It replaces the default as a
    /// whole.
    pub(super) fn pairs<K: Ord, V>(
        &mut self,
        key: &'static str,
        default: BTreeMap<K, V>,
        read_key: impl Fn(&Value) -> Result<K, String>,
        read_value: impl Fn(&Value) -> Result<V, String>,
    ) -> BTreeMap<K, V> {
        let Some(node) = self.take(key) else {
            return default;
        };
        let path = dotted(&self.key, key);
        let mut read = BTreeMap::new();
        for (key, value) in pairs_of(node, &path, self.problems) {
            let at = dotted(&path, &key.value.to_string());
            let result = read_key(&key.value)
                .map_err(|expected| key.problem(at.clone(), &format!("the key {expected}")))
                .and_then(|k| match read_value(&value.value) {
                    Ok(v) => Ok((k, v)),
                    Err(expected) => Err(value.problem(at.clone(), &expected)),
                });
            match result {
                Ok((k, v)) => {
                    if read.insert(k, v).is_some() {
                        self.problems.push(key.repeated(at));
                    }
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        read
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        self.entries.remove(key).map(|(_, node)| node)
    }

    /// Whatever is left is unknown.
    fn close(self) {
        for (name, (line, _)) in &self.entries {
            let what = match nearest(name, &self.known) {
                Some(meant) => format!("unknown key, did you mean `{meant}`?"),
                None => format!("unknown key, there are {}", self.known.join(", ")),
            };
            self.problems.push(Problem { line: *line, key: dotted(&self.key, name), what });
        }
    }
}

impl Node {
    fn problem(&self, key: String, expected: &str) -> Problem {
        let wants_number = expected.contains("a number from");
        let is_quoted = matches!(&self.value, Value::Text(text) if text.parse::<i64>().is_ok());
        let what = if wants_number && is_quoted {
            format!("{expected}, not the text {} (leave out the quotes)", self.value.shown())
        } else {
            format!("{expected}, not {}", self.value.shown())
        };
        Problem { line: self.line, key, what }
    }

    fn repeated(&self, key: String) -> Problem {
        Problem { line: self.line, key, what: "stands here for the second time".to_owned() }
    }
}

/// The entries of a mapping; none, and a problem, when it is something else.
fn pairs_of(node: Node, key: &str, problems: &mut Vec<Problem>) -> Vec<(Node, Node)> {
    match node.value {
        Value::Mapping(pairs) => pairs,
        Value::Nothing => Vec::new(),
        Value::Bool(_) | Value::Float(_) | Value::Integer(_) | Value::List(_) | Value::Text(_) => {
            problems.push(node.problem(key.to_owned(), "must be keys and values"));
            Vec::new()
        }
    }
}

fn distinct(
    pairs: Vec<(Node, Node)>,
    section: &str,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, (u64, Node)> {
    let mut entries = BTreeMap::new();
    for (key, value) in pairs {
        let name = key.value.to_string();
        match entries.entry(name) {
            Entry::Vacant(entry) => drop(entry.insert((key.line, value))),
            Entry::Occupied(entry) => problems.push(key.repeated(dotted(section, entry.key()))),
        }
    }
    entries
}

fn dotted(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let edits = known.iter().map(|key| (edits_between(name, key), *key));
    edits.filter(|(edits, _)| *edits <= TYPO_EDITS_MAX).min().map(|(_, key)| key)
}

/// Levenshtein's distance.
fn edits_between(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Value {
    /// The value in a sentence.
    fn shown(&self) -> String {
        match self {
            Self::Bool(_) | Self::Float(_) | Self::Integer(_) | Self::Text(_) => {
                format!("`{self}`")
            }
            Self::List(_) | Self::Mapping(_) | Self::Nothing => self.to_string(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::List(_) => f.write_str("a list"),
            Self::Mapping(_) => f.write_str("keys and values"),
            Self::Nothing => f.write_str("nothing"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Value::Mapping(pairs))
    }
}
