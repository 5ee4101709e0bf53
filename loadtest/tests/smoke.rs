//! A comparison of a fraction of a second, from the command line to the record; and the commands
//! that the README shows for use by hand.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each kind of work of the own generator: it is always there.
const SCENARIOS: [&str; 7] =
    ["bulk-16k", "upload-1m", "full-ecdsa", "resumed", "latency", "connections-16", "hosts-10"];
const README: &str = include_str!("../README.md");

#[test]
fn a_short_comparison_leaves_a_record() {
    let Some(ringgate) = ringgate() else {
        return println!("skipped: needs ringgate beside this test: cargo build");
    };
    let record = compare(&ringgate, "ringgate", &SCENARIOS);
    let csv = &record.csv;
    assert_eq!(csv.lines().count(), 1 + SCENARIOS.len(), "{csv}");
    check(csv);
    let hosts = csv.lines().find(|line| line.starts_with("hosts-10,")).unwrap();
    let reload = hosts.split(',').nth(15).unwrap();
    assert!(reload.parse::<u64>().is_ok(), "no reload was measured: {hosts}");
    let readme = fs::read_to_string(record.path.join("README.md")).unwrap();
    for name in SCENARIOS {
        assert!(readme.contains(&format!("## {name}")), "{readme}");
        assert!(record.path.join(format!("{name}.svg")).exists());
    }
    assert!(readme.contains("| latency: ringgate / best peer | at most 1.1 |"), "{readme}");
    assert!(record.path.join("overview.svg").exists());
}

/// What a gateway can be set up to do beyond forwarding to one endpoint: each measurement checks that
/// it did that.
#[test]
fn each_setup_does_what_it_says() {
    let Some(ringgate) = ringgate() else {
        return println!("skipped: needs ringgate beside this test: cargo build");
    };
    let mut scenarios = vec!["backend-tls-1m", "tcp-1m", "passthrough-1m", "passthrough-fresh"];
    if is_installed("wrk") {
        scenarios.extend(["backend-tls", "backend-h2", "balanced", "hashed", "routes", "tcp"]);
    }
    let record = compare(&ringgate, "relay", &scenarios);
    let relayed = scenarios.iter().filter(|name| name.starts_with("passthrough")).count();
    assert_eq!(record.csv.lines().count(), 1 + scenarios.len() + relayed, "{}", record.csv);
    check(&record.csv);
}

#[test]
fn the_baselines_serve_all_that_they_are_measured_with() {
    if let Err(error) = io_uring::IoUring::new(1) {
        return println!("skipped: needs io_uring: {error}");
    }
    let Some(ringgate) = ringgate() else {
        return println!("skipped: needs ringgate beside this test: cargo build");
    };
    // Idle connections over HTTP/2 are 4,000, which takes too long without optimisation.
    let scenarios = ["bulk-16k", "bulk-1m", "full-ecdsa", "resumed"];
    let record = compare(&ringgate, "floor,hyper-tokio,hyper-tokio-uring", &scenarios);
    assert_eq!(record.csv.lines().count(), 1 + 4 * scenarios.len(), "{}", record.csv);
    check(&record.csv);
}

#[test]
fn a_run_that_cannot_be_is_explained() {
    for (arguments, cause) in [
        (vec!["--scenarios", "small"], "[possible values: targets, small-h1,"),
        (vec!["--gateway-cpu", "9999"], "--gateway-cpu 9999 cannot be used"),
        (vec!["--ringgate", "/no/ringgate"], "/no/ringgate does not exist"),
    ] {
        let mut command = loadtest();
        let output = command.arg("compare").args(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && printed.contains(cause), "{printed}");
    }
}

