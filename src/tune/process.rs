//! What this process is granted: the gateway's unit, pod or shell grants it the same.

use std::io;

use super::host::{Host, Limit, Unseen};
use super::knob::{Check, Finding, Knob, Matters};

/// Descriptors of one worker: `limits.connections_max` connections, and as many upstream.
const FILES_PER_CPU: u64 = 100_000;
/// What the kernel lets a limit be, unless it was told otherwise.
const FILES_MAX: u64 = 1_048_576;
/// A worker's ring with its buffers takes 200 KiB. After a restart those of the process before
/// count for a moment, too.
const LOCKED_PER_CPU: u64 = 512 * 1024;
/// Its number in `/proc/self/status` (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

pub(super) const KNOBS: [Knob; 5] = [
    Knob {
        name: "open-files",
        matters: Matters::Always,
        advice: "100000 for each CPU, up to 1048576",
        check: Check::Host(open_files),
    },
    Knob {
        name: "fs.nr_open",
        matters: Matters::Always,
        advice: "as open-files or more",
        check: Check::Host(nr_open),
    },
    Knob {
        name: "fs.file-max",
        matters: Matters::Always,
        advice: "twice open-files or more",
        check: Check::Host(file_max),
    },
    Knob {
        name: "memlock",
        matters: Matters::Always,
        advice: "512 KiB for each CPU, or CAP_IPC_LOCK",
        check: Check::Host(memlock),
    },
    Knob {
        name: "seccomp",
        matters: Matters::Always,
        advice: "io_uring allowed",
        check: Check::Host(seccomp),
    },
];

const OPEN_FILES: &str = "ulimit -n FILES";
const NR_OPEN: &str = "sysctl -w fs.nr_open=FILES";
const FILE_MAX: &str = "sysctl -w fs.file-max=FILES";
const MEMLOCK: &str = "ulimit -l KIB";
const SECCOMP: &str = "allow io_uring_setup, io_uring_enter, io_uring_register in the profile";

fn open_files(host: &Host) -> Result<Finding, Unseen> {
    let now = host.limit("Max open files")?;
    let wanted = files(host)?;
    if now >= Limit::At(wanted) {
        return Ok(Finding::as_advised(now.to_string()));
    }
    Ok(Finding::differs(now.to_string(), OPEN_FILES, &[("FILES", &wanted.to_string())]))
}

fn nr_open(host: &Host) -> Result<Finding, Unseen> {
    at_least(host.number("fs.nr_open")?, files(host)?, NR_OPEN)
}

/// The whole host's files: half of them are left to others.
fn file_max(host: &Host) -> Result<Finding, Unseen> {
    at_least(host.number("fs.file-max")?, 2 * files(host)?, FILE_MAX)
}

fn files(host: &Host) -> Result<u64, Unseen> {
    Ok(FILES_MAX.min(FILES_PER_CPU * host.allowed_cpus()?.len() as u64))
}

fn at_least(now: u64, wanted: u64, command: &str) -> Result<Finding, Unseen> {
    if now >= wanted {
        return Ok(Finding::as_advised(now.to_string()));
    }
    Ok(Finding::differs(now.to_string(), command, &[("FILES", &wanted.to_string())]))
}

fn memlock(host: &Host) -> Result<Finding, Unseen> {
    let capabilities = host.status("CapEff")?;
    let capabilities = u64::from_str_radix(&capabilities, 16).unwrap_or(0);
    if capabilities & CAP_IPC_LOCK != 0 {
        return Ok(Finding::as_advised("CAP_IPC_LOCK"));
    }
    let now = host.limit("Max locked memory")?;
    let wanted = LOCKED_PER_CPU * host.allowed_cpus()?.len() as u64;
    let shown = match now {
        Limit::At(bytes) => format!("{} KiB", bytes / 1024),
        Limit::Unlimited => now.to_string(),
    };
    if now >= Limit::At(wanted) {
        return Ok(Finding::as_advised(shown));
    }
    Ok(Finding::differs(shown, MEMLOCK, &[("KIB", &(wanted / 1024).to_string())]))
}

/// The kernel does not show what a filter allows, but whether there is one, and a ring tells.
fn seccomp(host: &Host) -> Result<Finding, Unseen> {
    let filtered = host.status("Seccomp")? == "2";
    let filter = if filtered { "a filter" } else { "no filter" };
    let Err(error) = host.ring() else {
        return Ok(Finding::as_advised(format!("{filter}, io_uring allowed")));
    };
    let now = format!("{filter}, io_uring denied: {error}");
    if !filtered || !is_denial(error) {
        return Ok(Finding::as_advised(now));
    }
    match host.sysctl("kernel.io_uring_disabled") {
        Ok(disabled) if disabled != "0" => {
            Err(Unseen(format!("kernel.io_uring_disabled = {disabled} denies io_uring before")))
        }
        Ok(_) | Err(_) => Ok(Finding::differs(now, SECCOMP, &[])),
    }
}

/// What profiles answer to a call that they do not allow.
fn is_denial(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}
