//! `Gateway`: on which ports, for which hosts and with which certificates the gateway listens.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::fields::{Field, Fields, Finding, Located, Problems, UNIX, did_you_mean, is_label};
use super::resource::{Key, is_error};
use super::server_tls::{self, ServerTls, Tls, TlsReader};
use crate::address::PipePath;
use crate::snapshot::HostPattern;

/// A Gateway. A server with a part that is not supported is left out of `servers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Labels that a gateway has to have; none means every gateway.
    pub(crate) selector: Box<[(Box<str>, Box<str>)]>,
    pub(crate) servers: Box<[Server]>,
}

/// One server of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Its place in the Gateway, from 0.
    pub(crate) index: usize,
    pub(crate) line: u64,
    /// 0 where it is bound to a Unix socket.
    pub(crate) port: u16,
    pub(crate) port_name: Arc<str>,
    pub(crate) bind: Option<Bind>,
    /// At least one.
    pub(crate) hosts: Box<[Located<ServerHost>]>,
    pub(crate) protocol: ServerProtocol,
}

/// What a server is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bind {
    /// An address, and its port.
    Ip(IpAddr),
    /// A Unix socket.
    Pipe(PipePath),
}

/// What a server speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerProtocol {
    Http {
        https_redirect: bool,
    },
    /// TLS, and HTTP inside.
    Https(Box<Tls>),
    /// TLS, and anything inside.
    Tls(Box<Tls>),
    /// TLS that the endpoint terminates.
    Passthrough,
    Tcp,
}

/// A host of a server, and the VirtualServices that may bind to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServerHost {
    /// The namespace of the VirtualServices; `None` for every one.
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) pattern: HostPattern,
}

/// Reads a Gateway; the findings in the result leave out only a server each.
pub(super) fn read(
    spec: &Field<'_>,
    key: &Key,
    problems: &mut Problems,
) -> Option<(Gateway, Vec<Finding>)> {
    if !is_label(&key.name) {
        let cause = "up to 63 letters, digits and `-`, without dots";
        problems.error(spec, format!("`{}` is no name of a Gateway", key.name), cause);
    }
    let mut spec = spec.fields(problems)?;
    let selector = spec.take("selector").map(|field| read_selector(&field, problems));
    let list = spec.require("servers", problems)?;
    spec.finish(problems);
    let items = list.items(problems);
    if items.is_empty() {
        problems.error(&list, "needs at least one server", "");
    }
    let mut partial = Problems::default();
    let mut names = BTreeSet::new();
    let mut reader =
        ServerReader { key, names: &mut names, whole: problems, partial: &mut partial };
    let servers = (0..).zip(&items).filter_map(|(index, item)| reader.read(index, item)).collect();
    Some((Gateway { selector: selector.unwrap_or_default(), servers }, partial.findings))
}

fn read_selector(field: &Field<'_>, problems: &mut Problems) -> Box<[(Box<str>, Box<str>)]> {
    let labels = field.strings(problems).into_iter();
    labels.map(|(name, value)| (name.into(), value.into())).collect()
}

fn is_unix(bind: &Field<'_>, problems: &mut Problems) -> bool {
    bind.string(problems).is_some_and(|text| text.starts_with(UNIX))
}

struct ServerReader<'a> {
    key: &'a Key,
    /// The port names seen so far.
    names: &'a mut BTreeSet<Arc<str>>,
    /// What makes the whole Gateway bad.
    whole: &'a mut Problems,
    /// What leaves out this server.
    partial: &'a mut Problems,
}

struct Port {
    number: u16,
    name: Arc<str>,
    kind: PortKind,
}

/// What the protocol of a port is; `tls` says the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortKind {
    Http,
    Https,
    Tls,
    Tcp,
}

