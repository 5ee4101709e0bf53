//! TLS to backends: from the `tls` of DestinationRules to what connections are made with.
//!
//! - What several rules say alike is made once, and their connections are of one kind.
//! - Last good, part by part: a CA, a revocation list or a certificate that is bad now stays as it
//!   was. Where one never was good there is no configuration, and no connection.
//! - Only what changed is looked at; what comes out the same is the same.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::pki_types::ServerName;

use super::GatewayIdentity;
use super::complaint::days;
use super::identity::{CA_SUFFIX, Unfit, Vault};
use super::policy;
use super::sources::{Placed, Resources};
use super::{BackendRules, BuiltBackend, ClientTrust, LoadedPair, Part};
use crate::config::model::{ClientCertificates, ClientTls, Kind, Located, ServiceEntry, Spec};
use crate::crypto::{Digest, MeshPeer, PairPem};
use crate::snapshot::{
    BackendTls, Certificate, CertificateState, ClientCa, Rejection, Severity, UpstreamProtocol,
};

/// What is shown where the CAs of the system are meant.
const SYSTEM_CA: &str = "the CAs of the system";

/// Of endpoints that there is no connection to, as their rule has an error.
pub(super) static CLOSED: LazyLock<Arc<BackendTls>> =
    LazyLock::new(|| Arc::new(BackendTls::new(None, None)));

/// The TLS of all rules, from one generation to the next.
#[derive(Default)]
pub(super) struct BackendTlsUnits {
    units: HashMap<Wish, Unit>,
    /// In the order of the rules.
    uses: Vec<Use>,
}

/// A place where a rule says it.
struct Use {
    rule: Placed,
    tls: Arc<ClientTls>,
    wish: Wish,
}

/// What is wanted: the same for all that say the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wish {
    ca: CaSource,
    crl: Option<Arc<str>>,
    own: Option<OwnSource>,
    names: Vec<String>,
    mesh: Option<MeshPeer>,
    sni: Option<Arc<str>>,
}

/// Where the CAs come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum CaSource {
    /// None is needed: anyone is taken.
    Anyone,
    System,
    File(Arc<str>),
    Secret(Arc<str>),
}

/// Where the gateway's own certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum OwnSource {
    Files([Arc<str>; 2]),
    Secret(Arc<str>),
}

/// What is made of a wish.
struct Unit {
    good: Good,
    /// Of what is `good`.
    built: Option<BuiltBackend>,
    faults: Vec<Fault>,
    /// For HTTP/1.1 and for HTTP/2.
    tls: [Arc<BackendTls>; 2],
    is_new: bool,
}

/// What was good when it was looked at last.
#[derive(Default, Clone)]
struct Good {
    trust: Option<ClientTrust>,
    /// Whether `trust` was found in the Secret beside the one that is named.
    is_beside: bool,
    own: Option<Own>,
}

#[derive(Clone)]
struct Own {
    loaded: LoadedPair,
    /// What the files held, if it comes from files.
    files: Option<[Digest; 2]>,
}

/// Why a part is not as the rules have it.
struct Fault {
    part: Part,
    severity: Severity,
    reason: String,
}

impl Wish {
    /// `of_entry` are the names that a ServiceEntry has, which count where `tls` has none.
    fn of(tls: &ClientTls, of_entry: &[String]) -> Self {
        let path = |path: &Located<Arc<str>>| Arc::clone(&path.value);
        let (ca, crl, own) = match &tls.certificates {
            ClientCertificates::Secret { name, is_mutual } => {
                let own = is_mutual.then(|| OwnSource::Secret(path(name)));
                (CaSource::Secret(path(name)), None, own)
            }
            ClientCertificates::Files { ca, crl, own } => (
                ca.as_ref().map_or(CaSource::System, |ca| CaSource::File(path(ca))),
                crl.as_ref().map(path),
                own.as_ref().map(|own| OwnSource::Files([path(&own[0]), path(&own[1])])),
            ),
        };
        let names = match &tls.subject_alt_names[..] {
            [] if !tls.accept_untrusted => of_entry,
            names => names,
        };
        Self {
            ca: if tls.accept_untrusted { CaSource::Anyone } else { ca },
            crl: crl.filter(|_| !tls.accept_untrusted),
            own,
            names: names.to_vec(),
            mesh: tls.mesh.clone(),
            sni: tls.sni.as_ref().map(path),
        }
    }

