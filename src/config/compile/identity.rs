//! From the certificate that a server names to its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::sources::{Placed, Resources};
use super::{BuiltIdentity, Identities, IdentityRequest, MountedSecret, TlsVersions};
use crate::config::model::{Credential, Key, Kind, SecretBytes, Server, Spec, Tls};
use crate::snapshot::{Certificate, CertificateState, Identity, Origin, Rejection, Severity};

/// Identities of the generation before, by the name of their server.
#[derive(Default)]
pub(super) struct Kept {
    servers: BTreeMap<String, KeptIdentity>,
    certificates: BTreeMap<(String, Origin), Arc<Certificate>>,
}

#[derive(Clone)]
struct KeptIdentity {
    source: String,
    pair: Pair,
    versions: TlsVersions,
    built: BuiltIdentity,
}

/// Certificate chain and private key, PEM.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: Arc<[u8]>,
    key: Arc<[u8]>,
}

/// Why there is no pair.
struct Fault {
    reason: String,
    /// It is not there, as opposed to wrong.
    absent: bool,
}

impl Fault {
    fn absent(reason: String) -> Self {
        Self { reason, absent: true }
    }

    fn wrong(reason: String) -> Self {
        Self { reason, absent: false }
    }
}

/// Finds and builds the identities of one generation.
pub(super) struct Vault<'a> {
    pub(super) namespace: &'a str,
    pub(super) resources: &'a Resources,
    pub(super) mounted: &'a [MountedSecret],
    pub(super) pem: &'a mut dyn FnMut(&str) -> io::Result<Arc<[u8]>>,
    pub(super) identities: &'a mut dyn Identities,
    /// How bad it is that a file or Secret is not there.
    pub(super) absent: Severity,
    pub(super) before: &'a Kept,
    pub(super) kept: Kept,
    pub(super) paths: BTreeSet<String>,
}

impl Vault<'_> {
    /// The identity of `server`, which is called `name`.
    pub(super) fn identity(
        &mut self,
        name: &str,
        gateway: &Placed,
        server: &Server,
        tls: &Tls,
        rejections: &mut Vec<Rejection>,
    ) -> Identity {
        let source = self.source(&tls.credential);
        let before = self.before.servers.get(name).filter(|kept| kept.source == source).cloned();
        let pair = self.find(&tls.credential);
        let built = pair.and_then(|pair| self.build(name, &source, pair, tls, before.as_ref()));
        let kept = built.or_else(|fault| {
            let kept = before.and_then(|kept| {
                self.build(name, &source, kept.pair.clone(), tls, Some(&kept)).ok()
            });
            let severity = if fault.absent { self.absent } else { Severity::Error };
            let place = (gateway, server, &tls.credential);
            rejections.push(complaint(place, severity, &fault.reason, kept.is_some()));
            kept.ok_or(fault.reason)
        });
        let origin = gateway.origin(server.line);
        let state = describe(kept.as_ref().map(|kept| &kept.built).map_err(String::as_str));
        self.record(Certificate { source, origin, state });
        match kept {
            Ok(kept) => {
                let identity = Identity::Ready(Arc::clone(&kept.built.config));
                self.kept.servers.insert(name.to_owned(), kept);
                identity
            }
            Err(_) => Identity::Missing,
        }
    }

    /// What the next generation may keep.
    pub(super) fn finish(self) -> (Kept, Vec<Arc<Certificate>>, BTreeSet<String>) {
        let certificates = self.kept.certificates.values().cloned().collect();
        (self.kept, certificates, self.paths)
    }

    fn record(&mut self, certificate: Certificate) {
        let place = (certificate.source.clone(), certificate.origin.clone());
        let same = self.before.certificates.get(&place).filter(|old| ***old == certificate);
        let certificate = same.map_or_else(|| Arc::new(certificate), Arc::clone);
        self.kept.certificates.insert(place, certificate);
    }

    fn source(&self, credential: &Credential) -> String {
        match credential {
            Credential::Files { certificate, .. } => certificate.value.clone(),
            Credential::Secret(name) => format!("secret {}/{}", self.namespace, name.value),
        }
    }

    fn build(
        &mut self,
        server: &str,
        source: &str,
        pair: Pair,
        tls: &Tls,
        before: Option<&KeptIdentity>,
    ) -> Result<KeptIdentity, Fault> {
        let versions = tls.versions;
        if let Some(kept) = before.filter(|kept| kept.pair == pair && kept.versions == versions) {
            return Ok(kept.clone());
        }
        let (certificate, key) = (&*pair.certificate, &*pair.key);
        let request = IdentityRequest { server, certificate, key, versions };
        let built = self.identities.server(&request).map_err(Fault::wrong)?;
        Ok(KeptIdentity { source: source.to_owned(), pair, versions, built })
    }

    fn find(&mut self, credential: &Credential) -> Result<Pair, Fault> {
        match credential {
            Credential::Files { certificate, key } => {
                let (certificate, key) = (self.read(&certificate.value), self.read(&key.value));
                Ok(Pair { certificate: certificate?, key: key? })
            }
            Credential::Secret(name) => self.find_secret(&name.value),
        }
    }

    fn read(&mut self, path: &str) -> Result<Arc<[u8]>, Fault> {
        self.paths.insert(path.to_owned());
        (self.pem)(path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Fault::absent(format!("{path} does not exist"))
            } else {
                Fault::wrong(format!("{path} cannot be read: {error}"))
            }
        })
    }

    fn find_secret(&self, name: &str) -> Result<Pair, Fault> {
        let keys = self.secret_keys(name).ok_or_else(|| {
            let namespace = self.namespace;
            let place = format!("namespace {namespace}, the gateway's own");
            let elsewhere = self.elsewhere(name);
            Fault::absent(format!("there is no Secret `{name}` in {place}{elsewhere}"))
        })?;
        choose_pair(&keys)
    }

    /// The commonest mistake: it is beside the Gateway instead of beside the gateway.
    fn elsewhere(&self, name: &str) -> String {
        let mut keys = self.resources.keys();
        keys.find(|key| key.kind == Kind::Secret && key.name == name)
            .map_or_else(String::new, |key| format!("; there is one in {}", key.namespace))
    }

    fn secret_keys(&self, name: &str) -> Option<BTreeMap<String, Arc<[u8]>>> {
        let (namespace, owned) = (self.namespace.to_owned(), name.to_owned());
        let key = Key { kind: Kind::Secret, namespace, name: owned };
        if let Some(Spec::Secret(secret)) = self.resources.get(&key).map(|p| &p.resource.spec) {
            let copy = |(key, bytes): (&String, &_)| (key.clone(), secret_bytes(bytes));
            return Some(secret.keys.iter().map(copy).collect());
        }
        self.mounted.iter().find(|secret| secret.name == name).map(|secret| secret.keys.clone())
    }
}

