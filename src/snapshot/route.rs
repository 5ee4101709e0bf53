//! Routing: from host and path to what is done with a request.
//!
//! A [`RouteTable`] maps the request's host to one [`VirtualHost`] (exact, longest wildcard, `*`);
//! that virtual host alone decides. Its routes are in the order of the VirtualService and the first
//! that matches wins; the trie only finds the candidates without trying every route.
//!
//! - Everything is built once and never changes: lock-free by construction.
//! - [`RouteTable::find`] is a pure function and allocates nothing.

use std::fmt;
use std::sync::Arc;

use super::trie::{Ends, Trie};
use super::{Cluster, HostMap};

/// The virtual hosts of one server, or of one plain HTTP port.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Which virtual host answers for which host.
    pub hosts: HostMap<Arc<VirtualHost>>,
}

/// What [`RouteTable::find`] found.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// No virtual host answers for this host: 404.
    NoHost,
    /// The virtual host has no route for this path: 404.
    NoRoute(&'a VirtualHost),
    /// The first route that matches.
    Route(&'a VirtualHost, &'a Route),
}

impl RouteTable {
    /// Finds the route for `host` (as in the Host header; a port and one trailing dot are ignored,
    /// letter case too) and `path` (normalised, without query).
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Found<'_> {
        let Some(virtual_host) = self.hosts.find(host) else {
            return Found::NoHost;
        };
        match virtual_host.find(path) {
            Some(route) => Found::Route(virtual_host, route),
            None => Found::NoRoute(virtual_host),
        }
    }
}

/// All routes for one host.
pub struct VirtualHost {
    /// `httpbin.example.com:443`.
    pub name: String,
    /// Plain HTTP requests are answered with a redirect to https before any route is looked at.
    pub https_redirect: bool,
    /// In order of precedence.
    routes: Vec<Route>,
    /// Finds the routes with a plain path. Its values are indices into `routes`.
    trie: Trie,
    /// Finds the routes with a regular expression.
    regexes: RegexRules,
}

impl VirtualHost {
    /// Builds the trie over `routes`, which are in order of precedence.
    #[must_use]
    pub fn new(name: String, https_redirect: bool, routes: Vec<Route>) -> Self {
        let mut trie = Trie::default();
        for (index, route) in routes.iter().enumerate() {
            match &route.path {
                PathMatch::Any => trie.insert(b"", Ends::Prefix, index),
                PathMatch::Prefix(path) => trie.insert(path.as_bytes(), Ends::Prefix, index),
                PathMatch::Exact(path) => trie.insert(path.as_bytes(), Ends::Exact, index),
                PathMatch::Regex(_) => {}
            }
        }
        let regexes = RegexRules::new(&routes);
        Self { name, https_redirect, routes, trie, regexes }
    }

    /// The first route that takes `path`.
    fn find(&self, path: &str) -> Option<&Route> {
        let plain = self.trie.find(path.as_bytes());
        self.regexes.find_before(plain, path).or(plain).map(|index| &self.routes[index])
    }

    /// The routes in order of precedence.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

impl fmt::Debug for VirtualHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualHost")
            .field("name", &self.name)
            .field("https_redirect", &self.https_redirect)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// One match block of a VirtualService rule and its action.
#[derive(Debug)]
pub struct Route {
    /// The rule's name in the access log, or empty.
    pub name: String,
    /// Which paths it takes.
    pub path: PathMatch,
    /// What it does.
    pub action: Action,
}

/// A condition on the normalised path, without query.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Every path.
    Any,
    /// The whole path, byte for byte.
    Exact(String),
    /// A string prefix: `/foo` takes `/foobar`, as in Istio.
    Prefix(String),
    /// The whole path.
    Regex(FullRegex),
}

/// A regular expression that must match the whole subject, as RE2 does in Istio. Matching takes
/// time linear in the subject.
#[derive(Debug, Clone)]
pub struct FullRegex(regex::Regex);

impl FullRegex {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// The syntax is wrong, or the compiled form would be too large.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        regex::Regex::new(&format!("^(?:{pattern})$")).map(Self).map_err(|error| error.to_string())
    }

    /// The pattern as it was given to [`parse`](Self::parse).
    #[must_use]
    pub fn pattern(&self) -> &str {
        let text = self.0.as_str();
        text.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(text)
    }

    /// Whether the whole of `subject` matches.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.0.is_match(subject)
    }
}

/// The routes with a regular expression, matched all at once.
struct RegexRules {
    /// `None` without any: even an empty set takes kilobytes, and most hosts have none.
    set: Option<regex::RegexSet>,
    /// The route of each pattern in `set`. Ascending.
    routes: Vec<usize>,
}

impl RegexRules {
    fn new(routes: &[Route]) -> Self {
        let rules = routes.iter().enumerate().filter_map(|(index, route)| match &route.path {
            PathMatch::Regex(regex) => Some((regex.0.as_str(), index)),
            PathMatch::Any | PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
        });
        let (patterns, routes): (Vec<_>, Vec<_>) = rules.unzip();
        let set = (!patterns.is_empty()).then(|| {
            regex::RegexSetBuilder::new(patterns)
                .size_limit(usize::MAX)
                .build()
                .expect("each pattern compiled alone, and their sum has no limit")
        });
        Self { set, routes }
    }

