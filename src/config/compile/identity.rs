//! From the certificate that a server names to its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::sources::{Placed, Resources};
use super::{BuiltIdentity, Identities, IdentityRequest, MountedSecret, TlsVersions};
use crate::config::model::{Credential, Key, Kind, SecretBytes, Server, Spec, Tls, did_you_mean};
use crate::snapshot::{
    Certificate, CertificateState, HostPattern, Identity, Origin, Rejection, Severity,
};

/// Names of a certificate that a message lists.
const NAMES_SHOWN_MAX: usize = 3;

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
    /// What the validity of certificates is held against.
    pub(super) now: SystemTime,
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
            rejections.push(complaint(place, severity, &fault, kept.is_some()));
            kept.ok_or(fault.reason)
        });
        let origin = gateway.origin(server.line);
        let state = describe(kept.as_ref().map(|kept| &kept.built).map_err(String::as_str));
        self.record(Certificate { source, origin, state });
        match kept {
            Ok(kept) => {
                let doubts = doubts(&kept.built, server, self.now);
                let place = (gateway, server, &tls.credential);
                rejections.extend(doubts.into_iter().map(|doubt| doubt.about(place)));
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
        let built = self.identities.server(&request);
        let built = built.map_err(|reason| Fault::wrong(self.located(&tls.credential, reason)))?;
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

    /// `reason`, after the files or the Secret that it is about.
    fn located(&self, credential: &Credential, reason: String) -> String {
        match credential {
            Credential::Files { certificate, key } => {
                format!("{} with {}: {reason}", certificate.value, key.value)
            }
            Credential::Secret(name) => {
                let place = self.secret_place(&name.value);
                format!("Secret {}/{}{place}: {reason}", self.namespace, name.value)
            }
        }
    }

    /// Where the Secret stands, in brackets.
    fn secret_place(&self, name: &str) -> String {
        if let Some(placed) = self.resources.get(&self.secret_key(name)) {
            return format!(" ({})", placed.origin(placed.resource.line));
        }
        let mounted = self.mounted.iter().find(|secret| secret.name == name);
        mounted.map_or_else(String::new, |secret| format!(" ({})", secret.path.display()))
    }

    fn find_secret(&self, name: &str) -> Result<Pair, Fault> {
        let keys = self.secret_keys(name).ok_or_else(|| {
            let namespace = self.namespace;
            let place = format!("namespace {namespace}, the gateway's own");
            let elsewhere = self.elsewhere(name);
            Fault::absent(format!("there is no Secret `{name}` in {place}{elsewhere}"))
        })?;
        choose_pair(&keys).map_err(|reason| {
            let credential = format!("Secret {}/{name}", self.namespace);
            Fault::wrong(format!("{credential}{}: {reason}", self.secret_place(name)))
        })
    }

    /// The commonest mistakes: it is beside the Gateway instead of beside the gateway, or misspelt.
    fn elsewhere(&self, name: &str) -> String {
        let secrets = || self.resources.keys().filter(|key| key.kind == Kind::Secret);
        if let Some(key) = secrets().find(|key| key.name == name) {
            let (there, here) = (&key.namespace, self.namespace);
            return format!("; there is one in {there}, write `namespace: {here}` in it");
        }
        let own = secrets().filter(|key| key.namespace == self.namespace);
        let own = own.map(|key| key.name.as_str());
        let mounted = self.mounted.iter().map(|secret| secret.name.as_str());
        match did_you_mean(name, own.chain(mounted)) {
            meant if meant.is_empty() => meant,
            meant => format!("; {meant}"),
        }
    }

    fn secret_key(&self, name: &str) -> Key {
        Key { kind: Kind::Secret, namespace: self.namespace.to_owned(), name: name.to_owned() }
    }

    fn secret_keys(&self, name: &str) -> Option<BTreeMap<String, Arc<[u8]>>> {
        let placed = self.resources.get(&self.secret_key(name));
        if let Some(Spec::Secret(secret)) = placed.map(|placed| &placed.resource.spec) {
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
fn choose_pair(keys: &BTreeMap<String, Arc<[u8]>>) -> Result<Pair, String> {
    let mut empty = None;
    for (certificate, key) in [("cert", "key"), ("tls.crt", "tls.key")] {
        let (Some(chain), Some(private)) = (keys.get(certificate), keys.get(key)) else { continue };
        if !chain.is_empty() && !private.is_empty() {
            return Ok(Pair { certificate: Arc::clone(chain), key: Arc::clone(private) });
        }
        empty = Some(format!("found keys \"{certificate}\" and \"{key}\", but they were empty"));
    }
    Err(empty.unwrap_or_else(|| {
        let found: Vec<_> = keys.keys().map(String::as_str).collect();
        format!(
            "found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); \
             found: {}",
            found.join(", ")
        )
    }))
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

/// The Gateway, the server and what in it names a certificate.
type Place<'a> = (&'a Placed, &'a Server, &'a Credential);

fn complaint(place: Place<'_>, severity: Severity, fault: &Fault, kept: bool) -> Rejection {
    let cause = if kept {
        "the last good certificate stays in use"
    } else if fault.absent {
        "its hosts are closed until it appears; no restart is needed then"
    } else {
        "its hosts are closed until this is mended; no restart is needed then"
    };
    finding(place, severity, fault.reason.clone(), cause)
}

fn finding(place: Place<'_>, severity: Severity, what: String, cause: &str) -> Rejection {
    let (gateway, server, credential) = place;
    let (line, field) = match credential {
        Credential::Files { certificate, .. } => (certificate.line, "serverCertificate"),
        Credential::Secret(name) => (name.line, "credentialName"),
    };
    let field = format!("spec.servers[{}].tls.{field}", server.index);
    gateway.reject(severity, line, field, what, cause)
}

/// Why clients will not like a certificate that can be served.
struct Doubt {
    what: String,
    cause: &'static str,
}

impl Doubt {
    fn about(self, place: Place<'_>) -> Rejection {
        finding(place, Severity::Warning, self.what, self.cause)
    }
}

fn doubts(built: &BuiltIdentity, server: &Server, now: SystemTime) -> Vec<Doubt> {
    validity_doubt(built, now).into_iter().chain(name_doubt(built, server)).collect()
}

fn validity_doubt(built: &BuiltIdentity, now: SystemTime) -> Option<Doubt> {
    if let Ok(since) = now.duration_since(built.expires) {
        let what = format!("the certificate expired {} ago", days(since));
        return Some(Doubt { what, cause: "it is served, but clients refuse it: renew it" });
    }
    let ahead = built.valid_from.duration_since(now).ok()?;
    let what = format!("the certificate becomes valid only in {}", days(ahead));
    let cause = "it is served, but clients refuse it until then; is the clock of this host right?";
    (!ahead.is_zero()).then_some(Doubt { what, cause })
}

fn days(time: Duration) -> String {
    match time.as_secs() / (24 * 60 * 60) {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// A certificate without alternative names is judged by its subject, by the clients that still do.
fn name_doubt(built: &BuiltIdentity, server: &Server) -> Option<Doubt> {
    let names = &built.subject_alt_names;
    let mut hosts = server.hosts.iter().map(|host| &host.value.pattern);
    let uncovered = hosts.find(|host| !names.iter().any(|name| covers(name, host)))?;
    if names.is_empty() {
        return None;
    }
    let shown = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>();
    let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
    let what = format!("the certificate is for {}{more}, not for {uncovered}", shown.join(", "));
    Some(Doubt { what, cause: "clients that check the name refuse it" })
}

/// Whether a certificate for `name` convinces clients of some host that `pattern` takes. What takes
/// any host promises none.
fn covers(name: &str, pattern: &HostPattern) -> bool {
    let name = name.to_ascii_lowercase();
    let suffix = name.strip_prefix("*.");
    match pattern {
        HostPattern::Any => true,
        HostPattern::Exact(host) => {
            name == **host || suffix.is_some() && host.split_once('.').map(|(_, s)| s) == suffix
        }
        HostPattern::Wildcard(domain) => {
            let below = suffix.unwrap_or(&name);
            suffix == Some(domain) || below.ends_with(&format!(".{domain}"))
        }
    }
}
