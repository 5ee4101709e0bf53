//! From files to a [`Snapshot`].
//!
//! - Total: whatever the files hold, a snapshot comes out; one bad resource concerns only itself.
//! - Last good: a resource or certificate that was good in this process and is bad now stays as it
//!   was and is reported; one that was deleted goes.
//! - Incremental: a document whose text is the same is not parsed again; clusters, virtual hosts,
//!   route tables and identities whose inputs are the same are the same `Arc`.
//!
//! Deliberately not here: reading directories, watching, DNS. The caller brings what they found.

mod backend;
mod delegate;
mod identity;
mod listener;
mod route;
mod rules;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::model::Spec;
use crate::crypto::{Parameters, Pins};
use crate::snapshot::{
    CertificateInfo, HostMap, Identity, Limits, Listener, ListenerKey, Policy, Rejection,
    RouteTable, Serves, Severity, Snapshot, TlsServer,
};

use backend::{Backends, Clusters};
use identity::{Kept, Vault};
use listener::{ListenerPlan, ListenerPlans, Planner, ServesPlan, TlsPlan};
use route::Tables;
use sources::{Resources, Sources};

/// A file below the source that may hold resources.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// As the user named it or as it was found below the directory.
    pub(crate) path: Arc<PathBuf>,
    /// Its bytes, the same `Arc` while they are the same; or why they could not be read.
    pub(crate) content: Result<Arc<[u8]>, String>,
}

/// A Secret as Kubernetes mounts it: a directory, one file per key. It belongs to the gateway's
/// namespace.
pub(crate) struct MountedSecret {
    /// Name of the directory.
    pub(crate) name: String,
    /// Contents of its files by their name.
    pub(crate) keys: BTreeMap<String, Arc<[u8]>>,
    /// The directory.
    pub(crate) path: Arc<PathBuf>,
}

/// Who this gateway is among the workloads of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayIdentity {
    /// Where `credentialName` is looked up.
    pub(crate) namespace: String,
    /// What the `selector` of a Gateway is matched against.
    pub(crate) labels: BTreeMap<String, String>,
}

/// What servers are bound to.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    /// The address of servers without `bind`.
    pub(crate) address: IpAddr,
    /// Port of a Gateway to the port that is bound for it; others are bound as they are.
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// What a compilation reads.
pub(crate) struct Inputs<'a> {
    /// Every file of the source.
    pub(crate) files: &'a [SourceFile],
    /// The Secrets that are directories.
    pub(crate) mounted_secrets: &'a [MountedSecret],
    /// Reads a certificate or key by the path in a Gateway; `files.root` is the caller's affair.
    pub(crate) pem: &'a mut dyn FnMut(&str) -> std::io::Result<Arc<[u8]>>,
    /// The addresses of a DNS name as far as they are known; `None` while they are not.
    pub(crate) resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
}

/// What a compilation yields.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its generation is one more than that of the compilation before.
    pub(crate) snapshot: Snapshot,
    /// DNS names whose addresses are wanted.
    pub(crate) names: BTreeSet<String>,
    /// Paths that the Gateways name, present or not.
    pub(crate) pem_paths: BTreeSet<String>,
}

/// Makes rustls configurations; the crypto layer behind it.
pub(crate) trait Identities {
    /// Builds the configuration of a server, once per distinct request.
    ///
    /// # Errors
    /// What is wrong, and with which part of the request.
    fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, Refusal>;

    /// Replaces the keys that tickets are sealed with, in every configuration that is in use.
    fn rotate_tickets(&mut self) {}
}

/// What a TLS server is to prove itself with, and what clients have to prove to it.
pub(crate) struct IdentityRequest<'a> {
    /// Name of the server. Ticket keys belong to it: the same name with the same policy keeps them.
    pub(crate) server: &'a str,
    /// What it proves itself with.
    pub(crate) pair: &'a Pair,
    /// What its clients are held to.
    pub(crate) policy: &'a TlsRules,
}

/// Certificate chain and private key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Leaf first.
    pub(crate) certificate: Arc<[u8]>,
    pub(crate) key: Arc<[u8]>,
}

/// What the clients of a server are held to. Sessions resume where this is the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct TlsRules {
    /// Versions that clients may negotiate.
    pub(crate) versions: TlsVersions,
    /// Cipher suites and groups that they may negotiate.
    pub(crate) parameters: Parameters,
    /// `None` asks clients for no certificate.
    pub(crate) clients: Option<Clients>,
}

/// Which clients a server takes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Clients {
    /// Who vouches for them.
    pub(crate) trust: ClientTrust,
    /// What else they have to be.
    pub(crate) demands: ClientDemands,
}

