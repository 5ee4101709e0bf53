//! From the certificates that a server names, its own and those of its clients' CAs, to its
//! identity.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::complaint::{Fault, authority_doubts, complaint, name_doubt, validity_doubt};
use super::listener::ServerSource;
use super::sources::Resources;
use super::{
    BuiltServer, ClientTrust, Clients, Identities, LoadedPair, MountedSecret, Part, PemFiles,
    ServerRequest, TlsRules,
};
use crate::config::model::{
    ClientAuth, ClientCa, ConfigMap, Credential, Key, Kind, Secret, Spec, Tls, did_you_mean,
};
use crate::config::parallel;
use crate::crypto::{Digest, PairPem};
use crate::snapshot::{
    self, Certificate, CertificateInfo, CertificateState, Identity, Rejection, Severity,
};

/// What Istio appends to the name of a Secret to find the CA of its clients.
pub(super) const CA_SUFFIX: &str = "-cacert";

/// Messages of one generation that guess which Secret was meant: each guess looks at all of them.
const GUESSES_MAX: usize = 100;

/// The Secrets that are directories, by name.
#[derive(Default)]
pub(super) struct Mounted(BTreeMap<Arc<str>, (Arc<PathBuf>, Secret)>);

impl Mounted {
    /// Loads what changed.
    pub(super) fn update(&mut self, changed: Vec<MountedSecret>, identities: &dyn Identities) {
        let loaded = parallel::map(&changed, parallel::MANY, |secret| {
            secret.keys.as_ref().map(|keys| Secret::load(keys, identities))
        });
        for (MountedSecret { name, path, .. }, secret) in changed.into_iter().zip(loaded) {
            match secret {
                Some(secret) => drop(self.0.insert(name, (path, secret))),
                None => drop(self.0.remove(&name)),
            }
        }
    }
}

/// The identity of a server, from one generation to the next.
#[derive(Default)]
pub(super) struct IdentityUnit {
    served: Option<Served>,
    /// What is known about each certificate that the server names; none before the first look.
    certificates: Box<[Arc<Certificate>]>,
    /// Why they are not served, or why clients will not like them.
    findings: Box<[Rejection]>,
    is_stale: bool,
}

/// What a server shows, and what it holds its clients to.
struct Served {
    /// One for each certificate that the server names.
    pairs: Box<[Pair]>,
    policy: TlsRules,
    /// Where that comes from, if clients are asked.
    trust_source: Option<TrustSource>,
    /// Whether it was found in the Secret beside the server's.
    is_beside: bool,
    built: BuiltServer,
}

impl Served {
    fn trust(&self) -> Option<&ClientTrust> {
        self.policy.clients.as_ref().map(|clients| &clients.trust)
    }

    /// Whether it shows just these, of the same loading.
    fn shows(&self, pairs: &[Pair]) -> bool {
        let mut both = self.pairs.iter().zip(pairs);
        self.pairs.len() == pairs.len() && both.all(|(a, b)| a.loaded.is_same(&b.loaded))
    }
}

/// The file or Secret of CAs, and the file of revocation lists if one is named.
#[derive(PartialEq, Eq)]
struct TrustSource(Arc<str>, Option<Arc<str>>);

/// A pair and where it was found.
#[derive(Clone)]
struct Pair {
    loaded: LoadedPair,
    /// What the files held, if it comes from files.
    files: Option<FilePair>,
}

/// The contents of the files of certificate and key.
type FilePair = (Digest, Digest);

/// What was found where the server says.
enum Found {
    Pair(Pair),
    /// The files hold something that is not loaded yet.
    Files(FilePair),
}

/// Why something is not to be had: the reason, and whether it is not there as opposed to wrong.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) reason: String,
    pub(super) absent: bool,
}

impl Unfit {
    fn absent(reason: String) -> Self {
        Self { reason, absent: true }
    }

    pub(super) fn wrong(reason: String) -> Self {
        Self { reason, absent: false }
    }

    fn of(self, part: Part) -> Fault {
        Fault { part, reason: self.reason, absent: self.absent }
    }
}

impl IdentityUnit {
    /// Has it looked at in the next generation.
    pub(super) fn distrust(&mut self) {
        self.is_stale = true;
    }

