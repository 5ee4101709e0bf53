//! What the README says can be done is done, line by line.
//!
//! - Blocks marked `sh` are one script, run in a directory of its own; only ports are replaced.
//! - What cargo is to run is run by `.ci/run`.
//! - Every metric and every page that a gateway has is in its tables.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::harness::gateway::{Gateway, run_to_end};
use crate::harness::{free_port, outside, yaml};

const README: &str = include_str!("../../README.md");

/// Tries a line again until it works: a person pastes slower than a script.
const PATIENT_CURL: &str = "\
curl() {
  for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if command curl --silent --show-error \"$@\"; then return 0; fi
    sleep 0.5
  done
  return 1
}
";

/// The blocks of one language, without the indentation of the list that they stand in.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    while let Some(line) = lines.next() {
        let Some(found) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let body = lines.by_ref().take_while(|line| line.trim() != "```");
        let body = body.map(|line| line.get(indent..).unwrap_or("").to_owned() + "\n").collect();
        if found == language {
            blocks.push(body);
        }
    }
    blocks
}

/// Other ports than those that whoever runs the tests may use.
fn with_free_ports(text: &str) -> String {
    ["8080", "8443", "15000", "15021", "15090"].iter().fold(text.to_owned(), |text, port| {
        let free = free_port().to_string();
        text.replace(&format!(":{port}"), &format!(":{free}"))
            .replace(&format!(": {port}"), &format!(": {free}"))
    })
}

#[test]
fn the_steps_work_as_they_stand() {
    if outside::tool("curl").is_none() || outside::tool("openssl").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(repository.join("config"), directory.path().join("config")).unwrap();
    let mut steps = blocks("sh");
    assert!(steps.len() >= 6, "{steps:#?}");
    let seen =
        "until curl http://127.0.0.1:15000/certs | grep httpbin-credential; do sleep 0.1; done\n";
    steps.insert(steps.len() - 1, seen.to_owned());
    // These ports are the defaults, which the settings of the steps do not name.
    let more = "admin: { address: \"127.0.0.1:15000\" }\nstatus: { address: \"127.0.0.1:15021\" }\n\
                metrics: { address: \"127.0.0.1:15090\" }\n";
    let steps = steps.concat().replacen("\nEND\n", &format!("\n{more}END\n"), 1);
    let script = format!("set -e\n{PATIENT_CURL}{}wait $gateway\n", with_free_ports(&steps));
    let binary = Path::new(env!("CARGO_BIN_EXE_ringgate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(directory.path()).env("PATH", path);
    let (code, text) = outside::output(&mut shell);
    assert_eq!(code, Some(0), "{script}\n{text}");
    for expected in ["0 errors, 1 warning", "HTTP/2 503", "LIVE", "draining", "done"] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
}

#[test]
fn what_cargo_is_to_run_is_run_by_ci() {
    let ci = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run")).unwrap();
    let ci = ci.replace(" --locked", "");
    let commands = blocks("").concat();
    let cargo: Vec<_> = commands.lines().filter(|line| line.starts_with("cargo ")).collect();
    let (tests, benches) = ("cargo test", "cargo test --features bench --benches");
    let measuring = "cargo bench --features bench";
    assert_eq!(cargo, ["cargo run --release -- demo", tests, measuring, benches]);
    // It takes minutes, and what it would print is for people.
    for command in cargo.into_iter().filter(|command| *command != measuring) {
        assert!(ci.contains(command), "{command}");
    }
}

#[test]
fn the_demos_first_line_is_as_printed() {
    let line = blocks("demo").concat();
    let shown = line.trim().replace("DIR", "/tmp/dir");
    let ports = ringgate::demo::Ports { https: 8443, http: 8080, admin: 15000 };
    let dir = Path::new("/tmp/dir");
    let printed = ringgate::demo::instructions(ports, &dir.join("ca.crt"), dir);
    let first = printed.lines().find(|line| line.starts_with("curl "));
    assert_eq!(first, Some(shown.as_str()));
}

#[test]
fn every_command_is_in_the_table() {
    let (code, help) = run_to_end(&["--help"]);
    assert_eq!(code, Some(0), "{help}");
    let commands = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<_> =
        commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"tune") && names.len() == 5, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(README.contains(&format!("| `ringgate {name}")), "{name} is not in the README");
    }
}

#[test]
fn every_bench_is_in_the_table() {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    for entry in fs::read_dir(benches).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let name = file.strip_suffix(".rs").unwrap();
        assert!(README.contains(&format!("| `{name}` |")), "{name} is not in the README");
    }
}

#[test]
fn what_tune_prints_looks_as_shown() {
    let shown = blocks("tune").concat();
    let (_, json) = run_to_end(&["tune", "--format", "json"]);
    for line in shown.lines().filter(|line| line.starts_with("  ") && !line.contains("KNOB")) {
        let cells: Vec<_> =
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let [knob, _, advice, _] = cells[..] else { panic!("{line}") };
        assert!(json.contains(&format!("\"knob\": \"{knob}\"")), "{knob}");
        assert!(json.contains(&format!("\"advice\": \"{advice}\"")), "{advice}");
    }
}

#[test]
fn every_metric_and_page_is_in_the_tables() {
    let gateway = Gateway::builder()
        .certificate("web", &["web.test"])
        .resource("gateway.yaml", &yaml::https_gateway("web", &["web.test"], "web"))
        .start();
    let metrics = gateway.admin_get("/stats/prometheus").text();
    let names: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        assert!(README.contains(&format!("| `{name}` |")), "{name} is not in the README");
    }
    let section = README.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, names.len(), "a metric in the README that there is not");
    let index = gateway.admin_get("/").text();
    for page in index.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(README.contains(&format!("| `{page}` |")), "{page} is not in the README");
    }
}
