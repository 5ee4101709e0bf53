//! From one document to the resources in it: `apiVersion`, `kind` and `metadata` first, then the
//! kind's own type.

use std::fmt;
use std::sync::{Arc, LazyLock};

use super::fields::{Field, Fields, Finding, Problems, did_you_mean, not_supported};
use super::virtual_service;
use super::{
    ConfigMap, DestinationRule, EndpointSlice, EntryEndpoint, Gateway, Pod, Secret, Service,
    ServiceEntry, VirtualService,
};
use super::{
    config_map, destination_rule, endpoint_slice, gateway, pod, secret, service, service_entry,
};
use crate::config::compile::Identities;
use crate::config::source::document::Node;
use crate::snapshot::Severity;

/// The namespace of a document that names none, as with kubectl.
static DEFAULT_NAMESPACE: LazyLock<Arc<str>> = LazyLock::new(|| "default".into());

const NETWORKING: &str = "networking.istio.io";

/// Versions of networking.istio.io; the schema is the same.
const NETWORKING_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Gateway,
    VirtualService,
    ServiceEntry,
    WorkloadEntry,
    DestinationRule,
    Service,
    EndpointSlice,
    Pod,
    Secret,
    ConfigMap,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Gateway,
        Self::VirtualService,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::DestinationRule,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::Secret,
        Self::ConfigMap,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::DestinationRule => "DestinationRule",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// The API group; empty for Kubernetes' own first one.
    fn group(self) -> &'static str {
        match self {
            Self::Gateway
            | Self::VirtualService
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::DestinationRule => NETWORKING,
            Self::Service | Self::Pod | Self::Secret | Self::ConfigMap => "",
            Self::EndpointSlice => "discovery.k8s.io",
        }
    }

    fn versions(self) -> &'static [&'static str] {
        if self.group() == NETWORKING { &NETWORKING_VERSIONS } else { &["v1"] }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What makes a resource the same one in the next generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One resource that can be used.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) key: Key,
    /// From 1, counted from the first line of the document's part.
    pub(crate) line: u64,
    /// `metadata.creationTimestamp` as written, or empty: RFC 3339 in UTC sorts as text.
    pub(crate) created: Box<str>,
    pub(crate) spec: Spec,
}

/// Keys that tell a settings file.
const SETTINGS_ONLY: [&str; 4] = ["access_log", "limits", "listen", "workers"];

/// What a resource says.
#[derive(Debug)]
pub(crate) enum Spec {
    Gateway(Gateway),
    VirtualService(VirtualService),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(Box<EntryEndpoint>),
    DestinationRule(Box<DestinationRule>),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Secret(Secret),
    ConfigMap(ConfigMap),
}

impl Spec {
    /// What is left of it if it has an error.
    fn closed(self) -> Option<Self> {
        let Self::DestinationRule(rule) = self else { return None };
        rule.closed().map(|rule| Self::DestinationRule(Box::new(rule)))
    }
}

/// What one document yields.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parsed {
    pub(crate) resources: Vec<Arc<Resource>>,
    /// Resources that are there and cannot be used.
    pub(crate) broken: Vec<Key>,
    /// What stands in the place of a broken one of which nothing good is known, so that it leaves
    /// nothing open that it was to secure.
    pub(crate) stand_ins: Vec<Arc<Resource>>,
    /// Whether something in it could not be told apart: it may be any resource.
    pub(crate) unreadable: bool,
    /// With the resource that each is about, or an empty text.
    pub(crate) findings: Vec<(String, Finding)>,
}

/// Reads the resources of one document; `identities` loads what Secrets hold.
pub(crate) fn parse(node: &Node, identities: &dyn Identities) -> Parsed {
    let mut parsed = Parsed::default();
    read(&Field::root(node), identities, &mut parsed);
    parsed.resources.shrink_to_fit();
    parsed
}