    /// Whether it has to be looked at.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale || self.certificates.is_empty()
    }

    /// As it was when it was looked at last.
    pub(super) fn identity(&self) -> Identity {
        let served = self.served.as_ref();
        served.map_or(Identity::Missing, |served| Identity::Ready(Arc::clone(&served.built.config)))
    }

    /// What is known about its certificates.
    pub(super) fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    /// The pairs that were found by `names`, and where one is bad what was good before; `None` if
    /// one never was.
    fn good_pairs(
        &self,
        names: &[Arc<str>],
        found: Vec<Result<Pair, Fault>>,
        faults: &mut Vec<Fault>,
    ) -> Option<Box<[Pair]>> {
        let each = names.iter().zip(found);
        let each = each.map(|(name, found)| or_kept(found, self.last_good(name), faults));
        // Each of them, not only up to the first that is bad: every fault is told.
        let each: Vec<_> = each.collect();
        each.into_iter().collect()
    }

    /// What was served for another name is no last good version of this one.
    fn last_good(&self, name: &Arc<str>) -> Option<&Pair> {
        let at = self.certificates.iter().position(|certificate| certificate.source == *name)?;
        Some(&self.served.as_ref()?.pairs[at])
    }

    fn record(&mut self, new: Vec<Certificate>) {
        let known = |new: Certificate| {
            let same = self.certificates.iter().find(|old| ***old == new);
            same.cloned().unwrap_or_else(|| Arc::new(new))
        };
        self.certificates = new.into_iter().map(known).collect();
    }

    /// What is wrong with it `now`.
    pub(super) fn report(&self, source: &ServerSource, now: SystemTime, out: &mut Vec<Rejection>) {
        out.extend_from_slice(&self.findings);
        let Some(served) = &self.served else { return };
        let own = served
            .pairs
            .iter()
            .enumerate()
            .filter_map(|(at, pair)| validity_doubt(Part::Pair(at), &pair.loaded.state, now));
        let doubts = own.chain(authority_doubts(&served.built, now));
        out.extend(doubts.map(|doubt| doubt.about(source)));
    }
}

/// Finds and builds the identities of one generation.
pub(super) struct Vault<'a> {
    pub(super) namespace: &'a str,
    pub(super) resources: &'a Resources,
    pub(super) mounted: &'a Mounted,
    pub(super) files: &'a mut dyn PemFiles,
    pub(super) identities: &'a mut dyn Identities,
    /// How bad it is that a file or Secret is not there.
    pub(super) absent: Severity,
    /// What clients are checked with, of the files that were read so far.
    pub(super) texts: HashMap<Digest, Arc<[u8]>>,
    /// Messages so far that guessed.
    pub(super) guesses: usize,
}

