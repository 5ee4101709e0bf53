//! `Service`: which ports a backend has.

use super::fields::{Field, Fields, Problems};

/// A Service. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// The name that stands behind a Service of type ExternalName.
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// Empty when the Service has only this one.
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) target: TargetPort,
    pub(crate) app_protocol: Option<String>,
}

/// The port of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// Looked up in the EndpointSlice.
    Name(String),
}

pub(super) fn read(spec: &Field<'_>, problems: &mut Problems) -> Option<Service> {
    let mut spec = spec.fields(problems)?;
    let kind = spec.take("type").and_then(|field| field.string(problems));
    let external_name = match kind {
        Some("ExternalName") => {
            Some(spec.require("externalName", problems)?.string(problems)?.to_owned())
        }
        _ => None,
    };
    let ports = spec.take("ports").map(|ports| ports.items(problems)).unwrap_or_default();
    let ports = ports.iter().filter_map(|port| read_port(port, problems)).collect();
    Some(Service { external_name, ports })
}

fn read_port(port: &Field<'_>, problems: &mut Problems) -> Option<ServicePort> {
    let mut port = port.fields(problems)?;
    let number = port.require("port", problems)?.port(problems)?;
    Some(ServicePort {
        name: optional_string(&mut port, "name", problems).unwrap_or_default(),
        number,
        target: read_target(&mut port, problems).unwrap_or(TargetPort::Number(number)),
        app_protocol: optional_string(&mut port, "appProtocol", problems),
    })
}

fn read_target(port: &mut Fields<'_>, problems: &mut Problems) -> Option<TargetPort> {
    let target = port.take("targetPort")?;
    match target.node.value.kind() {
        "a string" => target.string(problems).map(|name| TargetPort::Name(name.to_owned())),
        _ => target.port(problems).map(TargetPort::Number),
    }
}

/// The string `name`, if it is there.
pub(super) fn optional_string(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<String> {
    fields.take(name)?.string(problems).map(str::to_owned)
}
