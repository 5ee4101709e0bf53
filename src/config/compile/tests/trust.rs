//! What clients and backends are checked with, from one generation to the next: a Secret that goes
//! bad never makes a policy weaker than it was.

use super::*;

const HOST: &str = "httpbin.example.com";

type Keys<'a> = &'a [(&'a str, &'a str)];

const CRED: Keys<'static> = &[("tls.crt", "good 1"), ("tls.key", "key 1"), ("ca.crt", "good ca 1")];
const LISTED: Keys<'static> =
    &[("tls.crt", "good 1"), ("tls.key", "key 1"), ("ca.crt", "good ca 1"), ("ca.crl", "good crl")];
const BAD_LIST: Keys<'static> =
    &[("tls.crt", "good 1"), ("tls.key", "key 1"), ("ca.crt", "good ca 1"), ("ca.crl", "")];

/// One host that asks its clients for certificates, and speaks TLS with its backend in the same
/// way, all by the Secret `cred`.
fn world() -> World {
    let page = page_with_credential().replace("mode: SIMPLE", "mode: MUTUAL");
    let mut world = World::new(&[("page.yaml", &page), ("backend.yaml", BACKEND)]);
    world.write("rule.yaml", &rule("mode: MUTUAL, credentialName: cred"));
    world
}

/// A DestinationRule for the page's service with `tls`.
fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r}}\n\
         spec: {{host: httpbin.default.svc.cluster.local, trafficPolicy: {{tls: {{{tls}}}}}}}\n"
    )
}

/// The serial numbers of the CAs that clients and backends are checked with; `-` where nobody gets
/// in or out.
fn checked_with(snapshot: &Snapshot) -> (String, String) {
    let is_open = [is_served(snapshot), backend(snapshot).config.is_some()];
    let mut of_both = snapshot.certificates.iter().zip(is_open).map(|(certificate, is_open)| {
        let serials = certificate.client_ca.iter().map(|ca| ca.info.serial.clone());
        if is_open { serials.collect() } else { "-".to_owned() }
    });
    (of_both.next().unwrap(), of_both.next().unwrap())
}

/// How the backend of the page's first route is spoken TLS with.
fn backend(snapshot: &Snapshot) -> Arc<crate::snapshot::BackendTls> {
    destination_rule::cluster(snapshot).unwrap().tls.clone().expect("never without TLS")
}

fn both(ca: &str) -> (String, String) {
    (ca.to_owned(), ca.to_owned())
}

#[test]
fn a_bad_list_leaves_the_last_good_one_or_nobody() {
    for (before, after) in [(CRED, "-"), (LISTED, "good ca 1"), (&[], "-")] {
        let mut world = world();
        world.mount("cred", before);
        world.compile();
        world.mount("cred", BAD_LIST);
        let snapshot = world.compile();
        assert_eq!(checked_with(&snapshot), both(after), "{before:?}");
        let said = said(&snapshot);
        assert!(said.contains("there is no revocation list in it"), "{said}");
        // What was without a list does not come back with the Secret's absence either.
        world.mount("cred", &[]);
        assert_eq!(checked_with(&world.compile()), both(after), "{before:?}");
        world.mount("cred", LISTED);
        assert_eq!(checked_with(&world.compile()), both("good ca 1"), "{before:?}");
    }
}

#[test]
fn a_list_that_is_taken_away_is_taken_away() {
    let mut world = world();
    world.mount("cred", LISTED);
    world.compile();
    world.mount("cred", CRED);
    let snapshot = world.compile();
    assert_eq!((checked_with(&snapshot), said(&snapshot)), (both("good ca 1"), String::new()));
}

#[test]
fn the_ca_beside_a_secret_does_not_give_way_to_the_one_in_it() {
    let secret = |ca: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: cred-cacert, namespace: \
             istio-system}}\nstringData: {{cacert: {ca}}}\n"
        )
    };
    let mut world = world();
    world.mount("cred", CRED);
    assert_eq!(checked_with(&world.compile()), both("good ca 1"));
    world.write("ca.yaml", &secret("bad"));
    assert_eq!(checked_with(&world.compile()), both("good ca 1"), "it never was good");
    world.remove("ca.yaml");
    let snapshot = world.compile();
    assert_eq!((checked_with(&snapshot), said(&snapshot)), (both("good ca 1"), String::new()));
    world.write("ca.yaml", &secret("good ca 2"));
    assert_eq!(checked_with(&world.compile()), both("good ca 2"));
    for _ in 0..2 {
        world.remove("ca.yaml");
        let snapshot = world.compile();
        assert_eq!(checked_with(&snapshot), both("good ca 2"), "as before");
        let said = said(&snapshot);
        assert_eq!(said.matches("there is no Secret `cred-cacert`").count(), 2, "{said}");
        world.write("ca.yaml", &secret("bad"));
        assert_eq!(checked_with(&world.compile()), both("good ca 2"), "as before");
    }
    world.write("ca.yaml", &secret("good ca 3"));
    assert_eq!(checked_with(&world.compile()), both("good ca 3"));
    let page = page_with_credential().replace("mode: SIMPLE", "mode: MUTUAL");
    let own = page
        .replace("credentialName: cred", "credentialName: cred\n      caCertCredentialName: cred");
    world.write("page.yaml", &own);
    assert_eq!(checked_with(&world.compile()).0, "good ca 1", "where that is said");
    assert!(is_served(&world.compile()), "{HOST}");
}
