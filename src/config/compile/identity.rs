//! From the certificates that a server names, its own and those of its clients' CAs, to its
//! identity.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::sources::{Placed, Resources};
use super::{
    BuiltIdentity, ClientTrust, Clients, Identities, IdentityRequest, MountedSecret, Pair, Part,
    TlsRules,
};
use crate::config::model::{
    ClientAuth, ClientCa, Credential, Key, Kind, SecretBytes, Server, Spec, Tls, did_you_mean,
};
use crate::snapshot::{
    self, Certificate, CertificateInfo, CertificateState, HostPattern, Identity, Origin, Rejection,
    Severity,
};

/// Names of a certificate that a message lists.
const NAMES_SHOWN_MAX: usize = 3;

/// What Istio appends to the name of a Secret to find the CA of its clients.
const CA_SUFFIX: &str = "-cacert";

/// Identities of the generation before, by the name of their server.
#[derive(Default)]
pub(super) struct Kept {
    servers: BTreeMap<String, KeptIdentity>,
    certificates: BTreeMap<(String, Origin), Arc<Certificate>>,
}

#[derive(Clone)]
struct KeptIdentity {
    source: String,
    /// Where the CA of the clients and their revocation list came from.
    trust_source: Option<TrustSource>,
    pair: Pair,
    policy: TlsRules,
    built: BuiltIdentity,
}

/// The file or Secret of CAs, and the file of revocation lists if one is named.
type TrustSource = (String, Option<String>);

impl KeptIdentity {
    fn trust(&self) -> Option<&ClientTrust> {
        self.policy.clients.as_ref().map(|clients| &clients.trust)
    }
}

/// Why there is no pair, or nothing to check clients with.
struct Fault {
    part: Part,
    reason: String,
    /// It is not there, as opposed to wrong.
    absent: bool,
}

/// Why something is not to be had: the reason, and whether it is not there as opposed to wrong.
struct Unfit {
    reason: String,
    absent: bool,
}

impl Unfit {
    fn absent(reason: String) -> Self {
        Self { reason, absent: true }
    }

    fn wrong(reason: String) -> Self {
        Self { reason, absent: false }
    }

    fn of(self, part: Part) -> Fault {
        Fault { part, reason: self.reason, absent: self.absent }
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
        let place = Place { gateway, server, tls };
        let before = self.before.servers.get(name).cloned();
        let (kept, faults) = self.settle(name, tls, before.as_ref());
        for fault in &faults {
            let severity = if fault.absent { self.absent } else { Severity::Error };
            rejections.push(complaint(&place, severity, fault, kept.is_some()));
        }
        self.record(self.certificate(&place, kept.as_ref(), &faults));
        let Some(kept) = kept else { return Identity::Missing };
        let doubts = doubts(&kept.built, server, self.now);
        rejections.extend(doubts.into_iter().map(|doubt| doubt.about(&place)));
        let identity = Identity::Ready(Arc::clone(&kept.built.config));
        self.kept.servers.insert(name.to_owned(), kept);
        identity
    }

    /// Builds from what there is now, and where that is bad from what was good before. A policy is
    /// never weakened for it: without anything to check clients with there is no identity.
    fn settle(
        &mut self,
        name: &str,
        tls: &Tls,
        before: Option<&KeptIdentity>,
    ) -> (Option<KeptIdentity>, Vec<Fault>) {
        let source = self.source(&tls.credential);
        let trust_source = tls.clients.as_ref().map(|clients| self.trust_source(clients));
        let good_pair = before.filter(|kept| kept.source == source).map(|kept| &kept.pair);
        let good_trust = before.filter(|kept| kept.trust_source == trust_source);
        let good_trust = good_trust.and_then(KeptIdentity::trust);
        let mut faults = Vec::new();
        let found = self.find(&tls.credential).map_err(|unfit| unfit.of(Part::Pair));
        let pair = or_kept(found, good_pair, &mut faults);
        let found = tls.clients.as_ref().map(|clients| self.find_trust(clients));
        let found = found.map(|found| found.map_err(|unfit| unfit.of(Part::Clients)));
        let trust = found.map(|found| or_kept(found, good_trust, &mut faults));
        let (Some(mut pair), Some(mut trust)) = (pair, transposed(trust)) else {
            return (None, faults);
        };
        loop {
            let policy = rules(tls, trust.as_ref());
            let part = match self.build(name, tls, &pair, &policy, before) {
                Ok(built) => {
                    let kept = KeptIdentity { source, trust_source, pair, policy, built };
                    return (Some(kept), faults);
                }
                Err(fault) => {
                    let part = fault.part;
                    faults.push(fault);
                    part
                }
            };
            let replaced = match (part, &mut trust) {
                (Part::Pair, _) => replace(&mut pair, good_pair),
                (Part::Clients, Some(trust)) => replace(trust, good_trust),
                (Part::Clients, None) => false,
            };
            if !replaced {
                return (None, faults);
            }
        }
    }

