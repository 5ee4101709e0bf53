//! Which rule takes a request, by everything that a match can look at.

use crate::harness::client::Client;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::yaml;

const HOST: &str = "web.test";

/// A rule with the match blocks `blocks`, YAML each, that answers with `name`.
fn rule(name: &str, blocks: &[&str]) -> String {
    let blocks: Vec<_> = blocks.iter().map(|block| format!("{{ {block} }}")).collect();
    format!("  - match: [ {} ]\n{}", blocks.join(", "), answer(name).replacen("  -", "   ", 1))
}

/// A rule for every request that answers with `name`.
fn answer(name: &str) -> String {
    format!("  - directResponse: {{ status: 200, body: {{ string: {name} }} }}\n")
}

/// Gateway `web` of plain servers for `web.test` on ports 80 and 8443, and `rules`.
fn builder(rules: &str) -> Builder {
    let servers = [80, 8443].map(|port| yaml::http_server(port, &[HOST], false)).concat();
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], rules))
}

fn client(gateway: &Gateway, port: u16) -> Client {
    Client::plain(gateway.address(port), HOST).unwrap()
}

/// Asks in turn on one connection: method, path with query, headers, and which rule is to answer.
fn expect(gateway: &Gateway, cases: &[(&str, &str, &str, &str)]) {
    let mut client = client(gateway, 80);
    for (method, path, headers, rule) in cases {
        let response = client.request(method, path, headers, b"").unwrap();
        assert_eq!(response.text(), *rule, "{method} {path} {headers}");
    }
}

#[test]
fn headers_are_matched_by_value_prefix_regex_and_presence() {
    let rules = [
        rule("exact", &["headers: { x-a: { exact: one } }"]),
        rule("prefix", &["headers: { x-a: { prefix: on } }"]),
        rule("regex", &["headers: { X-A: { regex: \"t.o\" } }"]),
        rule("joined", &["headers: { x-a: { exact: \"3,4\" } }"]),
        rule("two", &["headers: { x-b: {}, x-c: { regex: \"*\" } }"]),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[
            ("GET", "/", "x-a: one\r\n", "exact"),
            ("GET", "/", "X-A: only\r\n", "prefix"),
            ("GET", "/", "x-a: two\r\n", "regex"),
            ("GET", "/", "x-a: two!\r\n", "rest"),
            ("GET", "/", "x-a: 3\r\nx-a: 4\r\n", "joined"),
            ("GET", "/", "x-b:\r\nx-c: 1\r\n", "two"),
            ("GET", "/", "x-b: 1\r\n", "rest"),
            ("GET", "/", "", "rest"),
        ],
    );
}

#[test]
fn without_headers_takes_a_missing_header_for_an_empty_one() {
    let rules = [
        rule("absent", &["uri: { prefix: /absent }, withoutHeaders: { x-a: {} }"]),
        rule("not-y", &["uri: { prefix: /not-y }, withoutHeaders: { x-a: { exact: y } }"]),
        rule("not-empty", &["uri: { prefix: /e }, withoutHeaders: { x-a: { exact: \"\" } }"]),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[
            ("GET", "/absent", "", "absent"),
            ("GET", "/absent", "x-a: 1\r\n", "rest"),
            ("GET", "/not-y", "", "not-y"),
            ("GET", "/not-y", "x-a: z\r\n", "not-y"),
            ("GET", "/not-y", "x-a: y\r\n", "rest"),
            ("GET", "/e", "", "rest"),
            ("GET", "/e", "x-a: y\r\n", "not-empty"),
        ],
    );
}

#[test]
fn query_parameters_are_matched_by_the_first_of_their_name() {
    let rules = [
        rule("exact", &["queryParams: { a: { exact: \"1\" } }"]),
        rule("prefix", &["queryParams: { a: { prefix: x } }"]),
        rule("regex", &["queryParams: { a: { regex: \"[0-9]+\" } }"]),
        rule("present", &["queryParams: { b: {} }"]),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[
            ("GET", "/?a=1", "", "exact"),
            ("GET", "/?c&a=xyz", "", "prefix"),
            ("GET", "/?a=42&a=1", "", "regex"),
            ("GET", "/?b", "", "present"),
            ("GET", "/?a=&c=b", "", "rest"),
        ],
    );
}

#[test]
fn method_authority_and_scheme_are_matched_with_their_case() {
    let rules = [
        rule("method", &["method: { regex: \"PUT|POST\" }"]),
        rule("authority", &["authority: { prefix: WEB }"]),
        rule("port", &["authority: { exact: \"web.test:81\" }"]),
        rule("https", &["scheme: { exact: https }"]),
        rule("http", &["scheme: { exact: http }"]),
    ];
    let gateway = builder(&rules.concat()).settings("http: { trusted_proxies: 1 }\n").start();
    expect(
        &gateway,
        &[
            ("POST", "/", "content-length: 0\r\n", "method"),
            ("GET", "/", "x-forwarded-proto: https\r\n", "https"),
            ("GET", "/", "", "http"),
        ],
    );
    for (host, rule) in [("WEB.test", "authority"), ("web.test:81", "port")] {
        let mut client = Client::plain(gateway.address(80), host).unwrap();
        assert_eq!(client.get("/").text(), rule, "{host}");
    }
}