    /// The paths of the files that it names.
    fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        let ca = if let CaSource::File(path) = &self.ca { Some(path) } else { None };
        let own: &[_] = if let Some(OwnSource::Files(own)) = &self.own { own } else { &[] };
        ca.into_iter().chain(&self.crl).chain(own)
    }

    /// The names of the Secrets that it may come from.
    fn secrets(&self) -> impl Iterator<Item = Arc<str>> {
        let ca = if let CaSource::Secret(name) = &self.ca { Some(name) } else { None };
        let own = if let Some(OwnSource::Secret(name)) = &self.own { Some(name) } else { None };
        let beside = ca.map(|name| format!("{name}{CA_SUFFIX}").into());
        ca.into_iter().chain(own).cloned().chain(beside)
    }
}

impl BackendTlsUnits {
    /// Takes note of what the rules among `resources` say that `gateway` may see; says whether
    /// that is another wish than before.
    pub(super) fn replan(&mut self, resources: &Resources, gateway: &GatewayIdentity) -> bool {
        let wishes = self.note_uses(resources, gateway);
        let mut before = std::mem::take(&mut self.units);
        let count = before.len();
        let mut known = 0;
        for wish in wishes {
            if self.units.contains_key(&wish) {
                continue;
            }
            let old = before.remove(&wish);
            known += usize::from(old.is_some());
            let unit = old.unwrap_or_else(|| Unit::new(&wish, before.iter().chain(&self.units)));
            self.units.insert(wish, unit);
        }
        known != count || known != self.units.len()
    }

    /// Takes note of where rules have TLS; says what all of it means, once without and once with
    /// the names of each ServiceEntry that has some.
    fn note_uses(&mut self, resources: &Resources, gateway: &GatewayIdentity) -> Vec<Wish> {
        let named: Vec<_> = named_entries(resources).collect();
        let mut wishes = Vec::new();
        self.uses.clear();
        for (placed, rule) in policy::visible(resources, gateway) {
            let entries: Vec<_> = named.iter().filter(|e| e.may_be_of(&rule.host)).collect();
            for tls in rule.tls() {
                let of_entry = |entry: &&&ServiceEntry| Wish::of(tls, &entry.subject_alt_names);
                wishes.extend(entries.iter().map(of_entry));
                let wish = Wish::of(tls, &[]);
                wishes.push(wish.clone());
                self.uses.push(Use { rule: placed.clone(), tls: Arc::clone(tls), wish });
            }
        }
        wishes
    }

    /// The paths of the files that are named.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<str>> {
        self.units.keys().flat_map(Wish::files)
    }

    /// Looks at what is new, or comes from a file or a Secret that `is_due` says; says whether any
    /// of it is another than before.
    pub(super) fn prove(
        &mut self,
        vault: &mut Vault<'_>,
        is_due: &dyn Fn(&str, bool) -> bool,
    ) -> bool {
        let mut differs = false;
        for (wish, unit) in &mut self.units {
            let is_stale = unit.is_new
                || wish.files().any(|path| is_due(path, false))
                || wish.secrets().any(|name| is_due(&name, true))
                || wish.ca == CaSource::System && is_due("", false);
            if is_stale {
                differs |= unit.refresh(wish, vault);
            }
        }
        differs
    }

    /// What `tls` means for a cluster that speaks `protocol`, whose ServiceEntry has the names
    /// `of_entry`. What nobody took note of opens no connection, rather than one without TLS.
    pub(super) fn find(
        &self,
        tls: &ClientTls,
        of_entry: &[String],
        protocol: UpstreamProtocol,
    ) -> Arc<BackendTls> {
        let Some(unit) = self.units.get(&Wish::of(tls, of_entry)) else {
            return Arc::new(BackendTls::new(None, None));
        };
        let [http1, http2] = &unit.tls;
        Arc::clone(match protocol {
            UpstreamProtocol::Http1 => http1,
            UpstreamProtocol::Http2 => http2,
        })
    }

    /// What is known about the certificates that the rules name.
    pub(super) fn certificates(&self, namespace: &str) -> Vec<Arc<Certificate>> {
        self.uses
            .iter()
            .filter_map(|one| one.certificate(&self.units[&one.wish], namespace))
            .collect()
    }

    /// What is wrong with them `now`.
    pub(super) fn report(&self, now: SystemTime, out: &mut Vec<Rejection>) {
        for one in &self.uses {
            one.report(&self.units[&one.wish], now, out);
        }
    }
}

