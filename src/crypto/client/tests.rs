//! Chains, revocation and demands, held against what BoringSSL does for Envoy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};
use rustls::CertificateError::{
    BadEncoding, Expired, ExpiredRevocationList, InvalidPurpose, NotValidYet, Revoked,
    UnhandledCriticalExtension, UnknownIssuer, UnknownRevocationStatus,
};
use rustls::server::ProducesTickets as _;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, HandshakeKind, ServerConfig};

use super::*;
use crate::crypto::trust::parse;
use crate::crypto::{
    BackendRequest, CertifiedPair, Choice, PairPem, Parameters, ServerPolicy, Template, TicketKeys,
    Version, backend_config, load, meeting, pem,
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Certificates of version 1 and what belongs to them, made with OpenSSL.
const V1: &str = include_str!("../testdata/client-v1.crt");
const V1_CA: &str = include_str!("../testdata/client-ca.crt");
const BELOW_CLIENT: &str = include_str!("../testdata/client-below-client.crt");
const V1_ROOT: &str = include_str!("../testdata/client-v1-root.crt");
const OF_V1_ROOT: &str = include_str!("../testdata/client-of-v1-root.crt");
const V1_CRL: &str = include_str!("../testdata/client-v1.crl");
const V1_CRL_EMPTY: &str = include_str!("../testdata/client-v1-empty.crl");

/// While all of them are valid.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

fn year(year: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_hours((year - 1970) * 24 * 365 + 24 * 100))
}

/// Parameters of a certificate for `name`, valid in the years 2020 to 2039.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2040, 1, 1));
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root_of(params: CertificateParams) -> Issuer {
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn root(name: &str) -> Issuer {
    root_of(authority_params(name))
}

fn below(params: CertificateParams, issuer: &Issuer) -> Issuer {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

type Der = CertificateDer<'static>;

fn leaf_of(params: &CertificateParams, issuer: &Issuer) -> Der {
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
}

fn leaf(issuer: &Issuer) -> Der {
    leaf_of(&params("client"), issuer)
}

fn read(pem: &str) -> Der {
    pem::certificates(pem.as_bytes()).unwrap().remove(0)
}

/// What a server asks of its clients.
#[derive(Default)]
struct Asked<'a> {
    ca: Vec<String>,
    crl: Option<String>,
    names: &'a [&'a str],
    pins: Pins,
    optional: bool,
    accept_untrusted: bool,
}

impl<'a> Asked<'a> {
    fn of(ca: &[&Issuer]) -> Self {
        Self { ca: ca.iter().map(|ca| ca.pem()).collect(), ..Self::default() }
    }

    fn of_pem(ca: &str) -> Self {
        Self { ca: vec![ca.to_owned()], ..Self::default() }
    }

    fn with_crl(self, lists: &[String]) -> Self {
        Self { crl: Some(lists.concat()), ..self }
    }

