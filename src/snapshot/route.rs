//! Routing: from host and path to what is done with a request.
//!
//! A [`RouteTable`] maps the request's host to one [`VirtualHost`] (exact, longest wildcard, `*`);
//! that virtual host alone decides. Its routes are in the order of the VirtualService and the first
//! that matches wins; the trie only finds the candidates without trying every route.
//!
//! - Everything is built once and never changes: lock-free by construction.
//! - What few routes have stands behind one pointer, so that the others do not pay for it.
//! - [`RouteTable::find`] is a pure function. It allocates only where a rule ignores the case of
//!   paths, or a regular expression matches.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::edit::{Edit, Edits};
use super::matching::{Condition, FullRegex, Subject};
use super::trie::{Ends, Trie};
use super::{Cluster, Cors, Fault, HostMap, PathRewrite, RetryPolicy, Share};

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
    /// Finds the route for `subject` at `host` (as in the Host header; a port and one trailing dot
    /// are ignored, letter case too).
    #[must_use]
    pub fn find(&self, host: &str, subject: &Subject<'_>) -> Found<'_> {
        let Some(virtual_host) = self.hosts.find(host) else {
            return Found::NoHost;
        };
        match virtual_host.find(subject) {
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
    /// Shared with the hosts that are made of the same.
    routes: Arc<RouteSet>,
}

impl VirtualHost {
    /// A host of its own over `routes`, which are in order of precedence.
    #[must_use]
    pub fn new(name: String, https_redirect: bool, routes: Vec<Route>) -> Self {
        Self::sharing(name, https_redirect, Arc::new(RouteSet::new(routes)))
    }

    /// A host with the routes of others.
    #[must_use]
    pub fn sharing(name: String, https_redirect: bool, routes: Arc<RouteSet>) -> Self {
        Self { name, https_redirect, routes }
    }

    /// What it shares with others.
    #[must_use]
    pub fn route_set(&self) -> &Arc<RouteSet> {
        &self.routes
    }

    /// The first route that takes `subject`.
    fn find(&self, subject: &Subject<'_>) -> Option<&Route> {
        self.routes.find(subject)
    }

    /// The routes in order of precedence.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes.routes
    }
}

impl fmt::Debug for VirtualHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualHost")
            .field("name", &self.name)
            .field("https_redirect", &self.https_redirect)
            .field("routes", &self.routes())
            .finish()
    }
}

/// Routes in order of precedence, and what finds the right one without trying each.
pub struct RouteSet {
    routes: Box<[Route]>,
    /// Some route has conditions beyond its path.
    is_conditional: bool,
    /// Finds the routes with a plain path. Its values are indices into `routes`.
    trie: Trie,
    /// The same for those that ignore the case of the path, in lower case. Most sets have none.
    caseless: Option<Box<Trie>>,
    /// Finds those with a regular expression. Most sets have none.
    regexes: Option<Box<RegexRules>>,
}

impl RouteSet {
    /// Builds what finds `routes`, which are in order of precedence.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        let lower = |(path, ends, index): (&str, _, _)| (path.to_ascii_lowercase(), ends, index);
        let trie = Trie::new(plain(&routes, false));
        let caseless = routes.iter().any(|route| route.ignores_case);
        let caseless = caseless.then(|| Box::new(Trie::new(plain(&routes, true).map(lower))));
        let is_conditional = routes.iter().any(|route| !route.conditions.is_empty());
        let regexes = RegexRules::new(&routes).map(Box::new);
        Self { routes: routes.into(), is_conditional, trie, caseless, regexes }
    }

    /// The first route that takes `subject`.
    fn find(&self, subject: &Subject<'_>) -> Option<&Route> {
        let found = if self.is_conditional {
            self.find_accepted(subject.path, |index| self.routes[index].accepts(subject))
        } else {
            self.find_accepted(subject.path, |_| true)
        };
        found.map(|index| &self.routes[index])
    }

    /// The first route that takes `path` and is accepted.
    fn find_accepted(&self, path: &str, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best = self.trie.find(path.as_bytes(), None, &accepts);
        if let Some(caseless) = &self.caseless {
            best = caseless.find(path.to_ascii_lowercase().as_bytes(), best, &accepts);
        }
        let regex = self.regexes.as_ref().and_then(|rules| rules.find_before(best, path, accepts));
        regex.or(best)
    }
}

