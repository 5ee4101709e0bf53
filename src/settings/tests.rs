//! Settings files, good and bad.

use super::*;

fn errors(text: &str) -> String {
    Settings::parse(Path::new("r.yaml"), text.as_bytes()).unwrap_err().to_string()
}

fn parsed(text: &str) -> Settings {
    Settings::parse(Path::new("r.yaml"), text.as_bytes()).unwrap()
}

#[test]
fn nothing_means_the_defaults() {
    for text in ["", "# nothing\n", "workers:\n", "{}"] {
        assert_eq!(parsed(text), Settings::default(), "{text:?}");
    }
}

#[test]
fn every_key_is_read() {
    let settings = parsed(
        "workers: { count: 3, pin: true, backend: epoll, balance: off }
listen: { address: '::1', ports: { 443: 0, 80: 81 }, proxy_protocol: [10.0.0.0/8, '::1'] }
gateway: { namespace: edge, labels: { app: gw, version: '1' }, locality: r/z/s }
source: { directory: /srv/conf }
files: { root: /srv/root }
dns: { servers: [10.0.0.1, '::1', '127.0.0.1:5353'] }
tls: { provider: aws-lc-rs }
http: { misdirected: 404, trusted_proxies: 2 }
limits: { idle_timeout: 500ms, head_bytes_max: 16KiB, connections_max: 7, drain_timeout: 0s }
admin: { address: '127.0.0.1:1' }
status: { address: '[::1]:2' }
metrics: { address: 127.0.0.1:3 }
access_log: { path: off, format: json }
",
    );
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let text = str::to_owned;
    let expected = Settings {
        workers: Workers {
            count: Some(3),
            pin: Some(true),
            backend: Backend::Epoll,
            balance: Balancing::Off,
        },
        listen: Listen {
            address: "::1".parse().unwrap(),
            ports: BTreeMap::from([(443, 0), (80, 81)]),
            proxy_protocol: vec![
                Network { address: "10.0.0.0".parse().unwrap(), prefix: 8 },
                Network { address: "::1".parse().unwrap(), prefix: 128 },
            ],
        },
        gateway: Gateway {
            namespace: text("edge"),
            labels: BTreeMap::from([(text("app"), text("gw")), (text("version"), text("1"))]),
            locality: text("r/z/s"),
        },
        source: Source { directory: "/srv/conf".into() },
        files: Files { root: "/srv/root".into() },
        dns: Dns { servers: ["10.0.0.1:53", "[::1]:53", "127.0.0.1:5353"].map(address).into() },
        tls: Tls { provider: Provider::AwsLcRs },
        http: Http { misdirected: Misdirected::NotFound, trusted_proxies: 2 },
        limits: Limits {
            idle_timeout: Some(Duration::from_millis(500)),
            head_bytes_max: Some(16 * 1024),
            connections_max: Some(7),
            drain_timeout: Some(Duration::ZERO),
            ..Limits::default()
        },
        admin: Admin { address: address("127.0.0.1:1") },
        status: Status { address: address("[::1]:2") },
        metrics: Metrics { address: address("127.0.0.1:3") },
        access_log: AccessLog { path: None, format: LogFormat::Json },
    };
    assert_eq!(settings, expected);
}

