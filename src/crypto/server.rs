//! From PEM and policy to a finished `rustls::ServerConfig`.
//!
//! In two steps, so that a pair is loaded once however many servers show it, and on any thread:
//! [`load`] makes the certified pair, a [`Template`] the configuration around it.
//!
//! rustls's convenience constructors refuse X.509 v1 leaves; this goes around them and compares
//! key and certificate itself.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ServerConfig, SignatureAlgorithm, SupportedProtocolVersion};

use super::staple::Staple;
use super::{ClientVerifier, IdentityError, Parameters, Provider, certificate, pem};

/// A protocol version that can be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// TLS 1.2, with ECDHE and AEAD suites only.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Certificate and key. No `Debug`: that is a secret.
#[derive(Clone, Copy)]
pub(crate) struct PairPem<'a> {
    /// Leaf first, then the intermediates that it needs, if any.
    pub(crate) certificate: &'a [u8],
    /// Exactly one key, not encrypted.
    pub(crate) key: &'a [u8],
    /// An OCSP response about the leaf, DER, for clients that ask for one.
    pub(crate) staple: Option<&'a [u8]>,
}

/// Loads `pair`.
///
/// # Errors
/// It cannot be served; in words for the operator.
pub(crate) fn load(
    provider: &Provider,
    pair: &PairPem<'_>,
) -> Result<CertifiedPair, IdentityError> {
    let chain = pem::certificates(pair.certificate)?;
    let key = provider
        .rustls()
        .key_provider
        .load_private_key(pem::private_key(pair.key)?)
        .map_err(|_| IdentityError::UnsupportedKey)?;
    require_match(&chain, &*key)?;
    let read = |der| Staple::parse(der).ok_or(IdentityError::BadStaple);
    let staple = pair.staple.map(read).transpose()?;
    let bare = CertifiedPair::from(CertifiedKey::new(chain, key));
    Ok(match staple {
        Some(staple) => bare.stapled(staple),
        None => bare,
    })
}

/// A certificate chain with its key, and with its staple where it has one.
#[derive(Debug, Clone)]
pub(crate) struct CertifiedPair {
    bare: Arc<CertifiedKey>,
    stapled: Option<Arc<Stapled>>,
}

#[derive(Debug)]
struct Stapled {
    key: Arc<CertifiedKey>,
    staple: Staple,
}

impl From<CertifiedKey> for CertifiedPair {
    fn from(key: CertifiedKey) -> Self {
        Self { bare: Arc::new(key), stapled: None }
    }
}

impl CertifiedPair {
    fn stapled(self, staple: Staple) -> Self {
        let key =
            CertifiedKey { ocsp: Some(staple.der.clone()), ..CertifiedKey::clone(&self.bare) };
        Self { stapled: Some(Arc::new(Stapled { key: Arc::new(key), staple })), ..self }
    }

    /// Whether it was loaded at the same time.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bare, &other.bare)
    }

    /// Without its staple, which only servers show.
    pub(super) fn bare(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.bare)
    }

    /// A staple that is out of date is worse than none: some clients give up.
    fn now(&self) -> Arc<CertifiedKey> {
        match &self.stapled {
            Some(stapled) if stapled.staple.is_good(UnixTime::now()) => Arc::clone(&stapled.key),
            _ => Arc::clone(&self.bare),
        }
    }
}

/// What clients are held to.
#[derive(Debug, Clone)]
pub(crate) struct ServerPolicy<'a> {
    /// Lowest version to accept.
    pub(crate) version_min: Version,
    /// Highest version to accept, not below the lowest.
    pub(crate) version_max: Version,
    /// Cipher suites and groups to agree on.
    pub(crate) parameters: &'a Parameters,
    /// Who checks clients' certificates; `None` asks for none.
    pub(crate) clients: Option<Arc<ClientVerifier>>,
}

/// All that the configurations of servers with the same policy have in common. They offer h2 and
/// http/1.1.
#[derive(Debug)]
pub(crate) struct Template {
    config: ServerConfig,
    offers_tls13: bool,
}

