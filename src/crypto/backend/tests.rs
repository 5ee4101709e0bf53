//! Which backends are taken, held against what Envoy does.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};
use rustls::client::ClientSessionStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, Error, HandshakeKind, NamedGroup, ServerConfig};

use super::*;
use crate::crypto::{
    Choice, PairPem, Parameters, ServerPolicy, Template, TicketKeys, Version, load, meeting, pem,
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

const V1: &str = include_str!("../testdata/client-v1.crt");
const V1_CA: &str = include_str!("../testdata/client-ca.crt");
const V1_ROOT: &str = include_str!("../testdata/client-v1-root.crt");
const OF_V1_ROOT: &str = include_str!("../testdata/client-of-v1-root.crt");

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2040, 1, 1));
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root() -> Issuer {
    let key = KeyPair::generate().unwrap();
    CertifiedIssuer::self_signed(authority("root"), key).unwrap()
}

fn named(names: &[SanType], issuer: &Issuer) -> CertificateDer<'static> {
    let mut params = params("backend");
    params.subject_alt_names = names.to_vec();
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn read(pem: &str) -> CertificateDer<'static> {
    pem::certificates(pem.as_bytes()).unwrap().remove(0)
}

fn trust(ca: &str, crl: Option<&str>) -> Option<Arc<BackendTrust>> {
    let provider = Provider::new(Choice::Auto);
    let trust = BackendTrust::new(&provider, ca.as_bytes(), crl.map(str::as_bytes));
    Some(Arc::new(trust.unwrap()))
}

fn verifier(trust: Option<Arc<BackendTrust>>, names: &[&str]) -> BackendVerifier {
    let algorithms = Provider::new(Choice::Auto).rustls().signature_verification_algorithms;
    let given = names.iter().map(|name| (*name).to_owned()).collect();
    let names = Names { given, mesh: None };
    BackendVerifier::new(trust, names, algorithms, Arc::new(Sessions::new()))
}

/// What becomes of a backend with `chain` that is asked for `name`.
fn check(
    verifier: &BackendVerifier,
    chain: &[CertificateDer<'_>],
    name: &str,
) -> Result<(), Error> {
    let name = ServerName::try_from(name).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now()).map(|_| ())
}

#[test]
fn the_name_that_was_asked_for_counts_unless_others_are_given() {
    let root = root();
    let leaf = named(&[dns("a.example.com"), dns("*.b.example.com")], &root);
    let trust = trust(&root.pem(), None);
    let any = verifier(trust.clone(), &[]);
    for name in ["a.example.com", "A.Example.Com", "x.b.example.com"] {
        assert_eq!(check(&any, std::slice::from_ref(&leaf), name), Ok(()), "{name}");
    }
    for name in ["b.example.com", "x.y.b.example.com", "c.example.com", "192.0.2.1"] {
        let error = check(&any, std::slice::from_ref(&leaf), name).unwrap_err().to_string();
        let expected = "the certificate is for a.example.com, *.b.example.com, not for ";
        assert!(error.contains(&format!("{expected}{name}")), "{error}");
    }
    let given = verifier(trust.clone(), &["z.example.com", "a.example.com"]);
    assert_eq!(check(&given, std::slice::from_ref(&leaf), "other.example.com"), Ok(()));
    let other = verifier(trust, &["z.example.com"]);
    let error = check(&other, &[leaf], "a.example.com").unwrap_err().to_string();
    assert!(error.contains("not for z.example.com"), "{error}");
}

#[test]
fn in_a_mesh_the_identity_counts() {
    let root = root();
    let trust = trust(&root.pem(), None);
    let algorithms = Provider::new(Choice::Auto).rustls().signature_verification_algorithms;
    let check = |namespace: Option<&str>, given: &[&str], names: &[&str]| {
        let names: Vec<_> = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().unwrap()),
                false => dns(name),
            })
            .collect();
        let mesh = Some(MeshPeer { namespace: namespace.map(Into::into) });
        let given = given.iter().map(|name| (*name).to_owned()).collect();
        let sessions = Arc::new(Sessions::new());
        let names_wanted = Names { given, mesh };
        let verifier = BackendVerifier::new(trust.clone(), names_wanted, algorithms, sessions);
        check(&verifier, &[named(&names, &root)], "a.example.com").map_err(|e| e.to_string())
    };
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    assert_eq!(check(Some("shop"), &[], &[id]), Ok(()));
    assert_eq!(check(None, &[], &[id, "a.example.com"]), Ok(()));
    assert_eq!(check(Some("other"), &[id], &[id]), Ok(()), "a name that is given counts alone");
    let error = check(Some("other"), &[], &[id]).unwrap_err();
    assert!(error.contains(&format!("is for {id}, not for a workload of namespace other")));
    assert!(check(Some("shop"), &["spiffe://cluster.local/ns/shop/sa/x"], &[id]).is_err());
    for none in [
        "a.example.com",
        "https://cluster.local/ns/shop/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/",
        "spiffe:///ns/shop/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart/x",
        "spiffe://cluster.local/sa/shop/ns/cart",
    ] {
        let error = check(None, &[], &[none]).unwrap_err();
        assert!(error.contains("not for a workload of the mesh"), "{none}: {error}");
    }
    let provider = Provider::new(Choice::Auto);
    let request = BackendRequest {
        trust: trust.clone(),
        subject_alt_names: &[],
        mesh: Some(&MeshPeer::default()),
        pair: None,
        alpn: b"h2",
    };
    let offered = backend_config(&provider, &request).alpn_protocols.clone();
    assert_eq!(offered, [&b"istio"[..], b"h2"], "a proxy knows the mesh's TLS by it");
    let two = [id, "spiffe://cluster.local/ns/other/sa/x"];
    assert!(check(Some("shop"), &[], &two).is_err(), "an identity is the only one");
}