impl Vault<'_> {
    /// Looks at the certificates that servers name; says of each whether it shows another now.
    pub(super) fn refresh(
        &mut self,
        servers: &mut [(&ServerSource, &mut IdentityUnit)],
    ) -> Vec<bool> {
        let found: Vec<_> = servers
            .iter()
            .map(|(source, unit)| {
                let credentials = source.credentials().iter().enumerate();
                credentials
                    .map(|(at, credential)| self.find(at, credential, unit))
                    .collect::<Vec<_>>()
            })
            .collect();
        let loaded = self.load(servers, &found);
        let each = servers.iter_mut().zip(found);
        each.map(|((source, unit), found)| {
            let each = source.credentials().iter().zip(found).enumerate();
            let pairs = each.map(|(at, (credential, found))| {
                let pair = self.pair(credential, found?, &loaded);
                pair.map_err(|unfit| unfit.of(Part::Pair(at)))
            });
            let pairs = pairs.collect();
            self.settle(source, unit, pairs)
        })
        .collect()
    }

    /// What was `found`, after `loaded` says what the files hold.
    fn pair(
        &self,
        credential: &Credential,
        found: Found,
        loaded: &HashMap<FilePair, Result<LoadedPair, String>>,
    ) -> Result<Pair, Unfit> {
        let files = match found {
            Found::Pair(pair) => return Ok(pair),
            Found::Files(files) => files,
        };
        match &loaded[&files] {
            Ok(loaded) => Ok(Pair { loaded: loaded.clone(), files: Some(files) }),
            Err(reason) => Err(Unfit::wrong(format!("{}: {reason}", self.pair_place(credential)))),
        }
    }

    /// Loads what `found` says is in files, each content once.
    fn load(
        &mut self,
        servers: &[(&ServerSource, &mut IdentityUnit)],
        found: &[Vec<Result<Found, Fault>>],
    ) -> HashMap<FilePair, Result<LoadedPair, String>> {
        let mut contents = HashMap::new();
        let credentials = servers.iter().flat_map(|(source, _)| source.credentials());
        for (credential, found) in credentials.zip(found.iter().flatten()) {
            if let (Ok(Found::Files(files)), Credential::Files { certificate, key }) =
                (found, credential)
            {
                contents.entry(*files).or_insert_with(|| {
                    let chain = self.files.take(&certificate.value)?;
                    Ok((chain, self.files.take(&key.value)?))
                });
            }
        }
        let contents: Vec<_> = contents.into_iter().collect();
        let identities = &*self.identities;
        let loaded =
            parallel::map(&contents, parallel::MANY, |(_, content): &(_, io::Result<_>)| {
                match content {
                    Ok((certificate, key)) => {
                        identities.load(&PairPem { certificate, key, staple: None })
                    }
                    Err(error) => Err(format!("cannot be read: {error}")),
                }
            });
        contents.into_iter().map(|(files, _)| files).zip(loaded).collect()
    }

    /// Shows what there is now, and where that is bad what was good before; says whether that is
    /// another than before. A policy is never weakened for it: without anything to check clients
    /// with there is no identity.
    fn settle(
        &mut self,
        source: &ServerSource,
        unit: &mut IdentityUnit,
        found: Vec<Result<Pair, Fault>>,
    ) -> bool {
        let names: Vec<_> = source.credentials().iter().map(|one| self.name(one)).collect();
        let mut faults = Vec::new();
        let pairs = unit.good_pairs(&names, found, &mut faults);
        let before = unit.served.take();
        let shown = self.choose(source, pairs, before.as_ref(), &mut faults);
        let mut findings = Vec::new();
        for fault in &faults {
            let severity = if fault.absent { self.absent } else { Severity::Error };
            findings.push(complaint(source, severity, fault, shown.is_some()));
        }
        let certificates = self.certificates(source, names, shown.as_ref(), &faults);
        let doubts = certificates.iter().enumerate().filter_map(|(at, certificate)| {
            name_doubt(Part::Pair(at), &certificate.state, source.server())
        });
        findings.extend(doubts.map(|doubt| doubt.about(source)));
        let config = |served: &Served| Arc::as_ptr(&served.built.config);
        let differs = shown.as_ref().map(config) != before.as_ref().map(config);
        unit.record(certificates);
        unit.served = shown;
        unit.findings = findings.into();
        unit.is_stale = false;
        differs
    }

    /// What shows `pairs` to clients that are checked with what there is now, or where that is bad
    /// with what was good before.
    fn choose(
        &mut self,
        source: &ServerSource,
        pairs: Option<Box<[Pair]>>,
        before: Option<&Served>,
        faults: &mut Vec<Fault>,
    ) -> Option<Served> {
        let Some(clients) = &source.tls().clients else {
            return self.serve(source, &pairs?, None, before).map_err(|f| faults.push(f)).ok();
        };
        let trust_source = Some(self.trust_source(clients));
        let known = before.filter(|served| served.trust_source == trust_source);
        let (good, was_beside) =
            (known.and_then(Served::trust), known.is_some_and(|k| k.is_beside));
        let is_beside = self.looks_beside(clients, was_beside);
        let found = self.find_trust(clients, is_beside).map_err(|unfit| unfit.of(Part::Clients));
        let is_beside = if found.is_ok() { is_beside } else { was_beside };
        let trust = or_kept(found, good, faults)?;
        let pairs = pairs?;
        let fault = match self.serve(source, &pairs, Some(&trust), before) {
            Ok(served) => return Some(Served { is_beside, ..served }),
            Err(fault) => fault,
        };
        let good = good.filter(|good| fault.part == Part::Clients && good.may_replace(&trust));
        faults.push(fault);
        let served = self.serve(source, &pairs, Some(good?), before);
        let kept = |served| Served { is_beside: was_beside, ..served };
        served.map(kept).map_err(|fault| faults.push(fault)).ok()
    }

    /// Whether the CA is looked for in the Secret beside the server's: it is there, or was. Where
    /// it is gone, whom the server's own Secret vouches for is not whom it vouched for.
    fn looks_beside(&self, clients: &ClientAuth, was_beside: bool) -> bool {
        let ClientCa::OfCredential(name) = &clients.ca else { return false };
        was_beside || self.has_beside(&name.value)
    }

    /// What is known about the certificates by `names`.
    fn certificates(
        &self,
        source: &ServerSource,
        names: Vec<Arc<str>>,
        shown: Option<&Served>,
        faults: &[Fault],
    ) -> Vec<Certificate> {
        let Some(Served { pairs, built, .. }) = shown else {
            let reasons: Vec<_> = faults.iter().map(|fault| fault.reason.as_str()).collect();
            let state = Arc::new(CertificateState::Missing { reason: reasons.join("; ") });
            let missing = |name| Certificate {
                source: name,
                origin: source.origin(),
                state: Arc::clone(&state),
                client_ca: Vec::new(),
            };
            return names.into_iter().map(missing).collect();
        };
        let client_ca = self.client_ca(source, built);
        let ready = |(name, pair): (Arc<str>, &Pair)| Certificate {
            source: name,
            origin: source.origin(),
            state: Arc::clone(&pair.loaded.state),
            client_ca: client_ca.clone(),
        };
        names.into_iter().zip(pairs).map(ready).collect()
    }

    fn client_ca(&self, source: &ServerSource, built: &BuiltServer) -> Vec<snapshot::ClientCa> {
        let ca_source = source.tls().clients.as_ref().map(|clients| self.ca_source(clients));
        let authority = |(source, info): (&Arc<str>, &CertificateInfo)| snapshot::ClientCa {
            source: Arc::clone(source),
            info: info.clone(),
        };
        let sources = ca_source.iter().cycle();
        sources.zip(built.client_ca.iter()).map(authority).collect()
    }

    /// What shows `pairs` to clients that are checked with `trust`: the same as before where
    /// nothing is different.
    fn serve(
        &mut self,
        source: &ServerSource,
        pairs: &[Pair],
        trust: Option<&ClientTrust>,
        before: Option<&Served>,
    ) -> Result<Served, Fault> {
        let tls = source.tls();
        let policy = rules(tls, trust);
        let trust_source = tls.clients.as_ref().map(|clients| self.trust_source(clients));
        // The policy is the same: tickets stay good.
        let before = before.filter(|before| before.policy == policy);
        let built = match before.filter(|before| before.shows(pairs)) {
            Some(same) => same.built.clone(),
            None => {
                let before = before.map(|before| &*before.built.config);
                let loaded: Vec<_> = pairs.iter().map(|pair| &pair.loaded).collect();
                let request = ServerRequest { pairs: &loaded, policy: &policy, before };
                self.identities.server(&request).map_err(|refusal| {
                    let place = self.place(tls, refusal.part);
                    Unfit::wrong(format!("{place}: {}", refusal.reason)).of(refusal.part)
                })?
            }
        };
        // The texts of before, where they are the same: those of now are not kept as well.
        let policy = before.map_or(policy, |before| before.policy.clone());
        Ok(Served { pairs: pairs.into(), policy, trust_source, is_beside: false, built })
    }

    /// The path or Secret, as it is shown.
    fn name(&self, credential: &Credential) -> Arc<str> {
        match credential {
            Credential::Files { certificate, .. } => Arc::clone(&certificate.value),
            Credential::Secret(name) => self.secret_source(&name.value),
        }
    }

    fn secret_source(&self, name: &str) -> Arc<str> {
        format!("secret {}/{name}", self.namespace).into()
    }

    fn trust_source(&self, clients: &ClientAuth) -> TrustSource {
        let crl = clients.crl.as_ref().map(|path| Arc::clone(&path.value));
        let ca = match &clients.ca {
            ClientCa::File(path) => Arc::clone(&path.value),
            ClientCa::Secret(name) | ClientCa::OfCredential(name) => {
                self.secret_source(&name.value)
            }
        };
        TrustSource(ca, crl)
    }

    /// The file, Secret or ConfigMap of the CA, as it is shown.
    fn ca_source(&self, clients: &ClientAuth) -> Arc<str> {
        match &clients.ca {
            ClientCa::File(path) => Arc::clone(&path.value),
            ClientCa::Secret(name) if self.config_map_of_ca(&name.value).is_some() => {
                format!("configmap {}/{}", self.namespace, name.value).into()
            }
            ClientCa::Secret(name) | ClientCa::OfCredential(name) => {
                self.secret_source(&name.value)
            }
        }
    }

    /// What `credential` names, which is the server's at that place.
    fn find(
        &mut self,
        at: usize,
        credential: &Credential,
        unit: &IdentityUnit,
    ) -> Result<Found, Fault> {
        let of_pair = |unfit: Unfit| unfit.of(Part::Pair(at));
        match credential {
            Credential::Files { certificate, key } => {
                let chain = self.look(&certificate.value).map_err(of_pair)?;
                let key = self.look(&key.value).map_err(|unfit| unfit.of(Part::Key(at)))?;
                let files = (chain, key);
                let mut served = unit.served.iter().flat_map(|served| &served.pairs);
                let same = served.find(|pair| pair.files == Some(files));
                Ok(same.map_or(Found::Files(files), |pair| Found::Pair(pair.clone())))
            }
            Credential::Secret(name) => {
                let pair = |secret: &Secret| secret.pair.clone();
                let loaded = self.find_in_secret("Secret", &name.value, pair).map_err(of_pair)?;
                Ok(Found::Pair(Pair { loaded, files: None }))
            }
        }
    }

    fn find_trust(&mut self, clients: &ClientAuth, beside: bool) -> Result<ClientTrust, Unfit> {
        let trust = match &clients.ca {
            ClientCa::File(path) => self.read(&path.value).map(|ca| ClientTrust { ca, crl: None }),
            ClientCa::Secret(name) => match self.config_map_of_ca(&name.value) {
                Some(map) => map.trust().map_err(|reason| {
                    Unfit::wrong(format!("{}: {reason}", self.ca_place(clients)))
                }),
                None => self.find_in_secret("Secret or ConfigMap", &name.value, Secret::trust),
            },
            ClientCa::OfCredential(name) => self.find_trust_of(&name.value, beside),
        };
        let crl = clients.crl.as_ref().map(|path| self.read(&path.value)).transpose();
        Ok(trust?.with_lists(crl?))
    }

    /// What the Secret `name` has, or the one `beside` it.
    pub(super) fn find_trust_of(&mut self, name: &str, beside: bool) -> Result<ClientTrust, Unfit> {
        if !beside {
            return self.find_in_secret("Secret", name, Secret::trust);
        }
        let trust = self.find_in_secret("Secret", &format!("{name}{CA_SUFFIX}"), Secret::trust)?;
        // Without a CA of its own they can be meant for no other.
        Ok(trust.with_lists(self.secret(name).and_then(|own| own.lists_alone.clone())))
    }

    /// The Secret that holds the CA: the one beside the server's, where there is one.
    fn ca_secret(&self, ca: &ClientCa, name: &str) -> String {
        match ca {
            ClientCa::OfCredential(_) => self.ca_secret_of(name),
            ClientCa::File(_) | ClientCa::Secret(_) => name.to_owned(),
        }
    }

    /// The Secret beside `name` that holds its CA, or itself where there is none.
    pub(super) fn ca_secret_of(&self, name: &str) -> String {
        if self.has_beside(name) { format!("{name}{CA_SUFFIX}") } else { name.to_owned() }
    }

    /// Whether there is a Secret beside `name`.
    pub(super) fn has_beside(&self, name: &str) -> bool {
        self.secret(&format!("{name}{CA_SUFFIX}")).is_some()
    }

    /// The bytes of the file at `path`, of which no secret is made.
    pub(super) fn read(&mut self, path: &str) -> Result<Arc<[u8]>, Unfit> {
        let digest = self.look(path)?;
        if let Some(text) = self.texts.get(&digest) {
            return Ok(Arc::clone(text));
        }
        let bytes = self.take(path)?;
        let text = Arc::<[u8]>::from(bytes);
        self.texts.insert(digest, Arc::clone(&text));
        Ok(text)
    }

    /// The bytes of the file at `path`.
    pub(super) fn take(&mut self, path: &str) -> Result<Vec<u8>, Unfit> {
        let taken = self.files.take(path);
        taken.map_err(|error| unreadable(&self.files.place(path), &error))
    }

    pub(super) fn look(&self, path: &str) -> Result<Digest, Unfit> {
        let seen = self.files.look(path);
        seen.map_err(|error| unreadable(&self.files.place(path), &error))
    }

    /// Where `part` of a server comes from.
    fn place(&self, tls: &Tls, part: Part) -> String {
        match (part, &tls.clients) {
            (Part::Clients, Some(clients)) => self.ca_place(clients),
            (Part::Clients, None) => self.pair_place(&tls.credentials[0]),
            (Part::Pair(at) | Part::Key(at), _) => self.pair_place(&tls.credentials[at]),
        }
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
            ClientCa::File(path) => path.value.to_string(),
            ClientCa::Secret(name) if self.config_map_of_ca(&name.value).is_some() => {
                self.title(&self.key(Kind::ConfigMap, &name.value))
            }
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
    pub(super) fn secret_title(&self, name: &str) -> String {
        let key = self.key(Kind::Secret, name);
        match self.mounted.0.get(name) {
            Some((path, _)) if self.resources.get(&key).is_none() => {
                format!("{key} ({})", path.display())
            }
            _ => self.title(&key),
        }
    }

    /// The resource, and where it stands.
    fn title(&self, key: &Key) -> String {
        let placed = self.resources.get(key);
        let place = placed.map(|placed| format!(" ({})", placed.origin(placed.resource.line)));
        format!("{key}{}", place.unwrap_or_default())
    }

    /// The ConfigMap that `caCertCredentialName: name` means: a Secret goes before it.
    fn config_map_of_ca(&self, name: &str) -> Option<&ConfigMap> {
        if self.secret(name).is_some() {
            return None;
        }
        let placed = self.resources.get(&self.key(Kind::ConfigMap, name))?;
        let Spec::ConfigMap(map) = &placed.resource.spec else { return None };
        Some(map)
    }

    /// What is looked for is `what`.
    pub(super) fn find_in_secret<T>(
        &mut self,
        what: &str,
        name: &str,
        choose: impl FnOnce(&Secret) -> Result<T, String>,
    ) -> Result<T, Unfit> {
        let Some(secret) = self.secret(name) else {
            let namespace = self.namespace;
            let place = format!("namespace {namespace}, the gateway's own");
            let elsewhere = self.elsewhere(name);
            let what = format!("there is no {what} `{name}` in {place}{elsewhere}");
            return Err(Unfit::absent(what));
        };
        choose(secret)
            .map_err(|reason| Unfit::wrong(format!("{}: {reason}", self.secret_title(name))))
    }

    /// The commonest mistakes: it is beside the Gateway instead of beside the gateway, or misspelt.
    fn elsewhere(&mut self, name: &str) -> String {
        self.guesses += 1;
        if self.guesses > GUESSES_MAX {
            return String::new();
        }
        let secrets = || self.resources.of_kind(Kind::Secret).map(|(key, _)| key);
        if let Some(key) = secrets().find(|key| *key.name == *name) {
            let (there, here) = (&key.namespace, self.namespace);
            return format!("; there is one in {there}, write `namespace: {here}` in it");
        }
        let own = secrets().filter(|key| *key.namespace == *self.namespace);
        let names = own.map(|key| &*key.name).chain(self.mounted.0.keys().map(|name| &**name));
        match did_you_mean(name, names) {
            meant if meant.is_empty() => meant,
            meant => format!("; {meant}"),
        }
    }

    fn key(&self, kind: Kind, name: &str) -> Key {
        Key { kind, namespace: self.namespace.into(), name: name.into() }
    }

    /// A document wins over a directory.
    fn secret(&self, name: &str) -> Option<&Secret> {
        let placed = self.resources.get(&self.key(Kind::Secret, name));
        match placed.map(|placed| &placed.resource.spec) {
            Some(Spec::Secret(secret)) => Some(secret),
            _ => self.mounted.0.get(name).map(|(_, secret)| secret),
        }
    }
}

/// Why the file at `path` of the host is not to be had.
fn unreadable(path: &str, error: &io::Error) -> Unfit {
    if error.kind() == io::ErrorKind::NotFound {
        Unfit::absent(format!("{path} does not exist"))
    } else {
        Unfit::wrong(format!("{path} cannot be read: {error}"))
    }
}

/// What was found, or else what is kept; the fault is noted either way.
fn or_kept<T: Clone>(
    found: Result<T, Fault>,
    kept: Option<&T>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    found.map_err(|fault| faults.push(fault)).ok().or_else(|| kept.cloned())
}

fn rules(tls: &Tls, trust: Option<&ClientTrust>) -> TlsRules {
    let clients = tls.clients.as_ref().zip(trust).map(|(clients, trust)| {
        Box::new(Clients { trust: trust.clone(), demands: clients.demands.clone() })
    });
    TlsRules { versions: tls.versions, parameters: tls.parameters.clone(), clients }
}
