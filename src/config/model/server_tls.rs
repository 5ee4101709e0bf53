//! `tls` of a Gateway's server: with which certificate it serves, and which clients it takes.
//!
//! What would leave clients unchecked that somebody wanted checked is an error, or at least a
//! warning, also where Istio ignores it.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::fields::{Field, Fields, Located, Problems, did_you_mean, not_supported};
use crate::config::compile::{ClientDemands, TlsVersions};
use crate::crypto::{Parameters, Pins};

/// What a server does with TLS.
pub(super) enum ServerTls {
    Terminate(Box<Tls>),
    Passthrough,
}

/// How a server terminates TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    /// One, or two for clients that can verify only one kind of key.
    pub(crate) credentials: Vec<Credential>,
    pub(crate) versions: TlsVersions,
    pub(crate) parameters: Parameters,
    /// `None` asks clients for no certificate.
    pub(crate) clients: Option<ClientAuth>,
}

/// Where certificate and key come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Files {
        certificate: Located<Arc<str>>,
        key: Located<Arc<str>>,
    },
    /// A Secret in the gateway's own namespace.
    Secret(Located<Arc<str>>),
}

/// Modes MUTUAL and OPTIONAL_MUTUAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientAuth {
    pub(crate) ca: ClientCa,
    /// A file of revocation lists.
    pub(crate) crl: Option<Located<Arc<str>>>,
    pub(crate) demands: ClientDemands,
}

/// Where the certificates of the clients' CAs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientCa {
    File(Located<Arc<str>>),
    /// The server's own Secret, or the one beside it whose name ends in `-cacert`.
    OfCredential(Located<Arc<str>>),
    /// A Secret for this alone.
    Secret(Located<Arc<str>>),
}

/// Fields that make no sense without TLS.
pub(super) const ONLY_HTTPS: [&str; 12] = [
    "caCertCredentialName",
    "caCrl",
    "cipherSuites",
    "credentialNames",
    "ecdhCurves",
    "insecureSkipVerify",
    "maxProtocolVersion",
    "minProtocolVersion",
    "subjectAltNames",
    "tlsCertificates",
    "verifyCertificateHash",
    "verifyCertificateSpki",
];

/// Certificates that a server may have, as in Istio.
const CREDENTIALS_MAX: usize = 2;

/// Cipher suites that Istio knows beside those that are offered here.
const WEAK_SUITES: [&str; 9] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Bytes of a SHA-256.
const HASH_BYTES: usize = 32;

/// What is done with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Simple,
    Mutual,
    OptionalMutual,
    /// TLS is the endpoint's affair.
    Passthrough,
    /// One that was reported.
    Unsupported,
}

pub(super) struct TlsReader<'a> {
    /// What makes the whole Gateway bad.
    pub(super) whole: &'a mut Problems,
    /// What leaves out this server.
    pub(super) partial: &'a mut Problems,
}

