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
fn a_list_by_the_other_name_counts_where_its_own_ca_is_not_there() {
    let pair = [("tls.crt", "good 1"), ("tls.key", "key 1")];
    let checked = |trust: Keys<'_>| {
        let mut world = world();
        world.mount("cred", &[&pair, trust].concat());
        checked_with(&world.compile())
    };
    // That a list without a list in it lets nobody in shows that it was read.
    assert_eq!(checked(&[("ca.crt", "good ca 1"), ("crl", "")]), both("-"));
    assert_eq!(checked(&[("cacert", "good ca 1"), ("ca.crl", "")]), both("-"));
    assert_eq!(checked(&[("ca.crt", "good ca 1"), ("crl", "good crl")]), both("good ca 1"));
    let two = [("cacert", "good ca 1"), ("ca.crt", "good ca 2"), ("ca.crl", "")];
    assert_eq!(checked(&two), both("good ca 1"), "the list of a CA that is not used");
}

#[test]
fn a_list_without_a_ca_counts_for_that_of_the_secret_beside() {
    let pair = [("tls.crt", "good 1"), ("tls.key", "key 1")];
    let beside = [("cacert", "good ca 1")];
    let checked = |own: Keys<'_>, beside: Keys<'_>| {
        let mut world = world();
        world.mount("cred", &[&pair, own].concat());
        world.mount("cred-cacert", beside);
        checked_with(&world.compile())
    };
    for list in ["crl", "ca.crl"] {
        // That a list without a list in it lets nobody in shows that it was read.
        assert_eq!(checked(&[(list, "")], &beside), both("-"));
        assert_eq!(checked(&[(list, "good crl")], &beside), both("good ca 1"));
    }
    let other = [("ca.crt", "good ca 2"), ("ca.crl", "")];
    assert_eq!(checked(&other, &beside), both("good ca 1"), "the list of a CA that is not used");
}

#[test]
fn a_list_beside_which_comes_later_is_used() {
    let mut world = world();
    let pair = [("tls.crt", "good 1"), ("tls.key", "key 1")];
    world.mount("cred", &pair);
    world.mount("cred-cacert", &[("cacert", "good ca 1")]);
    assert_eq!(checked_with(&world.compile()), both("good ca 1"));
    world.mount("cred", &[&pair, &[("ca.crl", "")][..]].concat());
    let snapshot = world.compile();
    assert_eq!(checked_with(&snapshot), both("-"), "what had no list is no substitute");
    assert!(said(&snapshot).contains("there is no revocation list in it"));
    world.mount("cred", &[&pair, &[("ca.crl", "good crl")][..]].concat());
    assert_eq!(checked_with(&world.compile()), both("good ca 1"));
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

/// Files and a Secret with all that a rule can name.
fn well_supplied() -> World {
    let mut world = world();
    world.mount("cred", CRED);
    for (path, text) in [
        ("/ca.pem", "good ca 1"),
        ("/other.pem", "good ca 2"),
        ("/crl.pem", "good crl"),
        ("/own.crt", "good 7"),
        ("/own.key", "key 7"),
    ] {
        world.write_pem(path, text);
    }
    world
}

#[test]
fn connections_are_of_one_kind_while_all_that_a_rule_says_is_the_same() {
    let mut world = well_supplied();
    let mut numbers = Vec::new();
    for tls in [
        "mode: SIMPLE",
        "mode: SIMPLE, insecureSkipVerify: true",
        "mode: SIMPLE, insecureSkipVerify: true, sni: a.test",
        "mode: SIMPLE, caCertificates: /ca.pem",
        "mode: SIMPLE, caCertificates: /other.pem",
        "mode: SIMPLE, caCertificates: /ca.pem, caCrl: /crl.pem",
        "mode: SIMPLE, caCertificates: /ca.pem, sni: a.test",
        "mode: SIMPLE, caCertificates: /ca.pem, subjectAltNames: [a.test]",
        "mode: SIMPLE, caCertificates: /ca.pem, subjectAltNames: [b.test]",
        "mode: MUTUAL, caCertificates: /ca.pem, clientCertificate: /own.crt, privateKey: /own.key",
        "mode: MUTUAL, clientCertificate: /own.crt, privateKey: /own.key",
        "mode: SIMPLE, credentialName: cred",
        "mode: MUTUAL, credentialName: cred",
    ] {
        world.write("rule.yaml", &rule(tls));
        let snapshot = world.compile();
        assert_eq!(said(&snapshot), "", "{tls}");
        let first = backend(&snapshot);
        assert!(first.config.is_some(), "{tls}");
        assert_eq!(first.name.is_some(), tls.contains("sni"), "{tls}");
        // Another rule that says the same, and the same rule in other words.
        let elsewhere = rule(tls).replace("name: r", "name: s").replace("httpbin.default", "x.y");
        world.write("other.yaml", &elsewhere);
        world.write("rule.yaml", &format!("# the same\n{}", rule(tls)));
        assert_eq!(backend(&world.compile()).number(), first.number(), "{tls}");
        world.remove("other.yaml");
        numbers.push(first.number());
    }
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "no two of them are of one kind");
}