    fn certificate(
        &self,
        place: &Place<'_>,
        kept: Option<&KeptIdentity>,
        faults: &[Fault],
    ) -> Certificate {
        let Place { gateway, server, tls } = place;
        let source = self.source(&tls.credential);
        let origin = gateway.origin(server.line);
        let Some(KeptIdentity { built, .. }) = kept else {
            let reasons: Vec<_> = faults.iter().map(|fault| fault.reason.as_str()).collect();
            let state = CertificateState::Missing { reason: reasons.join("; ") };
            return Certificate { source, origin, state, client_ca: Vec::new() };
        };
        let state = CertificateState::Ready(built.certificate.clone());
        let ca_source = tls.clients.as_ref().map(|clients| self.ca_source(clients));
        let authority = |info: &CertificateInfo| {
            let source = ca_source.clone().unwrap_or_default();
            snapshot::ClientCa { source, info: info.clone() }
        };
        let client_ca = built.client_ca.iter().map(authority).collect();
        Certificate { source, origin, state, client_ca }
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
            Credential::Secret(name) => self.secret_source(&name.value),
        }
    }

    fn secret_source(&self, name: &str) -> String {
        format!("secret {}/{name}", self.namespace)
    }

    fn trust_source(&self, clients: &ClientAuth) -> TrustSource {
        (self.ca_source(clients), clients.crl.as_ref().map(|path| path.value.clone()))
    }

    fn ca_source(&self, clients: &ClientAuth) -> String {
        match &clients.ca {
            ClientCa::File(path) => path.value.clone(),
            ClientCa::Secret(name) | ClientCa::OfCredential(name) => {
                self.secret_source(&name.value)
            }
        }
    }

    fn build(
        &mut self,
        server: &str,
        tls: &Tls,
        pair: &Pair,
        policy: &TlsRules,
        before: Option<&KeptIdentity>,
    ) -> Result<BuiltIdentity, Fault> {
        if let Some(kept) = before.filter(|kept| kept.pair == *pair && kept.policy == *policy) {
            return Ok(kept.built.clone());
        }
        let request = IdentityRequest { server, pair, policy };
        self.identities.server(&request).map_err(|refusal| {
            let place = match (refusal.part, &tls.clients) {
                (Part::Clients, Some(clients)) => self.ca_place(clients),
                (Part::Clients, None) | (Part::Pair, _) => self.pair_place(&tls.credential),
            };
            Unfit::wrong(format!("{place}: {}", refusal.reason)).of(refusal.part)
        })
    }

    fn find(&mut self, credential: &Credential) -> Result<Pair, Unfit> {
        match credential {
            Credential::Files { certificate, key } => {
                let (certificate, key) = (self.read(&certificate.value), self.read(&key.value));
                Ok(Pair { certificate: certificate?, key: key? })
            }
            Credential::Secret(name) => self.find_in_secret(&name.value, choose_pair),
        }
    }

    fn find_trust(&mut self, clients: &ClientAuth) -> Result<ClientTrust, Unfit> {
        let trust = match &clients.ca {
            ClientCa::File(path) => self.read(&path.value).map(|ca| ClientTrust { ca, crl: None }),
            ClientCa::Secret(name) | ClientCa::OfCredential(name) => {
                self.find_in_secret(&self.ca_secret(&clients.ca, &name.value), choose_trust)
            }
        };
        let crl = clients.crl.as_ref().map(|path| self.read(&path.value)).transpose()?;
        let trust = trust?;
        let crl = match (trust.crl, crl) {
            (Some(one), Some(other)) => Some([&*one, b"\n", &*other].concat().into()),
            (one, other) => one.or(other),
        };
        Ok(ClientTrust { crl, ..trust })
    }

    /// The Secret that holds the CA: the one beside the server's, where there is one.
    fn ca_secret(&self, ca: &ClientCa, name: &str) -> String {
        let beside = format!("{name}{CA_SUFFIX}");
        let is_beside =
            matches!(ca, ClientCa::OfCredential(_)) && self.secret_keys(&beside).is_some();
        if is_beside { beside } else { name.to_owned() }
    }

    fn read(&mut self, path: &str) -> Result<Arc<[u8]>, Unfit> {
        self.paths.insert(path.to_owned());
        (self.pem)(path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Unfit::absent(format!("{path} does not exist"))
            } else {
                Unfit::wrong(format!("{path} cannot be read: {error}"))
            }
        })
    }

    /// The files or the Secret of the pair.
    fn pair_place(&self, credential: &Credential) -> String {
        match credential {
            Credential::Files { certificate, key } => {
                format!("{} with {}", certificate.value, key.value)
            }
            Credential::Secret(name) => self.secret_title(&name.value),
        }
    }

    /// The files or the Secret of the CA.
    fn ca_place(&self, clients: &ClientAuth) -> String {
        let ca = match &clients.ca {
            ClientCa::File(path) => path.value.clone(),
            ClientCa::Secret(name) | ClientCa::OfCredential(name) => {
                self.secret_title(&self.ca_secret(&clients.ca, &name.value))
            }
        };
        match &clients.crl {
            Some(crl) => format!("{ca} with {}", crl.value),
            None => ca,
        }
    }

    /// The Secret, and where it stands.
    fn secret_title(&self, name: &str) -> String {
        format!("Secret {}/{name}{}", self.namespace, self.secret_place(name))
    }

    /// Where the Secret stands, in brackets.
    fn secret_place(&self, name: &str) -> String {
        if let Some(placed) = self.resources.get(&self.secret_key(name)) {
            return format!(" ({})", placed.origin(placed.resource.line));
        }
        let mounted = self.mounted.iter().find(|secret| secret.name == name);
        mounted.map_or_else(String::new, |secret| format!(" ({})", secret.path.display()))
    }

    fn find_in_secret<T>(
        &self,
        name: &str,
        choose: impl FnOnce(&SecretKeys) -> Result<T, String>,
    ) -> Result<T, Unfit> {
        let keys = self.secret_keys(name).ok_or_else(|| {
            let namespace = self.namespace;
            let place = format!("namespace {namespace}, the gateway's own");
            let elsewhere = self.elsewhere(name);
            Unfit::absent(format!("there is no Secret `{name}` in {place}{elsewhere}"))
        })?;
        choose(&keys)
            .map_err(|reason| Unfit::wrong(format!("{}: {reason}", self.secret_title(name))))
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

    fn secret_keys(&self, name: &str) -> Option<SecretKeys> {
        let placed = self.resources.get(&self.secret_key(name));
        if let Some(Spec::Secret(secret)) = placed.map(|placed| &placed.resource.spec) {
            let copy = |(key, bytes): (&String, &_)| (key.clone(), secret_bytes(bytes));
            return Some(secret.keys.iter().map(copy).collect());
        }
        self.mounted.iter().find(|secret| secret.name == name).map(|secret| secret.keys.clone())
    }
}

