//! What operators look at: the admin, status and metrics addresses and the access log.

use std::ffi::OsStr;
use std::process::Command;

use regex::Regex;

use crate::harness::backend::Backend;
use crate::harness::certificate::Leaf;
use crate::harness::gateway::{Driver, Gateway, QUIET, on_each_driver};
use crate::harness::h2::H2cBackend;
use crate::harness::{eventually, outside, within, yaml};

const HOST: &str = "web.test";

fn start(backend: &Backend) -> Gateway {
    Gateway::builder().serving(HOST, &yaml::backend("backend.test", backend.port())).start()
}

#[test]
fn certs_shows_path_serial_and_days() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let text = gateway.admin_get("/certs").text();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let entry = &json["certificates"][0]["cert_chain"][0];
    assert!(entry["path"].as_str().unwrap().ends_with("/certs/web/tls.crt"), "{text}");
    assert_eq!(entry["serial_number"].as_str().unwrap(), serial(&gateway), "{text}");
    assert_eq!(entry["subject_alt_names"][0]["dns"], HOST);
    assert!(entry["days_until_expiration"].as_str().unwrap().parse::<u64>().is_ok(), "{text}");
    let rfc3339 = Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$").unwrap();
    for time in ["valid_from", "expiration_time"] {
        let time = entry[time].as_str().unwrap();
        assert!(rfc3339.is_match(time), "{time}");
    }
}

/// The serial number of the served certificate, in lower-case hex without leading zeros.
fn serial(gateway: &Gateway) -> String {
    let der = gateway.client(HOST).certificate();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    certificate.raw_serial_as_string().replace(':', "").trim_start_matches('0').to_owned()
}

#[test]
fn the_metrics_tell_the_driver_of_the_workers() {
    on_each_driver(|driver| {
        let gateway = Gateway::builder().driver(driver).workers(2).start();
        let text = gateway.admin_get("/stats/prometheus").text();
        let epoll = text.contains("ringgate_workers{driver=\"epoll\",denied=\"\"} 2\n");
        assert_eq!(epoll, driver == Driver::Epoll, "{text}");
        assert!(text.contains("ringgate_workers{driver="), "{text}");
    });
}

#[test]
fn an_administration_that_others_reach_is_warned_of() {
    let start = |address: &str| {
        let settings = format!(
            "source: {{ directory: DIRECTORY/resources }}\n\
             admin: {{ address: \"{address}:0\" }}\n\
             status: {{ address: \"127.0.0.1:0\" }}\n\
             metrics: {{ address: \"127.0.0.1:0\" }}\n"
        );
        Gateway::builder().only_settings(&settings).start()
    };
    let warning = "sees the whole configuration and can end the gateway";
    assert!(start("0.0.0.0").logged(warning));
    assert!(!start("127.0.0.1").logged(warning));
}

#[test]
fn no_private_key_shows_anywhere() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let leaf: Leaf = gateway.authority().leaf(&[HOST]);
    gateway.write_certificate("web", &leaf);
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: s, namespace: istio-system }}\n\
         stringData:\n  tls.crt: {:?}\n  tls.key: {:?}\n",
        leaf.chain_pem, leaf.key_pem
    );
    gateway.write_resource("secret.yaml", &secret);
    eventually("the certificate is served", || gateway.client(HOST).certificate() == leaf.der);
    let secret_line = leaf.key_pem.lines().nth(1).unwrap();
    for path in ["/certs", "/config_dump", "/listeners", "/stats/prometheus"] {
        let text = gateway.admin_get(path).text();
        assert!(!text.contains(secret_line) && !text.contains("PRIVATE KEY"), "{path}: {text}");
    }
    assert!(!gateway.logged(secret_line) && !gateway.logged("PRIVATE KEY"));
}

#[test]
fn config_dump_and_listeners_are_json_that_names_what_is_served() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let dump = gateway.admin_get("/config_dump");
    assert_eq!(dump.status, 200);
    let _: serde_json::Value = serde_json::from_slice(&dump.body).unwrap();
    assert!(dump.text().contains(HOST), "{}", dump.text());
    let listeners = gateway.admin_get("/listeners").text();
    assert!(listeners.contains(&gateway.address(443).port().to_string()), "{listeners}");
}

#[test]
fn readiness_is_told_on_both_addresses_and_nothing_else_on_the_status_port() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    assert_eq!(gateway.admin_get("/ready").status, 200);
    let status = |path: &str| gateway.try_plain_get(gateway.status(), path).unwrap().status;
    assert_eq!(status("/healthz/ready"), 200);
    for path in ["/", "/certs", "/config_dump", "/stats/prometheus"] {
        assert_eq!(status(path), 404, "{path}");
    }
    assert_eq!(gateway.admin_get("/no-such-page").status, 404);
}

