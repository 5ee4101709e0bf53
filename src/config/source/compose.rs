//! Documents as nearly everybody writes them, from the events of the YAML parser to nodes.
//!
//! - [`compose`] gives up on whatever has to be resolved or refused: anchors, aliases, tags, merge
//!   keys, keys that are no text, keys that stand twice, too much of anything, syntax errors. The
//!   deserializer then reads the document and says what is wrong. What both read is the same.
//! - It exists for ten thousand documents at the start: a deserializer asks for each node's line in
//!   a way that takes as long as parsing.

use std::borrow::Cow;
use std::collections::HashSet;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::document::{DEPTH_MAX, Entry, NODES_MAX, Node, Value};

/// So many keys are compared with each other, more by a set.
const FEW_KEYS: usize = 16;

/// The one node of `text`; `None` if somebody else has to look at it.
pub(super) fn compose(text: &str) -> Option<Node> {
    let mut composer = Composer { parser: Parser::new_from_str(text), nodes: 0 };
    let starts = [composer.event()?.0, composer.event()?.0];
    if !matches!(starts, [Event::StreamStart, Event::DocumentStart(..)]) {
        return None;
    }
    let (event, span) = composer.event()?;
    let node = composer.node(event, span, 0)?;
    let ends = [composer.event()?.0, composer.event()?.0];
    matches!(ends, [Event::DocumentEnd, Event::StreamEnd]).then_some(node)
}

struct Composer<'t> {
    parser: Parser<'t, StrInput<'t>>,
    nodes: usize,
}

impl<'t> Composer<'t> {
    fn event(&mut self) -> Option<(Event<'t>, Span)> {
        self.parser.next_event()?.ok()
    }

