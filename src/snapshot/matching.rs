//! Conditions on a request beyond its path: method, scheme, authority, headers, query.
//!
//! - Checking one allocates nothing, but where a header is repeated or is no text.
//! - Everything is compared byte for byte; a regular expression has to match the whole value.

use std::borrow::Cow;

use ::http::{HeaderMap, HeaderName, HeaderValue};

/// A header field that stands in no map.
pub type Field<'a> = (&'static HeaderName, &'a HeaderValue);

/// What of a request routes are chosen by.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Normalised, without query.
    pub path: &'a str,
    /// What stands behind the `?`.
    pub query: Option<&'a str>,
    /// As sent.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host header or `:authority`, with its port if it has one.
    pub authority: &'a str,
    /// Those that the upstream would get, but for `own`.
    pub headers: &'a HeaderMap,
    /// What the gateway adds itself; `headers` has none of these names.
    pub own: &'a [Field<'a>],
}

/// One condition.
#[derive(Debug, Clone)]
pub struct Condition {
    /// What is looked at.
    pub part: Part,
    /// What it has to be.
    pub text: TextMatch,
    /// It must not be that. A header that is missing then counts as empty.
    pub inverted: bool,
}

/// The part of a request that a condition is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// `GET`.
    Method,
    /// `http` or `https`, as the client sees it.
    Scheme,
    /// Host header or `:authority`, with its port.
    Authority,
    /// A header; a repeated one is joined with `,`.
    Header(HeaderName),
    /// The first parameter of this name in the query, as sent: nothing is decoded.
    Query(String),
}

/// A condition on a text.
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// It is there.
    Present,
    /// The whole text.
    Exact(String),
    /// How it begins.
    Prefix(String),
    /// The whole text.
    Regex(FullRegex),
}

impl TextMatch {
    /// Whether it holds for `text`.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => text == exact.as_bytes(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Regex(regex) => regex.matches(&String::from_utf8_lossy(text)),
        }
    }
}

impl Condition {
    /// Whether `subject` fulfils it.
    #[must_use]
    pub fn holds(&self, subject: &Subject<'_>) -> bool {
        let found = self.part.of(subject);
        match (found, self.inverted) {
            (Some(text), inverted) => self.text.matches(&text) != inverted,
            (None, false) => false,
            (None, true) => matches!(self.text, TextMatch::Present) || !self.text.matches(b""),
        }
    }
}

impl Part {
    fn of<'a>(&self, subject: &Subject<'a>) -> Option<Cow<'a, [u8]>> {
        let text = match self {
            Self::Header(name) => return header(subject, name),
            Self::Method => subject.method,
            Self::Scheme => subject.scheme,
            Self::Authority => subject.authority,
            Self::Query(name) => parameter(subject.query?, name)?,
        };
        Some(Cow::Borrowed(text.as_bytes()))
    }
}

fn header<'a>(subject: &Subject<'a>, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let own = subject.own.iter().find(|(own, _)| *own == name);
    match own {
        Some((_, value)) => Some(Cow::Borrowed(value.as_bytes())),
        None => joined(subject.headers, name),
    }
}

/// The values of all fields `name`.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let mut joined = Cow::Borrowed(values.next()?.as_bytes());
    for value in values {
        let joined = joined.to_mut();
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

/// The value of the first parameter `name`; empty for one without `=`.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// A regular expression that must match the whole subject, as RE2 does in Istio. Matching takes
/// time linear in the subject.
#[derive(Debug, Clone)]
pub struct FullRegex(Box<regex::Regex>);

impl FullRegex {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// The syntax is wrong, or the compiled form would be too large.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let regex = regex::Regex::new(&format!("^(?:{pattern})$"));
        regex.map(Box::new).map(Self).map_err(|error| error.to_string())
    }

    /// The pattern as it was given to [`parse`](Self::parse).
    #[must_use]
    pub fn pattern(&self) -> &str {
        let text = self.anchored();
        text.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(text)
    }

    /// The same with its anchors.
    pub(super) fn anchored(&self) -> &str {
        self.0.as_str()
    }

    /// Whether the whole of `subject` matches.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.0.is_match(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-name");

    fn holds(condition: &Condition, values: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_static(value));
        }
        condition.holds(&subject(&headers))
    }

    fn subject(headers: &HeaderMap) -> Subject<'_> {
        Subject {
            path: "/",
            query: Some("a=1&b&a=2&c=x%20y"),
            method: "GET",
            scheme: "https",
            authority: "a.test:8443",
            headers,
            own: &[],
        }
    }

    fn header(text: TextMatch, inverted: bool) -> Condition {
        Condition { part: Part::Header(NAME), text, inverted }
    }

    fn exact(text: &str) -> TextMatch {
        TextMatch::Exact(text.to_owned())
    }

    #[test]
    fn repeated_headers_are_joined() {
        let both = header(exact("one,two"), false);
        assert!(holds(&both, &["one", "two"]));
        assert!(!holds(&both, &["two", "one"]));
        assert!(!holds(&header(exact("one"), false), &["one", "two"]));
        let regex = TextMatch::Regex(FullRegex::parse("one,.*").unwrap());
        assert!(holds(&header(regex, false), &["one", "two"]));
    }

    #[test]
    fn a_missing_header_is_empty_only_where_it_must_not_match() {
        assert!(!holds(&header(exact(""), false), &[]));
        assert!(holds(&header(exact("y"), true), &[]));
        assert!(!holds(&header(exact(""), true), &[]));
        assert!(!holds(&header(TextMatch::Prefix(String::new()), true), &[]));
        assert!(holds(&header(TextMatch::Present, true), &[]));
        assert!(!holds(&header(TextMatch::Present, true), &["y"]));
        assert!(holds(&header(TextMatch::Present, false), &[""]));
        assert!(!holds(&header(TextMatch::Present, false), &[]));
    }

    #[test]
    fn the_first_parameter_of_a_name_counts_as_it_was_sent() {
        let holds = |name: &str, text| {
            let part = Part::Query(name.to_owned());
            let headers = HeaderMap::new();
            Condition { part, text, inverted: false }.holds(&subject(&headers))
        };
        assert!(holds("a", exact("1")));
        assert!(!holds("a", exact("2")));
        assert!(holds("b", TextMatch::Present) && holds("b", exact("")));
        assert!(!holds("d", TextMatch::Present));
        assert!(holds("c", exact("x%20y")));
    }

    #[test]
    fn method_scheme_and_authority_are_compared_with_their_case() {
        let headers = HeaderMap::new();
        let holds =
            |part: Part, text| Condition { part, text, inverted: false }.holds(&subject(&headers));
        assert!(holds(Part::Method, exact("GET")) && !holds(Part::Method, exact("get")));
        assert!(holds(Part::Scheme, TextMatch::Prefix("http".to_owned())));
        assert!(holds(Part::Authority, exact("a.test:8443")));
        assert!(!holds(Part::Authority, exact("a.test")));
    }
}