/// The ServiceEntries that say whose certificate an endpoint has.
fn named_entries(resources: &Resources) -> impl Iterator<Item = &ServiceEntry> {
    let entries = resources.of_kind(Kind::ServiceEntry).filter_map(|(_, placed)| {
        let Spec::ServiceEntry(entry) = &placed.resource.spec else { return None };
        Some(entry)
    });
    entries.filter(|entry| !entry.subject_alt_names.is_empty())
}

impl Use {
    fn certificate(&self, unit: &Unit, namespace: &str) -> Option<Arc<Certificate>> {
        let secret = |name: &Arc<str>| Arc::<str>::from(format!("secret {namespace}/{name}"));
        let ca = match &self.wish.ca {
            CaSource::Anyone => None,
            CaSource::System => Some(SYSTEM_CA.into()),
            CaSource::File(path) => Some(Arc::clone(path)),
            CaSource::Secret(name) => Some(secret(name)),
        };
        let own = self.wish.own.as_ref().map(|own| match own {
            OwnSource::Files([certificate, _]) => Arc::clone(certificate),
            OwnSource::Secret(name) => secret(name),
        });
        let state = match (&unit.built, &unit.good.own) {
            (None, _) => Arc::new(CertificateState::Missing { reason: unit.reasons() }),
            (Some(_), Some(own)) => Arc::clone(&own.loaded.state),
            (Some(_), None) => Arc::new(CertificateState::Unneeded),
        };
        // The system's are many, and nobody here renews them.
        let shown = unit.built.iter().filter(|_| self.wish.ca != CaSource::System);
        let authority = |(source, info): (&Arc<str>, _)| ClientCa {
            source: Arc::clone(source),
            info: Clone::clone(info),
        };
        let authorities = shown.flat_map(|built| built.ca.iter());
        let client_ca: Vec<_> = ca.iter().cycle().zip(authorities).map(authority).collect();
        if client_ca.is_empty() && *state == CertificateState::Unneeded {
            return None;
        }
        let origin = self.rule.origin(self.tls.line);
        Some(Arc::new(Certificate { source: own.or(ca)?, origin, state, client_ca }))
    }

    fn report(&self, unit: &Unit, now: SystemTime, out: &mut Vec<Rejection>) {
        for Fault { part, severity, reason } in &unit.faults {
            let cause = match part {
                _ if unit.built.is_none() && self.wish.mesh.is_some() => {
                    "ISTIO_MUTUAL wants the files of the mesh, as Istio's agent writes them with \
                     OUTPUT_CERTS, and without them requests are answered with 503; outside of a \
                     mesh write MUTUAL with a certificate of your own, or SIMPLE"
                }
                _ if unit.built.is_none() => {
                    "requests to its backends are answered with 503 until this is mended; no \
                     restart is needed then"
                }
                Part::Pair(_) | Part::Key(_) => "the last good certificate stays in use",
                Part::Clients => "backends are checked as before",
            };
            out.push(self.reject(*part, *severity, reason.clone(), cause));
        }
        let Some(built) = &unit.built else { return };
        let warning = Severity::Warning;
        let expired = |end: SystemTime| now.duration_since(end).ok().map(days);
        if let Some(own) = &unit.good.own
            && let CertificateState::Ready(info) = &*own.loaded.state
            && let Some(since) = expired(info.expires)
        {
            let what = format!("the certificate expired {since} ago");
            out.push(self.reject(Part::Pair(0), warning, what, "backends refuse it: renew it"));
        }
        let given = built.ca.iter().filter(|_| self.wish.ca != CaSource::System);
        for (ca, since) in given.filter_map(|ca| Some((ca, expired(ca.expires)?))) {
            let what = format!("the CA certificate {} expired {since} ago", ca.serial);
            let cause = "the backends that it vouches for are refused: renew it";
            out.push(self.reject(Part::Clients, warning, what, cause));
        }
        if let Some(since) = built.crl_expires.and_then(expired) {
            let what = format!("a revocation list expired {since} ago");
            let cause = "backends that it concerns are refused until there is a newer one";
            out.push(self.reject(Part::Clients, warning, what, cause));
        }
    }

