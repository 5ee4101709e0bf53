//! What a record says about where it was made.

use std::fs;
use std::process::Command;

/// The name for the record's directory.
pub(crate) fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_alphanumeric).collect();
    if name.is_empty() { "machine".to_owned() } else { name }
}

/// `2026-11-23`, UTC.
pub(crate) fn date() -> String {
    first_line("date", &["-u", "+%Y-%m-%d"])
}

/// Date and time, UTC.
pub(crate) fn time() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"])
}

/// Names and values.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    vec![
        ("date", time()),
        ("commit", commit()),
        ("kernel", first_line("uname", &["-sr"])),
        ("CPU", cpu()),
        ("memory", memory()),
        ("TCP", congestion_control()),
        ("load before", load()),
        ("wrk", first_line("wrk", &["--version"])),
        ("h2load", first_line("h2load", &["--version"])),
        ("rustc", first_line("rustc", &["--version"])),
    ]
}

/// Load averages: what else the machine does.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// What paces all connections of the machine: with bbr a gateway pays more for large bodies.
fn congestion_control() -> String {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn commit() -> String {
    let commit = first_line("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed = Command::new("git").args(["diff", "--quiet", "HEAD"]).status();
    match changed {
        Ok(status) if !status.success() => format!("{commit} with changes"),
        Ok(_) | Err(_) => commit,
    }
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    let model = text.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
    format!("{count} x {model}")
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .next()
        .and_then(|line| line.split_once(':'))
        .map_or_else(String::new, |(_, size)| size.trim().to_owned())
}

/// Programs print versions with whatever exit code.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return "not installed".to_owned();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
