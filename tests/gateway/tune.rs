//! `ringgate tune`: looks at the real host, as whoever runs it, and touches nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::gateway::{Gateway, run_to_end};
use crate::harness::outside;

/// `nobody` of Debian, and of most others.
const NOBODY: u32 = 65_534;

fn rows(json: &str) -> Vec<Value> {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

fn row<'a>(rows: &'a [Value], knob: &str) -> &'a Value {
    rows.iter().find(|row| row["knob"] == knob).unwrap()
}

#[test]
fn every_knob_is_in_the_table_with_what_the_host_says() {
    let (code, table) = run_to_end(&["tune"]);
    assert_eq!(code, Some(0), "{table}");
    let (code, json) = run_to_end(&["tune", "--format", "json"]);
    assert_eq!(code, Some(0), "{json}");
    let rows = rows(&json);
    for row in &rows {
        let knob = row["knob"].as_str().unwrap();
        assert!(table.contains(&format!("\n  {knob} ")), "{knob} is not in\n{table}");
        assert!(
            matches!(row["state"].as_str(), Some("as_advised" | "differs" | "unseen")),
            "{row}"
        );
        assert_eq!(row["state"] == "differs", row["command"].is_string(), "{row}");
    }
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    assert_eq!(row(&rows, "net.core.somaxconn")["now"], somaxconn.trim());
}

#[test]
fn a_lower_limit_is_seen() {
    let script = format!("ulimit -n 256 && {} tune --format json", env!("CARGO_BIN_EXE_ringgate"));
    let (code, json) = outside::output(Command::new("sh").args(["-c", &script]));
    assert_eq!(code, Some(0), "{json}");
    let rows = rows(&json);
    let limit = row(&rows, "open-files");
    assert_eq!((&limit["state"], &limit["now"]), (&"differs".into(), &"256".into()));
    assert!(limit["command"].as_str().unwrap().starts_with("ulimit -n "), "{limit}");
}

#[test]
fn the_gateway_raises_its_soft_limit() {
    let gateway = Gateway::builder().soft_open_files(200).start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = files.split_whitespace().collect::<Vec<_>>()[..2] else { panic!("{files}") };
    assert_eq!(soft, hard);
    assert!(gateway.logged(&format!("open files: up to {hard}, room for ")));
}

#[test]
fn a_limit_of_files_is_warned_of_where_it_is_too_low_for_what_was_chosen_or_for_anybody() {
    let chosen = "limits: { connections_max: 3000 }\n";
    for (limit, settings, is_warned_of) in
        [(4096, "", false), (4096, chosen, true), (1024, "", true), (1024, chosen, true)]
    {
        let gateway = Gateway::builder().open_files(limit).settings(settings).start();
        let line =
            |level| format!(" {level} open files: up to {limit}, room for about {}", limit / 2);
        assert_eq!(gateway.logged(&line("WARN")), is_warned_of, "{limit} {settings}");
        assert_eq!(gateway.logged(&line("INFO")), !is_warned_of, "{limit} {settings}");
    }
}

#[test]
fn huge_pages_are_forbidden_unless_asked_for() {
    let state = |allowed: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringgate"));
        command.args(["tune", "--format", "json"]).env_remove("MIMALLOC_ALLOW_THP");
        command.envs(allowed.map(|allowed| ("MIMALLOC_ALLOW_THP", allowed)));
        let (code, json) = outside::output(&mut command);
        assert_eq!(code, Some(0), "{json}");
        row(&rows(&json), "huge-pages")["now"].as_str().unwrap().to_owned()
    };
    let forbidden = ", none for this process";
    assert!(state(None).ends_with(forbidden), "{}", state(None));
    assert!(state(Some("0")).ends_with(forbidden), "{}", state(Some("0")));
    assert!(!state(Some("1")).ends_with(forbidden), "{}", state(Some("1")));
}

#[test]
fn nobody_may_ask() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can become someone else");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where this binary was built others may not look. A process of its own copies it: here a fork
    // of another test could inherit the open file, and what is open for writing cannot be run.
    let binary = directory.path().join("ringgate");
    let mut copy = Command::new("cp");
    let (code, text) = outside::output(copy.arg(env!("CARGO_BIN_EXE_ringgate")).arg(&binary));
    assert_eq!(code, Some(0), "{text}");
    let mut command = Command::new(&binary);
    command.args(["tune", "--format", "json"]).uid(NOBODY).gid(NOBODY);
    let (code, json) = outside::output(&mut command);
    assert_eq!(code, Some(0), "{json}");
    assert_ne!(row(&rows(&json), "memlock")["now"], "CAP_IPC_LOCK");
}

#[test]
fn nothing_is_opened_for_writing() {
    let Some(mut strace) = outside::tool("strace") else { return };
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    strace.args(["-f", "-e", "trace=file", "-o"]).arg(&trace);
    strace.args([env!("CARGO_BIN_EXE_ringgate"), "tune"]);
    let (code, text) = outside::output(&mut strace);
    let Ok(trace) = fs::read_to_string(trace) else {
        return println!("skipped: tracing is not allowed here: {text}");
    };
    assert_eq!(code, Some(0), "{text}");
    let opened = trace.lines().filter(|line| line.contains("open") && line.contains("\"/proc/"));
    assert!(opened.count() > 10, "{trace}");
    let changes = ["O_WRONLY", "O_RDWR", "O_CREAT", "unlink", "rename", "mkdir", "chmod"];
    let changing = trace.lines().find(|line| changes.iter().any(|call| line.contains(call)));
    assert_eq!(changing, None);
}