/// The block of the section "By hand" is a script: only ports and durations are replaced.
#[test]
fn the_commands_of_the_readme_work() {
    if !is_installed("openssl") {
        return println!("skipped: needs openssl");
    }
    let (_, text) = README.split_once("## By hand").expect("the README has that section");
    let (_, block) = text.split_once("```sh\n").expect("it has a block");
    let (block, _) = block.split_once("```").expect("which ends");
    let (backend, gateway) = (free_port(), free_port());
    let block = block
        .replace(":9000", &format!(":{backend}"))
        .replace(":8443", &format!(":{gateway}"))
        .replace("-d10", "-d1")
        .replace("-D10", "-D1")
        .replace("--seconds 5", "--seconds 0.3");
    let block: String = block.lines().map(waiting_for_servers).collect();
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_loadtest")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let without = |tool: &&str| !is_installed(tool);
    let missing = ["wrk", "h2load"].into_iter().filter(without);
    let stubs: String = missing.map(|tool| format!("{tool}() {{ echo no {tool}; }}\n")).collect();
    let script = format!("set -e\ntrap 'kill $(jobs -p)' EXIT\n{stubs}{block}");
    let mut bash = Command::new("bash");
    let output =
        bash.args(["-c", &script]).env("PATH", path).current_dir(dir.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{said}");
    for (tool, count, good) in [
        ("wrk", block.matches("\nwrk ").count(), "Requests/sec:"),
        ("h2load", block.matches("\nh2load ").count(), " 0 failed, 0 errored, 0 timeout"),
        ("loadtest", block.matches("\nloadtest generate ").count(), " failures=0 "),
    ] {
        assert!(count > 0, "{block}");
        if tool == "loadtest" || is_installed(tool) {
            assert_eq!(printed.matches(good).count(), count, "{tool}: {printed}\n{said}");
        }
    }
    assert!(!printed.contains("Non-2xx") && !printed.contains("Socket errors"), "{printed}");
}

/// A person pastes slower than a script: what goes on behind listens before the next line is run.
fn waiting_for_servers(line: &str) -> String {
    let Some((command, _)) = line.split_once(" &") else { return format!("{line}\n") };
    let (_, rest) = command.split_once("127.0.0.1:").expect("a server has an address");
    let port = rest.split(' ').next().unwrap();
    let listens = format!("{{ : >/dev/tcp/127.0.0.1/{port}; }} 2>/dev/null");
    format!("{command} &\nuntil {listens}; do sleep 0.1; done\n")
}

/// Runs each scenario once, for a moment, against ringgate and `peers`. On a busy machine nothing
/// may happen in a moment: then again, for longer.
fn compare(ringgate: &Path, peers: &str, scenarios: &[&str]) -> Record {
    let record = compare_for("0.2", ringgate, peers, scenarios);
    if !has_faults(&record.csv) {
        return record;
    }
    compare_for("5", ringgate, peers, scenarios)
}

fn compare_for(seconds: &str, ringgate: &Path, peers: &str, scenarios: &[&str]) -> Record {
    let out = tempfile::tempdir().unwrap();
    let cpu = allowed_cpu();
    let output = loadtest()
        .args(["compare", "--peers", peers, "--rounds", "1", "--seconds", seconds])
        .args(["--scenarios", &scenarios.join(",")])
        .args(["--gateway-cpu", &cpu, "--generator-cpu", &cpu])
        .arg("--ringgate")
        .arg(ringgate)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let csv = fs::read_to_string(path.join("results.csv")).unwrap();
    Record { path, csv, _out: out }
}

struct Record {
    path: PathBuf,
    /// Its `results.csv`.
    csv: String,
    /// Removes it.
    _out: tempfile::TempDir,
}

/// The last column says why a measurement does not count. Here that the machine has other things to do
/// is none: the generator has the gateway's CPU.
fn has_faults(csv: &str) -> bool {
    csv.lines().skip(1).any(|line| !line.ends_with(",\"\"") && !line.contains(",\"disturbed: "))
}

/// Every measurement counted something and has no fault.
fn check(csv: &str) {
    assert!(!has_faults(csv), "{csv}");
    for line in csv.lines().skip(1) {
        let operations = line.split(',').nth(5).unwrap();
        assert!(operations.parse::<f64>().unwrap() > 0.0, "no operations: {line}");
    }
}

fn loadtest() -> Command {
    Command::new(env!("CARGO_BIN_EXE_loadtest"))
}

fn is_installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The gateway that a build of the workspace leaves beside the load test.
fn ringgate() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("ringgate");
    path.exists().then_some(path)
}

/// The first CPU that this process may use.
fn allowed_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("every process has a status");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.and_then(|list| list.trim().split([',', '-']).next());
    first.expect("the kernel lists the CPUs").to_owned()
}