impl Template {
    /// For servers with `policy`.
    ///
    /// # Errors
    /// The lowest version is above the highest.
    pub(crate) fn new(
        provider: &Provider,
        policy: &ServerPolicy<'_>,
    ) -> Result<Self, IdentityError> {
        let mut provider = provider.rustls();
        if !policy.parameters.is_default() {
            provider = Arc::new(policy.parameters.narrow(&provider));
        }
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(policy.version_min, policy.version_max)?)
            .expect("both providers have suites and groups for both versions");
        let builder = match &policy.clients {
            Some(clients) => {
                builder.with_client_cert_verifier(Arc::<ClientVerifier>::clone(clients))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Nothing));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Each ticket costs a seal, a record and 250 bytes in every handshake. One is what a client
        // needs to come back; a resumed handshake brings the next.
        config.send_tls13_tickets = 1;
        // Tickets do it without the lock that a store shared by all workers needs.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Our order is by cost; most clients put AES-256 first without needing it.
        config.ignore_client_order = true;
        // A request in early data can be replayed by anyone who saw it.
        config.max_early_data_size = 0;
        // After the handshake `tls` seals and opens records itself.
        config.enable_secret_extraction = true;
        Ok(Self { config, offers_tls13: policy.version_max == Version::Tls13 })
    }

    /// The configuration of a server that shows the first of `pairs` that a client can verify; at
    /// least one, and those with an ECDSA key before others. Sessions resume among the servers that
    /// share `tickets`.
    pub(crate) fn server(
        &self,
        mut pairs: Vec<CertifiedPair>,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Arc<ServerConfig> {
        let mut config = self.config.clone();
        // ECDSA costs a server less than RSA, and Envoy prefers it, too.
        pairs.sort_by_key(|pair| is_rsa(&pair.bare));
        config.cert_resolver = match <[_; 1]>::try_from(pairs) {
            Ok([only]) => Arc::new(Single(only)),
            Err(pairs) => Arc::new(Several { pairs, offers_tls13: self.offers_tls13 }),
        };
        config.ticketer = tickets;
        Arc::new(config)
    }
}

fn versions(
    min: Version,
    max: Version,
) -> Result<Vec<&'static SupportedProtocolVersion>, IdentityError> {
    if min > max {
        return Err(IdentityError::NoVersion);
    }
    let known = [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)];
    let allowed = known.into_iter().filter(|(version, _)| (min..=max).contains(version));
    Ok(allowed.map(|(_, version)| version).collect())
}

/// Presents the same certificate to everyone: which server a client gets was decided before.
#[derive(Debug)]
struct Single(CertifiedPair);

impl ResolvesServerCert for Single {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.now())
    }
}

/// Presents to each client what it can verify.
#[derive(Debug)]
struct Several {
    pairs: Vec<CertifiedPair>,
    offers_tls13: bool,
}

impl ResolvesServerCert for Several {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let suits = |pair: &&CertifiedPair| self.suits(&pair.bare, &hello);
        // Where none suits the handshake fails with any, and says why.
        self.pairs.iter().find(suits).or_else(|| self.pairs.first()).map(CertifiedPair::now)
    }
}

impl Several {
    /// Whether the client can verify what the key signs. In TLS 1.2 the cipher suite has to be for
    /// its kind, too.
    fn suits(&self, pair: &CertifiedKey, hello: &ClientHello<'_>) -> bool {
        let is_new = |suite: &CipherSuite| u16::from(*suite) >> 8 == 0x13;
        let own = if is_rsa(pair) { RSA_SUITES } else { ECDSA_SUITES };
        let suites = hello.cipher_suites();
        let suite_fits = self.offers_tls13 && suites.iter().any(is_new)
            || suites.iter().any(|suite| own.contains(suite));
        suite_fits && pair.key.choose_scheme(hello.signature_schemes()).is_some()
    }
}

fn is_rsa(pair: &CertifiedKey) -> bool {
    pair.key.algorithm() == SignatureAlgorithm::RSA
}

const RSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

const ECDSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// What a template shows.
#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Compares public keys, as rustls does where it can read the certificate.
fn require_match(chain: &[CertificateDer<'_>], key: &dyn SigningKey) -> Result<(), IdentityError> {
    let of_key = key.public_key().ok_or(IdentityError::UnsupportedKey)?;
    let of_chain = certificate::public_keys(chain)?;
    match of_chain.iter().position(|of_certificate| *of_certificate == of_key.as_ref()) {
        Some(0) => Ok(()),
        other => Err(IdentityError::KeyMismatch { belongs_to: other.map(|index| index + 1) }),
    }
}

/// A whole server at once.
#[cfg(test)]
pub(crate) struct ServerRequest<'a> {
    pub(crate) pair: PairPem<'a>,
    pub(crate) policy: ServerPolicy<'a>,
    pub(crate) tickets: Arc<super::TicketKeys>,
}

/// Both steps.
#[cfg(test)]
pub(crate) fn server_config(
    provider: &Provider,
    request: &ServerRequest<'_>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let identity = load(provider, &request.pair)?;
    let template = Template::new(provider, &request.policy)?;
    Ok(template.server(vec![identity], Arc::<super::TicketKeys>::clone(&request.tickets)))
}

#[cfg(test)]
mod tests {
    use super::super::pem::Fault;
    use super::super::{Choice, TicketKeys, describe};
    use super::*;
    use std::process::{Command, Stdio};

    const V1_CERT: &[u8] = include_bytes!("testdata/v1-rsa.crt");
    const V1_KEY: &[u8] = include_bytes!("testdata/v1-rsa.key");
    const SEC1_CERT: &[u8] = include_bytes!("testdata/sec1-ec.crt");
    const SEC1_KEY: &[u8] = include_bytes!("testdata/sec1-ec.key");

    #[test]
    fn certificates_as_users_have_them_load_in_both_providers() {
        let (v3_cert, v3_key) = generated("v3.example.com", &rcgen::PKCS_ECDSA_P384_SHA384);
        let (ed_cert, ed_key) = generated("ed.example.com", &rcgen::PKCS_ED25519);
        for choice in [Choice::Auto, Choice::Ring, Choice::AwsLcRs] {
            for (certificate, key) in [
                (V1_CERT, V1_KEY),
                (SEC1_CERT, SEC1_KEY),
                (v3_cert.as_bytes(), v3_key.as_bytes()),
                (ed_cert.as_bytes(), ed_key.as_bytes()),
            ] {
                assert_eq!(build_with(choice, certificate, key), Ok(()), "{choice:?}");
            }
        }
    }

