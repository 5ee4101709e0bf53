//! Host names to values: the SNI map and the map of virtual hosts.
//!
//! - Exact names first, then wildcard suffixes from the longest to the shortest, then `*`.
//! - `*.example.com` matches at any depth below `example.com`, and not `example.com` itself.
//! - A look-up costs at most one hash per label of the name, however many names there are, and
//!   allocates nothing.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name of the DNS in its textual form (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// Up to so many names are compared one by one.
const FEW: usize = 4;

/// A name that a server or virtual host answers for, in lower case. Its text is shared by all that
/// it becomes part of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This name alone.
    Exact(Arc<str>),
    /// `*.` and this suffix.
    Wildcard(Arc<str>),
    /// `*`.
    Any,
}

/// The text is no host pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPatternError;

impl fmt::Display for HostPatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be a DNS name, `*.` followed by one, or `*`")
    }
}

impl std::error::Error for HostPatternError {}

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        if !is_dns_name(name) {
            return Err(HostPatternError);
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if wildcard { Self::Wildcard(name) } else { Self::Exact(name) })
    }
}

fn is_dns_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl HostPattern {
    /// Whether every name that `other` matches is matched by `self`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Wildcard(mine), Self::Wildcard(theirs)) => {
                mine == theirs || is_below(theirs, mine)
            }
            (Self::Wildcard(suffix), Self::Exact(name)) => is_below(name, suffix),
            (Self::Exact(_), Self::Wildcard(_)) => false,
            (Self::Exact(mine), Self::Exact(theirs)) => mine == theirs,
        }
    }

    /// The names that both match, where one covers the other: the narrower of the two.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.covers(other) {
            Some(other.clone())
        } else if other.covers(self) {
            Some(self.clone())
        } else {
            None
        }
    }
}

fn is_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Values by host pattern. Built once, then only read.
#[derive(Debug, Clone)]
pub struct HostMap<T> {
    exact: Names<T>,
    /// By suffix, without the `*.`. Boxed, as most maps have none.
    wildcard: Option<Box<Names<T>>>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: Names::default(), wildcard: None, any: None }
    }
}

impl<T> HostMap<T> {
    /// Sets the value of `pattern`; returns the one that it had.
    pub fn insert(&mut self, pattern: HostPattern, value: T) -> Option<T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.insert(name, value),
            HostPattern::Wildcard(suffix) => {
                self.wildcard.get_or_insert_default().insert(suffix, value)
            }
            HostPattern::Any => self.any.replace(value),
        }
    }

    /// The value of exactly this pattern.
    #[must_use]
    pub fn get(&self, pattern: &HostPattern) -> Option<&T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name),
            HostPattern::Wildcard(suffix) => self.wildcard.as_ref()?.get(suffix),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// The value of `*`, which is also for clients that name no host.
    #[must_use]
    pub fn any(&self) -> Option<&T> {
        self.any.as_ref()
    }

    /// The value of the narrowest pattern that matches `host`: letter case, a port and one trailing
    /// dot are ignored.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&T> {
        let host = strip_port(host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut lower = [0; NAME_BYTES_MAX];
        let Some(name) = lower_case(host, &mut lower) else {
            return self.any.as_ref();
        };
        self.exact.get(name).or_else(|| self.find_wildcard(name)).or(self.any.as_ref())
    }

    fn find_wildcard(&self, name: &str) -> Option<&T> {
        let wildcard = self.wildcard.as_ref()?;
        name.bytes()
            .enumerate()
            .skip(1)
            .filter(|(_, byte)| *byte == b'.')
            .find_map(|(dot, _)| wildcard.get(&name[dot + 1..]))
    }

    /// Every pattern and its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (HostPattern, &T)> {
        let exact = self.exact.iter().map(|(name, v)| (HostPattern::Exact(Arc::clone(name)), v));
        let wildcard = self.wildcard.iter().flat_map(|names| names.iter());
        let wildcard = wildcard.map(|(suffix, v)| (HostPattern::Wildcard(Arc::clone(suffix)), v));
        exact.chain(wildcard).chain(self.any.iter().map(|v| (HostPattern::Any, v)))
    }
}

