//! From files to a [`Snapshot`].
//!
//! - Total: whatever the files hold, a snapshot comes out; one bad resource concerns only itself.
//! - Last good: a resource or certificate that was good in this process and is bad now stays as it
//!   was and is reported; one that was deleted goes.
//! - Incremental: [`read`](Compiler::read) is told what changed, and [`compile`](Compiler::compile)
//!   looks only at what that concerns. A document whose text is the same is not parsed again;
//!   clusters, virtual hosts, route tables and identities whose inputs are the same are the same
//!   `Arc`.
//! - Lean: of what is served, little is kept beside the snapshot itself. Texts are not, be they
//!   YAML or PEM; their digests are.
//!
//! Deliberately not here: reading directories, watching, DNS. The caller brings what they found.

mod backend;
mod backend_tls;
mod complaint;
mod delegate;
mod identity;
mod listener;
mod locality;
mod policy;
mod route;
mod rules;
mod server_hosts;
mod shared;
mod sources;
mod tcp;
mod unit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::address::Address;
use crate::config::model::{ClientCa, Credential, Tls};
use crate::crypto::{CertifiedPair, Digest, MeshPeer, PairPem, Parameters, Pins};
use crate::snapshot::{
    Certificate, CertificateInfo, CertificateState, Limits, Origin, Policy, Rejection, Severity,
    Snapshot,
};

use backend::{Backends, Clusters, Known};
use backend_tls::BackendTlsUnits;
use identity::{CA_SUFFIX, Mounted, Vault};
use listener::{Plan, Planner};
use route::Router;
use sources::Sources;
use unit::Units;

/// A file below the source that may hold resources, and what it holds now. No `Debug`: that may be
/// a Secret.
pub(crate) struct SourceFile {
    /// As the user named it or as it was found below the directory.
    pub(crate) path: Arc<PathBuf>,
    pub(crate) state: FileState,
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum FileState {
    Content(Vec<u8>),
    /// Why it cannot be read.
    Unreadable(String),
    Gone,
}

/// A Secret as Kubernetes mounts it: a directory, one file per key. It belongs to the gateway's
/// namespace.
pub(crate) struct MountedSecret {
    /// Name of the directory.
    pub(crate) name: Arc<str>,
    /// The directory.
    pub(crate) path: Arc<PathBuf>,
    /// Contents of its files by their name; `None` when it is gone.
    pub(crate) keys: Option<BTreeMap<String, Vec<u8>>>,
}

/// What is different since the compiler was told last.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) files: Vec<SourceFile>,
    pub(crate) secrets: Vec<MountedSecret>,
    /// Paths of Gateways whose files are different.
    pub(crate) named: BTreeSet<Arc<str>>,
}

impl Changes {
    /// Whether nothing is different.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.secrets.is_empty() && self.named.is_empty()
    }

    /// Adds what happened after this.
    pub(crate) fn extend(&mut self, later: Self) {
        self.files.extend(later.files);
        self.secrets.extend(later.secrets);
        self.named.extend(later.named);
    }
}

/// Who this gateway is among the workloads of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayIdentity {
    /// Where `credentialName` is looked up.
    pub(crate) namespace: String,
    /// What the `selector` of a Gateway is matched against.
    pub(crate) labels: BTreeMap<String, String>,
    /// Where it is: `region/zone/subzone`, empty if that is not known.
    pub(crate) locality: String,
    /// Where its administration listens, which nobody is led to: it takes commands.
    pub(crate) admin: SocketAddr,
}

impl GatewayIdentity {
    /// Whether a connection to `address` would be one to the administration.
    fn is_admin(&self, address: Address) -> bool {
        let Address::Ip(address) = address else { return false };
        let (ip, own) = (address.ip().to_canonical(), self.admin.ip().to_canonical());
        // An unspecified address leads to this host, and may be all that it is bound to.
        let is_here = ip == own || ip.is_unspecified() || own.is_unspecified() && ip.is_loopback();
        address.port() == self.admin.port() && is_here
    }
}

/// What servers are bound to.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    /// The address of servers without `bind`.
    pub(crate) address: IpAddr,
    /// Port of a Gateway to the port that is bound for it; others are bound as they are.
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// The certificates and keys that lie in files of their own. What stands for `/` in the paths of a
/// Gateway is the caller's affair.
pub(crate) trait PemFiles {
    /// From now on exactly `paths` are of interest.
    fn want(&mut self, paths: &BTreeSet<Arc<str>>);