impl TlsReader<'_> {
    pub(super) fn read(&mut self, field: &Field<'_>) -> Option<ServerTls> {
        let mut tls = field.fields(self.whole)?;
        let mode = tls.take("mode");
        let is_written = mode.is_some();
        let mode = self.read_mode(mode.as_ref());
        if let Some(field) = tls.take("httpsRedirect")
            && field.boolean(self.whole)?
        {
            let cause = "it belongs on the server with protocol HTTP";
            self.whole.warn(&field, "`httpsRedirect` of an HTTPS server is ignored", cause);
        }
        match mode {
            Mode::Unsupported => {
                self.skip(tls);
                return None;
            }
            Mode::Passthrough => {
                self.read_passthrough(tls, is_written);
                return Some(ServerTls::Passthrough);
            }
            Mode::Simple | Mode::Mutual | Mode::OptionalMutual => {}
        }
        let credentials = self.read_credentials(field, &mut tls);
        let first = credentials.as_ref().and_then(|credentials| credentials.first());
        let clients = self.read_clients(field, &mut tls, mode, first);
        let versions = self.read_versions(&mut tls);
        let parameters = self.read_parameters(&mut tls, versions);
        tls.finish(self.whole);
        let (credentials, clients) = (credentials?, clients?);
        let (versions, parameters) = (versions?, parameters?);
        Some(ServerTls::Terminate(Box::new(Tls { credentials, versions, parameters, clients })))
    }

    /// Warns of everything that only who terminates TLS can heed.
    fn read_passthrough(&mut self, mut tls: Fields<'_>, is_written: bool) {
        let more = ["serverCertificate", "privateKey", "caCertificates", "credentialName"];
        let unused: Vec<_> =
            more.into_iter().chain(ONLY_HTTPS).filter_map(|name| tls.take(name)).collect();
        for field in unused {
            let name = field.path.rsplit('.').next().unwrap_or_default();
            let what = format!("`{name}` has no effect: the endpoint terminates TLS");
            let cause = if is_written {
                "mode PASSTHROUGH uses no certificate"
            } else {
                "without `mode` it is PASSTHROUGH, as in Istio; write `mode: SIMPLE` to terminate \
                 TLS here"
            };
            self.whole.warn(&field, what, cause);
        }
        tls.finish(self.whole);
    }

    /// Of a server that is left out only the names of its fields are checked.
    fn skip(&mut self, mut tls: Fields<'_>) {
        let more = ["serverCertificate", "privateKey", "caCertificates", "credentialName"];
        for name in more.iter().chain(&ONLY_HTTPS) {
            tls.take(name);
        }
        tls.finish(self.whole);
    }

    /// Without one it is PASSTHROUGH, as in Istio.
    fn read_mode(&mut self, mode: Option<&Field<'_>>) -> Mode {
        let Some(field) = mode else { return Mode::Passthrough };
        let Some(text) = field.string(self.whole) else { return Mode::Unsupported };
        match text {
            "SIMPLE" => return Mode::Simple,
            "MUTUAL" => return Mode::Mutual,
            "OPTIONAL_MUTUAL" => return Mode::OptionalMutual,
            "PASSTHROUGH" => return Mode::Passthrough,
            "AUTO_PASSTHROUGH" | "ISTIO_MUTUAL" => {
                let cause = "it is for traffic within a mesh, which this gateway is no part of; \
                             only this server is left out";
                self.partial.error(field, not_supported(&format!("mode {text}")), cause);
            }
            _ => {
                let names = ["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "PASSTHROUGH"].into_iter();
                let cause = did_you_mean(text, names);
                self.whole.error(field, format!("there is no mode `{text}`"), &cause);
            }
        }
        Mode::Unsupported
    }

    /// At least one, all from the same kind of source.
    fn read_credentials(
        &mut self,
        parent: &Field<'_>,
        tls: &mut Fields<'_>,
    ) -> Option<Vec<Credential>> {
        let certificate = tls.take_filled("serverCertificate");
        let key = tls.take_filled("privateKey");
        let (name, names) = (tls.take_filled("credentialName"), tls.take("credentialNames"));
        let pairs = tls.take("tlsCertificates");
        let files = certificate.is_some() && key.is_some();
        let sources = || [&name, &names, &pairs].into_iter().flatten();
        if let Some(half) = certificate.as_ref().or(key.as_ref())
            && !files
            && sources().next().is_some()
        {
            let cause = "the other half is missing; certificate and key come from elsewhere";
            self.whole.warn(half, "ignored, as by Istio", cause);
        }
        if let Some(second) = sources().nth(usize::from(!files)) {
            let what = "there may be `serverCertificate` and `privateKey`, or `credentialName`, or \
                        `credentialNames`, or `tlsCertificates`, but not two of them";
            self.whole.error(second, what, "");
            return None;
        }
        if let Some(name) = name {
            return Some(vec![Credential::Secret(self.read_secret_name(&name)?)]);
        }
        if let Some(names) = names {
            let read = |reader: &mut Self, item: &Field<'_>| {
                reader.read_secret_name(item).map(Credential::Secret)
            };
            return self.read_several(&names, read);
        }
        if let Some(pairs) = pairs {
            return self.read_several(&pairs, Self::read_files);
        }
        let (Some(certificate), Some(key)) = (certificate, key) else {
            let what = "needs `serverCertificate` and `privateKey`, or `credentialName`";
            self.whole.error(parent, what, "");
            return None;
        };
        let (certificate, key) = (certificate.located(self.whole)?, key.located(self.whole)?);
        Some(vec![Credential::Files { certificate, key }])
    }

    fn read_several(
        &mut self,
        field: &Field<'_>,
        read: impl Fn(&mut Self, &Field<'_>) -> Option<Credential>,
    ) -> Option<Vec<Credential>> {
        let items = field.items(self.whole);
        if items.is_empty() {
            self.whole.error(field, "needs at least one certificate", "");
            return None;
        }
        if items.len() > CREDENTIALS_MAX {
            let cause = "the first two are used, as by Istio: one with an RSA key, one with ECDSA";
            self.whole.warn(field, "there are more than two certificates", cause);
        }
        items.iter().take(CREDENTIALS_MAX).map(|item| read(self, item)).collect()
    }

    fn read_files(&mut self, item: &Field<'_>) -> Option<Credential> {
        let mut pair = item.fields(self.whole)?;
        let certificate = pair.require("serverCertificate", self.whole);
        let key = pair.require("privateKey", self.whole);
        pair.take("caCertificates").inspect(|field| {
            self.whole.warn(field, "ignored here, as by Istio", "it belongs beside the list");
        });
        pair.finish(self.whole);
        let (certificate, key) = (certificate?.located(self.whole)?, key?.located(self.whole)?);
        Some(Credential::Files { certificate, key })
    }

    fn read_secret_name(&mut self, field: &Field<'_>) -> Option<Located<Arc<str>>> {
        let name = field.located(self.whole)?;
        if name.value.contains('/') || name.value.is_empty() {
            let cause = "the Secret is always looked up in the gateway's own namespace";
            self.whole.error(field, "must be the name of a Secret, without namespace", cause);
            return None;
        }
        Some(name)
    }

    /// `None` after an error.
    fn read_clients(
        &mut self,
        parent: &Field<'_>,
        tls: &mut Fields<'_>,
        mode: Mode,
        credential: Option<&Credential>,
    ) -> Option<Option<ClientAuth>> {
        let file = tls.take_filled("caCertificates");
        let secret = tls.take_filled("caCertCredentialName");
        let crl = tls.take_filled("caCrl");
        let demands = self.read_demands(tls, mode);
        if mode == Mode::Simple {
            let of_files = matches!(credential, None | Some(Credential::Files { .. }));
            self.warn_of_unused(file.into_iter().chain(secret));
            self.warn_of_unused(crl.iter().filter(|_| !of_files).cloned());
            if let Some(crl) = crl.filter(|_| of_files) {
                let cause = "write `mode: MUTUAL` to ask clients for certificates";
                self.whole.error(&crl, "mode SIMPLE checks no client, so it has no CRL", cause);
            }
            return Some(None);
        }
        let crl = crl.map(|field| field.located(self.whole));
        let ca = match (secret, file, credential?) {
            (Some(secret), _, _) => ClientCa::Secret(self.read_secret_name(&secret)?),
            (None, file, Credential::Secret(name)) => {
                if let Some(file) = file {
                    let what = "ignored beside `credentialName`, as by Istio";
                    self.whole.warn(&file, what, "the CA is taken from the Secret");
                }
                ClientCa::OfCredential(name.clone())
            }
            (None, Some(file), Credential::Files { .. }) => {
                ClientCa::File(file.located(self.whole)?)
            }
            (None, None, Credential::Files { .. }) => {
                let cause = "clients' certificates are checked against it";
                self.whole.error(parent, "needs `caCertificates` in this mode", cause);
                return None;
            }
        };
        let crl = crl.map_or(Some(None), |crl| crl.map(Some))?;
        Some(Some(ClientAuth { ca, crl, demands: demands? }))
    }

    fn warn_of_unused<'f>(&mut self, fields: impl Iterator<Item = Field<'f>>) {
        for field in fields {
            let what = "ignored in mode SIMPLE, which asks clients for no certificate";
            self.whole.warn(&field, what, "write `mode: MUTUAL` to ask them");
        }
    }

    fn read_demands(&mut self, tls: &mut Fields<'_>, mode: Mode) -> Option<ClientDemands> {
        let names = tls.take("subjectAltNames");
        let (keys, hashes) = (tls.take("verifyCertificateSpki"), tls.take("verifyCertificateHash"));
        let insecure = tls.take("insecureSkipVerify");
        if mode == Mode::Simple {
            self.warn_of_unused([names, keys, hashes, insecure].into_iter().flatten());
            return None;
        }
        let text =
            |item: &Field<'_>, problems: &mut Problems| item.string(problems).map(str::to_owned);
        let names = self.read_list(names, text);
        let keys = self.read_list(keys, read_base64_hash);
        let certificates = self.read_list(hashes, read_hexadecimal_hash);
        let insecure = insecure.map_or(Some(false), |field| self.read_insecure(&field));
        Some(ClientDemands {
            optional: mode == Mode::OptionalMutual,
            subject_alt_names: names?,
            pins: Pins { keys: keys?, certificates: certificates? },
            accept_untrusted: insecure?,
        })
    }

    fn read_insecure(&mut self, field: &Field<'_>) -> Option<bool> {
        let insecure = field.boolean(self.whole)?;
        if insecure {
            let what = "every client certificate is accepted, whoever made it";
            self.whole.warn(field, what, "remove it where clients are to be checked");
        }
        Some(insecure)
    }

    /// All items, or `None` if one of them is bad: fewer would demand something else.
    fn read_list<T>(
        &mut self,
        field: Option<Field<'_>>,
        read: impl Fn(&Field<'_>, &mut Problems) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Some(field) = field else { return Some(Vec::new()) };
        let items = field.items(self.whole);
        // All are read, so that all mistakes are reported.
        let all: Vec<_> = items.iter().map(|item| read(item, self.whole)).collect();
        all.into_iter().collect()
    }

    fn read_versions(&mut self, tls: &mut Fields<'_>) -> Option<TlsVersions> {
        let low = tls.take("minProtocolVersion");
        let high = tls.take("maxProtocolVersion");
        let min = low.map_or(Some(12), |field| self.read_version(&field, 12))?;
        let max = high.as_ref().map_or(Some(13), |field| self.read_version(field, 13))?;
        match (min, max) {
            (12, 13) => Some(TlsVersions::Both),
            (12, _) => Some(TlsVersions::Only12),
            (_, 13) => Some(TlsVersions::Only13),
            _ => {
                let what = "`maxProtocolVersion` is below `minProtocolVersion`";
                self.whole.error(&high?, what, "");
                None
            }
        }
    }

    /// `None` after an error. What is not known is left out with a warning, as by Istio: fewer are
    /// never weaker. But a list of which nothing is left is not taken for none.
    fn read_parameters(
        &mut self,
        tls: &mut Fields<'_>,
        versions: Option<TlsVersions>,
    ) -> Option<Parameters> {
        let mut parameters = Parameters::default();
        let (suites, curves) = (tls.take("cipherSuites"), tls.take("ecdhCurves"));
        let suites_good = suites.is_none_or(|field| {
            if versions == Some(TlsVersions::Only13) {
                let cause = "TLS 1.3 has its own, which are all good";
                self.whole.warn(&field, "`cipherSuites` has no effect above TLS 1.2", cause);
            }
            let known: Vec<_> = Parameters::suite_names().collect();
            self.read_names(&field, &known, &WEAK_SUITES, |name| parameters.add_suite(name))
        });
        let curves_good = curves.is_none_or(|field| {
            let known: Vec<_> = Parameters::group_names().collect();
            self.read_names(&field, &known, &["P-521"], |name| parameters.add_group(name))
        });
        (suites_good && curves_good).then_some(parameters)
    }

    /// Adds what is known; false if the list has names and none of them is.
    fn read_names(
        &mut self,
        field: &Field<'_>,
        known: &[&str],
        refused: &[&str],
        mut add: impl FnMut(&str) -> bool,
    ) -> bool {
        let items = field.items(self.whole);
        let mut seen = Vec::new();
        for item in &items {
            let Some(name) = item.string(self.whole) else { continue };
            if seen.contains(&name) {
                self.whole.warn(item, format!("{name} stands twice"), "");
            } else if refused.contains(&name) {
                let what = format!("{name} is left out: it is not supported");
                self.whole.warn(item, what, "");
            } else if !add(name) {
                let meant = did_you_mean(name, known.iter().copied());
                self.whole.warn(item, format!("there is no {name}, it is left out"), &meant);
            }
            seen.push(name);
        }
        let is_good = items.is_empty() || seen.iter().any(|name| known.contains(name));
        if !is_good {
            let what = "nothing in this list is supported, so no client could connect";
            self.partial.error(field, what, &format!("use {}", known.join(", ")));
        }
        is_good
    }

    fn read_version(&mut self, field: &Field<'_>, auto: u8) -> Option<u8> {
        match field.string(self.whole)? {
            "TLS_AUTO" => return Some(auto),
            "TLSV1_2" => return Some(12),
            "TLSV1_3" => return Some(13),
            old @ ("TLSV1_0" | "TLSV1_1") => {
                let cause = "it needs ciphers that are no longer safe; the lowest is TLSV1_2";
                self.partial.error(field, not_supported(old), cause);
            }
            text => {
                let what = format!("must be TLS_AUTO, TLSV1_2 or TLSV1_3, not `{text}`");
                self.whole.error(field, what, "");
            }
        }
        None
    }
}

fn read_base64_hash(item: &Field<'_>, problems: &mut Problems) -> Option<[u8; HASH_BYTES]> {
    let bytes = BASE64_STANDARD.decode(item.string(problems)?).ok();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok());
    if hash.is_none() {
        let cause = "`openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER | openssl \
                     dgst -sha256 -binary | base64` makes it";
        problems.error(item, "must be the SHA-256 of a public key in base64", cause);
    }
    hash
}

fn read_hexadecimal_hash(item: &Field<'_>, problems: &mut Problems) -> Option<[u8; HASH_BYTES]> {
    let text = item.string(problems)?.replace(':', "");
    let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let is_hash = text.len() == 2 * HASH_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
    let bytes: Vec<_> = (0..HASH_BYTES).filter_map(|at| digit(2 * at)).collect();
    let hash = bytes.try_into().ok().filter(|_| is_hash);
    if hash.is_none() {
        let cause = "`openssl x509 -noout -fingerprint -sha256` prints it";
        problems.error(item, "must be the SHA-256 of a certificate in hexadecimal", cause);
    }
    hash
}