/// Values by name.
#[derive(Debug, Clone)]
enum Names<T> {
    /// Most tables of routes are for one host, and there may be ten thousand tables: a hash map
    /// takes ten times the memory of a pair.
    Few(Vec<(Arc<str>, T)>),
    /// The keys are the operator's and only look-ups come from the network, so a hash that an
    /// attacker cannot make collide is not needed.
    Many(HashMap<Arc<str>, T, foldhash::fast::RandomState>),
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<T> Names<T> {
    fn insert(&mut self, name: Arc<str>, value: T) -> Option<T> {
        match self {
            Self::Few(pairs) => {
                if let Some((_, old)) = pairs.iter_mut().find(|(other, _)| *other == name) {
                    return Some(std::mem::replace(old, value));
                }
                pairs.reserve_exact(1);
                pairs.push((name, value));
                if pairs.len() > FEW {
                    *self = Self::Many(pairs.drain(..).collect());
                }
                None
            }
            Self::Many(map) => map.insert(name, value),
        }
    }

    fn get(&self, name: &str) -> Option<&T> {
        match self {
            Self::Few(pairs) => pairs.iter().find(|(other, _)| **other == *name).map(|(_, v)| v),
            Self::Many(map) => map.get(name),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        let (few, many) = match self {
            Self::Few(pairs) => (Some(pairs), None),
            Self::Many(map) => (None, Some(map)),
        };
        let few = few.into_iter().flatten().map(|(name, value)| (name, value));
        few.chain(many.into_iter().flatten())
    }
}

/// `host` without `:port`; an IPv6 address keeps its brackets.
fn strip_port(host: &str) -> &str {
    let digits = host.bytes().rev().take_while(u8::is_ascii_digit).count();
    match host[..host.len() - digits].strip_suffix(':') {
        Some(name) if name.ends_with(']') || !name.contains(':') => name,
        Some(_) | None => host,
    }
}

/// `name` in lower case in `buffer`; `None` when it is longer than any name that could match.
fn lower_case<'a>(name: &str, buffer: &'a mut [u8; NAME_BYTES_MAX]) -> Option<&'a str> {
    let buffer = buffer.get_mut(..name.len())?;
    buffer.copy_from_slice(name.as_bytes());
    buffer.make_ascii_lowercase();
    std::str::from_utf8(buffer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    fn map(patterns: &[&str]) -> HostMap<String> {
        let mut map = HostMap::default();
        for text in patterns {
            map.insert(pattern(text), (*text).to_owned());
        }
        map
    }

    #[test]
    fn the_narrowest_pattern_wins() {
        let map = map(&["*", "*.example.com", "*.a.example.com", "a.example.com"]);
        let found = |host| map.find(host).unwrap().as_str();
        assert_eq!(found("a.example.com"), "a.example.com");
        assert_eq!(found("b.a.example.com"), "*.a.example.com");
        assert_eq!(found("c.b.a.example.com"), "*.a.example.com");
        assert_eq!(found("b.example.com"), "*.example.com");
        assert_eq!(found("example.com"), "*");
        assert_eq!(found(""), "*");
    }

    #[test]
    fn case_port_and_trailing_dot_are_ignored() {
        let map = map(&["a.example.com", "*.b.example.com"]);
        for host in ["A.Example.COM", "a.example.com:8443", "a.example.com.", "a.example.com.:1"] {
            assert!(map.find(host).is_some(), "{host}");
        }
        assert!(map.find("X.B.example.com:443").is_some());
        for host in ["[::1]:443", "::1", "a.example.com:x", "b.example.com", ".b.example.com"] {
            assert!(map.find(host).is_none(), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in ["", "*.", "a..b", "*a.com", "a.*.com", "https://a", "a b", &"x".repeat(254)] {
            assert_eq!(text.parse::<HostPattern>(), Err(HostPatternError), "{text}");
        }
    }

    #[test]
    fn intersection_is_the_narrower_pattern() {
        let both = |a, b| pattern(a).intersect(&pattern(b)).map(|p| p.to_string());
        assert_eq!(both("*.foo.com", "a.foo.com").as_deref(), Some("a.foo.com"));
        assert_eq!(both("a.foo.com", "*.foo.com").as_deref(), Some("a.foo.com"));
        assert_eq!(both("*", "*.foo.com").as_deref(), Some("*.foo.com"));
        assert_eq!(both("*.foo.com", "*.b.foo.com").as_deref(), Some("*.b.foo.com"));
        assert_eq!(both("*.foo.com", "foo.com"), None);
        assert_eq!(both("a.com", "b.com"), None);
        assert_eq!(both("*.oo.com", "a.foo.com"), None, "a label is not split");
    }

    proptest! {
        #[test]
        fn find_agrees_with_trying_every_pattern(
            patterns in prop::collection::vec("(\\*\\.)?([ab]\\.){0,3}[ab]", 0..12),
            any in any::<bool>(),
            host in "([aAb]\\.){0,4}[ab]\\.?(:[0-9]{1,3})?",
        ) {
            let mut all: Vec<HostPattern> = patterns.iter().map(|text| pattern(text)).collect();
            all.extend(any.then_some(HostPattern::Any));
            let mut map = HostMap::default();
            for pattern in &all {
                map.insert(pattern.clone(), pattern.clone());
            }
            prop_assert_eq!(map.find(&host), naive(&all, &host));
        }
    }

    fn naive<'a>(patterns: &'a [HostPattern], host: &str) -> Option<&'a HostPattern> {
        let host = host.split(':').next().unwrap().trim_end_matches('.').to_ascii_lowercase();
        let host = HostPattern::Exact(host.into());
        patterns.iter().filter(|pattern| pattern.covers(&host)).max_by_key(
            |pattern| match pattern {
                HostPattern::Exact(_) => usize::MAX,
                HostPattern::Wildcard(suffix) => suffix.len(),
                HostPattern::Any => 0,
            },
        )
    }
}