/// The routes with a plain path that ignore its case or do not.
fn plain(routes: &[Route], ignores_case: bool) -> impl Iterator<Item = (&str, Ends, usize)> {
    let routes = routes.iter().enumerate();
    let routes = routes.filter(move |(_, route)| route.ignores_case == ignores_case);
    routes.filter_map(|(index, route)| match &route.path {
        PathMatch::Any => Some(("", Ends::Prefix, index)),
        PathMatch::Prefix(path) => Some((path.as_str(), Ends::Prefix, index)),
        PathMatch::Exact(path) => Some((path.as_str(), Ends::Exact, index)),
        PathMatch::Regex(_) => None,
    })
}

/// One match block of a VirtualService rule and its action.
#[derive(Debug)]
pub struct Route {
    /// The rule's name in the access log, or empty.
    pub name: String,
    /// Which paths it takes.
    pub path: PathMatch,
    /// An exact path or a prefix is compared without regard to case.
    pub ignores_case: bool,
    /// All of them have to hold.
    pub conditions: Box<[Condition]>,
    /// What it does.
    pub action: Action,
    /// What few routes have; most branch over it once.
    pub extras: Option<Box<Extras>>,
}

/// What is done with a request beside a route's action.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Changes to a response that no target has.
    pub response: Vec<Edit>,
    /// From the request's end to the response's; `None` for as long as it takes.
    pub timeout: Option<Duration>,
    /// `None` for [`RetryPolicy::DEFAULT`].
    pub retries: Option<RetryPolicy>,
    /// `None` leaves the path as it is.
    pub rewrite: Option<PathRewrite>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// What browsers may ask.
    pub cors: Option<Cors>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
}

/// A cluster that gets copies of requests and whose answers nobody sees.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// `None` when no service is known by that name and port.
    pub cluster: Option<Arc<Cluster>>,
    /// Which requests.
    pub share: Share,
}

impl Route {
    /// A route without a name that does `action` with every request whose path matches.
    #[must_use]
    pub fn new(path: PathMatch, action: Action) -> Self {
        Self {
            name: String::new(),
            path,
            ignores_case: false,
            conditions: Box::default(),
            action,
            extras: None,
        }
    }

    fn accepts(&self, subject: &Subject<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(subject))
    }
}

impl Extras {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.response.is_empty()
            && self.timeout.is_none()
            && self.retries.is_none()
            && self.rewrite.is_none()
            && self.fault.is_none()
            && self.cors.is_none()
            && self.mirrors.is_empty()
    }
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

/// The routes with a regular expression, matched all at once.
struct RegexRules {
    set: regex::RegexSet,
    /// The route of each pattern in `set`. Ascending, at least one.
    routes: Box<[usize]>,
}

impl RegexRules {
    /// `None` where there is no expression: even an empty set takes kilobytes.
    fn new(routes: &[Route]) -> Option<Self> {
        let rules = routes.iter().enumerate().filter_map(|(index, route)| match &route.path {
            PathMatch::Regex(regex) => Some((regex.anchored(), index)),
            PathMatch::Any | PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
        });
        let (patterns, routes): (Vec<_>, Vec<_>) = rules.unzip();
        if patterns.is_empty() {
            return None;
        }
        let set = regex::RegexSetBuilder::new(patterns)
            .size_limit(usize::MAX)
            .build()
            .expect("each pattern compiled alone, and their sum has no limit");
        Some(Self { set, routes: routes.into() })
    }