#[test]
fn every_page_is_read_and_every_command_is_posted() {
    let Some(_) = outside::tool("curl") else { return };
    let backend = Backend::start("a");
    let mut gateway = start(&backend);
    assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    let curl = |options: &[&str], path: &str| {
        let mut curl = outside::tool("curl").unwrap();
        curl.args(["-s", "-w", "\n%{http_code}"]).args(options);
        outside::output(curl.arg(format!("http://{}{path}", gateway.admin()))).1
    };
    let cluster = format!("outbound|80||backend.test::127.0.0.1:{}", backend.port());
    let listener = format!("::127.0.0.1:{}", gateway.address(443).port());
    let pages = [
        ("/", "<a href=\"/certs\">"),
        ("/certs", "\"cert_chain\""),
        ("/clusters", cluster.as_str()),
        ("/config_dump", HOST),
        ("/listeners", listener.as_str()),
        ("/listeners?format=json", "\"listener_statuses\""),
        ("/ready", "LIVE"),
        ("/server_info", "\"state\": \"LIVE\""),
        ("/stats", "envoy_server_live: 1"),
        ("/stats/prometheus", "# TYPE istio_requests_total counter"),
    ];
    for (path, part) in pages {
        let text = curl(&[], path);
        assert!(text.contains(part) && text.ends_with("\n200"), "{path}: {text}");
        assert!(curl(&["-I"], path).ends_with("\n200"), "HEAD {path}");
        assert!(curl(&["-d", ""], path).ends_with("\n405"), "POST {path}");
    }
    let commands =
        ["/healthcheck/fail", "/healthcheck/ok", "/logging?level=error", "/quitquitquit"];
    for path in commands {
        assert!(curl(&[], path).ends_with("\n405"), "GET {path}");
        let foreign = curl(&["-d", "", "-H", "origin: http://evil.test"], path);
        assert!(foreign.ends_with("\n403"), "from a page elsewhere {path}");
    }
    for path in commands {
        assert!(curl(&["-d", ""], path).ends_with("\n200"), "POST {path}");
    }
    assert_eq!(gateway.wait().code(), Some(0), "/quitquitquit ends it");
}

#[test]
fn a_process_whose_port_is_taken_says_which() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = yaml::gateway("web", &yaml::http_server(port, &["*"], true));
    let gateway = Gateway::builder().resource("gateway.yaml", &text).spawn();
    eventually("the log names the port", || gateway.logged(&format!(":{port}")));
    assert!(!gateway.logged("panicked"));
}

#[test]
fn a_process_without_the_directory_of_its_log_says_what_to_make() {
    let settings = "source: { directory: DIRECTORY/resources }\n\
                    access_log: { path: DIRECTORY/none/log }\n";
    let mut gateway = Gateway::builder().only_settings(settings).spawn();
    assert_eq!(gateway.wait().code(), Some(1));
    let told = "/none/log: No such file or directory (os error 2); make the directory that it is \
                to be in, or change `access_log.path`";
    eventually("it says so", || gateway.logged(told));
}

#[test]
fn metrics_parse_and_count() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    for _ in 0..3 {
        assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    }
    let count = || -> f64 {
        let text = gateway.try_plain_get(gateway.metrics(), "/stats/prometheus").unwrap().text();
        let samples = parse_metrics(&text);
        let requests = samples.iter().filter(|(name, _)| name.starts_with("istio_requests_total{"));
        requests.filter(|(name, _)| name.contains("response_code=\"200\"")).map(|(_, n)| n).sum()
    };
    eventually("three requests are counted", || (count() - 3.0).abs() < 0.5);
    assert!(!within(QUIET, || count() > 3.5), "counted once each");
    let admin = gateway.admin_get("/stats/prometheus").text();
    assert!(!parse_metrics(&admin).is_empty());
}

#[test]
fn pages_come_in_gzip_for_who_takes_it_on_both_ports() {
    let (Some(curl), Some(python)) = (outside::tool("curl"), outside::tool("python3")) else {
        return;
    };
    let (curl, python) = (curl.get_program(), python.get_program());
    let gateway = start(&Backend::start("a"));
    let run = |program: &OsStr, arguments: &[&str]| {
        let (code, text) = outside::output(Command::new(program).args(arguments));
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        text
    };
    for (address, path) in [
        (gateway.admin(), "/stats/prometheus"),
        (gateway.metrics(), "/stats/prometheus"),
        (gateway.admin(), "/config_dump"),
    ] {
        let url = format!("http://{address}{path}");
        let plain = run(curl, &["-sSi", &url]).to_lowercase();
        assert!(plain.contains("vary: accept-encoding\r\n"), "{path}: {plain}");
        assert!(!plain.contains("content-encoding"), "{path}: {plain}");
        let sizes = |more: &[&str]| -> usize {
            let common = ["-sS", "-o", "/dev/null", "-w", "%{size_download}", &url];
            run(curl, &[&common, more].concat()).parse().unwrap()
        };
        let (all, packed) = (sizes(&[]), sizes(&["--compressed"]));
        assert!(packed * 2 < all, "{path}: {packed} of {all}");
        let refused = sizes(&["-H", "accept-encoding: gzip;q=0, *"]);
        assert!(refused * 2 > all, "{path}: {refused} of {all}");
        let unpacked = run(curl, &["-sSi", "--compressed", &url]).to_lowercase();
        assert!(unpacked.contains("content-encoding: gzip\r\n"), "{path}: {unpacked}");
        assert_eq!(run(python, &["-c", UNPACK, &url]).trim(), "gzip, and the page in it");
    }
    assert!(gateway.admin_get("/ready").header("vary").is_none(), "too short to be packed");
}