fn secret_bytes(bytes: &SecretBytes) -> Arc<[u8]> {
    Arc::clone(&bytes.0)
}

/// The pair among the keys of a Secret, by either of the names that Istio knows.
fn choose_pair(keys: &BTreeMap<String, Arc<[u8]>>) -> Result<Pair, Fault> {
    let mut empty = None;
    for (certificate, key) in [("cert", "key"), ("tls.crt", "tls.key")] {
        let (Some(chain), Some(private)) = (keys.get(certificate), keys.get(key)) else { continue };
        if !chain.is_empty() && !private.is_empty() {
            return Ok(Pair { certificate: Arc::clone(chain), key: Arc::clone(private) });
        }
        empty = Some(format!("found keys \"{certificate}\" and \"{key}\", but they were empty"));
    }
    Err(Fault::wrong(empty.unwrap_or_else(|| {
        let found: Vec<_> = keys.keys().map(String::as_str).collect();
        format!(
            "found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); \
             found: {}",
            found.join(", ")
        )
    })))
}

fn describe(built: Result<&BuiltIdentity, &str>) -> CertificateState {
    match built {
        Ok(built) => CertificateState::Ready {
            serial: built.serial.clone(),
            subject_alt_names: built.subject_alt_names.clone(),
            valid_from: built.valid_from,
            expires: built.expires,
        },
        Err(reason) => CertificateState::Missing { reason: reason.to_owned() },
    }
}

fn complaint(
    (gateway, server, credential): (&Placed, &Server, &Credential),
    severity: Severity,
    reason: &str,
    kept: bool,
) -> Rejection {
    let (line, field) = match credential {
        Credential::Files { certificate, .. } => (certificate.line, "serverCertificate"),
        Credential::Secret(name) => (name.line, "credentialName"),
    };
    let field = format!("spec.servers[{}].tls.{field}", server.index);
    let cause = if kept {
        "the last good certificate stays in use"
    } else {
        "until then its hosts are closed; it will be served once it appears, without a restart"
    };
    gateway.reject(severity, line, field, reason.to_owned(), cause)
}
