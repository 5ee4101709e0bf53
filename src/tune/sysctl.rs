//! Knobs below `/proc/sys`. Those below `net` belong to the network namespace.

use super::host::{Host, Unseen};
use super::knob::{Check, Finding, Knob, Matters};

/// As many as a worker's listening sockets ask for, `BACKLOG` in `worker/bind.rs`.
const SOMAXCONN: u64 = 4096;
/// Some milliseconds of small packets; more would only wait longer.
const NETDEV_BACKLOG_MAX: u64 = 16_384;
/// The kernel's own default, 32768 to 60999.
const PORTS: u64 = 28_232;
/// The kernels' own defaults of the last field.
const RMEM_MAX: u64 = 6_291_456;
const WMEM_MAX: u64 = 4_194_304;

pub(super) const KNOBS: [Knob; 12] = [
    Knob {
        name: "kernel.io_uring_disabled",
        matters: Matters::Always,
        advice: "0",
        check: Check::Host(io_uring_disabled),
    },
    Knob {
        name: "net.core.somaxconn",
        matters: Matters::Always,
        advice: "4096 or more",
        check: Check::Host(somaxconn),
    },
    Knob {
        name: "net.ipv4.tcp_max_syn_backlog",
        matters: Matters::Always,
        advice: "any, if tcp_syncookies is 1",
        check: Check::Host(tcp_max_syn_backlog),
    },
    Knob {
        name: "net.netfilter.nf_conntrack_max",
        matters: Matters::Always,
        advice: "twice nf_conntrack_count or more",
        check: Check::Host(nf_conntrack_max),
    },
    Knob {
        name: "net.core.netdev_max_backlog",
        matters: Matters::Always,
        advice: "16384, where packets were dropped",
        check: Check::Host(netdev_max_backlog),
    },
    Knob {
        name: "net.ipv4.ip_local_port_range",
        matters: Matters::Sometimes,
        advice: "28232 ports or more",
        check: Check::Host(ip_local_port_range),
    },
    Knob {
        name: "net.ipv4.tcp_tw_reuse",
        matters: Matters::Sometimes,
        advice: "1, where half of the ports are in TIME_WAIT",
        check: Check::Host(tcp_tw_reuse),
    },
    Knob {
        name: "net.ipv4.tcp_rmem",
        matters: Matters::Sometimes,
        advice: "6291456 or more in the last field",
        check: Check::Host(tcp_rmem),
    },
    Knob {
        name: "net.ipv4.tcp_wmem",
        matters: Matters::Sometimes,
        advice: "4194304 or more in the last field",
        check: Check::Host(tcp_wmem),
    },
    Knob {
        name: "net.ipv4.tcp_notsent_lowat",
        matters: Matters::Sometimes,
        advice: "131072 or less",
        check: Check::Host(tcp_notsent_lowat),
    },
    Knob {
        name: "net.ipv4.tcp_slow_start_after_idle",
        matters: Matters::Sometimes,
        advice: "0, unless with bbr",
        check: Check::Host(tcp_slow_start_after_idle),
    },
    Knob {
        name: "net.ipv4.tcp_congestion_control",
        matters: Matters::Sometimes,
        advice: "cubic, or bbr with fq",
        check: Check::Host(tcp_congestion_control),
    },
];

const IO_URING: &str = "sysctl -w kernel.io_uring_disabled=0";
const BACKLOG: &str = "sysctl -w net.core.somaxconn=4096";
const SYN_COOKIES: &str = "sysctl -w net.ipv4.tcp_syncookies=1";
const CONNTRACK: &str = "sysctl -w net.netfilter.nf_conntrack_max=ENTRIES";
const NETDEV_BACKLOG: &str = "sysctl -w net.core.netdev_max_backlog=16384";
const PORT_RANGE: &str = "sysctl -w net.ipv4.ip_local_port_range='32768 60999'";
const TIME_WAIT: &str = "sysctl -w net.ipv4.tcp_tw_reuse=1";
const RECEIVE_BUFFERS: &str = "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'";
const SEND_BUFFERS: &str = "sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'";
const NOT_SENT: &str = "sysctl -w net.ipv4.tcp_notsent_lowat=131072";
const NO_SLOW_START: &str = "sysctl -w net.ipv4.tcp_slow_start_after_idle=0";
const CUBIC: &str = "sysctl -w net.ipv4.tcp_congestion_control=cubic";
const FAIR_QUEUE: &str = "sysctl -w net.core.default_qdisc=fq";

fn io_uring_disabled(host: &Host) -> Result<Finding, Unseen> {
    let now = host.sysctl("kernel.io_uring_disabled")?;
    Ok(Finding::when(now == "0", now, IO_URING))
}

fn somaxconn(host: &Host) -> Result<Finding, Unseen> {
    let now = host.number("net.core.somaxconn")?;
    Ok(Finding::when(now >= SOMAXCONN, now.to_string(), BACKLOG))
}

/// The queue's length counts only while cookies are off.
fn tcp_max_syn_backlog(host: &Host) -> Result<Finding, Unseen> {
    let cookies = host.sysctl("net.ipv4.tcp_syncookies")?;
    let length = host.sysctl("net.ipv4.tcp_max_syn_backlog")?;
    let now = format!("{length}, tcp_syncookies {cookies}");
    Ok(Finding::when(cookies != "0", now, SYN_COOKIES))
}

