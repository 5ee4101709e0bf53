//! `config/fields.md` against the binary: every row's example is checked, and every test that it
//! names exists.
//!
//! Another kind is one more section there and one more arm in [`resource`].

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::harness::certificate::Authority;
use crate::harness::gateway::run_to_end;
use crate::harness::yaml;

const TABLE: &str = include_str!("../../config/fields.md");

/// One row of the table.
struct Row {
    /// Heading of its section.
    kind: &'static str,
    field: &'static str,
    support: &'static str,
    example: &'static str,
    /// A test's name, or why the field is not supported.
    shown: &'static str,
}

fn rows() -> Vec<Row> {
    let sections = TABLE.split("\n## ").skip(1);
    let rows = sections.flat_map(|section| {
        let kind = section.lines().next().unwrap();
        section.lines().filter(|line| line.starts_with("| `")).map(move |line| row(kind, line))
    });
    rows.collect()
}

fn row(kind: &'static str, line: &'static str) -> Row {
    let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
    let [field, support, example, shown] = cells[..] else { panic!("four cells: {line}") };
    let code = |text: &'static str| text.trim_matches('`');
    Row { kind, field: code(field), support, example: code(example), shown: shown.trim() }
}

/// A resource that uses `row`'s field, and what else it needs.
fn resource(row: &Row) -> String {
    match row.kind {
        "Gateway" => gateway(row),
        "VirtualService" => virtual_service(row),
        "DestinationRule" => destination_rule(row),
        "ServiceEntry" => service_entry(row),
        "WorkloadEntry" => workload_entry(row),
        kind => panic!("no test for {kind}"),
    }
}

/// What `delegate: { name: d, namespace: shop }` means.
const DELEGATE: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: d, namespace: shop }
spec: { http: [ { directResponse: { status: 200 } } ] }
";

/// What `subset: v1` means.
const SUBSET: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: web }
spec: { host: web.test, subsets: [ { name: v1 } ] }
";

/// A Gateway whose only server is right but for what `row` changes.
fn gateway(row: &Row) -> String {
    let is_server = row.field.starts_with("servers[]");
    let example = if is_server { row.example } else { "" };
    let fields = [
        ("port:", "port: { number: 443, name: https, protocol: HTTPS }"),
        ("hosts:", "hosts: [ web.test ]"),
        ("tls:", "tls: { mode: SIMPLE, credentialName: web }"),
    ];
    let others = fields.iter().filter(|(name, _)| !example.contains(name)).map(|(_, text)| *text);
    let server: Vec<_> = others.chain((!example.is_empty()).then_some(example)).collect();
    let more = if is_server { "" } else { row.example };
    yaml::documents(&[
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{ name: web }}\n\
             spec:\n  {more}\n  servers: [ {{ {} }} ]\n",
            server.join(", ")
        ),
        web_secret(),
        yaml::secret("clients", &[("ca.crt", &PEMS.ca)]),
    ])
}

fn web_secret() -> String {
    let Pems { ca, chain, key, .. } = &*PEMS;
    yaml::secret("web", &[("tls.crt", chain), ("tls.key", key), ("ca.crt", ca)])
}

/// What the files below `/certs/` hold, and the Secrets.
struct Pems {
    ca: String,
    crl: String,
    chain: String,
    key: String,
}

static PEMS: LazyLock<Pems> = LazyLock::new(|| {
    let authority = Authority::new();
    let leaf = authority.leaf(&["web.test", "*.web.test"]);
    let (ca, crl) = (authority.pem(), authority.revocation_list(&[]));
    Pems { ca, crl, chain: leaf.chain_pem, key: leaf.key_pem }
});

fn virtual_service(row: &Row) -> String {
    let list = ["tls", "tcp"].into_iter().find(|list| row.field.starts_with(&format!("{list}[]")));
    let rule = row.field.split_once("[].").map_or("name: x", |_| row.example);
    let actions = ["route:", "redirect:", "directResponse:", "delegate:"];
    let action = if actions.iter().any(|action| rule.contains(action)) {
        ""
    } else {
        ", route: [ { destination: { host: web.test, port: { number: 80 } } } ]"
    };
    let rules = format!("  - {{ {rule}{action} }}\n");
    let hosts = ["web.test"];
    let mut service = match list {
        Some(list) => yaml::l4_service("v", "web", &hosts, list, &rules),
        None => yaml::virtual_service("v", "web", &hosts, &rules),
    };
    if !row.field.contains("[].") {
        let name = row.example.split(':').next().unwrap();
        let others = service.lines().filter(|line| !line.starts_with(&format!("  {name}:")));
        service = others.map(|line| format!("{line}\n")).collect::<String>();
        service = service.replacen("spec:\n", &format!("spec:\n  {}\n", row.example), 1);
    }
    let server = match list {
        Some("tls") => yaml::passthrough_server(443, &["*"]),
        Some(_) => yaml::server(9000, "TCP", &["*"], ""),
        None => yaml::http_server(80, &["*"], false),
    };
    yaml::documents(&[
        yaml::gateway("web", &server),
        service,
        yaml::backend("web.test", 80),
        DELEGATE.to_owned(),
        SUBSET.to_owned(),
    ])
}

fn destination_rule(row: &Row) -> String {
    let host = if row.field == "host" { "" } else { "  host: web.test\n" };
    let field = row.example;
    yaml::documents(&[
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{ name: web }}\nspec:\n{host}  {field}\n"
        ),
        yaml::backend("web.test", 80),
        web_secret(),
    ])
}

/// A ServiceEntry with what every one has, where `row` says nothing else.
fn service_entry(row: &Row) -> String {
    let mut spec = String::new();
    for line in [
        "hosts: [ web.test ]",
        "ports: [ { number: 80, name: http, protocol: HTTP } ]",
        "resolution: STATIC",
        "endpoints: [ { address: 10.0.0.1 } ]",
    ] {
        let (name, _) = line.split_once(':').unwrap();
        let is_other = row.example.starts_with(&format!("{name}:"));
        let is_needless = name == "endpoints"
            && ["workloadSelector", "resolution"].iter().any(|field| row.field.starts_with(field));
        if !is_other && !is_needless {
            spec += &format!("  {line}\n");
        }
    }
    let field = row.example;
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: web }}\n\
         spec:\n{spec}  {field}\n"
    )
}

fn workload_entry(row: &Row) -> String {
    let address = if row.field == "address" { "" } else { "  address: 10.0.0.1\n" };
    let field = row.example;
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: web }}\n\
         spec:\n{address}  {field}\n"
    )
}

/// What `check` says about each row: the lines that name its file.
fn findings(rows: &[Row]) -> Vec<Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let pems = &*PEMS;
    let files = [
        ("tls.crt", &pems.chain),
        ("tls.key", &pems.key),
        ("ca.crt", &pems.ca),
        ("ca.crl", &pems.crl),
    ];
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let certs = format!("{}/", directory.path().display());
    rows.iter()
        .enumerate()
        .map(|(index, row)| {
            let name = format!("row-{index}.yaml");
            let path = directory.path().join(&name);
            fs::write(&path, resource(row).replace("/certs/", &certs)).unwrap();
            let (_, text) = run_to_end(&["check", path.to_str().unwrap()]);
            text.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
        })
        .collect()
}

#[test]
fn every_field_is_treated_as_the_table_says() {
    let rows = rows();
    assert!(rows.len() > 40, "{}", rows.len());
    for (row, findings) in rows.iter().zip(findings(&rows)) {
        let last = row.field.rsplit(['.', '[']).next().unwrap().trim_end_matches(']');
        let about_it = |severity: &str| {
            let found = |line: &&String| line.contains(severity) && line.contains(last);
            findings.iter().any(|line| found(&line))
        };
        let right = match row.support {
            "yes" => findings.is_empty(),
            "no effect" | "yes, warned" => {
                about_it(": warning: ") && !findings.iter().any(|l| l.contains("error:"))
            }
            "no" => about_it(": error: "),
            other => panic!("{}: `{other}` is not one of the table's words", row.field),
        };
        let Row { field, support, example, .. } = row;
        assert!(right, "{field} is not `{support}` in `{example}`:\n{}", findings.join("\n"));
        let name = row.field.rsplit("].").next().unwrap();
        let steps = name.split(['.', '@']).filter(|step| !step.is_empty());
        let missing: Vec<_> =
            steps.filter(|step| !example.contains(step.trim_end_matches("[]"))).collect();
        assert!(missing.is_empty(), "the example of {field} does not use {missing:?}");
    }
}

#[test]
fn every_test_that_the_table_names_exists() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway");
    for row in rows().iter().filter(|row| row.support.starts_with("yes")) {
        let name = row.shown.trim_matches('`');
        let (module, test) = name.split_once("::").unwrap_or_else(|| panic!("no test: {name}"));
        let text = fs::read_to_string(tests.join(format!("{module}.rs"))).unwrap();
        assert!(
            text.contains(&format!("#[test]\nfn {test}(")),
            "{name} of {} is missing",
            row.field
        );
    }
}

#[test]
fn no_field_stands_twice() {
    let mut seen = BTreeSet::new();
    for row in rows() {
        assert!(seen.insert((row.kind, row.field)), "{} {}", row.kind, row.field);
    }
}