/// Who vouches for clients, PEM.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClientTrust {
    /// Certificates.
    pub(crate) ca: Arc<[u8]>,
    /// Revocation lists.
    pub(crate) crl: Option<Arc<[u8]>>,
}

/// What a client with a certificate has to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct ClientDemands {
    /// Clients without a certificate are taken too.
    pub(crate) optional: bool,
    /// One of these names; none means any.
    pub(crate) subject_alt_names: Vec<String>,
    /// One of these keys or certificates; none means any.
    pub(crate) pins: Pins,
    /// A certificate is taken that does not hold.
    pub(crate) accept_untrusted: bool,
}

/// Why there is no configuration.
pub(crate) struct Refusal {
    pub(crate) part: Part,
    /// For the operator; never any byte of a key.
    pub(crate) reason: String,
}

/// What of a request can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Certificate or key.
    Pair,
    /// What clients are checked with.
    Clients,
}

/// The TLS versions of a server; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TlsVersions {
    /// 1.2 and 1.3.
    Both,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone.
    Only13,
}

/// A configuration, and what its certificates say.
#[derive(Clone)]
pub(crate) struct BuiltIdentity {
    /// Ready for handshakes.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// The server's certificate.
    pub(crate) certificate: CertificateInfo,
    /// Those that vouch for clients.
    pub(crate) client_ca: Vec<CertificateInfo>,
    /// When the first revocation list ends.
    pub(crate) crl_expires: Option<SystemTime>,
}

/// Turns files into snapshots, generation after generation.
pub(crate) struct Compiler {
    gateway: GatewayIdentity,
    listen: Listen,
    limits: Limits,
    policy: Policy,
    identities: Box<dyn Identities>,
    sources: Sources,
    absent: Severity,
    generation: u64,
    before: Generation,
}

/// What the next generation reuses.
#[derive(Default)]
struct Generation {
    clusters: Clusters,
    tables: Tables,
    identities: Kept,
    servers: BTreeMap<String, Arc<TlsServer>>,
    listeners: BTreeMap<ListenerKey, Arc<Listener>>,
}

impl Compiler {
    /// A compiler that has seen nothing yet.
    pub(crate) fn new(
        gateway: GatewayIdentity,
        listen: Listen,
        limits: Limits,
        identities: Box<dyn Identities>,
    ) -> Self {
        let (sources, before) = (Sources::default(), Generation::default());
        let absent = Severity::Error;
        let policy = Policy::default();
        Self { gateway, listen, limits, policy, identities, sources, absent, generation: 0, before }
    }

    /// Makes certificates that are not there warnings: where nothing is served, they may be
    /// elsewhere.
    pub(crate) fn tolerate_absent_certificates(&mut self) {
        self.absent = Severity::Warning;
    }

    /// Who the gateway is in the generations to come.
    pub(crate) fn set_gateway(&mut self, gateway: GatewayIdentity) {
        self.gateway = gateway;
    }

    /// How the generations to come treat their HTTP neighbours.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Replaces the keys that tickets are sealed with.
    pub(crate) fn rotate_tickets(&mut self) {
        self.identities.rotate_tickets();
    }

    /// The limits of the generations to come.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How many resources the last compilation used.
    pub(crate) fn resources(&self) -> usize {
        self.sources.len()
    }

    /// Makes the next generation.
    pub(crate) fn compile(&mut self, inputs: Inputs<'_>) -> Output {
        let mut rejections = Vec::new();
        let resources = self.sources.update(inputs.files, &mut rejections);
        let planner = Planner::new(&self.gateway, &self.listen, &resources, &mut rejections);
        let plans = planner.plan(&resources);
        let mut builder = Builder {
            before: &self.before,
            after: Generation {
                tables: Tables::new(self.gateway.clone()),
                ..Generation::default()
            },
            backends: Backends::new(
                &resources,
                &self.gateway.namespace,
                inputs.resolved,
                &self.before.clusters,
            ),
            vault: Vault {
                namespace: &self.gateway.namespace,
                resources: &resources,
                mounted: inputs.mounted_secrets,
                pem: inputs.pem,
                identities: &mut *self.identities,
                absent: self.absent,
                before: &self.before.identities,
                kept: Kept::default(),
                paths: BTreeSet::new(),
                now: SystemTime::now(),
            },
            rejections,
        };
        builder.report_rules(&resources);
        let listeners = builder.listeners(plans);
        let Builder { after, backends, vault, mut rejections, .. } = builder;
        let (clusters, names) = (backends.clusters, backends.names);
        let (identities, certificates, pem_paths) = vault.finish();
        sort(&mut rejections);
        self.before = Generation { clusters, identities, ..after };
        self.generation += 1;
        let (generation, limits) = (self.generation, self.limits.clone());
        let policy = self.policy.clone();
        let snapshot = Snapshot { generation, listeners, limits, policy, rejections, certificates };
        Output { snapshot, names, pem_paths }
    }
}