/// What a Secret holds, by key.
type SecretKeys = BTreeMap<String, Arc<[u8]>>;

fn secret_bytes(bytes: &SecretBytes) -> Arc<[u8]> {
    Arc::clone(&bytes.0)
}

/// What was found, or else what is kept; the fault is noted either way.
fn or_kept<T: Clone>(
    found: Result<T, Fault>,
    kept: Option<&T>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    found.map_err(|fault| faults.push(fault)).ok().or_else(|| kept.cloned())
}

/// `None` where something is wanted and missing.
fn transposed<T>(wanted: Option<Option<T>>) -> Option<Option<T>> {
    match wanted {
        None => Some(None),
        Some(found) => found.map(Some),
    }
}

/// Puts `kept` in the place of `current`; false where that changes nothing.
fn replace<T: Clone + PartialEq>(current: &mut T, kept: Option<&T>) -> bool {
    let Some(kept) = kept.filter(|kept| *kept != current) else { return false };
    current.clone_from(kept);
    true
}

fn rules(tls: &Tls, trust: Option<&ClientTrust>) -> TlsRules {
    let clients = tls
        .clients
        .as_ref()
        .zip(trust)
        .map(|(clients, trust)| Clients { trust: trust.clone(), demands: clients.demands.clone() });
    TlsRules { versions: tls.versions, parameters: tls.parameters.clone(), clients }
}

/// CA and revocation lists among the keys of a Secret, by either of the names that Istio knows.
fn choose_trust(keys: &SecretKeys) -> Result<ClientTrust, String> {
    for (ca, crl) in [("cacert", "crl"), ("ca.crt", "ca.crl")] {
        match keys.get(ca) {
            Some(ca) if !ca.is_empty() => {
                return Ok(ClientTrust { ca: Arc::clone(ca), crl: keys.get(crl).map(Arc::clone) });
            }
            Some(_) => return Err(format!("found key \"{ca}\", but it was empty")),
            None => {}
        }
    }
    let found: Vec<_> = keys.keys().map(String::as_str).collect();
    Err(format!(
        "found secret, but didn't have expected keys (cacert) or (ca.crt), which clients are \
         checked against; found: {}",
        found.join(", ")
    ))
}