fn nf_conntrack_max(host: &Host) -> Result<Finding, Unseen> {
    let count = host.number("net.netfilter.nf_conntrack_count")?;
    let max = host.number("net.netfilter.nf_conntrack_max")?;
    let now = format!("{max}, {count} in use");
    if count.saturating_mul(2) <= max {
        return Ok(Finding::as_advised(now));
    }
    let wanted = max.max(count).saturating_mul(2).to_string();
    Ok(Finding::differs(now, CONNTRACK, &[("ENTRIES", &wanted)]))
}

/// Only a queue that has overflowed is too short.
fn netdev_max_backlog(host: &Host) -> Result<Finding, Unseen> {
    let length = host.number("net.core.netdev_max_backlog")?;
    let dropped = softnet_drops(&host.text("/proc/net/softnet_stat")?);
    let now = format!("{length}, {dropped} packets dropped since boot");
    Ok(Finding::when(dropped == 0 || length >= NETDEV_BACKLOG_MAX, now, NETDEV_BACKLOG))
}

/// The second column, summed over the CPUs.
fn softnet_drops(softnet_stat: &str) -> u64 {
    let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    softnet_stat.lines().filter_map(column).sum()
}

fn ip_local_port_range(host: &Host) -> Result<Finding, Unseen> {
    let (range, ports) = (host.sysctl("net.ipv4.ip_local_port_range")?, local_ports(host)?);
    Ok(Finding::when(ports >= PORTS, format!("{range}: {ports} ports"), PORT_RANGE))
}

fn local_ports(host: &Host) -> Result<u64, Unseen> {
    let range = host.sysctl("net.ipv4.ip_local_port_range")?;
    let ports = range.split_once(' ').and_then(|(first, last)| {
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    });
    ports.ok_or_else(|| Unseen(format!("net.ipv4.ip_local_port_range: {range}")))
}

/// Ports that wait are missed only when there are many of them.
fn tcp_tw_reuse(host: &Host) -> Result<Finding, Unseen> {
    let reuse = host.sysctl("net.ipv4.tcp_tw_reuse")?;
    let waiting = time_wait(&host.text("/proc/net/sockstat")?);
    let few = waiting < local_ports(host)? / 2;
    let now = format!("{reuse}, {waiting} in TIME_WAIT");
    Ok(Finding::when(few || reuse == "1", now, TIME_WAIT))
}

/// `TCP: inuse 5 orphan 0 tw 2 alloc 9 mem 1` is 2.
fn time_wait(sockstat: &str) -> u64 {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or("");
    let words: Vec<_> = tcp.split_whitespace().collect();
    words.windows(2).find(|pair| pair[0] == "tw").and_then(|pair| pair[1].parse().ok()).unwrap_or(0)
}

fn tcp_rmem(host: &Host) -> Result<Finding, Unseen> {
    buffers(host, "net.ipv4.tcp_rmem", RMEM_MAX, RECEIVE_BUFFERS)
}

fn tcp_wmem(host: &Host) -> Result<Finding, Unseen> {
    buffers(host, "net.ipv4.tcp_wmem", WMEM_MAX, SEND_BUFFERS)
}

/// The third of three fields is how far the kernel lets a connection's buffer grow.
fn buffers(host: &Host, key: &str, wanted: u64, command: &str) -> Result<Finding, Unseen> {
    let now = host.sysctl(key)?;
    let max: Option<u64> = now.split(' ').nth(2).and_then(|max| max.parse().ok());
    let max = max.ok_or_else(|| Unseen(format!("{key}: {now}")))?;
    Ok(Finding::when(max >= wanted, now, command))
}

fn tcp_notsent_lowat(host: &Host) -> Result<Finding, Unseen> {
    let now = host.number("net.ipv4.tcp_notsent_lowat")?;
    Ok(Finding::when(now <= 131_072, now.to_string(), NOT_SENT))
}

/// bbr does not look at it.
fn tcp_slow_start_after_idle(host: &Host) -> Result<Finding, Unseen> {
    let now = host.sysctl("net.ipv4.tcp_slow_start_after_idle")?;
    let control = host.sysctl("net.ipv4.tcp_congestion_control")?;
    Ok(Finding::when(now == "0" || control == "bbr", format!("{now}, {control}"), NO_SLOW_START))
}

fn tcp_congestion_control(host: &Host) -> Result<Finding, Unseen> {
    let control = host.sysctl("net.ipv4.tcp_congestion_control")?;
    // A pod's network namespace shows no default: what paces its packets is the node's.
    let qdisc = host.sysctl("net.core.default_qdisc").ok();
    let command = if control == "bbr" { FAIR_QUEUE } else { CUBIC };
    let advised = match qdisc.as_deref() {
        _ if control == "cubic" => true,
        Some("fq") | None => control == "bbr",
        Some(_) => false,
    };
    let now = match qdisc {
        Some(qdisc) => format!("{control}, {qdisc}"),
        None => control,
    };
    Ok(Finding::when(advised, now, command))
}
