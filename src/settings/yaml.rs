//! What to do about text that is no YAML.
//!
//! The parser says what it had expected, in the terms of YAML's grammar. Whoever wrote the text
//! wants to know which of the usual mistakes leads there.

const SPACES: &str = "YAML is indented with spaces, never with tabs";
const ALIKE: &str = "lines that belong together are indented alike";
const ENTRIES: &str = "a comma between two entries is missing, or the bracket after the last";

/// Words of the parser's message, and what to look for. The first that fits counts.
const CURES: [(&str, &str); 15] = [
    ("tabs disallowed", SPACES),
    ("found a tab", SPACES),
    ("anchor", "text that begins with * or & needs quotes, as in \"*.example.com\""),
    ("unexpected character", "text that begins with it needs quotes"),
    ("unclosed quote", "the one that begins in this line has no end"),
    ("content after single-quoted", "within single quotes, '' stands for one"),
    ("content after double-quoted", "within double quotes, \\\" stands for one"),
    ("escape character", "within double quotes, \\\\ stands for \\"),
    ("bracket", "each needs its other half, and quotes if it is a part of text"),
    ("expected ','", ENTRIES),
    ("simple key", "a colon and a space come after a key"),
    (
        "mapping values are not allowed",
        "a colon and a space come after a key, and its value in the same line or indented further; \
         text with both in it needs quotes",
    ),
    ("expected key", ALIKE),
    ("expected '-'", ALIKE),
    ("indentation", ALIKE),
];

/// What to look for where the parser says `message`.
pub(crate) fn cure(message: &str) -> Option<&'static str> {
    CURES.iter().find(|(words, _)| message.contains(words)).map(|(_, cure)| *cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_mistakes_have_their_cure() {
        let cases = [
            ("a:\n\tb: 1\n", "never with tabs"),
            ("a:\n  b: 1\n\tc: 2\n", "never with tabs"),
            ("a:\n  - b\n\t- c\n", "never with tabs"),
            ("a:\n  - b: 1\n  \tc: 2\n", "never with tabs"),
            ("hosts:\n- *.example.com\n", "as in \"*.example.com\""),
            ("hosts: [ * ]\n", "as in \"*.example.com\""),
            ("a: @b\n", "begins with it needs quotes"),
            ("a: \"b\nc: d\n", "has no end"),
            ("a: 'it's'\n", "'' stands for one"),
            ("a: \"b\" c\"\n", "\\\" stands for one"),
            ("a: \"C:\\d\"\n", "\\\\ stands for \\"),
            ("a: [\n", "its other half"),
            ("a: { b: 1 ]\n", "its other half"),
            ("a: {{ .Values.b }\n", "its other half"),
            ("a: { b: 1 c: 2 }\n", "a comma between"),
            ("a:\n  b 1\n  c: 2\n", "a colon and a space"),
            ("a: b: c\n", "needs quotes"),
            ("a:\n  b: 1\n    c: 2\n", "a colon and a space"),
            ("a:\n  b: 1\n c: 2\n", "indented alike"),
            ("a:\n  - b\n  c: d\n", "indented alike"),
        ];
        for (text, cure) in cases {
            let error =
                serde_yaml::from_str::<serde::de::IgnoredAny>(text).unwrap_err().to_string();
            let said = super::cure(&error).unwrap_or_default();
            assert!(said.contains(cure), "{text}: {error}: {said}");
        }
    }

    #[test]
    fn what_is_not_known_has_none() {
        assert_eq!(cure("unclear"), None);
    }
}