    fn reject(&self, part: Part, severity: Severity, what: String, cause: &str) -> Rejection {
        let (line, name) = match (&self.tls.certificates, part) {
            (ClientCertificates::Files { own: Some([own, _]), .. }, _)
                if self.tls.mesh.is_some() =>
            {
                (own.line, ".mode")
            }
            (ClientCertificates::Secret { name, .. }, _) => (name.line, ".credentialName"),
            (ClientCertificates::Files { own: Some([own, _]), .. }, Part::Pair(_)) => {
                (own.line, ".clientCertificate")
            }
            (ClientCertificates::Files { own: Some([_, key]), .. }, Part::Key(_)) => {
                (key.line, ".privateKey")
            }
            (ClientCertificates::Files { ca: Some(ca), .. }, _) => (ca.line, ".caCertificates"),
            (ClientCertificates::Files { .. }, _) => (self.tls.line, ""),
        };
        self.rule.reject(severity, line, format!("{}{name}", self.tls.field), what, cause)
    }
}

impl Unit {
    /// Nothing is known but what `others` have, which may be gone with this generation.
    fn new<'a>(wish: &Wish, others: impl Iterator<Item = (&'a Wish, &'a Self)>) -> Self {
        let mut good = Good::default();
        for (other, unit) in others {
            if (&other.ca, &other.crl) == (&wish.ca, &wish.crl) {
                good.is_beside |= good.trust.is_none() && unit.good.is_beside;
                good.trust = good.trust.or_else(|| unit.good.trust.clone());
            }
            if other.own == wish.own {
                good.own = good.own.or_else(|| unit.good.own.clone());
            }
        }
        let tls = wish.tls(None);
        Self { good, built: None, faults: Vec::new(), tls, is_new: true }
    }

    fn reasons(&self) -> String {
        let mut reasons: Vec<_> = self.faults.iter().map(|fault| fault.reason.as_str()).collect();
        reasons.dedup();
        reasons.join("; ")
    }

    /// Makes it of what there is now, and where that is bad of what was good before; says whether
    /// that is another than before.
    fn refresh(&mut self, wish: &Wish, vault: &mut Vault<'_>) -> bool {
        self.is_new = false;
        let mut faults = Vec::new();
        let mut note = |part, unfit: Unfit, absent: Severity| {
            let severity = if unfit.absent { absent } else { Severity::Error };
            faults.push(Fault { part, severity, reason: unfit.reason });
        };
        let absent = vault.absent;
        let is_beside = wish.looks_beside(vault, self.good.is_beside);
        let (trust, is_beside) = match wish.find_trust(vault, is_beside) {
            Ok(trust) => (trust, is_beside),
            Err(unfit) => {
                note(Part::Clients, unfit, absent);
                (self.good.trust.clone(), self.good.is_beside)
            }
        };
        let own = match wish.find_own(vault, self.good.own.as_ref()) {
            Ok(own) => own,
            Err((part, unfit)) => {
                note(part, unfit, absent);
                self.good.own.clone()
            }
        };
        let is_whole = trust.is_some() || wish.ca == CaSource::Anyone;
        let is_whole = is_whole && own.is_some() == wish.own.is_some();
        let before = self.tls[0].number();
        if is_whole {
            let now = Good { trust, is_beside, own };
            if let Err(refusal) = self.build(wish, now.clone(), vault) {
                let is_of_trust = refusal.part == Part::Clients;
                let reason = format!("{}: {}", wish.place(refusal.part, vault), refusal.reason);
                note(refusal.part, Unfit::wrong(reason), absent);
                if is_of_trust {
                    self.fall_back(wish, now, vault);
                }
            }
        }
        self.faults = faults;
        self.tls[0].number() != before
    }

    /// Checks backends as before, where that may stand for the trust of `now`, which cannot be
    /// used. Otherwise there is no connection from now on.
    fn fall_back(&mut self, wish: &Wish, now: Good, vault: &mut Vault<'_>) {
        let may_replace =
            |good: &ClientTrust| now.trust.as_ref().is_some_and(|wanted| good.may_replace(wanted));
        match self.good.trust.take().filter(may_replace) {
            // The other part may be new.
            Some(trust) => {
                self.good.trust = Some(trust.clone());
                let (trust, is_beside) = (Some(trust), self.good.is_beside);
                let _: Result<(), _> = self.build(wish, Good { trust, is_beside, ..now }, vault);
            }
            None if self.built.take().is_some() => self.tls = wish.tls(None),
            None => {}
        }
    }

    fn build(
        &mut self,
        wish: &Wish,
        now: Good,
        vault: &mut Vault<'_>,
    ) -> Result<(), super::Refusal> {
        if self.built.is_some() && self.good.is_same(&now) {
            self.good.is_beside = now.is_beside;
            return Ok(());
        }
        let built = vault.identities.backend(&BackendRules {
            trust: now.trust.as_ref(),
            subject_alt_names: &wish.names,
            mesh: wish.mesh.as_ref(),
            own: now.own.as_ref().map(|own| &own.loaded),
        })?;
        self.tls = wish.tls(Some(&built));
        self.built = Some(built);
        self.good = now;
        Ok(())
    }
}