/// Asks for a page in gzip, and unpacks it with what is not ours; it must be whole.
const UNPACK: &str = "
import gzip, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Accept-Encoding': 'gzip'})
with urllib.request.urlopen(request) as answer:
    assert answer.headers['Content-Encoding'] == 'gzip', answer.headers
    text = gzip.decompress(answer.read()).decode()
assert 'istio_build' in text or 'listeners' in text, text
assert text.endswith('\\n'), text[-100:]
print('gzip, and the page in it')
";

/// Name with labels, and value, of every sample; each line must be of the exposition format.
fn parse_metrics(text: &str) -> Vec<(String, f64)> {
    let label = r#"[a-zA-Z_]\w*="(\\.|[^"\\])*""#;
    let name = format!(r"[a-zA-Z_:][\w:]*(\{{({label}(,{label})*,?)?\}})?");
    let sample = Regex::new(&format!(r"^(?<name>{name}) (?<value>\S+)( \d+)?$")).unwrap();
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let parts = sample.captures(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            (parts["name"].to_owned(), parts["value"].parse().unwrap())
        })
        .collect()
}

#[test]
fn the_access_log_has_envoys_columns() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let headers = "user-agent: me\r\ncontent-length: 5\r\n";
    assert_eq!(client.request("POST", "/body?q=1", headers, b"hello").unwrap().status, 200);
    let line = gateway.access_log(1).remove(0);
    let expected = [
        r#"^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] "POST /body\?q=1 HTTP/1\.1" 200 - "#,
        r#"via_upstream - "-" 5 5 \d+ \d+ "127\.0\.0\.1" "me" "[0-9a-f-]{36}" "web\.test" "#,
        r#""127\.0\.0\.1:BACKEND" outbound\|80\|\|backend\.test 127\.0\.0\.1:\d+ "#,
        r"127\.0\.0\.1:GATEWAY 127\.0\.0\.1:\d+ web\.test \S+$",
    ]
    .concat()
    .replace("BACKEND", &backend.port().to_string())
    .replace("GATEWAY", &gateway.address(443).port().to_string());
    assert!(Regex::new(&expected).unwrap().is_match(&line), "{line}\n{expected}");
}

#[test]
fn the_access_log_has_our_end_of_an_http2_connection_to_an_endpoint() {
    let backend = H2cBackend::start();
    let resources = yaml::backend_h2c("backend.test", backend.port());
    let gateway = Gateway::builder().serving(HOST, &resources).start();
    let mut client = gateway.client(HOST);
    (0..2).for_each(|_| assert_eq!(client.get("/").status, 200));
    let ours = Regex::new(r" outbound\|80\|\|backend\.test (127\.0\.0\.1:\d+) ").unwrap();
    let lines = gateway.access_log(2);
    let of = |at: usize| ours.captures(&lines[at]).map(|found| found[1].to_owned());
    assert!(of(0).is_some() && of(0) == of(1), "{lines:?}");
}

#[test]
fn the_access_log_can_be_json() {
    let backend = Backend::start("a");
    let gateway = Gateway::builder()
        .serving(HOST, &yaml::backend("backend.test", backend.port()))
        .log_format("json")
        .start();
    let mut client = gateway.client(HOST);
    let headers = "user-agent: \"me\" \u{fc}\r\ncontent-length: 5\r\n";
    assert_eq!(client.request("POST", "/body?q=1", headers, b"hello").unwrap().status, 200);
    assert!(gateway.try_client("nobody.test").is_err());
    let lines = gateway.access_log(2);
    let lines: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let request = lines.iter().find(|line| line["method"] == "POST").unwrap();
    assert_eq!(request["path"], "/body?q=1");
    assert_eq!(request["response_code"], 200);
    assert_eq!(request["bytes_sent"], 5);
    assert!(request["user_agent"].as_str().unwrap().starts_with("\"me\""), "{request}");
    assert_eq!(request["upstream_host"], format!("127.0.0.1:{}", backend.port()));
    assert!(request["upstream_service_time"].is_string(), "{request}");
    let local = request["upstream_local_address"].as_str().unwrap();
    assert!(local.starts_with("127.0.0.1:"), "{request}");
    let refused = lines.iter().find(|line| line["method"].is_null()).unwrap();
    assert_eq!(refused["response_code_details"], "filter_chain_not_found");
    assert_eq!(refused["response_flags"], "NR");
    assert_eq!(refused["requested_server_name"], "nobody.test");
    let keys: Vec<_> = refused.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 24, "{keys:?}");
}

#[test]
fn what_a_client_sends_cannot_forge_a_log_line() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let agent = "user-agent: \" 200 forged \\ \u{7f}\r\n";
    // Refused or passed on: either way it is one line.
    let _ = client.request("GET", "/status/200", agent, b"");
    assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    let lines = gateway.access_log(2);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(!lines[0].contains("\" 200 forged \\ "), "{}", lines[0]);
}