    /// The first accepted route whose expression matches `path` and that comes before the route
    /// `before`. Allocates only when an expression matches.
    fn find_before(
        &self,
        before: Option<usize>,
        path: &str,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = *self.routes.first()?;
        if before.is_some_and(|before| before < first) || !self.set.is_match(path) {
            return None;
        }
        let matches = self.set.matches(path);
        let mut matched = matches.iter().map(|pattern| self.routes[pattern]);
        matched.find(|index| accepts(*index)).filter(|index| before.is_none_or(|b| *index < b))
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum Action {
    /// Answer with this.
    Respond(DirectResponse),
    /// Send the client elsewhere. Boxed: it is rare, and twice the size of all else.
    Redirect(Box<Redirect>),
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
    /// The new path; the query stays, but where the new path has one.
    pub path: Option<PathRewrite>,
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
    /// At least one; weights add up to more than zero unless there is only one, and to a `u32`.
    pub targets: Vec<Target>,
}

/// One destination of a route.
#[derive(Debug)]
pub struct Target {
    /// Relative to the sum over the route.
    pub weight: u32,
    /// Its cluster; `None` when no service is known by that name and port (503, `NC`).
    pub cluster: Option<Arc<Cluster>>,
    /// What is done with headers on the way there and back; that of the route included.
    pub edits: Option<Box<Edits>>,
}

impl Forward {
    /// One of the targets, each as often as its weight says if `below` draws numbers below its
    /// argument with equal chances.
    #[must_use]
    pub fn choose(&self, below: impl FnOnce(u32) -> u32) -> Option<&Target> {
        if let [target] = self.targets.as_slice() {
            return Some(target);
        }
        let sum = self.targets.iter().map(|target| target.weight).sum::<u32>().max(1);
        let mut left = below(sum);
        self.targets.iter().find(|target| {
            let hit = left < target.weight;
            left = left.saturating_sub(target.weight);
            hit
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Part, TextMatch};
    use ::http::HeaderMap;
    use proptest::prelude::*;

    fn route(path: PathMatch) -> Route {
        let body = bytes::Bytes::new();
        let action = Action::Respond(DirectResponse { status: ::http::StatusCode::OK, body });
        Route::new(path, action)
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

    /// A GET for `path`.
    fn get<'a>(path: &'a str, headers: &'a HeaderMap) -> Subject<'a> {
        let (method, scheme, authority) = ("GET", "http", "a.com");
        Subject { path, query: None, method, scheme, authority, headers, own: &[] }
    }

    /// Index of the route that takes `path`.
    fn found(host: &VirtualHost, path: &str) -> Option<usize> {
        let route = host.find(&get(path, &HeaderMap::new()))?;
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
        let headers = HeaderMap::new();
        let asked = get("/y", &headers);
        assert!(matches!(table.find("a.com", &asked), Found::NoRoute(_)));
        assert!(matches!(table.find("b.com", &asked), Found::Route(..)));
        assert!(matches!(RouteTable::default().find("b.com", &asked), Found::NoHost));
    }

    #[test]
    fn a_route_whose_conditions_fail_leaves_the_path_to_the_next() {
        let only_post = Condition {
            part: Part::Method,
            text: TextMatch::Exact("POST".to_owned()),
            inverted: false,
        };
        for path in [exact("/a"), prefix("/a"), regex("/a"), PathMatch::Any] {
            let mut routes = vec![route(path.clone()), route(path), route(PathMatch::Any)];
            routes[0].conditions = Box::new([only_post.clone()]);
            let host = VirtualHost::new("test".to_owned(), false, routes);
            assert_eq!(found(&host, "/a"), Some(1));
            let headers = HeaderMap::new();
            let post = Subject { method: "POST", ..get("/a", &headers) };
            assert!(std::ptr::eq(host.find(&post).unwrap(), &raw const host.routes()[0]));
        }
    }

    #[test]
    fn case_is_ignored_by_the_routes_that_say_so() {
        let mut routes = vec![route(prefix("/A/b")), route(exact("/C")), route(prefix("/a"))];
        routes[0].ignores_case = true;
        routes[1].ignores_case = true;
        let host = VirtualHost::new("test".to_owned(), false, routes);
        assert_eq!(found(&host, "/a/B/c"), Some(0));
        assert_eq!(found(&host, "/c"), Some(1));
        assert_eq!(found(&host, "/a"), Some(2));
        assert_eq!(found(&host, "/A"), None);
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
            rules in prop::collection::vec((path_match(), any::<bool>(), any::<bool>()), 0..16),
            path in "/[abcA/]{0,6}",
        ) {
            let (part, text) = (Part::Method, TextMatch::Exact("POST".to_owned()));
            let never = Condition { part, text, inverted: false };
            let routes = rules.into_iter().map(|(path, ignores_case, is_conditional)| Route {
                ignores_case,
                conditions: std::iter::repeat_n(never.clone(), is_conditional.into()).collect(),
                ..route(path)
            });
            let host = VirtualHost::new("test".to_owned(), false, routes.collect());
            let lower = path.to_ascii_lowercase();
            let naive = host.routes().iter().position(|route| {
                let is_lower = route.ignores_case;
                let fold = |text: &str| {
                    if is_lower { text.to_ascii_lowercase() } else { text.to_owned() }
                };
                let seen = if is_lower { &lower } else { &path };
                route.conditions.is_empty() && match &route.path {
                    PathMatch::Any => true,
                    PathMatch::Exact(exact) => *seen == fold(exact),
                    PathMatch::Prefix(prefix) => seen.starts_with(&fold(prefix)),
                    PathMatch::Regex(regex) => regex.matches(&path),
                }
            });
            prop_assert_eq!(found(&host, &path), naive);
        }
    }
}
