//! `EndpointSlice`: the addresses behind a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fields::{Field, Fields, Problems};
use super::pod;
use super::service::optional_string;

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    /// The Service in the slice's namespace; a slice without one serves nobody.
    pub(crate) service: Option<String>,
    /// Its own labels, for endpoints whose Pod is not known.
    pub(crate) labels: BTreeMap<String, String>,
    /// Those that are ready.
    pub(crate) endpoints: Vec<SliceEndpoint>,
    pub(crate) ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub(crate) address: IpAddr,
    /// The Pod in the slice's namespace, if it is one.
    pub(crate) pod: Option<Box<str>>,
    /// Where it is, if that is known.
    pub(crate) zone: Option<Box<str>>,
}

/// One port that all addresses of a slice have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlicePort {
    /// The name of the Service's port.
    pub(crate) name: String,
    /// `None` stands for every port.
    pub(crate) number: Option<u16>,
    pub(crate) app_protocol: Option<String>,
}

pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<EndpointSlice> {
    let labels = pod::labels(fields, problems);
    let service = labels.get(SERVICE_LABEL).cloned();
    let endpoints = fields.require("endpoints", problems)?.items(problems);
    let endpoints = endpoints.iter().flat_map(|e| ready_endpoints(e, problems)).collect();
    let ports = fields.take("ports").map(|ports| ports.items(problems)).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| read_port(port, problems)).collect();
    Some(EndpointSlice { service, labels, endpoints, ports })
}

fn ready_endpoints(endpoint: &Field<'_>, problems: &mut Problems) -> Vec<SliceEndpoint> {
    let Some(mut endpoint) = endpoint.fields(problems) else { return Vec::new() };
    let conditions = endpoint.take("conditions").and_then(|field| field.fields(problems));
    // Unknown counts as ready, as Kubernetes documents it.
    let ready = conditions
        .and_then(|mut conditions| conditions.take("ready"))
        .and_then(|ready| ready.boolean(problems))
        .unwrap_or(true);
    let pod = endpoint.take("targetRef").and_then(|target| pod_name(&target, problems));
    let zone = endpoint.take("zone").and_then(|field| field.string(problems)).map(Box::from);
    let addresses = endpoint.require("addresses", problems);
    let addresses = addresses.map(|field| field.items(problems)).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|address| address.address(problems));
    let endpoint = |address| SliceEndpoint { address, pod: pod.clone(), zone: zone.clone() };
    let endpoints = addresses.map(endpoint);
    endpoints.filter(|_| ready).collect()
}

fn pod_name(target: &Field<'_>, problems: &mut Problems) -> Option<Box<str>> {
    let mut target = target.fields(problems)?;
    let kind = target.take("kind")?.string(problems)?;
    let name = target.take("name")?.string(problems)?;
    (kind == "Pod").then(|| name.into())
}

fn read_port(port: &Field<'_>, problems: &mut Problems) -> Option<SlicePort> {
    let mut port = port.fields(problems)?;
    Some(SlicePort {
        name: optional_string(&mut port, "name", problems).unwrap_or_default(),
        number: port.take("port").and_then(|field| field.port(problems)),
        app_protocol: optional_string(&mut port, "appProtocol", problems),
    })
}
