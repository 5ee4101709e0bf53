//! A comparison of a fraction of a second, from the command line to the record.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each kind of work of the own generator: it is always there.
const SCENARIOS: [&str; 5] = ["bulk-16k", "upload-1m", "full-ecdsa", "resumed", "latency"];

#[test]
fn a_short_comparison_leaves_a_record() {
    let Some(ringgate) = ringgate() else {
        return println!("skipped: needs ringgate beside this test: cargo build");
    };
    let out = tempfile::tempdir().unwrap();
    let cpu = allowed_cpu();
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["compare", "--peers", "ringgate", "--rounds", "1", "--seconds", "0.2"])
        .args(["--scenarios", &SCENARIOS.join(",")])
        .args(["--gateway-cpu", &cpu, "--generator-cpu", &cpu])
        .arg("--ringgate")
        .arg(ringgate)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    let record = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let csv = fs::read_to_string(record.join("results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + SCENARIOS.len(), "{csv}");
    for line in csv.lines().skip(1) {
        let columns: Vec<_> = line.split(',').collect();
        assert!(columns[5].parse::<u64>().unwrap() > 0, "no operations: {line}\n{printed}");
        assert_eq!(columns[15], "\"\"", "a fault: {line}");
    }
    let readme = fs::read_to_string(record.join("README.md")).unwrap();
    for name in SCENARIOS {
        assert!(readme.contains(&format!("## {name}")), "{readme}");
        assert!(record.join(format!("{name}.svg")).exists());
    }
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
