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
        todo!("{host} {path}")
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
}

impl VirtualHost {
    /// Builds the trie over `routes`, which are in order of precedence.
    #[must_use]
    pub fn new(name: String, https_redirect: bool, routes: Vec<Route>) -> Self {
        Self { name, https_redirect, routes }
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
/// time
/// linear in the subject.
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

    /// Whether the whole of `subject` matches.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.0.is_match(subject)
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
    pub status: http::StatusCode,
    /// Empty for none.
    pub body: bytes::Bytes,
}

/// A redirect; a part that is not set stays as in the request.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: http::StatusCode,
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