#[test]
fn a_part_that_goes_bad_stays_as_it_was_and_the_others_go_on() {
    let tls = "mode: MUTUAL, caCertificates: /ca.pem, caCrl: /crl.pem, \
               clientCertificate: /own.crt, privateKey: /own.key";
    for (path, bad, what) in [
        ("/ca.pem", Some("bad"), "/ca.pem with /crl.pem: there is no CA certificate in it"),
        ("/ca.pem", None, "/ca.pem does not exist"),
        ("/crl.pem", Some("bad"), "/ca.pem with /crl.pem: there is no revocation list in it"),
        ("/crl.pem", None, "/crl.pem does not exist"),
        ("/own.crt", Some("bad"), "/own.crt with /own.key: is no certificate"),
        ("/own.key", Some("key 8"), "the key does not belong to the certificate"),
        ("/own.key", None, "/own.key does not exist"),
    ] {
        let spoil = |world: &mut World| match bad {
            Some(text) => world.write_pem(path, text),
            None => drop(world.now.pem.files.remove(path)),
        };
        let mut never_good = well_supplied();
        never_good.write("rule.yaml", &rule(tls));
        spoil(&mut never_good);
        let snapshot = never_good.compile();
        assert!(backend(&snapshot).config.is_none(), "{path}");
        assert!(said(&snapshot).contains("answered with 503 until this is mended"), "{path}");

        let mut world = well_supplied();
        world.write("rule.yaml", &rule(tls));
        let good = backend(&world.compile());
        spoil(&mut world);
        let snapshot = world.compile();
        assert_eq!(backend(&snapshot).number(), good.number(), "{path}: connections stay");
        assert!(said(&snapshot).contains(what), "{}", said(&snapshot));
        let is_of_trust = path == "/ca.pem" || path == "/crl.pem";
        if is_of_trust {
            world.write_pem("/own.crt", "good 8");
            world.write_pem("/own.key", "key 8");
        } else {
            world.write_pem("/ca.pem", "good ca 9");
        }
        let snapshot = world.compile();
        let now = backend(&snapshot);
        assert!(now.config.is_some() && now.number() != good.number(), "{path}: the other is new");
        let ca = if is_of_trust { "good ca 1" } else { "good ca 9" };
        assert_eq!(checked_with(&snapshot).1, ca, "{path}");
    }
}

#[test]
fn names_of_a_service_entry_make_a_kind_of_their_own() {
    let named = |names: &str| {
        BACKEND.replace("  location", &format!("  subjectAltNames: [{names}]\n  location"))
    };
    let mut world = well_supplied();
    let number = |world: &mut World| {
        let snapshot = world.compile();
        assert_eq!(said(&snapshot), "");
        assert!(backend(&snapshot).config.is_some());
        backend(&snapshot).number()
    };
    let plain = number(&mut world);
    world.write("backend.yaml", &named("a.test"));
    let of_a = number(&mut world);
    world.write("backend.yaml", &named("b.test"));
    let of_b = number(&mut world);
    assert!(plain != of_a && of_a != of_b);
    // Where the rule says it, the entry does not count.
    world.write("rule.yaml", &rule("mode: SIMPLE, subjectAltNames: [c.test]"));
    let of_rule = number(&mut world);
    world.write("backend.yaml", &named("a.test"));
    assert_eq!(number(&mut world), of_rule);
    world.write("rule.yaml", &rule("mode: SIMPLE, insecureSkipVerify: true"));
    let unchecked = number(&mut world);
    world.write("backend.yaml", BACKEND);
    assert_eq!(number(&mut world), unchecked);
}