impl ServerReader<'_> {
    fn read(&mut self, index: usize, item: &Field<'_>) -> Option<Server> {
        let before = self.partial.findings.len();
        let mut server = item.fields(self.whole)?;
        let bind = server.take("bind");
        let is_unix = bind.as_ref().is_some_and(|field| is_unix(field, self.whole));
        let bind = bind.map(|field| self.read_bind(&field));
        let port =
            server.require("port", self.whole).and_then(|field| self.read_port(&field, is_unix));
        let hosts = server.require("hosts", self.whole).map(|field| self.read_hosts(&field));
        let tls = server.take("tls");
        let protocol = port.as_ref().and_then(|port| self.read_protocol(port, item, tls));
        self.read_ignored(&mut server);
        server.finish(self.whole);
        let good = !self.partial.findings[before..].iter().any(is_error);
        let (port, protocol) = (port.filter(|_| good)?, protocol?);
        Some(Server {
            index,
            line: item.line,
            port: port.number,
            port_name: port.name,
            bind: bind.map_or(Some(None), |bind| bind.map(Some))?,
            hosts: hosts?,
            protocol,
        })
    }

    fn read_ignored(&mut self, server: &mut Fields<'_>) {
        if let Some(field) = server.take("name") {
            field.string(self.whole);
            let cause = "there are no statistics of single servers";
            self.whole.warn(&field, "`name` has no effect", cause);
        }
        if let Some(field) = server.take("defaultEndpoint") {
            self.whole.warn(&field, "`defaultEndpoint` is ignored, as by Istio", "");
        }
    }

    fn read_port(&mut self, field: &Field<'_>, is_unix: bool) -> Option<Port> {
        let mut port = field.fields(self.whole)?;
        let number = if is_unix {
            port.take("number").map_or(Some(0), |field| self.read_no_port(&field))
        } else {
            port.require("number", self.whole).and_then(|field| field.port(self.whole))
        };
        let name = port.require("name", self.whole);
        let protocol = port.require("protocol", self.whole);
        if let Some(field) = port.take("targetPort") {
            let cause = "the port that is bound is set in the settings, `listen.ports`";
            self.whole.error(&field, "`targetPort` of a Gateway is refused, as by Istio", cause);
        }
        port.finish(self.whole);
        let name = self.read_name(&name?)?;
        let kind = self.read_kind(&protocol?)?;
        Some(Port { number: number?, name, kind })
    }

    /// The number of a port where there is none.
    fn read_no_port(&mut self, field: &Field<'_>) -> Option<u16> {
        let number = field.integer(0..=u16::MAX, self.whole)?;
        if number != 0 {
            let what = format!("must be 0 where `bind` is a Unix socket, not {number}");
            self.whole.error(field, what, "a socket has no port");
        }
        Some(0)
    }

    fn read_name(&mut self, field: &Field<'_>) -> Option<Arc<str>> {
        let name = Arc::<str>::from(field.string(self.whole)?);
        if !self.names.insert(Arc::clone(&name)) {
            let what = format!("another server of this Gateway has a port named `{name}`");
            self.whole.error(field, what, "port names are unique within a Gateway");
        }
        Some(name)
    }

    /// `None` after an error.
    fn read_kind(&mut self, field: &Field<'_>) -> Option<PortKind> {
        let text = field.string(self.whole)?;
        match text.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => return Some(PortKind::Http),
            "HTTPS" => return Some(PortKind::Https),
            "TLS" => return Some(PortKind::Tls),
            "TCP" => return Some(PortKind::Tcp),
            "MONGO" => {
                let cause = "bytes are passed on; there are no statistics of Mongo's own";
                self.whole.warn(field, format!("protocol {text} is taken for TCP"), cause);
                return Some(PortKind::Tcp);
            }
            _ => {
                let what = format!("must be HTTP, HTTP2, GRPC, HTTPS, TLS or TCP, not `{text}`");
                let names = ["HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP"];
                self.whole.error(field, what, &did_you_mean(text, names.into_iter()));
            }
        }
        None
    }

    fn read_bind(&mut self, field: &Field<'_>) -> Option<Bind> {
        match field.string(self.whole)?.strip_prefix(UNIX) {
            Some(path) => field.pipe(path, self.whole).map(Bind::Pipe),
            None => field.address(self.whole).map(Bind::Ip),
        }
    }

    fn read_hosts(&mut self, field: &Field<'_>) -> Box<[Located<ServerHost>]> {
        let items = field.items(self.whole);
        if items.is_empty() {
            self.whole.error(field, "needs at least one host", "`*` stands for every host");
        }
        items.iter().filter_map(|item| self.read_host(item)).collect()
    }

    fn read_host(&mut self, item: &Field<'_>) -> Option<Located<ServerHost>> {
        let text = item.string(self.whole)?;
        let (namespace, name) = match text.split_once('/') {
            None | Some(("*", _)) => (None, text.trim_start_matches("*/")),
            Some((".", name)) => (Some(Arc::clone(&self.key.namespace)), name),
            Some((namespace, name)) => (Some(namespace.into()), name),
        };
        match name.parse::<HostPattern>() {
            Ok(HostPattern::Exact(short)) if !short.contains(['.', ':']) => {
                let cause = "write the whole name, as clients do; Istio refuses short ones";
                self.whole.error(item, format!("`{text}` is a short name"), cause);
                None
            }
            Ok(_) if namespace.as_ref().is_some_and(|namespace| !is_label(namespace)) => {
                let cause = "before `/` stands a namespace, `.` for the Gateway's own or `*`";
                self.whole.error(item, format!("`{text}`: there is no such namespace"), cause);
                None
            }
            Ok(pattern) => {
                Some(Located { line: item.line, value: ServerHost { namespace, pattern } })
            }
            Err(error) => {
                let cause = "no scheme, port or path; `namespace/` may stand before it";
                self.whole.error(item, format!("`{text}`: {error}"), cause);
                None
            }
        }
    }

    fn read_protocol(
        &mut self,
        port: &Port,
        server: &Field<'_>,
        tls: Option<Field<'_>>,
    ) -> Option<ServerProtocol> {
        match (port.kind, tls) {
            (PortKind::Http, None) => Some(ServerProtocol::Http { https_redirect: false }),
            (PortKind::Http, Some(tls)) => self.read_plain(&tls),
            (PortKind::Tcp, None) => Some(ServerProtocol::Tcp),
            (PortKind::Tcp, Some(tls)) => {
                let what = "a server with protocol TCP has no TLS";
                self.whole.error(&tls, what, "set `protocol: TLS`, or leave out `tls`");
                None
            }
            (PortKind::Https | PortKind::Tls, Some(tls)) => {
                let mut reader = TlsReader { whole: self.whole, partial: self.partial };
                Some(match reader.read(&tls)? {
                    ServerTls::Passthrough => ServerProtocol::Passthrough,
                    ServerTls::Terminate(tls) if port.kind == PortKind::Tls => {
                        ServerProtocol::Tls(tls)
                    }
                    ServerTls::Terminate(tls) => ServerProtocol::Https(tls),
                })
            }
            (PortKind::Https | PortKind::Tls, None) => {
                let cause = "a server with protocol HTTPS or TLS needs `mode: SIMPLE` and a \
                             certificate, or `mode: PASSTHROUGH`";
                self.whole.error(server, "`tls` is missing", cause);
                None
            }
        }
    }

    fn read_plain(&mut self, field: &Field<'_>) -> Option<ServerProtocol> {
        let mut tls = field.fields(self.whole)?;
        let redirect = tls.take("httpsRedirect").map(|field| field.boolean(self.whole));
        if let Some(mode) = tls.take("mode")
            && mode.string(self.whole)? != "PASSTHROUGH"
        {
            let cause = "set `protocol: HTTPS`, or leave only `httpsRedirect` in `tls`";
            self.whole.error(&mode, "a server with protocol HTTP has no TLS", cause);
        }
        for name in ["serverCertificate", "privateKey", "caCertificates"] {
            if let Some(field) = tls.take(name) {
                let cause = "set `protocol: HTTPS`";
                self.whole.error(&field, "a server with protocol HTTP has no certificate", cause);
            }
        }
        if let Some(field) = tls.take("credentialName") {
            self.whole.warn(&field, "ignored: a server with protocol HTTP has no certificate", "");
        }
        for name in server_tls::ONLY_HTTPS {
            if let Some(field) = tls.take(name) {
                let what = "a server with protocol HTTP has no TLS";
                self.partial.error(&field, what, "set `protocol: HTTPS`");
            }
        }
        tls.finish(self.whole);
        Some(ServerProtocol::Http { https_redirect: redirect.unwrap_or(Some(false))? })
    }
}
