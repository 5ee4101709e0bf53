//! `ServiceEntry`: a service that is not Kubernetes'.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fields::{Field, Problems, UNIX, is_label};
use super::virtual_service::{Export, read_export};
use crate::address::PipePath;
use crate::snapshot::{HostPattern, UpstreamProtocol};

/// A ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    /// Names in lower case, or wildcards; not `*`.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) ports: Vec<EntryPort>,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<EntryEndpoint>,
    /// Labels of the WorkloadEntries and Pods of its namespace that are its endpoints.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) export: Export,
    /// One of these has to be an endpoint's where a DestinationRule has TLS with it and names none.
    pub(crate) subject_alt_names: Vec<String>,
}

/// One port of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPort {
    pub(crate) name: String,
    pub(crate) number: u16,
    /// The port of endpoints that do not say otherwise.
    pub(crate) target: u16,
    pub(crate) protocol: UpstreamProtocol,
}

/// How the addresses are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Its endpoints are addresses.
    Static,
    /// Its endpoints are names, or its host is.
    Dns,
    /// The same, with the first address of the newest answer alone: for names that stand for far
    /// more addresses than an answer has.
    FirstOfDns,
    /// The host that a route names is looked up. In a mesh it would be the address that the client
    /// asked for, which at a gateway is the gateway's own.
    None,
}

const RESOLUTIONS: [(&str, Resolution); 5] = [
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::FirstOfDns),
    ("NONE", Resolution::None),
    ("DYNAMIC_DNS", Resolution::None),
];

/// One endpoint of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryEndpoint {
    pub(crate) address: EntryAddress,
    /// By the name of the entry's port; none of a Unix socket.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its share beside the others.
    pub(crate) weight: u32,
    /// Where it is: `region/zone/subzone`, empty if that is not said.
    pub(crate) locality: Box<str>,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryAddress {
    /// Not from here.
    Nowhere,
    /// By an address, or with DNS by a name.
    Host(String),
    /// By a Unix socket of this host.
    Pipe(PipePath),
}