    fn with_names(self, names: &'a [&'a str]) -> Self {
        Self { names, ..self }
    }

    fn verifier(&self) -> Result<Arc<ClientVerifier>, TrustError> {
        let ca = self.ca.concat();
        let names: Vec<_> = self.names.iter().map(|name| (*name).to_owned()).collect();
        let request = ClientRequest {
            optional: self.optional,
            ca_pem: ca.as_bytes(),
            crl_pem: self.crl.as_ref().map(String::as_bytes),
            subject_alt_names: &names,
            pins: &self.pins,
            accept_untrusted: self.accept_untrusted,
        };
        ClientVerifier::new(&Provider::new(Choice::Auto), &request)
    }

    /// What a client with `leaf`, and then `between`, is told at `now`.
    fn tells_at(&self, now: UnixTime, leaf: &Der, between: &[Der]) -> Result<(), CertificateError> {
        match self.verifier().unwrap().verify_client_cert(leaf, between, now) {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    fn tells(&self, leaf: &Der, between: &[&Issuer]) -> Result<(), CertificateError> {
        let between: Vec<_> = between.iter().map(|one| one.der().clone()).collect();
        self.tells_at(now(), leaf, &between)
    }
}

#[test]
fn a_chain_ends_in_a_root_or_in_an_intermediate_that_stands_alone() {
    let root = root("root");
    let middle = below(authority_params("middle"), &root);
    let client = leaf(&middle);
    assert_eq!(Asked::of(&[&root]).tells(&client, &[&middle]), Ok(()));
    assert_eq!(Asked::of(&[&middle]).tells(&client, &[]), Ok(()), "a partial chain");
    assert_eq!(Asked::of(&[&middle, &root]).tells(&client, &[]), Ok(()), "the page's file");
    assert_eq!(Asked::of(&[&root]).tells(&client, &[]), Err(UnknownIssuer));
    assert_eq!(Asked::of(&[&root]).tells(&leaf(&root), &[]), Ok(()));
}

#[test]
fn a_root_of_the_same_name_as_its_clients_is_no_obstacle() {
    // As the page's generator makes them.
    let root = root("httpbin.example.com");
    let middle = below(authority_params("an intermediate"), &root);
    let client = leaf_of(&params("httpbin.example.com"), &middle);
    assert_eq!(Asked::of(&[&middle, &root]).tells(&client, &[]), Ok(()));
}

#[test]
fn a_ca_of_the_same_name_but_another_key_is_unknown() {
    let (ours, theirs) = (root("root"), root("root"));
    assert_eq!(Asked::of(&[&ours]).tells(&leaf(&theirs), &[]), Err(UnknownIssuer));
    assert_eq!(Asked::of(&[&ours]).tells(&leaf(&theirs), &[&theirs]), Err(UnknownIssuer));
    assert_eq!(Asked::of(&[&ours, &theirs]).tells(&leaf(&theirs), &[]), Ok(()), "both listed");
}

#[test]
fn a_client_that_signs_itself_is_taken_if_it_is_listed() {
    for mut params in [params("client"), authority_params("client")] {
        params.key_usages = Vec::new();
        let (listed, other) = (root_of(params.clone()), root_of(params));
        assert_eq!(Asked::of(&[&listed]).tells(listed.der(), &[]), Ok(()));
        let refused = Asked::of(&[&listed]).tells(other.der(), &[]);
        assert_eq!(refused, Err(UnknownIssuer));
    }
}

#[test]
fn a_ca_may_be_a_client() {
    let root = root("root");
    let mut client = authority_params("client");
    client.key_usages = Vec::new();
    assert_eq!(Asked::of(&[&root]).tells(&leaf_of(&client, &root), &[]), Ok(()));
}

#[test]
fn version_1_is_taken_as_openssl_makes_it_today() {
    let client = read(V1);
    assert_eq!(Asked::of_pem(V1_CA).tells(&client, &[]), Ok(()));
    assert_eq!(Asked::of_pem(V1_ROOT).tells(&client, &[]), Err(UnknownIssuer));
    assert_eq!(Asked::of_pem(V1_ROOT).tells(&read(OF_V1_ROOT), &[]), Ok(()), "a root of version 1");
    assert_eq!(Asked::of_pem(V1).tells(&client, &[]), Ok(()), "itself");
    let expired = Asked::of_pem(V1_CA).tells_at(year(2200), &client, &[]);
    assert_eq!(expired, Err(Expired));
    let early = Asked::of_pem(V1_CA).tells_at(year(2000), &client, &[]);
    assert_eq!(early, Err(NotValidYet));
}

#[test]
fn a_client_cannot_vouch_for_others() {
    let below_client = read(BELOW_CLIENT);
    let told = Asked::of_pem(V1_CA).tells_at(now(), &below_client, &[read(V1)]);
    assert_eq!(told, Err(UnknownIssuer), "version 1");
    let listed = Asked::of_pem(&(V1_CA.to_owned() + V1));
    assert_eq!(listed.tells(&below_client, &[]), Err(UnknownIssuer), "listed, of version 1");
    let root = root("root");
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let mut params = params("client");
        params.is_ca = is_ca;
        let client = below(params, &root);
        let told = Asked::of(&[&root]).tells(&leaf(&client), &[&client]);
        assert!(told.is_err(), "{told:?}");
        let told = Asked::of(&[&root, &client]).tells(&leaf(&client), &[]);
        assert!(told.is_err(), "listed: {told:?}");
    }
}