#[test]
fn blocks_are_alternatives_and_what_stands_in_one_must_all_hold() {
    let rules = [
        rule(
            "first",
            &[
                "uri: { prefix: /a }, method: { exact: PUT }",
                "uri: { exact: /b }, headers: { x: {} }",
            ],
        ),
        rule("second", &["uri: { prefix: /a }"]),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[
            ("PUT", "/a", "content-length: 0\r\n", "first"),
            ("GET", "/b", "x: 1\r\n", "first"),
            ("GET", "/a", "x: 1\r\n", "second"),
            ("PUT", "/b", "content-length: 0\r\n", "rest"),
        ],
    );
}

#[test]
fn paths_match_in_any_case_where_a_block_says_so() {
    let rules = [
        rule("exact", &["uri: { exact: /One }, ignoreUriCase: true"]),
        rule("prefix", &["uri: { prefix: /TWO/ }, ignoreUriCase: true"]),
        rule("case", &["uri: { prefix: /one }"]),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[
            ("GET", "/oNE", "", "exact"),
            ("GET", "/two/x", "", "prefix"),
            ("GET", "/one/x", "", "case"),
            ("GET", "/ONE/x", "", "rest"),
        ],
    );
}

#[test]
fn a_block_may_be_for_one_port_one_gateway_or_one_source() {
    let rules = [
        rule("port", &["port: 8443"]),
        rule("other-gateway", &["uri: { prefix: /g }, gateways: [ other ]"]),
        rule("gateway", &["uri: { prefix: /g }, gateways: [ default/web ]"]),
        rule("mesh", &["uri: { prefix: /m }, gateways: [ mesh ]"]),
        rule("foreign", &["uri: { prefix: /s }, sourceLabels: { istio: egress }"]),
        rule("away", &["uri: { prefix: /s }, sourceNamespace: default"]),
        rule(
            "source",
            &["uri: { prefix: /s }, sourceLabels: { istio: ingressgateway }, \
               sourceNamespace: istio-system"],
        ),
        answer("rest"),
    ];
    let gateway = builder(&rules.concat()).start();
    expect(
        &gateway,
        &[("GET", "/g", "", "gateway"), ("GET", "/m", "", "rest"), ("GET", "/s", "", "source")],
    );
    assert_eq!(client(&gateway, 8443).get("/g").text(), "port");
}

#[test]
fn what_the_gateway_vouches_for_cannot_be_claimed_by_a_client() {
    let rules = [
        rule("internal", &["headers: { x-envoy-internal: {} }"]),
        rule("https", &["headers: { x-forwarded-proto: { exact: https } }"]),
        rule("client", &["headers: { x-forwarded-for: { exact: 127.0.0.1 } }"]),
    ];
    let gateway = builder(&rules.concat()).start();
    let claims = "x-envoy-internal: true\r\nx-forwarded-proto: https\r\n";
    expect(&gateway, &[("GET", "/", claims, "client")]);
}

#[test]
fn of_several_virtual_services_the_oldest_is_first_and_catch_alls_are_last() {
    let service = |name: &str, created: &str, export: &str, rules: &str| {
        let metadata = format!("{{ name: {name}, creationTimestamp: \"{created}\" }}");
        yaml::virtual_service(name, "web", &[HOST], rules)
            .replacen(&format!("{{ name: {name} }}"), &metadata, 1)
            .replacen("spec:\n", &format!("spec:\n  exportTo: [ {export} ]\n"), 1)
    };
    let young = rule("young", &["uri: { prefix: /x }"]);
    let services = [
        service("a", "2024-01-02T00:00:00Z", "\"*\"", &young),
        service("b", "2024-01-01T00:00:00Z", "\"*\"", &(rule("old", &["uri: { prefix: /x }"]))),
        service("c", "2023-01-01T00:00:00Z", "\"*\"", &answer("rest")),
        service("d", "2022-01-01T00:00:00Z", "\"~\"", &rule("nobody", &["uri: { prefix: /x }"])),
        service("e", "2022-01-01T00:00:00Z", "shop", &rule("other", &["uri: { prefix: /x }"])),
        service(
            "f",
            "2025-01-01T00:00:00Z",
            "istio-system",
            &rule("own", &["uri: { prefix: /x }, port: 8443"]),
        ),
    ];
    let gateway = builder("").resource("route.yaml", &yaml::documents(&services)).start();
    expect(&gateway, &[("GET", "/x", "", "old"), ("GET", "/", "", "rest")]);
    assert_eq!(client(&gateway, 8443).get("/x").text(), "own", "exported to it, before public");
}

#[test]
fn a_route_is_named_after_its_rule_and_its_block() {
    let rules = "  - name: rule\n    match: [ { name: block } ]\n    \
                 directResponse: { status: 200 }\n";
    let gateway = builder(rules).start();
    assert_eq!(client(&gateway, 80).get("/").status, 200);
    let log = gateway.access_log(1);
    assert!(log[0].ends_with(" rule.block"), "{log:#?}");
}
