//! The bytes of one file to YAML documents whose every node knows its line.
//!
//! - A bad document does not stop the others of its file: the text is split at the document markers
//!   first, and each part is parsed on its own.
//! - A part is a pure function of its text: lines count from its own first line, so that the same
//!   text elsewhere in a file need not be parsed again.
//! - Hostile input (alias bombs, deep nesting, endless files, no text at all) is a [`SyntaxError`].
//!
//! Deliberately not here: what the documents mean.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

use super::compose::compose;
use crate::crypto::Digest;
use crate::settings::yaml;

/// Largest file that is parsed. `kubectl get -o yaml` of a large namespace stays far below it.
pub(crate) const FILE_BYTES_MAX: usize = 10 * 1024 * 1024;

/// Nodes of one document, aliases expanded: a document of [`FILE_BYTES_MAX`] has fewer.
pub(super) const NODES_MAX: usize = 1_000_000;

/// Nodes that aliases may add to one document; people write a few hundred.
const ALIASED_NODES_MAX: usize = 100_000;

/// Nesting of one document; Kubernetes' resources stay below 20.
pub(super) const DEPTH_MAX: usize = 64;

/// One value of a document.
#[derive(Clone, PartialEq)]
pub(crate) struct Node {
    /// From 1, counted from the first line of its part.
    pub(crate) line: u64,
    pub(crate) value: Value,
}

impl Node {
    /// Stands for all that it says, and the lines that it says it on.
    pub(crate) fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        Digest::of(&bytes)
    }

    /// Appends it in a form that no other node has.
    fn write(&self, out: &mut Vec<u8>) {
        number(self.line, out);
        match &self.value {
            Value::Null => out.push(b'n'),
            Value::Bool(value) => out.extend([b'b', u8::from(*value)]),
            Value::Integer(value) => {
                out.push(b'i');
                out.extend(value.to_le_bytes());
            }
            Value::Float(value) => {
                out.push(b'f');
                out.extend(value.to_le_bytes());
            }
            Value::String(value) => {
                out.push(b's');
                text(value, out);
            }
            Value::List(items) => {
                out.push(b'l');
                number(items.len() as u64, out);
                items.iter().for_each(|item| item.write(out));
            }
            Value::Map(fields) => {
                out.push(b'm');
                number(fields.len() as u64, out);
                for Entry { line, key, node } in fields {
                    number(*line, out);
                    text(key, out);
                    node.write(out);
                }
            }
        }
    }
}

fn number(number: u64, out: &mut Vec<u8>) {
    out.extend(number.to_le_bytes());
}

fn text(text: &str, out: &mut Vec<u8>) {
    number(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

/// What a node holds. Not `Debug`: it may be part of a Secret.
#[derive(Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One field of a map. Keys are distinct.
#[derive(Clone, PartialEq)]
pub(crate) struct Entry {
    /// The line of the key.
    pub(crate) line: u64,
    pub(crate) key: String,
    pub(crate) node: Node,
}

impl Value {
    /// What it is, for a message; never its content.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Why a part is no YAML document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// From 1, counted from the first line of its part.
    pub(crate) line: u64,
    pub(crate) what: String,
    pub(crate) cause: String,
}

/// The text of one document in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
    /// The file's lines before it.
    pub(crate) lines_before: u64,
}

/// Splits a file at its document markers.
///
/// # Errors
/// It is too large or no text.
pub(crate) fn split(content: &[u8]) -> Result<Vec<Part>, SyntaxError> {
    if content.len() > FILE_BYTES_MAX {
        return Err(too_large(content.len()));
    }
    let text = std::str::from_utf8(content).map_err(|error| not_text(content, &error))?;
    let mut parts = Vec::new();
    let mut part = Part { bytes: 0..0, lines_before: 0 };
    let mut after_end = false;
    for (index, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        if after_end || is_marker(line, "---") {
            let start = part.bytes.end;
            parts.push(std::mem::replace(
                &mut part,
                Part { bytes: start..start, lines_before: index },
            ));
        }
        after_end = is_marker(line, "...");
        part.bytes.end += line.len();
    }
    parts.push(part);
    parts.retain(|part| !is_blank(&text[part.bytes.clone()]));
    Ok(parts)
}

/// Parses the text of one part; `None` when there is nothing in it.
///
/// # Errors
/// It is no YAML, or takes more than the limits above.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    let node = match compose(text) {
        Some(node) => node,
        None => deserialize(text)?,
    };
    Ok((node.value != Value::Null).then_some(node))
}

/// Reads a document in the way that knows all of YAML.
///
/// # Errors
/// As [`parse`].
pub(super) fn deserialize(text: &str) -> Result<Node, SyntaxError> {
    let read = serde_yaml::from_str_with_options(text, options());
    read.map_err(|error| explain(text, &error))
}

fn options() -> serde_yaml::Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: ALIASED_NODES_MAX,
        },
        duplicate_keys: serde_yaml::DuplicateKeyPolicy::Error,
        with_snippet: false,
        strict_booleans: true,
    }
}

/// `---` or `...` at the start of a line, alone or before a blank.
fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Nothing but markers, directives and comments.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim_start_matches('\u{feff}').trim();
        line.is_empty() || line.starts_with(['#', '%']) || matches!(line, "---" | "...")
    })
}

fn too_large(bytes: usize) -> SyntaxError {
    SyntaxError {
        line: 0,
        what: format!(
            "the file has {} MB, more than the {} MB that are read",
            bytes / 1_000_000,
            FILE_BYTES_MAX / 1_048_576
        ),
        cause: "split it, or move what is no resource out of the source directory".into(),
    }
}

