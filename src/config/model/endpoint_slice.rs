//! `EndpointSlice`: the addresses behind a Service.

use std::net::IpAddr;

use super::fields::{Field, Fields, Problems};
use super::service::optional_string;

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    /// The Service in the slice's namespace; a slice without one serves nobody.
    pub(crate) service: Option<String>,
    /// Those that are ready.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<SlicePort>,
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
    let service = service_name(fields, problems);
    let endpoints = fields.require("endpoints", problems)?.items(problems);
    let addresses = endpoints.iter().flat_map(|e| ready_addresses(e, problems)).collect();
    let ports = fields.take("ports").map(|ports| ports.items(problems)).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| read_port(port, problems)).collect();
    Some(EndpointSlice { service, addresses, ports })
}

fn service_name(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<String> {
    let mut metadata = fields.take("metadata")?.fields(problems)?;
    let mut labels = metadata.take("labels")?.fields(problems)?;
    optional_string(&mut labels, SERVICE_LABEL, problems)
}

fn ready_addresses(endpoint: &Field<'_>, problems: &mut Problems) -> Vec<IpAddr> {
    let Some(mut endpoint) = endpoint.fields(problems) else { return Vec::new() };
    let conditions = endpoint.take("conditions").and_then(|field| field.fields(problems));
    // Unknown counts as ready, as Kubernetes documents it.
    let ready = conditions
        .and_then(|mut conditions| conditions.take("ready"))
        .and_then(|ready| ready.boolean(problems))
        .unwrap_or(true);
    let addresses = endpoint.require("addresses", problems);
    let addresses = addresses.map(|field| field.items(problems)).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|address| address.address(problems));
    addresses.filter(|_| ready).collect()
}

fn read_port(port: &Field<'_>, problems: &mut Problems) -> Option<SlicePort> {
    let mut port = port.fields(problems)?;
    Some(SlicePort {
        name: optional_string(&mut port, "name", problems).unwrap_or_default(),
        number: port.take("port").and_then(|field| field.port(problems)),
        app_protocol: optional_string(&mut port, "appProtocol", problems),
    })
}