    /// What the file at `path` held when it was looked at last.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    fn look(&self, path: &str) -> io::Result<Digest>;

    /// Its bytes.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    fn take(&mut self, path: &str) -> io::Result<Vec<u8>>;

    /// Where it is looked for, to show.
    fn place(&self, path: &str) -> String;
}

/// What a compilation reads beside what it was told.
pub(crate) struct Inputs<'a> {
    pub(crate) pem: &'a mut dyn PemFiles,
    /// The addresses of a DNS name as far as they are known, that with which the newest answer
    /// begins first; `None` while they are not.
    pub(crate) resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
}

/// What a compilation yields.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its generation is one more than that of the compilation before.
    pub(crate) snapshot: Snapshot,
    /// The same `Arc` while they are the same.
    pub(crate) names: Arc<WantedNames>,
}

/// DNS names whose addresses are wanted.
pub(crate) type WantedNames = BTreeMap<String, Wanted>;

/// Which of a name's addresses are wanted: what others than these are, or in which order they are,
/// need not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    /// All, in any order.
    All,
    /// That with which an answer begins; somebody else may want all.
    First,
}

/// Makes what servers prove themselves with; the crypto layer behind it.
pub(crate) trait Identities: Send + Sync {
    /// Loads a certificate chain with its private key and, if it has one, its staple.
    ///
    /// # Errors
    /// What is wrong with them, for the operator; never any byte of the key.
    fn load(&self, pair: &PairPem<'_>) -> Result<LoadedPair, String>;

    /// Builds the configuration of a server.
    ///
    /// # Errors
    /// What is wrong, and with which part of the request.
    fn server(&mut self, request: &ServerRequest<'_>) -> Result<BuiltServer, Refusal>;

    /// Builds what connections to backends are made with.
    ///
    /// # Errors
    /// What is wrong, and with which part of the request.
    fn backend(&mut self, rules: &BackendRules<'_>) -> Result<BuiltBackend, Refusal>;

    /// The CA certificates of the system, PEM.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    fn system_ca(&mut self) -> Result<Arc<[u8]>, String>;

    /// Replaces the keys that tickets are sealed with, in every configuration that is in use.
    fn rotate_tickets(&mut self) {}
}

/// A certificate chain with its key, and what the certificate says.
#[derive(Debug, Clone)]
pub(crate) struct LoadedPair {
    pub(crate) key: CertifiedPair,
    /// [`Ready`](CertificateState::Ready).
    pub(crate) state: Arc<CertificateState>,
}

impl LoadedPair {
    /// Whether it was loaded at the same time.
    fn is_same(&self, other: &Self) -> bool {
        self.key.is_same(&other.key)
    }
}

/// What a server is to be like.
pub(crate) struct ServerRequest<'a> {
    /// What it proves itself with: one, or one for each kind of key.
    pub(crate) pairs: &'a [&'a LoadedPair],
    /// What its clients are held to.
    pub(crate) policy: &'a TlsRules,
    /// Its configuration so far, if the policy is the same: the tickets of that one stay good, and
    /// those of no other.
    pub(crate) before: Option<&'a rustls::ServerConfig>,
}

/// A configuration, and what it checks clients with.
#[derive(Clone)]
pub(crate) struct BuiltServer {
    /// Ready for handshakes.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// The certificates that vouch for clients.
    pub(crate) client_ca: Arc<[CertificateInfo]>,
    /// When the first revocation list ends.
    pub(crate) crl_expires: Option<SystemTime>,
}

/// What the backends of a rule are held to.
pub(crate) struct BackendRules<'a> {
    /// Who vouches for them; `None` takes any.
    pub(crate) trust: Option<&'a ClientTrust>,
    /// One of these names; none means the one that they are asked for.
    pub(crate) subject_alt_names: &'a [String],
    /// They are in a mesh.
    pub(crate) mesh: Option<&'a MeshPeer>,
    /// What the gateway shows them.
    pub(crate) own: Option<&'a LoadedPair>,
}

