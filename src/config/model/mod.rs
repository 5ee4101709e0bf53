//! The parsed resources, one file per kind, under Istio's own field names.
//!
//! - A resource is made from one [`Node`](crate::config::source::document::Node), which knows its
//!   lines, and every finding about it is collected: nobody fixes a file one error at a time.
//! - What Istio has and this version does not is an error that says so. What neither knows is an
//!   error that names the nearest field.
//! - A Secret's bytes appear in no message and no `Debug`, and are not kept.
//!
//! Deliberately not here: what concerns more than one resource.

mod client_tls;
mod config_map;
mod destination_rule;
mod endpoint_slice;
mod fields;
mod gateway;
mod locality;
mod pod;
mod resource;
mod secret;
mod server_tls;
mod service;
mod service_entry;
mod virtual_service;

pub(crate) use client_tls::{ClientCertificates, ClientTls};
pub(crate) use config_map::ConfigMap;
pub(crate) use destination_rule::{
    Balancer, Blocks, DestinationRule, PortPolicy, Subset, Tls as BackendTls,
};
pub(crate) use endpoint_slice::EndpointSlice;
pub(crate) use fields::{Finding, Located, did_you_mean};
pub(crate) use gateway::{Bind, Gateway, Server, ServerHost, ServerProtocol};
pub(crate) use locality::{Distribution, Failover, Locality, LocalityRule};
pub(crate) use pod::Pod;
pub(crate) use resource::{Key, Kind, Parsed, Resource, Spec, parse};
pub(crate) use secret::Secret;
pub(crate) use server_tls::{ClientAuth, ClientCa, Credential, Tls};
pub(crate) use service::{Service, ServicePort, TargetPort};
pub(crate) use service_entry::{EntryAddress, EntryEndpoint, EntryPort, Resolution, ServiceEntry};
pub(crate) use virtual_service::{
    CLUSTER_DOMAIN, Destination, Headers, HttpRoute, MatchBlock, Mirror, Moved, NewUri, Place,
    ResourceName, RouteAction, TcpMatch, TcpRule, Treatment, VirtualService, WeightedDestination,
    complete,
};