#[test]
fn names_of_other_kinds_count_too() {
    let root = root();
    let id = "spiffe://cluster.local/ns/default/sa/backend";
    let address = SanType::IpAddress("192.0.2.7".parse().unwrap());
    let leaf = named(&[SanType::URI(id.try_into().unwrap()), address], &root);
    let trust = trust(&root.pem(), None);
    let by_id = verifier(trust.clone(), &[id]);
    assert_eq!(check(&by_id, std::slice::from_ref(&leaf), "a.example.com"), Ok(()));
    let by_address = verifier(trust, &[]);
    assert_eq!(check(&by_address, std::slice::from_ref(&leaf), "192.0.2.7"), Ok(()));
    assert!(check(&by_address, &[leaf], "192.0.2.8").is_err());
}

#[test]
fn a_name_of_another_kind_is_another_name() {
    // What a CA may certify that is constrained to DNS names below `inner.test`.
    let mut params = authority("constrained");
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("inner.test".into())],
        excluded_subtrees: Vec::new(),
    });
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let told = |names: &[SanType], asked: &str| {
        let leaf = named(&[&[dns("a.inner.test")], names].concat(), &ca);
        let by_host =
            check(&verifier(trust(&ca.pem(), None), &[]), std::slice::from_ref(&leaf), asked);
        let by_list = check(&verifier(trust(&ca.pem(), None), &[asked]), &[leaf], "x.test");
        assert_eq!(by_host.is_ok(), by_list.is_ok(), "{asked}");
        by_host.is_ok()
    };
    assert!(told(&[], "a.inner.test"));
    let uri = SanType::URI("bank.example".try_into().unwrap());
    assert!(!told(&[uri], "bank.example"), "a URI is no DNS name");
    let mail = SanType::Rfc822Name("bank.example".try_into().unwrap());
    assert!(!told(&[mail], "bank.example"), "nor is an address of mail");
    let unconstrained = root();
    let leaf = [named(&[dns("192.0.2.7")], &unconstrained)];
    let error = check(&verifier(trust(&unconstrained.pem(), None), &[]), &leaf, "192.0.2.7");
    assert!(error.is_err(), "an address is no DNS name");
}

#[test]
fn a_certificate_without_names_needs_a_policy_that_takes_it() {
    let root = root();
    let leaf = [named(&[], &root)];
    let error = check(&verifier(trust(&root.pem(), None), &[]), &leaf, "a.example").unwrap_err();
    assert!(error.to_string().contains("has no alternative names, a.example is"), "{error}");
    assert_eq!(check(&verifier(None, &[]), &leaf, "a.example"), Ok(()));
}

#[test]
fn chains_end_in_what_is_given() {
    let root = root();
    let key = KeyPair::generate().unwrap();
    let between = CertifiedIssuer::signed_by(authority("between"), key, &root).unwrap();
    let leaf = named(&[dns("a.example.com")], &between);
    let chain = [leaf.clone(), between.der().clone()];
    let ends = |ca: &str, chain: &[CertificateDer<'_>]| {
        check(&verifier(trust(ca, None), &[]), chain, "a.example.com")
    };
    assert_eq!(ends(&root.pem(), &chain), Ok(()));
    assert_eq!(ends(&between.pem(), &chain[..1]), Ok(()), "an intermediate stands alone");
    assert_eq!(ends(&[root.pem(), between.pem()].concat(), &chain[..1]), Ok(()));
    let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
    assert_eq!(ends(&root.pem(), &chain[..1]), Err(unknown.clone()));
    let other = self::root();
    assert_eq!(ends(&other.pem(), &chain), Err(unknown));
}

#[test]
fn version_1_is_read_and_then_lacks_a_name() {
    for (ca, leaf) in [(V1_CA, V1), (V1_ROOT, OF_V1_ROOT)] {
        let error = check(&verifier(trust(ca, None), &[]), &[read(leaf)], "a.example");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has no alternative names"), "{error}");
    }
}