/// What connections to backends are made with.
pub(crate) struct BuiltBackend {
    /// For HTTP/1.1.
    pub(crate) http1: Arc<rustls::ClientConfig>,
    /// For HTTP/2.
    pub(crate) http2: Arc<rustls::ClientConfig>,
    /// The certificates that vouch for backends.
    pub(crate) ca: Arc<[CertificateInfo]>,
    /// When the first revocation list ends.
    pub(crate) crl_expires: Option<SystemTime>,
}

/// What the clients of a server are held to. Sessions resume where this is the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct TlsRules {
    /// Versions that clients may negotiate.
    pub(crate) versions: TlsVersions,
    /// Cipher suites and groups that they may negotiate.
    pub(crate) parameters: Parameters,
    /// `None` asks clients for no certificate.
    pub(crate) clients: Option<Box<Clients>>,
}

/// Which clients a server takes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Clients {
    /// Who vouches for them.
    pub(crate) trust: ClientTrust,
    /// What else they have to be.
    pub(crate) demands: ClientDemands,
}

/// Who vouches for clients, or for backends, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClientTrust {
    /// Certificates.
    pub(crate) ca: Arc<[u8]>,
    /// Revocation lists.
    pub(crate) crl: Option<Arc<[u8]>>,
}

impl ClientTrust {
    /// With these revocation lists, beside its own.
    fn with_lists(mut self, lists: Option<Arc<[u8]>>) -> Self {
        self.crl = match (self.crl, lists) {
            (Some(one), Some(other)) => Some([&*one, b"\n", &*other].concat().into()),
            (one, other) => one.or(other),
        };
        self
    }

    /// Whether peers may go on being checked by this where `wanted` cannot be used: what has no
    /// revocation lists is no substitute for what is to have some.
    fn may_replace(&self, wanted: &Self) -> bool {
        self != wanted && (self.crl.is_some() || wanted.crl.is_none())
    }
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
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) part: Part,
    /// For the operator; never any byte of a key.
    pub(crate) reason: String,
}

/// What of a request can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The certificate of the pair at this place, or that and its key together.
    Pair(usize),
    /// The key alone of the pair at this place.
    Key(usize),
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

/// Turns files into snapshots, generation after generation.
pub(crate) struct Compiler {
    gateway: GatewayIdentity,
    listen: Listen,
    limits: Limits,
    policy: Policy,
    identities: Box<dyn Identities>,
    /// How bad it is that a file or Secret is not there.
    absent: Severity,
    generation: u64,
    sources: Sources,
    mounted: Mounted,
    stale: Stale,
    site: Site,
}

/// What changed since the generation before.
#[derive(Default)]
struct Stale {
    plan: bool,
    backends: bool,
    /// Every identity, as opposed to those by the following.
    identities: bool,
    secrets: BTreeSet<Arc<str>>,
    files: BTreeSet<Arc<str>>,
}

impl Stale {
    fn everything() -> Self {
        Self { plan: true, backends: true, identities: true, ..Self::default() }
    }

    /// Whether it concerns an identity by `tls`.
    fn concerns(&self, tls: &Tls) -> bool {
        self.identities
            || named_files(tls).any(|path| self.files.contains(path))
            || tls.credentials.iter().any(|credential| match credential {
                Credential::Files { .. } => false,
                Credential::Secret(name) => self.secrets.contains(&name.value),
            })
            || match tls.clients.as_ref().map(|clients| &clients.ca) {
                None | Some(ClientCa::File(_)) => false,
                Some(ClientCa::Secret(name)) => self.secrets.contains(&name.value),
                Some(ClientCa::OfCredential(name)) => {
                    let beside = format!("{}{CA_SUFFIX}", name.value);
                    self.secrets.contains(&name.value) || self.secrets.contains(&*beside)
                }
            }
    }
}

/// The paths of the files that `tls` names.
fn named_files(tls: &Tls) -> impl Iterator<Item = &Arc<str>> {
    let pairs = tls.credentials.iter().flat_map(|credential| match credential {
        Credential::Files { certificate, key } => [Some(&certificate.value), Some(&key.value)],
        Credential::Secret(_) => [None, None],
    });
    let clients = tls.clients.as_ref();
    let ca = clients.and_then(|clients| match &clients.ca {
        ClientCa::File(path) => Some(&path.value),
        ClientCa::Secret(_) | ClientCa::OfCredential(_) => None,
    });
    let crl = clients.and_then(|clients| clients.crl.as_ref()).map(|path| &path.value);
    pairs.chain([ca, crl]).flatten()
}

