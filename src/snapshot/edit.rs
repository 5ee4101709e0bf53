//! Changes to the headers of a message, compiled: nothing of them is parsed per request.

use ::http::header::{HeaderName, HeaderValue};

/// What is done to the headers of requests and responses on one way.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// Before the request goes to the upstream. In order.
    pub request: Vec<Edit>,
    /// Before the response goes to the client. In order.
    pub response: Vec<Edit>,
    /// Instead of the host that the client named.
    pub authority: Option<HeaderValue>,
}

impl Edits {
    /// Whether they change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && self.authority.is_none()
    }
}

/// One set of changes. Every value is made of the headers as they are after the removals; then
/// those that replace are put, then those that are added.
#[derive(Debug, Clone, Default)]
pub struct Edit {
    /// Fields that go.
    pub remove: Vec<HeaderName>,
    /// Fields that come instead of what has their name.
    pub set: Vec<(HeaderName, Template)>,
    /// Fields that come beside what has their name.
    pub add: Vec<(HeaderName, Template)>,
}

impl Edit {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// The value of a field; one that comes out empty is left out.
#[derive(Debug, Clone)]
pub enum Template {
    /// Always the same.
    Fixed(HeaderValue),
    /// Put together of these.
    Made(Vec<Piece>),
}

/// One piece of a value.
#[derive(Debug, Clone)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// The client's address as far as the trusted proxies tell.
    Remote(AddressPart),
    /// The peer's address.
    Peer(AddressPart),
    /// The gateway's end of the client's connection.
    Local(AddressPart),
    /// `HTTP/1.1` or `HTTP/2`.
    Protocol,
    /// Of the request.
    Request(FieldValue<RequestPart>),
    /// Of the response; nothing while there is none.
    Response(FieldValue<HeaderName>),
    /// When the request began, `2024-01-31T12:00:00.123Z`.
    StartTime,
    /// The SNI.
    ServerName,
    /// The rule's name.
    RouteName,
    /// Of the response.
    Status,
    /// The endpoint that was tried last.
    Endpoint(AddressPart),
    /// Name of the cluster.
    Cluster,
}

/// How much of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressPart {
    /// Address and port.
    Whole,
    /// Without the port.
    Host,
    /// The port alone.
    Port,
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldValue<T> {
    /// Which.
    pub name: T,
    /// Which if that one is missing.
    pub alternative: Option<T>,
    /// Longer values are cut.
    pub bytes_max: usize,
}

/// A part of a request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestPart {
    /// `:method`.
    Method,
    /// `:path`, with its query.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// A header.
    Header(HeaderName),
}