fn read(root: &Field<'_>, identities: &dyn Identities, parsed: &mut Parsed) {
    let mut problems = Problems::default();
    let Some(mut fields) = root.fields(&mut problems) else {
        problems.findings.clear();
        let cause = "a resource starts with `apiVersion:` and `kind:`";
        problems.error(root, "is no Kubernetes resource", cause);
        return parsed.fail(None, problems);
    };
    let Some((version, kind)) = type_of(&mut fields, &mut problems) else {
        return parsed.fail(None, problems);
    };
    if kind == "List" || (kind.ends_with("List") && fields.take("items").is_some()) {
        return read_list(&mut fields, identities, parsed);
    }
    match known_kind(version, kind, &mut fields, &mut problems) {
        Some(kind) => read_resource(kind, fields, problems, identities, parsed),
        None => parsed.note(String::new(), problems),
    }
}

fn read_list(fields: &mut Fields<'_>, identities: &dyn Identities, parsed: &mut Parsed) {
    let mut problems = Problems::default();
    let items = fields.take("items").map(|items| items.items(&mut problems)).unwrap_or_default();
    for item in items {
        read(&item, identities, parsed);
    }
    parsed.note(String::new(), problems);
}

fn read_resource(
    kind: Kind,
    mut fields: Fields<'_>,
    mut problems: Problems,
    identities: &dyn Identities,
    parsed: &mut Parsed,
) {
    let Some(meta) = Meta::read(&mut fields, &mut problems) else {
        return parsed.fail(None, problems);
    };
    let key = Key { kind, namespace: meta.namespace, name: meta.name };
    let spec = read_spec(&key, &mut fields, &mut problems, identities);
    let good = !problems.has_errors();
    let spec = spec.map(|(spec, findings)| {
        problems.findings.extend(findings);
        spec
    });
    let (line, created) = (fields.parent.line, meta.created);
    match spec {
        Some(spec) if good => {
            parsed.note(key.to_string(), problems);
            parsed.resources.push(Arc::new(Resource { key, line, created, spec }));
        }
        spec => {
            let left = spec.and_then(Spec::closed);
            let left = left.map(|spec| Resource { key: key.clone(), line, created, spec });
            parsed.stand_ins.extend(left.map(Arc::new));
            parsed.fail(Some(key), problems);
        }
    }
}

impl Parsed {
    fn note(&mut self, resource: String, problems: Problems) {
        self.findings.extend(problems.findings.into_iter().map(|f| (resource.clone(), f)));
    }

    fn fail(&mut self, key: Option<Key>, problems: Problems) {
        self.note(key.as_ref().map(Key::to_string).unwrap_or_default(), problems);
        self.unreadable |= key.is_none();
        self.broken.extend(key);
    }
}

fn type_of<'a>(fields: &mut Fields<'a>, problems: &mut Problems) -> Option<(&'a str, &'a str)> {
    if fields.take("apiVersion").is_none() && fields.take("kind").is_none() {
        let cause = if fields.all().any(|(name, _)| SETTINGS_ONLY.contains(&name)) {
            "a settings file of ringgate does not belong below the source directory"
        } else {
            "a resource starts with `apiVersion:` and `kind:`"
        };
        problems.error(&fields.parent, "is no Kubernetes resource", cause);
        return None;
    }
    let version = fields.require("apiVersion", problems);
    let kind = fields.require("kind", problems);
    Some((version?.string(problems)?, kind?.string(problems)?))
}

/// The kind, if it is one of ours in a version of ours; reports it otherwise.
fn known_kind(
    api_version: &str,
    kind: &str,
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<Kind> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some(known) = Kind::ALL.into_iter().find(|k| k.name() == kind && k.group() == group) else {
        report_unknown_kind(api_version, kind, fields, problems);
        return None;
    };
    if !known.versions().contains(&version) {
        let field = fields.take("apiVersion")?;
        let what = format!("`{api_version}` is no version of {kind} that ringgate reads");
        problems.error(&field, what, &format!("known are {}", known.versions().join(", ")));
        return None;
    }
    Some(known)
}

fn report_unknown_kind(
    api_version: &str,
    kind: &str,
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) {
    let Some(field) = fields.take("kind") else { return };
    let ours = Kind::ALL.into_iter().filter(|k| api_version.starts_with(k.group()));
    let cause = match Kind::ALL.into_iter().find(|known| known.name() == kind) {
        Some(known) if known.group().is_empty() => format!("ringgate reads {kind} of `v1`"),
        Some(known) => format!("ringgate reads {kind} of `{}/v1`", known.group()),
        None if kind_advice(kind).is_empty() => did_you_mean(kind, ours.map(Kind::name)),
        None => kind_advice(kind).to_owned(),
    };
    let what = if api_version.starts_with(NETWORKING) {
        not_supported(kind) + " and ignored"
    } else {
        format!("{kind} of {api_version} is ignored")
    };
    problems.warn(&field, what, &cause);
}