#[test]
fn validity_counts_for_all_of_the_chain() {
    let mut short = authority_params("short");
    short.not_after = date_time_ymd(2025, 1, 1);
    let (old, fresh) = (root_of(short.clone()), root("fresh"));
    let client = leaf(&old);
    assert_eq!(Asked::of(&[&old]).tells_at(year(2022), &client, &[]), Ok(()));
    assert_eq!(Asked::of(&[&old, &fresh]).tells_at(year(2030), &client, &[]), Err(Expired));
    let middle = below(short, &fresh);
    let below_middle = leaf(&middle);
    let told = Asked::of(&[&fresh]).tells_at(year(2030), &below_middle, &[middle.der().clone()]);
    assert_eq!(told, Err(Expired));
    let client = leaf(&fresh);
    assert_eq!(Asked::of(&[&fresh]).tells_at(year(2045), &client, &[]), Err(Expired));
    assert_eq!(Asked::of(&[&fresh]).tells_at(year(2015), &client, &[]), Err(NotValidYet));
}

#[test]
fn a_renewed_root_takes_over_while_the_old_one_is_still_listed() {
    let key = KeyPair::generate().unwrap();
    let der = key.serialize_pem();
    let mut short = authority_params("root");
    short.not_after = date_time_ymd(2025, 1, 1);
    let old = CertifiedIssuer::self_signed(short, key).unwrap();
    let key = KeyPair::from_pem(&der).unwrap();
    let renewed = CertifiedIssuer::self_signed(authority_params("root"), key).unwrap();
    let client = leaf(&old);
    assert_eq!(Asked::of(&[&old, &renewed]).tells_at(year(2030), &client, &[]), Ok(()));
}

#[test]
fn purposes_count_where_they_are_named() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    let root = root("root");
    let told = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params("client");
        change(&mut params);
        Asked::of(&[&root]).tells(&leaf_of(&params, &root), &[])
    };
    let purposes = |usages: Vec<_>| told(&|params| params.extended_key_usages = usages.clone());
    assert_eq!(purposes(vec![ClientAuth, ServerAuth]), Ok(()));
    assert_eq!(purposes(vec![ServerAuth]), Err(InvalidPurpose));
    assert_eq!(purposes(vec![Any]), Err(InvalidPurpose), "as BoringSSL");
    let usage = |usage| told(&|params| params.key_usages = vec![usage]);
    assert_eq!(usage(KeyUsagePurpose::DigitalSignature), Ok(()));
    assert_eq!(usage(KeyUsagePurpose::KeyAgreement), Ok(()));
    assert_eq!(usage(KeyUsagePurpose::KeyEncipherment), Err(InvalidPurpose));
}

#[test]
fn a_ca_is_held_to_its_own_purposes() {
    let mut servers_only = authority_params("root");
    servers_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let root = root_of(servers_only);
    assert_eq!(Asked::of(&[&root]).tells(&leaf(&root), &[]), Err(InvalidPurpose));
    let mut no_signer = authority_params("root");
    no_signer.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let root = root_of(no_signer);
    assert_eq!(Asked::of(&[&root]).tells(&leaf(&root), &[]), Err(UnknownIssuer));
    let mut last = authority_params("root");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = root_of(last);
    assert_eq!(Asked::of(&[&root]).tells(&leaf(&root), &[]), Ok(()));
    let middle = below(authority_params("middle"), &root);
    assert_eq!(Asked::of(&[&root]).tells(&leaf(&middle), &[&middle]), Err(InvalidPurpose));
}