    #[test]
    fn text_around_blocks_and_chains_and_combined_files_load() {
        let talk = [b"subject=CN\n", V1_CERT, b"\r\n\ti: issuer\r\n", SEC1_CERT, b"bye"].concat();
        assert_eq!(build(&talk, V1_KEY), Ok(()));
        let combined = [V1_KEY, V1_CERT].concat();
        assert_eq!(build(&combined, &combined), Ok(()));
        let crlf = String::from_utf8_lossy(V1_CERT).replace('\n', "\r\n");
        assert_eq!(build(crlf.as_bytes(), V1_KEY), Ok(()));
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        use IdentityError::*;
        let cut = &V1_KEY[..V1_KEY.len() / 2];
        let second_bad = [V1_CERT, b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"];
        let two_keys = [V1_KEY, SEC1_KEY].concat();
        let pkcs8 = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n";
        let pkcs1 = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAA\n";
        let odd = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let behind = [SEC1_CERT, V1_CERT].concat();
        let cases: &[(&[u8], &[u8], IdentityError)] = &[
            (b"", V1_KEY, NoCertificate { holds_key: false }),
            (V1_KEY, V1_CERT, NoCertificate { holds_key: true }),
            (V1_CERT, b"", NoKey { holds_certificate: false }),
            (V1_CERT, V1_CERT, NoKey { holds_certificate: true }),
            (V1_CERT, cut, KeyPem { block: 1, fault: Fault::NoEnd }),
            (&second_bad.concat(), V1_KEY, CertificatePem { block: 2, fault: Fault::NotBase64 }),
            (V1_CERT, &two_keys, SeveralKeys { found: 2 }),
            (V1_CERT, pkcs8, EncryptedKey),
            (V1_CERT, pkcs1, EncryptedKey),
            (V1_CERT, odd, UnsupportedKey),
            (V1_CERT, SEC1_KEY, KeyMismatch { belongs_to: None }),
            (&behind, V1_KEY, KeyMismatch { belongs_to: Some(2) }),
        ];
        for (certificate, key, expected) in cases {
            assert_eq!(build(certificate, key).as_ref(), Err(expected));
            assert!(!expected.to_string().contains('\n'), "one line: {expected}");
        }
    }

    #[test]
    fn errors_never_quote_the_key() {
        // rustls's own error holds the line; a key without its line break ends up in there.
        let secret = "MIIEpQIBAAKCAQEA5FHtgl7ErU1d9zYY06";
        let pem = format!("-----BEGIN RSA PRIVATE KEY-----{secret}\n{secret}");
        let error = build(V1_CERT, pem.as_bytes()).unwrap_err();
        assert_eq!(error, IdentityError::KeyPem { block: 1, fault: Fault::BadBegin });
        assert!(!format!("{error} {error:?}").contains("MII"));
    }

    #[test]
    fn a_staple_is_served_only_in_its_time() {
        let stapled = |from, until| {
            let pair = PairPem { certificate: SEC1_CERT, key: SEC1_KEY, staple: None };
            let bare = load(&Provider::new(Choice::Auto), &pair).unwrap();
            let staple = Staple { der: b"staple".to_vec(), from, until };
            bare.stapled(staple).now().ocsp.is_some()
        };
        assert!(stapled(0, None) && stapled(0, Some(i64::MAX)));
        assert!(!stapled(0, Some(1)) && !stapled(i64::MAX, None));
    }

    #[test]
    fn versions_are_bounded_as_asked() {
        use Version::{Tls12, Tls13};
        assert_eq!(versions(Tls12, Tls12), Ok(vec![&TLS12]));
        assert_eq!(versions(Tls12, Tls13), Ok(vec![&TLS13, &TLS12]));
        assert_eq!(versions(Tls13, Tls13), Ok(vec![&TLS13]));
        assert_eq!(versions(Tls13, Tls12), Err(IdentityError::NoVersion));
    }

    /// What the page tells users to type, with the program that they type it into.
    #[test]
    fn what_openssl_makes_today_loads() {
        if !has_openssl() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let steps = [
            "req -x509 -sha256 -nodes -days 365 -newkey rsa:2048 -subj /CN=example.com \
             -keyout ca.key -out ca.crt",
            "req -out leaf.csr -newkey rsa:2048 -nodes -keyout leaf.key -subj /CN=a.example.com",
            "x509 -req -sha256 -days 365 -CA ca.crt -CAkey ca.key -set_serial 0 -in leaf.csr \
             -out leaf.crt",
            "rsa -in leaf.key -traditional -out pkcs1.key",
        ];
        for step in steps {
            let status = Command::new("openssl")
                .args(step.split_whitespace())
                .current_dir(dir.path())
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success(), "openssl {step}");
        }
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let leaf = read("leaf.crt");
        assert_eq!(describe(&leaf).unwrap().serial, "0");
        assert_eq!(build(&leaf, &read("leaf.key")), Ok(()));
        assert_eq!(build(&leaf, &read("pkcs1.key")), Ok(()));
    }

    fn has_openssl() -> bool {
        let found = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok();
        let required = std::env::var_os("RINGGATE_REQUIRE_TOOLS").is_some_and(|value| value == "1");
        assert!(found || !required, "openssl is missing: apt-get install openssl");
        if !found {
            eprintln!("skipped: needs the program `openssl` (apt-get install openssl)");
        }
        found
    }

    fn generated(name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn build(certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), IdentityError> {
        build_with(Choice::Auto, certificate_pem, key_pem)
    }

    fn build_with(choice: Choice, cert: &[u8], key_pem: &[u8]) -> Result<(), IdentityError> {
        let request = ServerRequest {
            pair: PairPem { certificate: cert, key: key_pem, staple: None },
            policy: ServerPolicy {
                version_min: Version::Tls12,
                version_max: Version::Tls13,
                parameters: &Parameters::default(),
                clients: None,
            },
            tickets: Arc::new(TicketKeys::new().unwrap()),
        };
        server_config(&Provider::new(choice), &request).map(|_| ())
    }
}