    /// The first route whose expression matches `path` and that comes before the route `before`.
    /// Allocates only when an expression matches.
    fn find_before(&self, before: Option<usize>, path: &str) -> Option<usize> {
        let (set, first) = (self.set.as_ref()?, *self.routes.first()?);
        if before.is_some_and(|before| before < first) || !set.is_match(path) {
            return None;
        }
        let matched = set.matches(path).iter().next().map(|pattern| self.routes[pattern]);
        matched.filter(|index| before.is_none_or(|before| *index < before))
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum Action {
    /// Answer with this.
    Respond(DirectResponse),
    /// Send the client elsewhere.
    Redirect(Redirect),
    /// Proxy.
    Forward(Forward),
}

/// A response that the gateway gives itself.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: ::http::StatusCode,
    /// Empty for none.
    pub body: bytes::Bytes,
}

/// A redirect; a part that is not set stays as in the request.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: ::http::StatusCode,
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host without port.
    pub authority: Option<String>,
    /// Port in the location.
    pub port: RedirectPort,
    /// The whole path; the query stays.
    pub path: Option<String>,
}

/// The port that a redirect names. 80 for http and 443 for https are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// Whatever the request's Host named; left out when scheme or authority change.
    FromHost,
    /// The default of the scheme: left out.
    ProtocolDefault,
    /// The port of the Gateway's server.
    Listener,
    /// This one.
    Fixed(u16),
}

/// Where requests are forwarded to.
#[derive(Debug)]
pub struct Forward {
    /// At least one; weights add up to more than zero unless there is only one.
    pub targets: Vec<Target>,
}

/// One destination of a route.
#[derive(Debug)]
pub struct Target {
    /// Relative to the sum over the route.
    pub weight: u32,
    /// Its cluster; `None` when no service is known by that name and port (503, `NC`).
    pub cluster: Option<Arc<Cluster>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(path: PathMatch) -> Route {
        let body = bytes::Bytes::new();
        let action = Action::Respond(DirectResponse { status: ::http::StatusCode::OK, body });
        Route { name: format!("{path:?}"), path, action }
    }

    fn host(paths: impl IntoIterator<Item = PathMatch>) -> VirtualHost {
        VirtualHost::new("test".to_owned(), false, paths.into_iter().map(route).collect())
    }

    fn exact(path: &str) -> PathMatch {
        PathMatch::Exact(path.to_owned())
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.to_owned())
    }

    fn regex(pattern: &str) -> PathMatch {
        PathMatch::Regex(FullRegex::parse(pattern).unwrap())
    }

    /// Index of the route that takes `path`.
    fn found(host: &VirtualHost, path: &str) -> Option<usize> {
        let route = host.find(path)?;
        host.routes().iter().position(|other| std::ptr::eq(other, route))
    }

    #[test]
    fn the_first_match_wins_whatever_its_kind() {
        let host = host([prefix("/a"), exact("/ab"), regex("/a.*"), exact("/b"), regex("/b.*")]);
        assert_eq!(found(&host, "/ab"), Some(0), "not the longest: the first");
        assert_eq!(found(&host, "/b"), Some(3));
        assert_eq!(found(&host, "/bc"), Some(4));
        assert_eq!(found(&host, "/"), None);
    }

    #[test]
    fn a_prefix_is_a_string_prefix() {
        let host = host([prefix("/foo")]);
        assert_eq!(found(&host, "/foobar"), Some(0));
        assert_eq!(found(&host, "/fo"), None);
    }

    #[test]
    fn a_regex_takes_the_whole_path() {
        let host = host([regex("/a|/b")]);
        assert_eq!(found(&host, "/a"), Some(0));
        assert_eq!(found(&host, "/b"), Some(0));
        assert_eq!(found(&host, "/ax"), None);
        assert_eq!(found(&host, "x/b"), None);
    }

    #[test]
    fn a_chosen_host_without_a_route_is_not_left_for_a_wider_one() {
        let mut table = RouteTable::default();
        table.hosts.insert("*".parse().unwrap(), Arc::new(host([PathMatch::Any])));
        table.hosts.insert("a.com".parse().unwrap(), Arc::new(host([exact("/x")])));
        assert!(matches!(table.find("a.com", "/y"), Found::NoRoute(_)));
        assert!(matches!(table.find("b.com", "/y"), Found::Route(..)));
        assert!(matches!(RouteTable::default().find("b.com", "/y"), Found::NoHost));
    }

    fn path_match() -> impl Strategy<Value = PathMatch> {
        let path = "/[ab/]{0,4}";
        prop_oneof![
            Just(PathMatch::Any),
            path.prop_map(PathMatch::Exact),
            path.prop_map(PathMatch::Prefix),
            "/[ab.]{0,3}[*]?".prop_filter_map("a regex", |pattern| {
                FullRegex::parse(&pattern).ok().map(PathMatch::Regex)
            }),
        ]
    }

    proptest! {
        #[test]
        fn find_agrees_with_trying_every_route(
            paths in prop::collection::vec(path_match(), 0..16),
            path in "/[abc/]{0,6}",
        ) {
            let host = host(paths);
            let naive = host.routes().iter().position(|route| match &route.path {
                PathMatch::Any => true,
                PathMatch::Exact(exact) => *exact == path,
                PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
                PathMatch::Regex(regex) => regex.matches(&path),
            });
            prop_assert_eq!(found(&host, &path), naive);
        }
    }
}
