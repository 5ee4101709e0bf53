//! Brings a request path into the one form that routes are matched against and that is forwarded
//! (RFC 3986, section 6.2.2).
//!
//! - Escaped unreserved characters are decoded, dot segments are resolved, `\` counts as `/`.
//! - `%2F` and every other escape stay as they are, and slashes are not merged, as in Istio.
//! - No new escape comes about: in `%%32e` the first `%` becomes `%25`, or a backend that decodes
//!   once more would see `%2e`, and climb.
//! - A path that is already in this form is borrowed: no work, no allocation.
//!
//! Deliberately not here: the query, which is never looked at.

use std::borrow::Cow;

/// The path holds an escaped NUL, which has no honest use and ends strings in many backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EscapedNul;

/// The normal form of `path`, which begins with `/`.
///
/// # Errors
/// [`EscapedNul`].
pub(crate) fn normalise(path: &str) -> Result<Cow<'_, str>, EscapedNul> {
    if is_normal(path) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    Ok(Cow::Owned(resolve_dots(&decoded)))
}

/// Whether there is certainly nothing to do.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut before = 0;
    // Without a branch for each byte: nearly all paths are normal, to their last.
    !bytes.iter().fold(false, |found, byte| {
        let dot = (*byte == b'.') & (before == b'/');
        before = *byte;
        found | dot | (*byte == b'%') | (*byte == b'\\')
    })
}

fn decode_unreserved(path: &str) -> Result<String, EscapedNul> {
    let mut out = String::with_capacity(path.len());
    // Where the latest `%` that begins no escape is in `out`.
    let mut lone = None;
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix('\\') {
            out.push('/');
            rest = after;
            continue;
        }
        match escaped(tail) {
            Some(0) => return Err(EscapedNul),
            Some(byte) if is_unreserved(byte) => {
                if byte.is_ascii_hexdigit() {
                    escape_near(&mut out, &mut lone);
                }
                out.push(char::from(byte));
                rest = &tail[3..];
            }
            kept => {
                lone = if kept.is_none() { Some(out.len()) } else { lone };
                out.push('%');
                rest = &tail[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Escapes the `%` at `lone` if a digit at the end of `out` would be among the two behind it.
fn escape_near(out: &mut String, lone: &mut Option<usize>) {
    if let Some(at) = lone.filter(|at| out.len() - at <= 2) {
        out.insert_str(at + 1, "25");
        *lone = None;
    }
}

/// The byte that the escape at the start of `text` stands for, if it is one.
fn escaped(text: &str) -> Option<u8> {
    let digits = text.get(1..3)?;
    if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986, section 5.2.4. Never climbs above the root.
fn resolve_dots(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." if is_last => out.push('/'),
            "." => {}
            ".." => {
                out.truncate(out.rfind('/').unwrap_or(0));
                if is_last {
                    out.push('/');
                }
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_become_normal() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/a/.", "/a/"),
            ("/%61/%2e%2E/b", "/b"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb", "/a%2fb"),
            ("/a\\..\\b", "/b"),
            ("/%7Euser", "/~user"),
            ("/%zz%", "/%zz%"),
            ("/%2", "/%2"),
            ("/%+1", "/%+1"),
            ("/.hidden", "/.hidden"),
            ("/..a", "/..a"),
            ("/a//../b", "/a/b"),
            ("/%%32e%%32e/b", "/%252e%252e/b"),
            ("/%2%65%2%65/b", "/%252e%252e/b"),
            ("/%25%32e", "/%252e"),
            ("/%%%32e", "/%%252e"),
            ("/%zz%32e", "/%zz2e"),
        ];
        for (path, expected) in cases {
            assert_eq!(normalise(path).unwrap(), expected, "{path}");
        }
        assert_eq!(normalise("/a%00b"), Err(EscapedNul));
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        assert!(matches!(normalise("/status/418"), Ok(Cow::Borrowed(_))));
    }

    const SEGMENT: &str = "(a|\\.|\\.\\.|%2e|%2E%2e|%2f|\\\\|%25|%%32e|%2%65|%%%32%65)?";

    proptest! {
        #[test]
        fn no_dot_segment_is_left_and_once_is_enough(
            segments in prop::collection::vec(SEGMENT, 1..8),
        ) {
            let path = format!("/{}", segments.join("/"));
            let normal = normalise(&path).unwrap().into_owned();
            prop_assert!(normal.starts_with('/'));
            prop_assert!(normal.split('/').all(|segment| segment != "." && segment != ".."));
            prop_assert_eq!(normalise(&normal).unwrap(), normal.as_str());
        }
    }
}