fn not_text(content: &[u8], error: &std::str::Utf8Error) -> SyntaxError {
    let before = &content[..error.valid_up_to()];
    SyntaxError {
        line: (1_u64..).zip(before.split(|byte| *byte == b'\n')).last().map_or(1, |(n, _)| n),
        what: "not UTF-8 text".into(),
        cause: "a binary file, or one saved in another encoding".into(),
    }
}

fn explain(text: &str, error: &serde_yaml::Error) -> SyntaxError {
    let message = error.render();
    let what = message.split(" at line ").next().unwrap_or_default();
    let what = match what.strip_prefix("duplicate mapping key: ") {
        Some(rest) => {
            let key = rest.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
            format!("the key `{key}` stands twice in the same map")
        }
        None => format!("is no YAML: {}", what.trim_end_matches(" (block indentation)")),
    };
    let line = error.location().map_or(1, |location| location.line().max(1));
    let template = text.lines().any(|line| line.trim_start().starts_with("{{"));
    let cause = if template {
        "a template, as of a Helm chart, has to be rendered first: `helm template`"
    } else if ["the key `apiVersion`", "the key `kind`"].iter().any(|key| what.starts_with(key)) {
        "a line `---` is missing before the next resource"
    } else {
        yaml::cure(&what).unwrap_or_default()
    };
    SyntaxError { line, what, cause: cause.into() }
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

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, number, boolean, list or map")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        // No field of any resource is that large: it only has to be out of range.
        Ok(Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = fields.next_key::<Spanned<Value>>()? {
            let line = key.referenced.line();
            let node = fields.next_value()?;
            map.push(Entry { line, key: key_text(key.value)?, node });
        }
        Ok(Value::Map(map))
    }
}

/// Kubernetes reads YAML as JSON, whose keys are strings.
fn key_text<E: Error>(key: Value) -> Result<String, E> {
    match key {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null | Value::Float(_) | Value::List(_) | Value::Map(_) => {
            Err(E::custom("a key must be a string"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Result<Option<Node>, SyntaxError>> {
        let parts = split(text.as_bytes()).unwrap();
        parts.into_iter().map(|part| parse(&text[part.bytes])).collect()
    }

    fn show(node: &Node) -> String {
        let line = node.line;
        match &node.value {
            Value::Null => format!("{line}:null"),
            Value::Bool(value) => format!("{line}:{value}"),
            Value::Integer(value) => format!("{line}:{value}"),
            Value::Float(value) => format!("{line}:{value}f"),
            Value::String(value) => format!("{line}:{value:?}"),
            Value::List(items) => {
                format!("{line}:[{}]", items.iter().map(show).collect::<Vec<_>>().join(" "))
            }
            Value::Map(fields) => {
                let field = |e: &Entry| format!("{}:{}={}", e.line, e.key, show(&e.node));
                format!("{line}:{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn shown(text: &str) -> Vec<String> {
        let show = |result: Result<Option<Node>, SyntaxError>| match result {
            Ok(None) => "nothing".to_owned(),
            Ok(Some(node)) => show(&node),
            Err(error) => format!("{}: {}", error.line, error.what),
        };
        all(text).into_iter().map(show).collect()
    }

    #[test]
    fn every_node_knows_its_line() {
        assert_eq!(
            shown("a: 1\nb:\n  c: [x, 'y']\n  8080: 1.5\n  n: ~\n"),
            ["1:{1:a=1:1 2:b=3:{3:c=3:[3:\"x\" 3:\"y\"] 4:8080=4:1.5f 5:n=5:null}}"]
        );
        assert_eq!(shown("a: &x [1]\nb: *x\n"), ["1:{1:a=1:[1:1] 2:b=2:[2:1]}"]);
    }

    #[test]
    fn equal_nodes_alone_have_equal_digests() {
        let digest = |text: &str| parse(text).unwrap().unwrap().digest();
        assert_eq!(digest("a: [b, 1]"), digest("{a: ['b', 1]}"));
        let different = ["a: [b, 1]", "a: [b, '1']", "a: [b, 1.0]", "a:\n - b\n - 1", "a: [b1]"];
        let all: std::collections::HashSet<_> = different.iter().map(|text| digest(text)).collect();
        assert_eq!(all.len(), different.len());
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        assert_eq!(shown("[true, yes, on, n]"), ["1:[1:true 1:\"yes\" 1:\"on\" 1:\"n\"]"]);
    }

    #[test]
    fn a_bad_document_does_not_stop_the_others() {
        assert_eq!(
            shown("a: \"b\n---\nc: d\n...\n# x\n--- {e: f}\n"),
            ["1: is no YAML: unclosed quote", "2:{2:c=2:\"d\"}", "1:{1:e=1:\"f\"}"]
        );
    }

    #[test]
    fn a_marker_is_one_only_at_the_start_of_a_line() {
        assert_eq!(shown("a: |\n  ---\n  b\n---x: y\n").len(), 1);
    }

    #[test]
    fn parts_tell_how_many_lines_are_before_them() {
        let parts = split(b"%YAML 1.2\n---\na: b\n---\n# nothing\n---\nc: d\n").unwrap();
        let lines: Vec<_> = parts.iter().map(|part| part.lines_before).collect();
        assert_eq!(lines, [1, 5]);
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error() {
        assert_eq!(shown("a: 1\nb: 2\na: 3\n"), ["3: the key `a` stands twice in the same map"]);
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        assert_eq!(split(b"a: b\nc: \xff\n").unwrap_err().line, 2);
    }
}
