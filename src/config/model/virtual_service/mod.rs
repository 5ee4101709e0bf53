//! `VirtualService`: what is done with the requests for a host.

mod condition;
mod headers;
mod retries;
mod rule;
mod tcp;
mod template;
mod treatment;

pub(crate) use condition::{MatchBlock, Place};
pub(crate) use headers::Headers;
pub(crate) use rule::{Destination, HttpRoute, Moved, RouteAction, WeightedDestination};
pub(crate) use tcp::{TcpMatch, TcpRule};
pub(crate) use treatment::{Mirror, NewUri, Treatment};

use std::sync::Arc;

use super::Key;
use super::fields::{Field, Located, Problems, is_label};
use crate::config::source::document::Value;
use crate::crypto::Digest;
use crate::snapshot::HostPattern;
use tcp::Owner;

/// The domain that short names are completed with.
pub(crate) const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// A VirtualService.
#[derive(Debug, Clone)]
pub(crate) struct VirtualService {
    /// Short names are completed. None for one that others delegate to.
    pub(crate) hosts: Box<[Located<HostPattern>]>,
    /// Empty when it is not for gateways.
    pub(crate) gateways: Box<[Located<ResourceName>]>,
    pub(crate) export: Export,
    /// For requests, in order. Shared with VirtualServices that say the same.
    pub(crate) http: Arc<[HttpRoute]>,
    /// Stands for the text of `http` and its lines; `None` for no rules.
    pub(crate) http_text: Option<Digest>,
    /// For connections whose TLS is passed on, in order.
    pub(crate) tls: Box<[TcpRule]>,
    /// For other connections, in order.
    pub(crate) tcp: Box<[TcpRule]>,
}

/// A Gateway that a VirtualService binds to, or one that it delegates to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceName {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl ResourceName {
    /// Whether `key` is that resource's, which is of the right kind.
    pub(crate) fn is_of(&self, key: &Key) -> bool {
        self.namespace == key.namespace && self.name == key.name
    }
}

/// Who may see a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Export {
    /// Nobody.
    Nowhere,
    /// Its own namespace.
    Own,
    /// These namespaces; its own is written `.`.
    Named(Vec<String>),
    /// Every namespace.
    All,
}

impl Export {
    /// Istio's order of precedence.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Nowhere | Self::Own => 0,
            Self::Named(_) => 1,
            Self::All => 2,
        }
    }

    /// Whether it can be seen from `namespace`; `own` is that of the resource.
    pub(crate) fn reaches(&self, namespace: &str, own: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::All => true,
            Self::Own => namespace == own,
            Self::Named(names) => {
                let is_own = namespace == own;
                names.iter().any(|name| name == namespace || (is_own && name == "."))
            }
        }
    }
}

/// The whole name of `host`, which may be a Service's in `namespace`.
pub(crate) fn complete(host: &Arc<str>, namespace: &str) -> Arc<str> {
    if host.contains('.') || **host == *"*" {
        Arc::clone(host)
    } else {
        format!("{host}.{namespace}.{CLUSTER_DOMAIN}").into()
    }
}