/// By file and line; what is said twice is said once.
fn sort(rejections: &mut Vec<Rejection>) {
    rejections.sort_by(|a, b| (&a.origin, a.severity).cmp(&(&b.origin, b.severity)));
    rejections.dedup();
}

/// Builds one generation.
struct Builder<'a> {
    before: &'a Generation,
    after: Generation,
    backends: Backends<'a>,
    vault: Vault<'a>,
    rejections: Vec<Rejection>,
}

impl Builder<'_> {
    /// Reports what is wrong with rules beyond their own syntax.
    fn report_rules(&mut self, resources: &Resources) {
        for placed in resources.values() {
            if !matches!(placed.resource.spec, Spec::VirtualService(_)) {
                continue;
            }
            rules::report_unreachable(placed, &mut self.rejections);
            delegate::report(placed, resources, &mut self.rejections);
            for (namespace, destination) in rules::all_destinations(placed) {
                if let Some(what) = self.backends.unknown_port(destination, namespace) {
                    let cause = "requests are answered with 503";
                    let (line, field) = (destination.line, destination.field.as_str());
                    let found = placed.reject(Severity::Warning, line, field, what, cause);
                    self.rejections.push(found);
                }
            }
        }
    }

    fn listeners(&mut self, plans: ListenerPlans) -> Vec<Arc<Listener>> {
        plans.into_iter().map(|(key, plan)| self.listener(key, plan)).collect()
    }

    fn listener(&mut self, key: ListenerKey, plan: ListenerPlan) -> Arc<Listener> {
        let bind_port = plan.bind_port;
        let serves = match plan.serves {
            ServesPlan::Http(table) => {
                let name = format!("http.{}.{}", key.address, key.gateway_port);
                Serves::Http(self.table(&name, key.gateway_port, table))
            }
            ServesPlan::Tls(servers) => Serves::Tls(self.servers(key, servers)),
        };
        let listener = Listener { key, bind_port, serves };
        let same = self.before.listeners.get(&key).filter(|old| is_same(old, &listener));
        let listener = same.map_or_else(|| Arc::new(listener), Arc::clone);
        self.after.listeners.insert(key, Arc::clone(&listener));
        listener
    }

    fn table(&mut self, name: &str, port: u16, plan: route::TablePlan) -> Arc<RouteTable> {
        self.after.tables.build(name, port, plan, &self.before.tables, &mut self.backends)
    }

    fn servers(&mut self, key: ListenerKey, plans: Vec<TlsPlan>) -> HostMap<Arc<TlsServer>> {
        let mut servers = HostMap::default();
        for plan in plans {
            let patterns = plan.patterns.clone();
            let server = self.server(key, plan);
            for pattern in patterns {
                servers.insert(pattern, Arc::clone(&server));
            }
        }
        servers
    }

    fn server(&mut self, key: ListenerKey, plan: TlsPlan) -> Arc<TlsServer> {
        let TlsPlan { name, gateway, server, tls, table, .. } = plan;
        let identity = self.vault.identity(&name, &gateway, &server, &tls, &mut self.rejections);
        let routes = self.table(&name, key.gateway_port, table);
        let new = TlsServer { name: name.clone(), identity, routes };
        let same = self.before.servers.get(&name).filter(|old| is_same_server(old, &new));
        let server = same.map_or_else(|| Arc::new(new), Arc::clone);
        self.after.servers.insert(name, Arc::clone(&server));
        server
    }
}

fn is_same_server(old: &TlsServer, new: &TlsServer) -> bool {
    let same_identity = match (&old.identity, &new.identity) {
        (Identity::Ready(old), Identity::Ready(new)) => Arc::ptr_eq(old, new),
        (Identity::Missing, Identity::Missing) => true,
        (Identity::Ready(_), Identity::Missing) | (Identity::Missing, Identity::Ready(_)) => false,
    };
    same_identity && Arc::ptr_eq(&old.routes, &new.routes)
}

fn is_same(old: &Listener, new: &Listener) -> bool {
    let same = match (&old.serves, &new.serves) {
        (Serves::Http(old), Serves::Http(new)) => Arc::ptr_eq(old, new),
        (Serves::Tls(old), Serves::Tls(new)) => {
            old.iter().count() == new.iter().count()
                && old.iter().all(|(pattern, server)| {
                    new.get(&pattern).is_some_and(|other| Arc::ptr_eq(server, other))
                })
        }
        (Serves::Http(_), Serves::Tls(_)) | (Serves::Tls(_), Serves::Http(_)) => false,
    };
    same && old.bind_port == new.bind_port
}

#[cfg(test)]
pub(super) mod tests;