/// A generation as it was built, kept for the next.
#[derive(Default)]
struct Site {
    units: Units,
    clusters: Clusters,
    secured: BackendTlsUnits,
    names: Arc<WantedNames>,
    /// By source and origin.
    certificates: Vec<Arc<Certificate>>,
    /// What is wrong with Gateways and VirtualServices beyond their own syntax.
    plan_rejections: Vec<Rejection>,
    /// The Gateways that are for other gateways, as rejections name them.
    foreign: HashSet<String>,
    rule_rejections: Vec<Rejection>,
}

impl Compiler {
    /// A compiler that has seen nothing yet.
    pub(crate) fn new(
        gateway: GatewayIdentity,
        listen: Listen,
        limits: Limits,
        identities: Box<dyn Identities>,
    ) -> Self {
        Self {
            gateway,
            listen,
            limits,
            policy: Policy::default(),
            identities,
            absent: Severity::Error,
            generation: 0,
            sources: Sources::default(),
            mounted: Mounted::default(),
            stale: Stale::everything(),
            site: Site::default(),
        }
    }

    /// Makes certificates that are not there warnings: where nothing is served, they may be
    /// elsewhere.
    pub(crate) fn tolerate_absent_certificates(&mut self) {
        self.absent = Severity::Warning;
    }