pub(super) fn read(
    spec: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<VirtualService> {
    let mut spec = spec.fields(problems)?;
    let gateways = spec.take("gateways").map(|field| field.items(problems)).unwrap_or_default();
    let is_for_mesh = gateways.is_empty() || gateways.iter().any(is_mesh);
    let gateways: Vec<_> =
        gateways.iter().filter_map(|item| read_gateway(item, namespace, problems)).collect();
    let hosts = spec.take("hosts").map(|f| read_hosts(&f, namespace, problems));
    let hosts = hosts.unwrap_or_default();
    let is_delegate = hosts.is_empty();
    if is_delegate && !gateways.is_empty() {
        let cause = "without `hosts` it is a delegate, and those are bound by who names them";
        problems.error(&spec.parent, "has `gateways` but no `hosts`", cause);
    }
    if let Some(any) = hosts.iter().find(|host| host.value == HostPattern::Any)
        && is_for_mesh
    {
        let field = Field { line: any.line, ..spec.parent.clone() };
        let cause = "in a mesh `*` is for no service; name Gateways in `gateways`, without `mesh`";
        problems.error(&field, "the host `*` is only for Gateways", cause);
    }
    let export = read_export(spec.take("exportTo"), namespace, problems);
    let owner = Owner { namespace, hosts: &hosts };
    let (http, tls, tcp) = (spec.take("http"), spec.take("tls"), spec.take("tcp"));
    if http.is_none() && tls.is_none() && tcp.is_none() && !problems.has_errors() {
        let cause = "a VirtualService needs rules: `http`, `tls` or `tcp`";
        problems.error(&spec.parent, "`http` is missing", cause);
    }
    let http_text = http.as_ref().map(|field| field.node.digest());
    let http = http.map(|field| rule::read_all(&field, namespace, is_delegate, problems));
    let tls = tcp::read_tls(tls, &owner, problems).into();
    let tcp = tcp::read_tcp(tcp, &owner, problems).into();
    spec.finish(problems);
    let (hosts, gateways) = (hosts.into(), gateways.into());
    let http = http.unwrap_or_default().into();
    Some(VirtualService { hosts, gateways, export, http, http_text, tls, tcp })
}

fn read_gateway(
    item: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Located<ResourceName>> {
    let text = item.string(problems)?;
    if is_mesh(item) {
        return None;
    }
    let (namespace, name) = match text.split_once('/') {
        None => read_dotted(item, text, problems).unwrap_or((namespace, text)),
        Some((".", name)) => (namespace, name),
        Some(parts) => parts,
    };
    if !is_label(namespace) || !matches!(name.parse(), Ok(HostPattern::Exact(_))) {
        let what = format!("must be the name of a Gateway or `namespace/name`, not `{text}`");
        problems.error(item, what, "");
        return None;
    }
    let value = ResourceName { namespace: namespace.into(), name: name.into() };
    Some(Located { line: item.line, value })
}

fn is_mesh(gateway: &Field<'_>) -> bool {
    matches!(&gateway.node.value, Value::String(text) if text == "mesh")
}

/// Namespace and name in the form of a Service's whole name, which Istio still reads.
fn read_dotted<'a>(
    item: &Field<'_>,
    text: &'a str,
    problems: &mut Problems,
) -> Option<(&'a str, &'a str)> {
    let (name, rest) = text.split_once('.')?;
    let namespace = rest.split('.').next().filter(|namespace| !namespace.is_empty())?;
    let what = format!("`{text}` means Gateway {name} in namespace {namespace}");
    problems.warn(item, what, &format!("write `{namespace}/{name}`"));
    Some((namespace, name))
}

fn read_hosts(
    field: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Vec<Located<HostPattern>> {
    let items = field.items(problems);
    let mut hosts: Vec<Located<HostPattern>> = Vec::new();
    for item in &items {
        let Some(host) = read_host(item, namespace, problems) else { continue };
        if hosts.iter().any(|other| other.value == host.value) {
            problems.error(item, format!("`{}` is listed twice", host.value), "");
        } else if let Some(other) = hosts.iter().find(|other| overlap(&other.value, &host.value)) {
            let cause =
                "one of them takes the other's requests; Istio refuses both in one resource";
            problems.error(item, format!("`{}` overlaps `{}`", host.value, other.value), cause);
        }
        hosts.push(host);
    }
    hosts
}

fn overlap(one: &HostPattern, other: &HostPattern) -> bool {
    one.intersect(other).is_some()
}

fn read_host(
    item: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Located<HostPattern>> {
    let text = item.string(problems)?;
    match complete(&text.into(), namespace).parse() {
        Ok(value) => Some(Located { line: item.line, value }),
        Err(error) => {
            problems.error(item, format!("`{text}`: {error}"), "no scheme, port or path");
            None
        }
    }
}

/// Reads `exportTo` of a resource in namespace `own`.
pub(super) fn read_export(field: Option<Field<'_>>, own: &str, problems: &mut Problems) -> Export {
    let Some(field) = field else { return Export::All };
    let items = field.items(problems);
    let mut names = Vec::new();
    for item in &items {
        let Some(name) = item.string(problems) else { continue };
        if !matches!(name, "." | "*" | "~") && !is_label(name) {
            let cause = "or `.` for its own, `*` for all";
            problems.error(item, format!("must be a namespace, not `{name}`"), cause);
        }
        let is_own = |name: &str| name == "." || name == own;
        if names.contains(&name) || is_own(name) && names.iter().any(|other| is_own(other)) {
            problems.error(item, format!("`{name}` is listed twice"), "`.` is its own namespace");
        }
        names.push(name);
    }
    if names.len() > 1 && names.contains(&"*") {
        let cause = "leave only `*`, or only the others";
        problems.error(&field, "exports to all and to some", cause);
    }
    match names[..] {
        [] => Export::All,
        ["."] => Export::Own,
        ["~"] => Export::Nowhere,
        _ if names.contains(&"~") => {
            let cause = "`~` means nobody: it cannot stand beside other namespaces";
            problems.error(&field, "exports to nobody and to somebody", cause);
            Export::Nowhere
        }
        _ if names.contains(&"*") => Export::All,
        _ => Export::Named(names.into_iter().map(str::to_owned).collect()),
    }
}