/// The pair among the keys of a Secret, by either of the names that Istio knows.
fn choose_pair(keys: &SecretKeys) -> Result<Pair, String> {
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

/// The Gateway, the server, and what in it names certificates.
struct Place<'a> {
    gateway: &'a Placed,
    server: &'a Server,
    tls: &'a Tls,
}

impl Place<'_> {
    /// Line and name of the field that names `part`.
    fn field(&self, part: Part) -> (u64, &'static str) {
        let ca = self.tls.clients.as_ref().map(|clients| &clients.ca);
        match (part, ca, &self.tls.credential) {
            (Part::Clients, Some(ClientCa::File(path)), _) => (path.line, "caCertificates"),
            (Part::Clients, Some(ClientCa::Secret(name)), _) => (name.line, "caCertCredentialName"),
            (_, _, Credential::Secret(name)) => (name.line, "credentialName"),
            (_, _, Credential::Files { certificate, .. }) => {
                (certificate.line, "serverCertificate")
            }
        }
    }

    fn finding(&self, part: Part, severity: Severity, what: String, cause: &str) -> Rejection {
        let (line, field) = self.field(part);
        let field = format!("spec.servers[{}].tls.{field}", self.server.index);
        self.gateway.reject(severity, line, field, what, cause)
    }
}

fn complaint(place: &Place<'_>, severity: Severity, fault: &Fault, kept: bool) -> Rejection {
    let cause = match fault.part {
        Part::Pair if kept => "the last good certificate stays in use",
        Part::Clients if kept => "clients are checked as before",
        Part::Pair | Part::Clients if fault.absent => {
            "its hosts are closed until it appears; no restart is needed then"
        }
        Part::Pair | Part::Clients => {
            "its hosts are closed until this is mended; no restart is needed then"
        }
    };
    place.finding(fault.part, severity, fault.reason.clone(), cause)
}

/// Why clients will not like, or not be liked by, a certificate that is in use.
struct Doubt {
    part: Part,
    what: String,
    cause: &'static str,
}

impl Doubt {
    fn about(self, place: &Place<'_>) -> Rejection {
        place.finding(self.part, Severity::Warning, self.what, self.cause)
    }
}

fn doubts(built: &BuiltIdentity, server: &Server, now: SystemTime) -> Vec<Doubt> {
    let certificate = &built.certificate;
    let own = validity_doubt(certificate, now).into_iter().chain(name_doubt(certificate, server));
    own.chain(authority_doubts(built, now)).collect()
}

/// Clients of an authority that is out of date are refused.
fn authority_doubts(built: &BuiltIdentity, now: SystemTime) -> Vec<Doubt> {
    let part = Part::Clients;
    let expired = built.client_ca.iter().filter_map(|ca| {
        let since = now.duration_since(ca.expires).ok()?;
        let what = format!("the CA certificate {} expired {} ago", ca.serial, days(since));
        Some(Doubt { part, what, cause: "its clients are refused: renew it" })
    });
    let list = built.crl_expires.and_then(|end| now.duration_since(end).ok()).map(|since| {
        let what = format!("a revocation list expired {} ago", days(since));
        let cause = "clients that it concerns are refused until there is a newer one";
        Doubt { part, what, cause }
    });
    expired.chain(list).collect()
}

fn validity_doubt(certificate: &CertificateInfo, now: SystemTime) -> Option<Doubt> {
    let part = Part::Pair;
    if let Ok(since) = now.duration_since(certificate.expires) {
        let what = format!("the certificate expired {} ago", days(since));
        let cause = "it is served, but clients refuse it: renew it";
        return Some(Doubt { part, what, cause });
    }
    let ahead = certificate.valid_from.duration_since(now).ok()?;
    let what = format!("the certificate becomes valid only in {}", days(ahead));
    let cause = "it is served, but clients refuse it until then; is the clock of this host right?";
    (!ahead.is_zero()).then_some(Doubt { part, what, cause })
}

fn days(time: Duration) -> String {
    match time.as_secs() / (24 * 60 * 60) {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// A certificate without alternative names is judged by its subject, by the clients that still do.
fn name_doubt(certificate: &CertificateInfo, server: &Server) -> Option<Doubt> {
    let names = &certificate.subject_alt_names;
    let mut hosts = server.hosts.iter().map(|host| &host.value.pattern);
    let uncovered = hosts.find(|host| !names.iter().any(|name| covers(name, host)))?;
    if names.is_empty() {
        return None;
    }
    let shown = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>();
    let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
    let what = format!("the certificate is for {}{more}, not for {uncovered}", shown.join(", "));
    Some(Doubt { part: Part::Pair, what, cause: "clients that check the name refuse it" })
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