#[test]
fn constraints_on_names_hold_and_are_not_circumvented() {
    let mut narrow = authority_params("root");
    let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("inside.test".into())];
    narrow.name_constraints =
        Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    let root = root_of(narrow);
    let told = |name: &str, is_ca| {
        let mut params = params("client");
        params.is_ca = is_ca;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        Asked::of(&[&root]).tells(&leaf_of(&params, &root), &[])
    };
    assert_eq!(told("a.inside.test", IsCa::NoCa), Ok(()));
    assert!(told("a.outside.test", IsCa::NoCa).is_err());
    let as_ca = told("a.outside.test", IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(as_ca, Err(UnhandledCriticalExtension), "the other builder knows none");
}

fn list_of(issuer: &Issuer, revoked: &[&[u8]], until: i32) -> String {
    let entry = |serial: &&[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: date_time_ymd(2021, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2021, 1, 1),
        next_update: date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

fn list(issuer: &Issuer, revoked: &[&[u8]]) -> String {
    list_of(issuer, revoked, 2040)
}

#[test]
fn with_a_revocation_list_every_ca_of_the_chain_needs_one() {
    let root = root("root");
    let mut params_of_middle = authority_params("middle");
    params_of_middle.serial_number = Some(SerialNumber::from_slice(&[7]));
    let middle = below(params_of_middle, &root);
    let mut params_of_client = params("client");
    params_of_client.serial_number = Some(SerialNumber::from_slice(&[0, 0x99]));
    let client = leaf_of(&params_of_client, &middle);
    let told =
        |ca: &[&Issuer], lists: &[String]| Asked::of(ca).with_crl(lists).tells(&client, &[&middle]);
    let good = [list(&root, &[]), list(&middle, &[&[1]])];
    assert_eq!(told(&[&root], &good), Ok(()));
    assert_eq!(told(&[&root, &middle], &good), Ok(()));
    let lacking = [list(&middle, &[])];
    assert_eq!(told(&[&root], &lacking), Err(UnknownRevocationStatus));
    assert_eq!(told(&[&root, &middle], &lacking), Err(UnknownRevocationStatus), "both listed");
    assert_eq!(told(&[&root], &[list(&root, &[])]), Err(UnknownRevocationStatus));
    assert_eq!(told(&[&middle], &lacking), Ok(()), "nothing is above it");
    let client_revoked = [list(&root, &[]), list(&middle, &[&[1], &[0x99]])];
    assert_eq!(told(&[&root], &client_revoked), Err(Revoked));
    let middle_revoked = [list(&root, &[&[7]]), list(&middle, &[])];
    assert_eq!(told(&[&root], &middle_revoked), Err(Revoked));
    assert_eq!(told(&[&root, &middle], &middle_revoked), Err(Revoked), "both listed");
}

#[test]
fn a_revocation_list_counts_only_by_its_ca_and_in_its_time() {
    let (root, other) = (root("root"), root("root"));
    let client = leaf(&root);
    let told = |lists: &[String]| Asked::of(&[&root]).with_crl(lists).tells(&client, &[]);
    assert_eq!(told(&[list(&other, &[])]), Err(UnknownRevocationStatus), "another key");
    let old = list_of(&root, &[], 2022);
    assert_eq!(told(std::slice::from_ref(&old)), Err(ExpiredRevocationList));
    assert_eq!(told(&[old, list(&root, &[])]), Ok(()));
    let expires = Asked::of(&[&root]).with_crl(&[list(&root, &[])]).verifier().unwrap();
    let in_2040 = Duration::from_secs(2_208_988_800);
    assert_eq!(expires.crl_expires(), Some(SystemTime::UNIX_EPOCH + in_2040));
}

#[test]
fn version_1_of_lists_and_certificates_is_revoked_too() {
    let told = |list: &str| Asked::of_pem(V1_CA).with_crl(&[list.to_owned()]).tells(&read(V1), &[]);
    assert_eq!(told(V1_CRL_EMPTY), Ok(()));
    assert_eq!(told(V1_CRL), Err(Revoked));
}

#[test]
fn what_cannot_be_used_is_named() {
    use crate::crypto::IdentityError::{NoCertificate, NotX509};
    let error = |ca: &str, crl: Option<&str>| {
        let crl = crl.map(str::to_owned);
        Asked { ca: vec![ca.to_owned()], crl, ..Asked::default() }.verifier().err()
    };
    let nothing = Some(TrustError::Ca(NoCertificate { holds_key: false }));
    assert_eq!(error("", None), nothing);
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let second = Some(TrustError::Ca(NotX509 { certificate: 2 }));
    assert_eq!(error(&(V1_CA.to_owned() + hollow), None), second);
    assert_eq!(error(V1_CA, Some(V1_CA)), Some(TrustError::NoCrl));
    assert_eq!(error(V1_CA, Some("")), Some(TrustError::NoCrl));
    let hollow = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let not = Some(TrustError::NotCrl { list: 2 });
    assert_eq!(error(V1_CA, Some(&(V1_CRL.to_owned() + hollow))), not);
    let cut = &V1_CRL[..V1_CRL.len() / 2];
    assert!(matches!(error(V1_CA, Some(cut)), Some(TrustError::CrlPem { block: 1, .. })));
    assert_eq!(error(V1_CA, Some(V1_CRL)), None);
}

#[test]
fn a_list_for_some_certificates_only_is_refused() {
    let root = root("root");
    let mut params = CertificateRevocationListParams {
        this_update: date_time_ymd(2021, 1, 1),
        next_update: date_time_ymd(2040, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let distribution_point = rcgen::CrlDistributionPoint { uris: vec!["http://a.test".into()] };
    params.issuing_distribution_point =
        Some(rcgen::CrlIssuingDistributionPoint { distribution_point, scope: None });
    let list = params.signed_by(&root).unwrap().pem().unwrap();
    let error = Asked::of(&[&root]).with_crl(&[list]).verifier().err();
    assert_eq!(error, Some(TrustError::PartialCrl { list: 1 }));
}

#[test]
fn one_of_the_names_is_demanded() {
    let root = root("root");
    let mut params = params("client");
    params.subject_alt_names = vec![
        SanType::DnsName("a.Example.com".try_into().unwrap()),
        SanType::DnsName("*.wild.test".try_into().unwrap()),
        SanType::URI("spiffe://test/A".try_into().unwrap()),
        SanType::Rfc822Name("a@test".try_into().unwrap()),
        SanType::IpAddress("192.0.2.7".parse().unwrap()),
    ];
    let client = leaf_of(&params, &root);
    let told = |names: &[&str]| Asked::of(&[&root]).with_names(names).tells(&client, &[]).is_ok();
    for name in
        ["A.example.com", "x.wild.test", "spiffe://test/A", "a@test", "192.0.2.7", "*.wild.test"]
    {
        assert!(told(&[name]) && told(&["other", name]), "{name}");
    }
    for name in ["", "client", "wild.test", "x.y.wild.test", "spiffe://test/a", "192.0.2.8", "com"]
    {
        assert!(!told(&[name]), "{name}");
    }
    assert!(told(&[]), "none is demanded");
    let nameless = Asked::of(&[&root]).with_names(&["client"]).tells(&leaf(&root), &[]);
    assert!(nameless.is_err(), "the common name does not count");
}

#[test]
fn one_of_the_pins_is_demanded_whatever_its_kind() {
    let root = root("root");
    let client = leaf(&root);
    let spki = parse(&client).unwrap().tbs_certificate.subject_pki.raw.to_vec();
    let hash = |bytes: &[u8]| -> [u8; 32] {
        ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap()
    };
    let told = |keys: &[[u8; 32]], certificates: &[[u8; 32]]| {
        let pins = Pins { keys: keys.to_vec(), certificates: certificates.to_vec() };
        Asked { pins, ..Asked::of(&[&root]) }.tells(&client, &[]).is_ok()
    };
    assert!(told(&[hash(&spki)], &[]));
    assert!(told(&[], &[hash(&client)]));
    assert!(told(&[[0; 32]], &[[1; 32], hash(&client)]), "either list");
    assert!(!told(&[hash(&client)], &[hash(&spki)]), "not the other's");
    let pins = Pins { keys: vec![hash(&spki)], certificates: Vec::new() };
    let untrusted = Asked { pins, ..Asked::of_pem(V1_CA) }.tells(&client, &[]);
    assert_eq!(untrusted, Err(UnknownIssuer), "a pin is no substitute for a CA");
}

#[test]
fn what_does_not_hold_is_taken_only_where_that_is_asked_for() {
    let client = leaf(&root("other"));
    let asked = Asked { accept_untrusted: true, ..Asked::of_pem(V1_CA) };
    assert_eq!(asked.tells(&client, &[]), Ok(()));
    assert_eq!(Asked::of_pem(V1_CA).tells(&client, &[]), Err(UnknownIssuer));
}

/// A clock that stands still.
#[derive(Debug)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(year(self.0.load(Ordering::Relaxed)))
    }
}

/// A server that checks clients, and its clock.
struct CheckingServer {
    config: Arc<ServerConfig>,
    clock: Arc<Clock>,
}

impl CheckingServer {
    fn new(version: Version, clients: &Arc<ClientVerifier>) -> Self {
        let provider = Provider::new(Choice::Auto);
        let policy = ServerPolicy {
            version_min: version,
            version_max: version,
            parameters: &Parameters::default(),
            clients: Some(Arc::clone(clients)),
        };
        let (certificate, key) = signed(&params("server"), &root("other"));
        let clock = Arc::new(Clock(AtomicU64::new(2027)));
        let keys = Arc::new(TicketKeys::new().unwrap());
        let tickets = CheckedTickets::new(keys, Arc::clone(clients), Arc::<Clock>::clone(&clock));
        let template = Template::new(&provider, &policy).unwrap();
        let config = template.server(vec![pair(&certificate, &key)], Arc::new(tickets));
        let mut config = ServerConfig::clone(&config);
        config.time_provider = Arc::<Clock>::clone(&clock);
        Self { config: Arc::new(config), clock }
    }

    /// How the handshake with `client` ends for the server.
    fn meet(&self, client: &Arc<ClientConfig>) -> Result<HandshakeKind, Error> {
        meeting::meet(&self.config, client)
    }
}

fn signed(params: &CertificateParams, issuer: &Issuer) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

fn pair(certificate: &str, key: &str) -> CertifiedPair {
    let (certificate, key) = (certificate.as_bytes(), key.as_bytes());
    load(&Provider::new(Choice::Auto), &PairPem { certificate, key, staple: None }).unwrap()
}

/// A client with `pair`, if any, that takes any server.
fn client_with(pair: Option<&CertifiedPair>) -> Arc<ClientConfig> {
    let request =
        BackendRequest { trust: None, subject_alt_names: &[], mesh: None, pair, alpn: b"http/1.1" };
    backend_config(&Provider::new(Choice::Auto), &request)
}

#[test]
fn a_session_does_not_outlive_what_its_client_was_checked_by() {
    let root = root("root");
    let until_2030 = |mut params: CertificateParams| {
        params.not_after = date_time_ymd(2030, 1, 1);
        params
    };
    let short = root_of(until_2030(authority_params("short")));
    let cases = [
        (Asked::of(&[&root]), &root, until_2030(params("client")), Expired),
        (Asked::of(&[&short]), &short, params("client"), Expired),
        (
            Asked::of(&[&root]).with_crl(&[list_of(&root, &[], 2030)]),
            &root,
            params("client"),
            ExpiredRevocationList,
        ),
    ];
    for ((asked, issuer, params, why), version) in cases
        .iter()
        .flat_map(|case| [Version::Tls12, Version::Tls13].map(|version| (case, version)))
    {
        let server = CheckingServer::new(version, &asked.verifier().unwrap());
        let (certificate, key) = signed(params, issuer);
        let client = client_with(Some(&pair(&certificate, &key)));
        assert_eq!(server.meet(&client), Ok(HandshakeKind::Full));
        for _ in 0..3 {
            assert_eq!(server.meet(&client), Ok(HandshakeKind::Resumed), "{version:?}");
        }
        server.clock.0.store(2031, Ordering::Relaxed);
        let expected = Err(Error::InvalidCertificate(why.clone()));
        assert_eq!(server.meet(&client), expected, "{version:?}");
    }
}

#[test]
fn who_needs_no_certificate_or_no_good_one_resumes_without() {
    let root = root("root");
    let asked = Asked { optional: true, ..Asked::of(&[&root]) };
    let server = CheckingServer::new(Version::Tls13, &asked.verifier().unwrap());
    let anonymous = client_with(None);
    assert_eq!(server.meet(&anonymous), Ok(HandshakeKind::Full));
    assert_eq!(server.meet(&anonymous), Ok(HandshakeKind::Resumed));
    let lax = Asked { accept_untrusted: true, ..Asked::of(&[&root]) };
    let server = CheckingServer::new(Version::Tls13, &lax.verifier().unwrap());
    let (certificate, key) = signed(&params("stranger"), &self::root("other"));
    let stranger = client_with(Some(&pair(&certificate, &key)));
    assert_eq!(server.meet(&stranger), Ok(HandshakeKind::Full));
    assert_eq!(server.meet(&stranger), Ok(HandshakeKind::Resumed));
}

#[test]
fn a_session_that_cannot_be_read_is_not_resumed() {
    let verifier = Asked::of(&[&root("root")]).verifier().unwrap();
    let keys = Arc::new(TicketKeys::new().unwrap());
    let clock = Arc::new(Clock(AtomicU64::new(2027)));
    let tickets = CheckedTickets::new(keys, verifier, clock);
    let no_chain = [0, 3, 4, 0x13, 1, 1, 9, 1, 0];
    let cut = [0, 3, 4, 0x13, 1, 1, 9, 1, 1, 0, 0, 9, 0];
    for session in [&b""[..], b"odd", &no_chain, &cut] {
        let ticket = tickets.encrypt(session).unwrap();
        assert_eq!(tickets.decrypt(&ticket), None, "{session:?}");
    }
}

#[test]
fn clients_are_told_which_cas_are_known_unless_there_are_too_many() {
    let few = Asked::of_pem(&(V1_CA.to_owned() + V1_ROOT)).verifier().unwrap();
    assert_eq!(few.root_hint_subjects().len(), 2);
    assert!(few.client_auth_mandatory());
    let long = root(&"x".repeat(900));
    let pem = long.pem().repeat(40);
    let many = Asked::of_pem(&pem).verifier().unwrap();
    assert!(many.root_hint_subjects().is_empty());
}

#[test]
fn a_long_list_of_certificates_is_not_searched_to_its_end() {
    let root = root("root");
    let middle = below(authority_params("middle"), &root);
    let mut noise = vec![leaf(&root); 15];
    noise.push(middle.der().clone());
    let client = leaf(&middle);
    assert_eq!(Asked::of(&[&root]).tells_at(now(), &client, &noise), Ok(()));
    noise.insert(0, leaf(&root));
    assert_eq!(Asked::of(&[&root]).tells_at(now(), &client, &noise), Err(UnknownIssuer));
}

proptest! {
    #[test]
    fn no_certificate_is_too_odd(
        noise in prop::collection::vec(any::<u8>(), 0..80),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let asked = Asked::of_pem(&(V1_CA.to_owned() + V1_ROOT)).with_crl(&[V1_CRL_EMPTY.into()]);
        let noise = CertificateDer::from(noise);
        prop_assert_eq!(asked.tells_at(now(), &noise, &[read(V1)]), Err(BadEncoding));
        let good = read(V1);
        let mut changed = good.to_vec();
        for (index, mask) in flips {
            let length = changed.len();
            changed[index.index(length)] ^= mask;
        }
        let changed = CertificateDer::from(changed);
        let told = asked.tells_at(now(), &changed, std::slice::from_ref(&noise));
        prop_assert!(told.is_err() || changed == good, "{:?}", changed);
    }
}