#[test]
fn what_does_not_hold_is_refused() {
    let root = root();
    let leaf = |change: fn(&mut CertificateParams)| {
        let mut params = params("backend");
        params.subject_alt_names = vec![dns("a.example.com")];
        change(&mut params);
        [params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().der().clone()]
    };
    let verifier = verifier(trust(&root.pem(), None), &[]);
    let expired = leaf(|params| params.not_after = date_time_ymd(2021, 1, 1));
    let early = leaf(|params| params.not_before = date_time_ymd(2039, 1, 1));
    let client = leaf(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let server = leaf(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    for (chain, expected) in [
        (expired, Err(CertificateError::Expired)),
        (early, Err(CertificateError::NotValidYet)),
        (client, Err(CertificateError::InvalidPurpose)),
        (server, Ok(())),
    ] {
        let expected = expected.map_err(Error::InvalidCertificate);
        assert_eq!(check(&verifier, &chain, "a.example.com"), expected);
    }
}

#[test]
fn revoked_backends_are_refused() {
    let root = root();
    let leaf = |serial: u64| {
        let mut params = params("backend");
        params.subject_alt_names = vec![dns("a.example.com")];
        params.serial_number = Some(SerialNumber::from(serial));
        [params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().der().clone()]
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2040, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root).unwrap().pem().unwrap();
    let trust = trust(&root.pem(), Some(&list));
    assert!(trust.as_ref().unwrap().crl_expires().is_some());
    let verifier = verifier(trust, &[]);
    assert_eq!(check(&verifier, &leaf(8), "a.example.com"), Ok(()));
    let revoked = Error::InvalidCertificate(CertificateError::Revoked);
    assert_eq!(check(&verifier, &leaf(7), "a.example.com"), Err(revoked));
}

/// A clock that stands still in 2020.
#[derive(Debug)]
struct In2020;

impl TimeProvider for In2020 {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(1_590_000_000)))
    }
}

/// A backend with `params`, and a client that takes it as in 2020.
fn in_2020(
    params: &CertificateParams,
    issuer: &Issuer,
    trust: Option<Arc<BackendTrust>>,
    version: Version,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let (provider, key) = (Provider::new(Choice::Auto), KeyPair::generate().unwrap());
    let certificate = params.signed_by(&key, issuer).unwrap().pem();
    let (certificate, key) = (certificate.as_bytes(), key.serialize_pem());
    let pair = load(&provider, &PairPem { certificate, key: key.as_bytes(), staple: None });
    let policy = ServerPolicy {
        version_min: version,
        version_max: version,
        parameters: &Parameters::default(),
        clients: None,
    };
    let template = Template::new(&provider, &policy).unwrap();
    let server = template.server(vec![pair.unwrap()], Arc::new(TicketKeys::new().unwrap()));
    let request =
        BackendRequest { trust, subject_alt_names: &[], mesh: None, pair: None, alpn: b"http/1.1" };
    let mut client = ClientConfig::clone(&backend_config(&provider, &request));
    client.time_provider = Arc::new(In2020);
    (server, Arc::new(client))
}

#[test]
fn a_session_does_not_outlive_what_its_backend_was_checked_by() {
    let until = |mut params: CertificateParams, year: i32| {
        params.not_after = date_time_ymd(year, 1, 1);
        params
    };
    let ca = |year: i32| {
        let key = KeyPair::generate().unwrap();
        CertifiedIssuer::self_signed(until(authority("root"), year), key).unwrap()
    };
    let (long, short) = (ca(2040), ca(2021));
    let list = |year: i32| {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&long).unwrap().pem().unwrap()
    };
    let mut backend = params("backend");
    backend.subject_alt_names = vec![dns("server.test")];
    let brief = until(backend.clone(), 2021);
    let (trusted, listed) = (trust(&long.pem(), None), trust(&long.pem(), Some(&list(2040))));
    for (params, issuer, trust, goes_on) in [
        (&backend, &long, trusted.clone(), true),
        (&backend, &long, listed, true),
        (&brief, &long, trusted, false),
        (&backend, &short, trust(&short.pem(), None), false),
        (&backend, &long, trust(&long.pem(), Some(&list(2021))), false),
        (&brief, &long, None, true),
    ] {
        for version in [Version::Tls12, Version::Tls13] {
            let (server, client) = in_2020(params, issuer, trust.clone(), version);
            assert_eq!(meeting::meet(&server, &client), Ok(HandshakeKind::Full));
            let expected = if goes_on { HandshakeKind::Resumed } else { HandshakeKind::Full };
            for _ in 0..3 {
                assert_eq!(meeting::meet(&server, &client), Ok(expected), "{version:?}");
            }
        }
    }
}

#[test]
fn sessions_are_kept_for_a_bounded_number_of_servers_and_each_configuration_by_itself() {
    let (one, other) = (Sessions::new(), Sessions::new());
    let name = |n: usize| ServerName::try_from(format!("s{n}.example.com")).unwrap();
    one.set_kx_hint(name(0), NamedGroup::X25519);
    assert_eq!(one.kx_hint(&name(0)), Some(NamedGroup::X25519));
    assert_eq!(other.kx_hint(&name(0)), None);
    for n in 1..=256 {
        one.set_kx_hint(name(n), NamedGroup::X25519);
    }
    assert_eq!(one.kx_hint(&name(0)), None, "the first one met is the first to go");
    assert_eq!(one.kx_hint(&name(1)), Some(NamedGroup::X25519));
}