impl Good {
    fn is_same(&self, other: &Self) -> bool {
        let pair = |good: &Self| good.own.as_ref().map(|own| own.loaded.clone());
        let same_pair = match (pair(self), pair(other)) {
            (Some(a), Some(b)) => a.is_same(&b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_pair && self.trust == other.trust
    }
}

impl Wish {
    fn tls(&self, built: Option<&BuiltBackend>) -> [Arc<BackendTls>; 2] {
        let name = self
            .sni
            .as_ref()
            .map(|name| ServerName::try_from(name.to_string()).expect("checked when it was read"));
        let of = |config| Arc::new(BackendTls::new(config, name.clone()));
        [
            of(built.map(|built| Arc::clone(&built.http1))),
            of(built.map(|built| Arc::clone(&built.http2))),
        ]
    }

    /// Whether the CA is looked for in the Secret beside the one that is named: it is there, or
    /// was.
    fn looks_beside(&self, vault: &Vault<'_>, was_beside: bool) -> bool {
        let CaSource::Secret(name) = &self.ca else { return false };
        was_beside || vault.has_beside(name)
    }

    fn find_trust(
        &self,
        vault: &mut Vault<'_>,
        beside: bool,
    ) -> Result<Option<ClientTrust>, Unfit> {
        let trust = match &self.ca {
            CaSource::Anyone => return Ok(None),
            CaSource::System => vault
                .identities
                .system_ca()
                .map(|ca| ClientTrust { ca, crl: None })
                .map_err(Unfit::wrong),
            CaSource::File(path) => vault.read(path).map(|ca| ClientTrust { ca, crl: None }),
            CaSource::Secret(name) => vault.find_trust_of(name, beside),
        };
        let crl = self.crl.as_ref().map(|path| vault.read(path)).transpose();
        Ok(Some(trust?.with_lists(crl?)))
    }

    fn find_own(
        &self,
        vault: &mut Vault<'_>,
        good: Option<&Own>,
    ) -> Result<Option<Own>, (Part, Unfit)> {
        let of_pair = |unfit| (Part::Pair(0), unfit);
        let [certificate, key] = match &self.own {
            None => return Ok(None),
            Some(OwnSource::Secret(name)) => {
                let loaded = vault.find_in_secret("Secret", name, |secret| secret.pair.clone());
                let loaded = loaded.map_err(of_pair)?;
                return Ok(Some(Own { loaded, files: None }));
            }
            Some(OwnSource::Files(files)) => files,
        };
        let chain = vault.look(certificate).map_err(of_pair)?;
        let files = Some([chain, vault.look(key).map_err(|unfit| (Part::Key(0), unfit))?]);
        if let Some(same) = good.filter(|good| good.files == files) {
            return Ok(Some(same.clone()));
        }
        let loaded = vault.take(certificate).and_then(|chain| {
            let key = vault.take(key)?;
            let pair = PairPem { certificate: &chain, key: &key, staple: None };
            let wrong = |reason| format!("{}: {reason}", self.place(Part::Pair(0), vault));
            vault.identities.load(&pair).map_err(|reason| Unfit::wrong(wrong(reason)))
        });
        let loaded = loaded.map_err(of_pair)?;
        Ok(Some(Own { loaded, files }))
    }

    /// The files or the Secret of `part`.
    fn place(&self, part: Part, vault: &Vault<'_>) -> String {
        let files = match (part, &self.ca, &self.own) {
            (Part::Pair(_) | Part::Key(_), _, Some(OwnSource::Secret(name))) => {
                return vault.secret_title(name);
            }
            (Part::Pair(_) | Part::Key(_), _, Some(OwnSource::Files([own, key]))) => {
                [Some(own), Some(key)]
            }
            (_, CaSource::Secret(name), _) => {
                return vault.secret_title(&vault.ca_secret_of(name));
            }
            (_, CaSource::File(path), _) => [Some(path), self.crl.as_ref()],
            (_, CaSource::System | CaSource::Anyone, _) => [None, self.crl.as_ref()],
        };
        let files: Vec<_> = files.into_iter().flatten().map(|path| &**path).collect();
        if files.is_empty() { SYSTEM_CA.to_owned() } else { files.join(" with ") }
    }
}