/// Reads it; `labels` are those of its metadata.
pub(super) fn read(
    spec: &Field<'_>,
    labels: &BTreeMap<String, String>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<ServiceEntry> {
    let parent = spec.clone();
    let mut spec = spec.fields(problems)?;
    let written_hosts = spec.require("hosts", problems);
    let hosts = written_hosts.as_ref().map(|field| read_hosts(field, problems));
    let written_ports = spec.take("ports");
    let ports = written_ports.as_ref().map(|field| read_ports(field, problems));
    let written_resolution = spec.take("resolution");
    let resolution = match &written_resolution {
        Some(field) => field.one_of(&RESOLUTIONS, problems),
        None => Some(Resolution::None),
    };
    let written = spec.take("endpoints");
    let items = written.as_ref().map(|field| field.items(problems)).unwrap_or_default();
    let written = written.filter(|_| !items.is_empty());
    let endpoints: Vec<_> =
        items.iter().filter_map(|item| read_endpoint(item, Some(resolution?), problems)).collect();
    let selector = spec.take("workloadSelector");
    if let (Some(_), Some(selector)) = (&written, &selector) {
        problems.error(selector, "there may be `endpoints` or `workloadSelector`, not both", "");
    }
    if let (Some(Resolution::None), Some(selector)) = (resolution, &selector) {
        let cause = "the host that a route names is looked up";
        problems.warn(selector, "has no effect beside this `resolution`", cause);
    }
    let selector = selector.map(|field| read_selector(&field, problems));
    let location = spec.take("location");
    let locations = [("MESH_EXTERNAL", false), ("MESH_INTERNAL", true)];
    let is_internal = location.as_ref().and_then(|field| field.one_of(&locations, problems));
    let addresses = spec.take("addresses").filter(|field| !field.items(problems).is_empty());
    if let Some(addresses) = &addresses {
        read_addresses(addresses, resolution, problems);
    }
    if let Some(mode) = &written_resolution {
        check_mode(mode, &hosts, &items, addresses.as_ref(), problems);
        if mode.string(problems) == Some("DYNAMIC_DNS")
            && let (Some(location), Some(true)) = (&location, is_internal)
            && uses_waypoint(labels)
        {
            let what = "cannot be MESH_INTERNAL beside resolution DYNAMIC_DNS and a waypoint";
            let cause = "remove the label `istio.io/use-waypoint`, or write MESH_EXTERNAL";
            problems.error(location, what, cause);
        }
    }
    if let (Some(ports), Some(hosts), Some(_)) = (&written_ports, &written_hosts, resolution) {
        let is_one = hosts.items(problems).len() < 2;
        check_protocols(ports, is_one, written_resolution.as_ref(), problems);
    }
    let export = read_export(spec.take("exportTo"), namespace, problems);
    let names = spec.take("subjectAltNames").map(|names| names.items(problems)).unwrap_or_default();
    let names: Vec<_> = names.iter().map(|n| n.string(problems).map(str::to_owned)).collect();
    spec.finish(problems);
    let selector = selector.map_or(Some(None), |selector| selector.map(Some))?;
    let (hosts, ports, resolution) = (hosts?, ports.unwrap_or_default(), resolution?);
    let subject_alt_names = names.into_iter().collect::<Option<_>>()?;
    let entry =
        ServiceEntry { hosts, ports, resolution, endpoints, selector, export, subject_alt_names };
    entry.check(&parent, written.as_ref(), problems);
    entry.check_ports(&items, problems);
    Some(entry)
}

impl ServiceEntry {
    /// Whether there may be a name that is one of its hosts and that `rule` is for.
    pub(crate) fn may_be_of(&self, rule: &HostPattern) -> bool {
        self.hosts.iter().any(|host| host.intersect(rule).is_some())
    }

    /// Endpoints may only say where ports are that the entry has, and be Unix sockets where it has
    /// one alone.
    fn check_ports(&self, endpoints: &[Field<'_>], problems: &mut Problems) {
        let written = endpoints.iter().zip(&self.endpoints);
        for (field, endpoint) in written.filter(|_| endpoints.len() == self.endpoints.len()) {
            if matches!(endpoint.address, EntryAddress::Pipe(_)) && self.ports.len() != 1 {
                let cause = "a socket has no ports that could tell them apart, as in Istio";
                problems.error(field, "needs exactly one of `spec.ports`", cause);
            }
            let is_known = |name: &&String| self.ports.iter().any(|port| port.name == **name);
            if let Some(name) = endpoint.ports.keys().find(|name| !is_known(name)) {
                let cause = "write a name of `spec.ports`";
                problems.error(field, format!("the entry has no port named `{name}`"), cause);
            }
        }
    }

    /// What Istio asks of how its fields go together.
    fn check(&self, parent: &Field<'_>, endpoints: Option<&Field<'_>>, problems: &mut Problems) {
        if self.ports.is_empty() && !problems.has_errors() {
            let cause = "without any nothing can be sent to its hosts";
            problems.warn(parent, "has no `ports`", cause);
        }
        let has_none = endpoints.is_none() && self.selector.is_none();
        let is_wildcard = |host: &HostPattern| !matches!(host, HostPattern::Exact(_));
        match self.resolution {
            Resolution::Static if has_none && !problems.has_errors() => {
                let what = "has no `endpoints` yet";
                problems.warn(
                    parent,
                    what,
                    "with STATIC each is an address; without any it is 503",
                );
            }
            Resolution::Dns | Resolution::FirstOfDns
                if endpoints.is_none() && self.hosts.iter().any(is_wildcard) =>
            {
                let cause =
                    "or write `resolution: NONE`, which looks up the host that a route names";
                let what = "`endpoints` is missing: there is no address of a wildcard host";
                problems.error(parent, what, cause);
            }
            Resolution::None => {
                if let Some(endpoints) = endpoints {
                    let cause = "write `resolution: STATIC` for addresses, or DNS for names";
                    problems.error(endpoints, "cannot stand beside resolution NONE", cause);
                }
            }
            Resolution::Static | Resolution::Dns | Resolution::FirstOfDns => {}
        }
    }
}

/// What Istio asks where names are looked up in turn, or as they are asked for.
fn check_mode(
    mode: &Field<'_>,
    hosts: &Option<Vec<HostPattern>>,
    endpoints: &[Field<'_>],
    addresses: Option<&Field<'_>>,
    problems: &mut Problems,
) {
    let word = mode.string(problems);
    if word == Some("DNS_ROUND_ROBIN") && endpoints.len() > 1 {
        let cause = "write `resolution: DNS` for several";
        problems.error(&endpoints[1], "DNS_ROUND_ROBIN has one endpoint", cause);
    }
    if word == Some("DYNAMIC_DNS") {
        let is_exact = |host: &HostPattern| matches!(host, HostPattern::Exact(_));
        if hosts.iter().flatten().any(is_exact) {
            let cause = "write `resolution: DNS` for a name";
            problems.error(mode, "DYNAMIC_DNS is for wildcard hosts", cause);
        }
        if let Some(addresses) = addresses {
            problems.error(addresses, "cannot stand beside resolution DYNAMIC_DNS", "");
        }
    }
}

/// Whether it is reached through a waypoint, a proxy of a mesh.
fn uses_waypoint(labels: &BTreeMap<String, String>) -> bool {
    let waypoint = labels.get("istio.io/use-waypoint");
    waypoint.is_some_and(|name| !name.is_empty() && !name.eq_ignore_ascii_case("none"))
}

/// Istio has several hosts only where requests or the ClientHello tell them apart, unless they are
/// looked up; and of those that are looked up as they are asked for, TLS and HTTP.
fn check_protocols(
    ports: &Field<'_>,
    is_one: bool,
    mode: Option<&Field<'_>>,
    problems: &mut Problems,
) {
    let mode = mode.and_then(|mode| mode.string(problems)).unwrap_or("NONE");
    for port in ports.items(problems) {
        // What is wrong with it is said elsewhere.
        let unheard = &mut Problems::default();
        let field = port.fields(unheard).and_then(|mut port| port.take("protocol"));
        let protocol = field.and_then(|field| field.string(unheard)).unwrap_or_default();
        let protocol = protocol.to_ascii_uppercase();
        let tells_hosts = ["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS"];
        if mode == "DYNAMIC_DNS" && !["HTTP", "HTTP2", "GRPC", "TLS"].contains(&&*protocol) {
            let cause = "write one of these as its `protocol`";
            problems.error(&port, "DYNAMIC_DNS is for HTTP, HTTP2, GRPC and TLS", cause);
        } else if mode != "NONE" && !is_one && !tells_hosts.contains(&&*protocol) {
            let what = "several hosts need `protocol` HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS or TLS";
            problems.error(&port, what, "connections do not tell them apart otherwise");
        }
    }
}

fn read_hosts(field: &Field<'_>, problems: &mut Problems) -> Vec<HostPattern> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one host", "");
    }
    items.iter().filter_map(|item| read_host(item, problems)).collect()
}

fn read_host(item: &Field<'_>, problems: &mut Problems) -> Option<HostPattern> {
    let text = item.string(problems)?;
    match text.parse::<HostPattern>() {
        Ok(host @ (HostPattern::Exact(_) | HostPattern::Wildcard(_))) => return Some(host),
        Ok(HostPattern::Any) => {
            let cause = "nor is it in Istio; `*.` and a suffix is one";
            problems.error(item, "`*` is no host of a ServiceEntry", cause);
        }
        Err(_) if is_partial_wildcard(text) => {
            let cause = "write `*.` and a suffix; this host is left out";
            problems.warn(item, format!("`{text}` begins within a label"), cause);
        }
        Err(_) => problems.error(item, format!("`{text}` is no DNS name"), ""),
    }
    None
}

/// `*` and the end of a name: Istio takes it for every name that ends so.
fn is_partial_wildcard(text: &str) -> bool {
    let rest = text.strip_prefix('*').map(str::parse);
    matches!(rest, Some(Ok(HostPattern::Exact(_))))
}

fn read_selector(field: &Field<'_>, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
    let mut selector = field.fields(problems)?;
    let labels = selector.take("labels").map(|labels| labels.selector(problems));
    selector.finish(problems);
    if labels.as_ref().is_none_or(BTreeMap::is_empty) {
        let cause = "it selects every workload of its namespace";
        problems.warn(field, "has no `labels`", cause);
    }
    Some(labels.unwrap_or_default())
}

/// Checks them: an address, or a network as `10.0.0.0/8`.
fn read_addresses(field: &Field<'_>, resolution: Option<Resolution>, problems: &mut Problems) {
    for item in field.items(problems) {
        let Some(text) = item.string(problems) else { continue };
        if text.contains('/')
            && matches!(resolution, Some(Resolution::Dns | Resolution::FirstOfDns))
        {
            let cause = "networks are only for resolution NONE and STATIC";
            problems.error(&item, format!("`{text}` is a network"), cause);
        }
        let (address, bits) = text.split_once('/').unwrap_or((text, "0"));
        let longest =
            address.parse().map(|address| if IpAddr::is_ipv4(&address) { 32 } else { 128 });
        let is_good = longest.is_ok_and(|longest| bits.parse::<u8>().is_ok_and(|b| b <= longest));
        if !is_good {
            let what = format!("must be an IP address or a network, not `{text}`");
            problems.error(&item, what, "");
        }
    }
    let cause = "clients reach the gateway by its own address";
    problems.warn(field, "`addresses` has no effect", cause);
}

fn read_ports(field: &Field<'_>, problems: &mut Problems) -> Vec<EntryPort> {
    let items = field.items(problems);
    let mut ports: Vec<EntryPort> = Vec::new();
    for item in &items {
        let Some(port) = read_port(item, problems) else { continue };
        if ports.iter().any(|other| other.name == port.name) {
            problems.error(item, format!("another port is named `{}`", port.name), "");
        }
        if ports.iter().any(|other| other.number == port.number) {
            problems.error(item, format!("another port has the number {}", port.number), "");
        }
        ports.push(port);
    }
    ports
}

fn read_port(item: &Field<'_>, problems: &mut Problems) -> Option<EntryPort> {
    let mut port = item.fields(problems)?;
    let number = port.require("number", problems).and_then(|field| field.port(problems));
    let name = port.require("name", problems).and_then(|field| read_port_name(&field, problems));
    let target = port.take("targetPort").map(|field| field.port(problems));
    let protocol = port.take_filled("protocol").map(|field| read_protocol(&field, problems));
    port.finish(problems);
    Some(EntryPort {
        name: name?,
        number: number?,
        target: target.unwrap_or(number)?,
        protocol: protocol.unwrap_or(Some(UpstreamProtocol::Http1))?,
    })
}

fn read_port_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let name = field.string(problems)?;
    if !is_label(name) {
        let cause = "up to 63 letters, digits and `-`";
        problems.error(field, format!("`{name}` is no name of a port"), cause);
        return None;
    }
    Some(name.to_owned())
}

fn read_protocol(field: &Field<'_>, problems: &mut Problems) -> Option<UpstreamProtocol> {
    let text = field.string(problems)?;
    match text.to_ascii_uppercase().as_str() {
        // What is not HTTP is passed on as it is; requests are sent as HTTP/1.1, as by Istio.
        "HTTP" | "HTTPS" | "TLS" | "TCP" | "MONGO" | "MYSQL" | "REDIS" => {
            Some(UpstreamProtocol::Http1)
        }
        "HTTP2" | "GRPC" | "GRPC-WEB" => Some(UpstreamProtocol::Http2),
        _ => {
            let what = format!("must be HTTP, HTTP2, GRPC, HTTPS, TLS or TCP, not `{text}`");
            problems.error(field, what, "");
            None
        }
    }
}

/// A WorkloadEntry: an endpoint that stands on its own. The labels of its metadata go before those
/// of its own, as in Istio.
pub(super) fn read_workload(
    spec: &Field<'_>,
    labels: BTreeMap<String, String>,
    problems: &mut Problems,
) -> Option<EntryEndpoint> {
    let mut endpoint = read_endpoint(spec, None, problems)?;
    endpoint.labels.extend(labels);
    Some(endpoint)
}

/// One for a ServiceEntry with `resolution`, or one that stands on its own.
fn read_endpoint(
    item: &Field<'_>,
    resolution: Option<Resolution>,
    problems: &mut Problems,
) -> Option<EntryEndpoint> {
    let mut endpoint = item.fields(problems)?;
    let network = endpoint.take_filled("network");
    let address = match endpoint.take_filled("address") {
        Some(field) => read_address(&field, resolution, problems),
        None if network.is_some() => {
            let cause = "only the gateway of its network, in a mesh, leads to it; it is left out";
            problems.warn(item, "has no `address`", cause);
            Some(EntryAddress::Nowhere)
        }
        None => {
            problems.error(item, "`address` is missing", "");
            None
        }
    };
    let ports = endpoint.take("ports");
    if let (Some(EntryAddress::Pipe(_)), Some(field)) = (&address, &ports)
        && field.fields(problems).is_some_and(|ports| ports.all().next().is_some())
    {
        problems.error(field, "a Unix socket has no ports", "leave `ports` out, as in Istio");
    }
    let ports = ports.and_then(|field| field.fields(problems));
    let ports = ports.map(|ports| {
        let number = |(name, field): (&str, Field<'_>)| {
            if !is_label(name) {
                let cause = "up to 63 letters, digits and `-`";
                problems.error(&field, format!("`{name}` is no name of a port"), cause);
            }
            field.port(problems).map(|number| (name.to_owned(), number))
        };
        ports.all().filter_map(number).collect()
    });
    let labels = endpoint.take("labels").map(|labels| labels.labels(problems));
    let weight = endpoint.take("weight").map(|f| f.integer(0..=u32::MAX, problems));
    let locality = endpoint.take("locality").map(|field| field.string(problems));
    for name in ["network", "serviceAccount"] {
        if let Some(field) = endpoint.take(name) {
            field.string(problems);
            let cause = "all endpoints are reached alike, whatever mesh they are in";
            problems.warn(&field, format!("`{name}` has no effect"), cause);
        }
    }
    endpoint.finish(problems);
    Some(EntryEndpoint {
        address: address?,
        ports: ports.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        // As in Istio, 0 is what is not said.
        weight: weight.unwrap_or(Some(0))?.max(1),
        locality: locality.unwrap_or(Some(""))?.into(),
    })
}

fn read_address(
    field: &Field<'_>,
    resolution: Option<Resolution>,
    problems: &mut Problems,
) -> Option<EntryAddress> {
    let text = field.string(problems)?;
    if let Some(path) = text.strip_prefix(UNIX) {
        if let Some(Resolution::Dns | Resolution::FirstOfDns | Resolution::None) = resolution {
            let cause = "write `resolution: STATIC` for a Unix socket, as in Istio";
            problems.error(field, format!("`{text}` is no name that could be looked up"), cause);
            return None;
        }
        return field.pipe(path, problems).map(EntryAddress::Pipe);
    }
    let good = match resolution {
        Some(Resolution::Static) => field.address(problems).is_some(),
        Some(Resolution::Dns | Resolution::FirstOfDns | Resolution::None) | None => {
            let good =
                matches!(text.parse(), Ok(HostPattern::Exact(_))) || text.parse::<IpAddr>().is_ok();
            if !good {
                problems.error(field, format!("must be a name or an address, not `{text}`"), "");
            }
            good
        }
    };
    good.then(|| EntryAddress::Host(text.to_ascii_lowercase()))
}