#[test]
fn every_mistake_is_reported_with_its_line() {
    let text = "workers:
  count: 0
  pni: true
  backend: kqueue
listen:
  address: localhost
  ports: { 0: 80, 443: 99999, 80: 1, 80: 2 }
  proxy_protocol: [10.0.0.0/8, 10.0.0.0/33, [], lb.example.com]
gateway: { labels: { version: 1 }, locality: r//s }
limits:
  head_bytes_max: 1KiB
  idle_timeout: 15
  head_timeout: 0s
admin: nowhere
wrokers: {}
surprise: {}
admin: {}
";
    let expected = "\
r.yaml:2: workers.count: must be `auto` or a number from 1 to 1024, not `0`
r.yaml:3: workers.pni: unknown key, did you mean `pin`?
r.yaml:4: workers.backend: must be `auto` or `io_uring` or `epoll`, not `kqueue`
r.yaml:6: listen.address: must be an IP address such as `0.0.0.0` or `::`, not `localhost`
r.yaml:7: listen.ports.0: the key must be a number from 1 to 65535, not `0`
r.yaml:7: listen.ports.443: must be a number from 0 to 65535, not `99999`
r.yaml:7: listen.ports.80: stands here for the second time
r.yaml:8: listen.proxy_protocol[1]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not `10.0.0.0/33`
r.yaml:8: listen.proxy_protocol[2]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not a list
r.yaml:8: listen.proxy_protocol[3]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not `lb.example.com`
r.yaml:9: gateway.labels.version: must be text, put it in quotes, not `1`
r.yaml:9: gateway.locality: must be a region, or `region/zone`, or `region/zone/subzone`, not `r//s`
r.yaml:11: limits.head_bytes_max: must be bytes or a size such as `64KiB`, from 8192 to 16777216 \
bytes, not `1KiB`
r.yaml:12: limits.idle_timeout: must be a duration such as `500ms`, `15s`, `1m` or `1h`, not `15`
r.yaml:13: limits.head_timeout: must be longer than nothing, not `0s`
r.yaml:14: admin: must be keys and values, not `nowhere`
r.yaml:15: wrokers: unknown key, did you mean `workers`?
r.yaml:16: surprise: unknown key, there are workers, listen, gateway, source, files, dns, tls, \
http, limits, admin, status, metrics, access_log
r.yaml:17: admin: stands here for the second time";
    assert_eq!(errors(text), expected);
}

#[test]
fn what_is_no_settings_file_is_said() {
    let two = errors("workers: {}\n---\nlisten: {}\n");
    assert_eq!(two, "r.yaml:3: holds several documents; a settings file is a single one");
    let resource = "apiVersion: v1\nkind: Secret\nmetadata: {}\n";
    assert_eq!(
        errors(resource),
        "r.yaml:1: is a Kubernetes resource, not a settings file; resources belong below \
             `source.directory`"
    );
    assert!(
        errors("a:\n\tb: c\n").ends_with("YAML is indented with spaces, never with tabs"),
        "{}",
        errors("a:\n\tb: c\n")
    );
    let directory = Settings::load(Path::new("/")).unwrap_err().to_string();
    assert_eq!(directory, "/: is no file; name the settings file itself");
}

#[test]
fn what_the_environment_tells_of_the_locality_may_lack_parts() {
    let told = |told| value::locality_told(told);
    for (text, locality) in [("", ""), ("/", ""), ("r/", "r"), ("r/z", "r/z"), ("/z", "/z")] {
        assert_eq!(told(text).as_deref(), Ok(locality));
    }
    let wrong = "must be a region, or `region/zone`, or `region/zone/subzone`, not `a/b/c/d`";
    assert_eq!(told("a/b/c/d"), Err(wrong.to_owned()));
}

#[test]
fn numbers_in_quotes_and_windows_line_ends() {
    assert_eq!(
        errors("listen: { ports: { 443: '8443' } }"),
        "r.yaml:1: listen.ports.443: must be a number from 0 to 65535, not the text `8443` \
             (leave out the quotes)"
    );
    assert_eq!(parsed("workers:\r\n  count: 3\r\n"), parsed("workers:\n  count: 3\n"));
}

#[test]
fn what_is_no_yaml_or_no_file_is_said() {
    assert_eq!(
        errors("listen: { ports: { 80: 8080\nfiles: {}\n"),
        "r.yaml:2: is not YAML: while parsing a flow mapping, did not find expected ',' or \
             '}'; a comma between two entries is missing, or the bracket after the last"
    );
    assert_eq!(errors("- a\n"), "r.yaml:1: must be keys and values, not a list");
    let missing = Settings::load(Path::new("/nowhere/r.yaml")).unwrap_err().to_string();
    assert_eq!(
        missing,
        "/nowhere/r.yaml: cannot be opened: No such file or directory (os error 2); make it, \
             `{}` is enough to begin with, or change `--settings`"
    );
}

#[test]
fn keys_that_need_a_restart_keep_their_value_until_then() {
    let old = Settings::default();
    let new = parsed("workers: { count: 9 }\nadmin: { address: '[::]:1' }\nfiles: { root: /a }");
    assert_eq!(old.changed_needs_restart(&new), ["workers.count", "admin.address"]);
    let after = old.reloaded(&new);
    assert_eq!(after.files.root, Path::new("/a"));
    assert_eq!(old.changed_needs_restart(&after), [""; 0]);
    assert_eq!(old.changed_needs_restart(&old), [""; 0]);
}

/// The keys of a mapping of mappings, with the section before each.
fn keys_of(yaml: &str) -> Vec<String> {
    let sections: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
    let sections = sections.as_object().unwrap();
    let keys = |section: &str, keys: &serde_json::Value| -> Vec<String> {
        keys.as_object().unwrap().keys().map(|key| format!("{section}.{key}")).collect()
    };
    sections.iter().flat_map(|(name, section)| keys(name, section)).collect()
}

#[test]
fn the_readme_has_a_row_for_every_key_and_says_what_a_hangup_does() {
    let readme = include_str!("../../README.md");
    let shipped = include_str!("../../config/ringgate.yaml");
    let other = parsed(
        "workers: { count: 3, pin: true, backend: epoll, balance: off }
listen: { address: '::1', ports: { 443: 0 }, proxy_protocol: [0.0.0.0/0] }
tls: { provider: ring }
admin: { address: '127.0.0.1:1' }
status: { address: '127.0.0.1:2' }
metrics: { address: '127.0.0.1:3' }
access_log: { path: off, format: json }
",
    );
    let restart = Settings::default().changed_needs_restart(&other);
    let keys = keys_of(shipped);
    for key in &keys {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("no row for {key}"));
        let hangup = row.split(" | ").nth(2);
        let expected = if restart.contains(&key.as_str()) { "no" } else { "yes" };
        assert_eq!(hangup, Some(expected), "{row}");
    }
    let table = readme.split("## Settings").nth(1).unwrap().split("## Ports").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, keys.len(), "a row for a key that is not in config/ringgate.yaml");
}