/// What follows for the user of a well-known kind that is not read.
fn kind_advice(kind: &str) -> &'static str {
    match kind {
        "AuthorizationPolicy" | "RequestAuthentication" => {
            "nothing of it is enforced: requests that it refuses are let through"
        }
        "EnvoyFilter" | "WasmPlugin" => "nothing of it is applied to requests",
        "Ingress" | "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" => {
            "write a Gateway and a VirtualService of `networking.istio.io/v1` instead"
        }
        "Endpoints" => "write an EndpointSlice of `discovery.k8s.io/v1` instead",
        _ => "",
    }
}

struct Meta {
    name: Arc<str>,
    namespace: Arc<str>,
    created: Box<str>,
}

impl Meta {
    fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let metadata = fields.require("metadata", problems)?;
        let mut metadata = metadata.fields(problems)?;
        let name = metadata.require("name", problems)?.string(problems)?.into();
        let namespace = match metadata.take("namespace") {
            Some(field) => field.string(problems)?.into(),
            None => Arc::clone(&DEFAULT_NAMESPACE),
        };
        let created = metadata.take("creationTimestamp");
        let created = created.and_then(|field| field.string(problems)).unwrap_or_default();
        Some(Self { name, namespace, created: created.into() })
    }
}

/// The spec, and the findings that leave out only a part of it.
fn read_spec(
    key: &Key,
    fields: &mut Fields<'_>,
    problems: &mut Problems,
    identities: &dyn Identities,
) -> Option<(Spec, Vec<Finding>)> {
    let whole = |spec| (spec, Vec::new());
    match key.kind {
        Kind::Gateway => {
            let (gateway, findings) = gateway::read(&spec_of(fields, problems)?, key, problems)?;
            Some((Spec::Gateway(gateway), findings))
        }
        Kind::VirtualService => {
            virtual_service::read(&spec_of(fields, problems)?, &key.namespace, problems)
                .map(|spec| whole(Spec::VirtualService(spec)))
        }
        Kind::ServiceEntry => {
            let labels = pod::labels(fields, &mut Problems::default());
            service_entry::read(&spec_of(fields, problems)?, &labels, &key.namespace, problems)
                .map(|spec| whole(Spec::ServiceEntry(spec)))
        }
        Kind::WorkloadEntry => {
            let labels = pod::labels(fields, problems);
            service_entry::read_workload(&spec_of(fields, problems)?, labels, problems)
                .map(|spec| whole(Spec::WorkloadEntry(Box::new(spec))))
        }
        Kind::DestinationRule => {
            destination_rule::read(&spec_of(fields, problems)?, &key.namespace, problems)
                .map(|spec| whole(Spec::DestinationRule(Box::new(spec))))
        }
        Kind::Service => service::read(&spec_of(fields, problems)?, problems)
            .map(|spec| whole(Spec::Service(spec))),
        Kind::EndpointSlice => {
            endpoint_slice::read(fields, problems).map(|spec| whole(Spec::EndpointSlice(spec)))
        }
        Kind::Pod => pod::read(fields, problems).map(|spec| whole(Spec::Pod(spec))),
        Kind::ConfigMap => Some(whole(Spec::ConfigMap(config_map::read(fields)))),
        Kind::Secret => {
            secret::read(fields, problems, identities).map(|spec| whole(Spec::Secret(spec)))
        }
    }
}

/// `spec`, and beside it what may stand there.
fn spec_of<'a>(fields: &mut Fields<'a>, problems: &mut Problems) -> Option<Field<'a>> {
    for (name, field) in fields.all() {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&name) {
            let cause = "fields of the resource belong below `spec:`; check the indentation";
            problems.error(&field, "there is no such field", cause);
        }
    }
    fields.require("spec", problems)
}

/// Whether a finding leaves something out.
pub(super) fn is_error(finding: &Finding) -> bool {
    finding.severity == Severity::Error
}