    /// Who the gateway is in the generations to come.
    pub(crate) fn set_gateway(&mut self, gateway: GatewayIdentity) {
        if self.gateway != gateway {
            self.gateway = gateway;
            self.stale = Stale::everything();
        }
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

    /// The addresses of names are different.
    pub(crate) fn addresses_changed(&mut self) {
        self.stale.backends = true;
    }

    /// Every file that a Gateway names may be another.
    pub(crate) fn files_changed(&mut self) {
        self.stale.plan = true;
        self.stale.identities = true;
    }

    /// How many resources are in use as they are written, or were.
    pub(crate) fn resources(&self) -> usize {
        self.sources.good()
    }

    /// How many virtual hosts the last generation has.
    pub(crate) fn hosts(&self) -> usize {
        self.site.units.hosts()
    }

    /// Reads what is different. The next generation shows it.
    pub(crate) fn read(&mut self, changes: Changes) {
        let Changes { files, secrets, named } = changes;
        let difference = self.sources.update(files, &*self.identities);
        self.stale.plan |= difference.listeners;
        self.stale.backends |= difference.backends;
        self.stale.secrets.extend(difference.secrets);
        self.stale.secrets.extend(secrets.iter().map(|secret| Arc::clone(&secret.name)));
        self.mounted.update(secrets, &*self.identities);
        self.stale.files.extend(named);
    }

    /// Makes the next generation.
    pub(crate) fn compile(&mut self, inputs: Inputs<'_>) -> Output {
        let stale = std::mem::take(&mut self.stale);
        let servers_differ = stale.plan && self.plan();
        let rules_differ = stale.backends && self.replan_backends();
        if servers_differ || rules_differ || stale.identities {
            inputs.pem.want(&self.paths());
        }
        let backends_differ = self.secure(&stale, inputs.pem) || stale.backends;
        if stale.plan || backends_differ {
            self.route(inputs.resolved, !backends_differ);
        }
        self.prove(&stale, servers_differ, inputs.pem);
        self.generation += 1;
        let snapshot = Snapshot {
            generation: self.generation,
            listeners: self.site.units.build(),
            limits: self.limits.clone(),
            policy: self.policy.clone(),
            rejections: self.rejections(),
            certificates: self.certificates(),
        };
        Output { snapshot, names: Arc::clone(&self.site.names) }
    }

    /// Finds out which units there are to be; says whether a TLS server is new, moved or gone.
    fn plan(&mut self) -> bool {
        let Plan { listeners, rejections, foreign } =
            Planner::plan(&self.gateway, &self.listen, self.sources.resources());
        self.site.plan_rejections = rejections;
        self.site.foreign = foreign;
        self.site.units.replan(listeners)
    }

    /// Finds out how backends are to be secured; says whether that is new or gone.
    fn replan_backends(&mut self) -> bool {
        self.site.secured.replan(self.sources.resources(), &self.gateway)
    }

    /// Makes what backends are secured with; says whether any of it is another.
    fn secure(&mut self, stale: &Stale, files: &mut dyn PemFiles) -> bool {
        let mut vault = Vault {
            namespace: &self.gateway.namespace,
            resources: self.sources.resources(),
            mounted: &self.mounted,
            files,
            identities: &mut *self.identities,
            absent: self.absent,
            texts: HashMap::new(),
            guesses: 0,
        };
        self.site.secured.prove(&mut vault, &|name, is_secret| {
            let changed = if is_secret { &stale.secrets } else { &stale.files };
            stale.identities || changed.contains(name)
        })
    }

    fn certificates(&self) -> Vec<Arc<Certificate>> {
        let of_backends = self.site.secured.certificates(&self.gateway.namespace);
        self.site.certificates.iter().cloned().chain(of_backends).collect()
    }

    /// Finds out where routes lead to; what they led to before still holds if `is_current`.
    fn route(&mut self, resolved: &dyn Fn(&str) -> Option<Vec<IpAddr>>, is_current: bool) {
        let resources = self.sources.resources();
        let before = std::mem::take(&mut self.site.clusters);
        let secured = std::mem::take(&mut self.site.secured);
        let known = Known { resources, gateway: &self.gateway, secured: &secured, resolved };
        let backends = Backends::new(known, before, is_current);
        let mut router = Router::new(resources, &self.gateway, backends);
        self.site.units.route(&mut router);
        self.site.rule_rejections = router.report();
        let (clusters, names) = router.backends.finish();
        self.site.clusters = clusters;
        self.site.secured = secured;
        if *self.site.names != names {
            self.site.names = Arc::new(names);
        }
    }

    /// Finds out what servers prove themselves with.
    fn prove(&mut self, stale: &Stale, servers_differ: bool, files: &mut dyn PemFiles) {
        let mut vault = Vault {
            namespace: &self.gateway.namespace,
            resources: self.sources.resources(),
            mounted: &self.mounted,
            files,
            identities: &mut *self.identities,
            absent: self.absent,
            texts: HashMap::new(),
            guesses: 0,
        };
        let changed = self.site.units.prove(&mut vault, |tls| stale.concerns(tls));
        if servers_differ || stale.identities {
            self.site.collect_certificates();
        } else {
            self.site.replace_certificates(changed);
        }
    }

    /// The paths that servers and rules name, be the files present or not.
    fn paths(&self) -> BTreeSet<Arc<str>> {
        let servers = self.site.units.servers();
        let of_servers = servers.flat_map(|server| named_files(server.source().tls()));
        of_servers.chain(self.site.secured.paths()).cloned().collect()
    }

    /// By file and line; what is said twice is said once.
    fn rejections(&self) -> Vec<Rejection> {
        let mut all = Vec::new();
        self.sources.report(&mut all);
        // A server that is left out of a Gateway that is for others is nobody's loss here.
        for found in all.iter_mut().filter(|found| self.site.foreign.contains(&found.resource)) {
            found.severity = Severity::Warning;
        }
        all.extend_from_slice(&self.site.plan_rejections);
        all.extend_from_slice(&self.site.rule_rejections);
        self.site.units.report(SystemTime::now(), &mut all);
        self.site.secured.report(SystemTime::now(), &mut all);
        all.sort_by(|a, b| (&a.origin, a.severity).cmp(&(&b.origin, b.severity)));
        all.dedup();
        all
    }
}

impl Site {
    fn collect_certificates(&mut self) {
        let servers = self.units.servers();
        let mut all: Vec<_> = servers.flat_map(|server| server.certificates()).cloned().collect();
        all.sort_by(|a, b| place(a).cmp(&place(b)));
        all.dedup_by(|a, b| place(a) == place(b));
        self.certificates = all;
    }

    /// The servers are the same, so that each certificate has its place.
    fn replace_certificates(&mut self, changed: Vec<Arc<Certificate>>) {
        for new in changed {
            let found = self.certificates.binary_search_by(|old| place(old).cmp(&place(&new)));
            if let Ok(index) = found {
                self.certificates[index] = new;
            }
        }
    }
}

fn place(certificate: &Certificate) -> (&str, &Origin) {
    (&certificate.source, &certificate.origin)
}

#[cfg(test)]
pub(super) mod tests;
