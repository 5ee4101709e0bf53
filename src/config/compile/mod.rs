//! From files to a [`Snapshot`].
//!
//! - Total: whatever the files hold, a snapshot comes out; one bad resource concerns only itself.
//! - Last good: a resource or certificate that was good in this process and is bad now stays as it
//!   was and is reported; one that was deleted goes.
//! - Incremental: a document whose text is the same is not parsed again; clusters, virtual hosts,
//!   route tables and identities whose inputs are the same are the same `Arc`.
//!
//! Deliberately not here: reading directories, watching, DNS. The caller brings what they found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::snapshot::Snapshot;

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
#[derive(Debug, Clone)]
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
    /// What is wrong with the certificate or the key, for the operator; never any byte of the key.
    fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, String>;
}

/// What a TLS server is to prove itself with.
pub(crate) struct IdentityRequest<'a> {
    /// Name of the server. Ticket keys belong to it: the same name with the same policy keeps them.
    pub(crate) server: &'a str,
    /// Certificate chain, PEM.
    pub(crate) certificate: &'a [u8],
    /// Private key, PEM.
    pub(crate) key: &'a [u8],
    /// Versions that clients may negotiate.
    pub(crate) versions: TlsVersions,
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

/// A configuration, and what its certificate says.
#[derive(Clone)]
pub(crate) struct BuiltIdentity {
    /// Ready for handshakes.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// Lower-case hexadecimal, without leading zeros or colons.
    pub(crate) serial: String,
    /// DNS names and addresses.
    pub(crate) subject_alt_names: Vec<String>,
    /// Start of validity.
    pub(crate) valid_from: SystemTime,
    /// End of validity.
    pub(crate) expires: SystemTime,
}
