//! `ServiceEntry`: a service that is not Kubernetes'.

use std::collections::BTreeMap;

use super::fields::{Field, Located, Problems, not_supported};
use super::virtual_service::{Export, read_export};
use crate::snapshot::{HostPattern, UpstreamProtocol};

/// A ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    /// Names in lower case; wildcards are refused.
    pub(crate) hosts: Vec<String>,
    pub(crate) ports: Vec<EntryPort>,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<EntryEndpoint>,
    pub(crate) export: Export,
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
    Static,
    Dns,
}

/// One endpoint of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryEndpoint {
    /// An address, or with DNS a name.
    pub(crate) address: String,
    /// By the name of the entry's port.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its share beside the others.
    pub(crate) weight: u32,
}

pub(super) fn read(spec: &Field<'_>, problems: &mut Problems) -> Option<ServiceEntry> {
    let parent = spec.clone();
    let mut spec = spec.fields(problems)?;
    let hosts = spec.require("hosts", problems).map(|field| read_hosts(&field, problems));
    let ports = spec.require("ports", problems).map(|field| read_ports(&field, problems));
    let resolution = spec.take("resolution");
    let resolution = read_resolution(resolution.as_ref().unwrap_or(&parent), problems);
    let endpoints = spec.take("endpoints").map(|field| field.items(problems)).unwrap_or_default();
    let endpoints: Vec<_> =
        endpoints.iter().filter_map(|e| read_endpoint(e, resolution?, problems)).collect();
    if resolution == Some(Resolution::Static) && endpoints.is_empty() && !problems.has_errors() {
        problems.error(&parent, "`endpoints` is missing: STATIC needs at least one address", "");
    }
    if let Some(location) = spec.take("location") {
        location.one_of(&[("MESH_EXTERNAL", ()), ("MESH_INTERNAL", ())], problems);
    }
    let export = read_export(spec.take("exportTo"), problems);
    spec.refuse(&["addresses", "workloadSelector", "subjectAltNames"], problems);
    spec.finish(problems);
    Some(ServiceEntry { hosts: hosts?, ports: ports?, resolution: resolution?, endpoints, export })
}

fn read_hosts(field: &Field<'_>, problems: &mut Problems) -> Vec<String> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one host", "");
    }
    items.iter().filter_map(|item| read_host(item, problems)).map(|host| host.value).collect()
}

fn read_host(item: &Field<'_>, problems: &mut Problems) -> Option<Located<String>> {
    let text = item.string(problems)?;
    match text.parse::<HostPattern>() {
        Ok(HostPattern::Exact(name)) => {
            return Some(Located { line: item.line, value: name.to_string() });
        }
        Ok(HostPattern::Wildcard(_) | HostPattern::Any) => {
            problems.error(item, not_supported("a wildcard host of a ServiceEntry"), "");
        }
        Err(_) => problems.error(item, format!("`{text}` is no DNS name"), ""),
    }
    None
}

fn read_ports(field: &Field<'_>, problems: &mut Problems) -> Vec<EntryPort> {
    let items = field.items(problems);
    items.iter().filter_map(|item| read_port(item, problems)).collect()
}

fn read_port(item: &Field<'_>, problems: &mut Problems) -> Option<EntryPort> {
    let mut port = item.fields(problems)?;
    let number = port.require("number", problems).and_then(|field| field.port(problems));
    let name = port.require("name", problems).and_then(|field| field.string(problems));
    let target = port.take("targetPort").map(|field| field.port(problems));
    let protocol = port.take("protocol").map(|field| read_protocol(&field, problems));
    port.finish(problems);
    Some(EntryPort {
        name: name?.to_owned(),
        number: number?,
        target: target.unwrap_or(number)?,
        protocol: protocol.unwrap_or(Some(UpstreamProtocol::Http1))?,
    })
}

fn read_protocol(field: &Field<'_>, problems: &mut Problems) -> Option<UpstreamProtocol> {
    let text = field.string(problems)?;
    match text.to_ascii_uppercase().as_str() {
        // What is not HTTP is passed on as it is; requests are sent as HTTP/1.1, as by Istio.
        "HTTP" | "HTTPS" | "TLS" | "TCP" | "MONGO" => Some(UpstreamProtocol::Http1),
        "HTTP2" | "GRPC" | "GRPC-WEB" => Some(UpstreamProtocol::Http2),
        _ => {
            let what = format!("must be HTTP, HTTP2, GRPC, HTTPS, TLS or TCP, not `{text}`");
            problems.error(field, what, "");
            None
        }
    }
}

fn read_resolution(field: &Field<'_>, problems: &mut Problems) -> Option<Resolution> {
    let absent = matches!(field.node.value.kind(), "a map");
    let text = if absent { "NONE" } else { field.string(problems)? };
    match text {
        "STATIC" => Some(Resolution::Static),
        "DNS" => Some(Resolution::Dns),
        "NONE" => {
            let cause = if absent { "`resolution` is NONE when it is left out" } else { "" };
            problems.error(field, not_supported("resolution NONE") + ": use STATIC or DNS", cause);
            None
        }
        "DNS_ROUND_ROBIN" | "DYNAMIC_DNS" => {
            problems.error(field, not_supported(&format!("resolution {text}")), "use DNS");
            None
        }
        _ => {
            problems.error(field, format!("must be STATIC or DNS, not `{text}`"), "");
            None
        }
    }
}

fn read_endpoint(
    item: &Field<'_>,
    resolution: Resolution,
    problems: &mut Problems,
) -> Option<EntryEndpoint> {
    let mut endpoint = item.fields(problems)?;
    let address = endpoint.require("address", problems);
    let address = address.and_then(|field| read_address(&field, resolution, problems));
    let ports = endpoint.take("ports").and_then(|field| field.fields(problems));
    let ports = ports.map(|ports| {
        let number = |(name, field): (&str, Field<'_>)| {
            field.port(problems).map(|number| (name.to_owned(), number))
        };
        ports.all().filter_map(number).collect()
    });
    let labels = endpoint.take("labels").map(|labels| labels.strings(problems));
    let weight = endpoint.take("weight").map(|f| f.integer(0..=u32::MAX, problems));
    endpoint.take("locality");
    endpoint.refuse(&["network", "serviceAccount"], problems);
    endpoint.finish(problems);
    Some(EntryEndpoint {
        address: address?,
        ports: ports.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        // As in Istio, 0 is what is not said.
        weight: weight.unwrap_or(Some(0))?.max(1),
    })
}

fn read_address(
    field: &Field<'_>,
    resolution: Resolution,
    problems: &mut Problems,
) -> Option<String> {
    let text = field.string(problems)?;
    let good = match resolution {
        Resolution::Static => field.address(problems).is_some(),
        Resolution::Dns => {
            let good = matches!(text.parse(), Ok(HostPattern::Exact(_)))
                || text.parse::<std::net::IpAddr>().is_ok();
            if !good {
                problems.error(field, format!("must be a name or an address, not `{text}`"), "");
            }
            good
        }
    };
    good.then(|| text.to_ascii_lowercase())
}