    /// The node that `event` begins.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Option<Node> {
        self.nodes += 1;
        if depth >= DEPTH_MAX || self.nodes > NODES_MAX || has_properties(&event) {
            return None;
        }
        let value = if let Event::Scalar(text, style, ..) = event {
            scalar(text, style)?
        } else if let Event::SequenceStart(..) = event {
            self.list(depth + 1)?
        } else if let Event::MappingStart(..) = event {
            self.map(depth + 1)?
        } else {
            return None;
        };
        Some(Node { line: span.start.line() as u64, value })
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        let mut list = Vec::new();
        loop {
            match self.event()? {
                (Event::SequenceEnd, _) => return Some(Value::List(list)),
                (event, span) => list.push(self.node(event, span, depth)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Value> {
        let mut map = Vec::new();
        loop {
            let (event, span) = self.event()?;
            if event == Event::MappingEnd {
                return are_distinct(&map).then_some(Value::Map(map));
            }
            let key = self.node(event, span, depth)?;
            let (event, span) = self.event()?;
            let node = self.node(event, span, depth)?;
            map.push(Entry { line: key.line, key: key_text(key.value)?, node });
        }
    }
}

/// Whether it is an anchor or has a tag.
fn has_properties(event: &Event<'_>) -> bool {
    event.anchor_id().is_some() || event.tag().is_some()
}

fn key_text(key: Value) -> Option<String> {
    let Value::String(text) = key else { return None };
    (text != "<<").then_some(text)
}

fn are_distinct(map: &[Entry]) -> bool {
    let mut rest = map.iter();
    if map.len() > FEW_KEYS {
        let mut seen = HashSet::new();
        return rest.all(|entry| seen.insert(&entry.key));
    }
    std::iter::from_fn(|| rest.next().map(|entry| (entry, rest.clone())))
        .all(|(entry, mut others)| others.all(|other| other.key != entry.key))
}

/// What a scalar means (YAML 1.2, section 10.3.2).
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Option<Value> {
    if style != ScalarStyle::Plain {
        return Some(Value::String(text.into_owned()));
    }
    Some(match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        "0" => Value::Integer(0),
        number if is_plain_number(number) => Value::Integer(number.parse().ok()?),
        other if may_be_number(other) => serde_yaml::from_str(other).ok()?,
        _ => Value::String(text.into_owned()),
    })
}

/// Whether it is a number that needs no thought: it has no sign, no base, no fraction, no zero in
/// front, and fits.
fn is_plain_number(text: &str) -> bool {
    let fits = (1..=18).contains(&text.len());
    fits && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it might be some other number; mostly it is an address or a version.
fn may_be_number(text: &str) -> bool {
    let is_part =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'+' | b'-');
    let begins = text.starts_with(|first| matches!(first, '0'..='9' | '-' | '+' | '.'));
    begins && text.bytes().all(is_part) && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::super::document::deserialize;
    use super::*;
    use proptest::prelude::*;

    /// Whether it composes `text`, which must then mean what the deserializer says.
    fn composes(text: &str) -> bool {
        let composed = compose(text);
        if let Some(node) = &composed {
            let deserialized = deserialize(text).unwrap_or_else(|e| panic!("{e:?}: {text}"));
            assert!(*node == deserialized, "not the same: {text}");
        }
        composed.is_some()
    }

    #[test]
    fn what_people_write_is_composed() {
        for text in [
            "a: 1\nb:\n  c: [x, 'y', \"z\"]\n  n: ~\n  e:\n# comment\nd: |\n  text\n",
            "---\n{ port: { number: 443, protocol: HTTPS }, hosts: [ \"*\" ], on: yes }\n",
            "- 127.0.0.1\n- 1.5\n- -3\n- 0x10\n- 007\n- 12e3\n- .5\n- 1_000\n",
            "- 18446744073709551615\n",
            "a: nan\nb: inf\nc: Infinity\ne: 0\nf: +1\n'8080': x\n",
            "k: >-\n  folded\n  text\n\nl: plain\n  goes on\n",
        ] {
            assert!(composes(text), "{text}");
        }
    }

    #[test]
    fn what_has_to_be_resolved_or_refused_is_left_to_the_deserializer() {
        let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
        let many: String = (0..40).map(|n| format!("k{}: x\n", n % 39)).collect();
        for text in [
            "a: &x 1\nb: *x\n",
            "a: !!str 1\n",
            "<<: { a: 1 }\n",
            "[a]: b\n",
            "a: 1\nb: 2\na: 3\n",
            "8080: x\n",
            "a: b: c\n",
            "a: 1\n---\nb: 2\n",
            "",
            &deep,
            &many,
        ] {
            assert!(!composes(text), "{text}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            "[a-z.+~0-9-]{1,8}",
            "[0-9_.eExo+-]{1,9}",
            Just("~".to_owned()),
            Just("Null".to_owned()),
            Just("TRUE".to_owned()),
            Just("'it''s'".to_owned()),
            Just("\"a\\n\\u00e9\"".to_owned()),
            Just("*".to_owned()),
            Just("&a b".to_owned()),
        ];
        let leaf = scalar.prop_map(|scalar| scalar.to_string());
        leaf.prop_recursive(4, 24, 4, |inner| {
            let items = prop::collection::vec(inner.clone(), 0..4);
            let fields = prop::collection::vec(("[a-d]{1,2}", inner), 0..4);
            prop_oneof![
                items.prop_map(|items| format!("[{}]", items.join(", "))),
                fields.prop_map(|fields| {
                    let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                    format!("{{{}}}", fields.join(",\n "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn both_readers_agree(fields in prop::collection::vec(("[a-z]{1,3}", text()), 0..5)) {
            let fields = fields.iter().map(|(key, text)| format!("{key}:\n  {text}\n"));
            composes(&fields.collect::<String>());
        }

        #[test]
        fn both_readers_agree_on_any_text(text in "[a-c:,{}\\[\\]'\"#&*!|>%@ \n0-9.-]{0,40}") {
            composes(&text);
        }
    }
}
