//! Knobs of the CPUs and of memory: who may use them, how fast they run, how large pages are.

use std::path::Path;

use super::host::{Host, Unseen};
use super::knob::{Check, Finding, Knob, Matters};

pub(super) const KNOBS: [Knob; 3] = [
    Knob {
        name: "cpu-manager",
        matters: Matters::Always,
        advice: "no quota below the CPUs that may be used",
        check: Check::Host(cpu_manager),
    },
    Knob {
        name: "governor",
        matters: Matters::Sometimes,
        advice: "performance",
        check: Check::Host(governor),
    },
    Knob {
        name: "huge-pages",
        matters: Matters::Sometimes,
        advice: "none for the gateway",
        check: Check::Host(huge_pages),
    },
];

const EXCLUSIVE: &str = "kubelet: cpuManagerPolicy: static; pod: limits = requests, whole CPUs";
const PERFORMANCE: &str = "for p in /sys/devices/system/cpu/cpufreq/policy*; do \
                           echo performance > $p/scaling_governor; done";
const SMALL_PAGES: &str = "unset MIMALLOC_ALLOW_THP";

const POLICIES: &str = "/sys/devices/system/cpu/cpufreq";

/// A quota below the CPUs stops every worker for the rest of its period once it is used up.
fn cpu_manager(host: &Host) -> Result<Finding, Unseen> {
    let cpus = host.allowed_cpus()?.len();
    let list = host.status("Cpus_allowed_list")?;
    let Some(quota) = quota(host)? else {
        return Ok(Finding::as_advised(format!("CPUs {list}, no quota")));
    };
    let Quota { cpus: granted, throttled } = quota;
    let now = format!("CPUs {list}, quota of {granted}, throttled {throttled} times");
    Ok(Finding::when(granted >= cpus as f64, now, EXCLUSIVE))
}

struct Quota {
    /// CPUs' worth of time.
    cpus: f64,
    /// Periods in which it was used up.
    throttled: u64,
}

/// The smallest quota of this process's control group and those above it.
fn quota(host: &Host) -> Result<Option<Quota>, Unseen> {
    let groups = host.text("/proc/self/cgroup")?;
    let quotas = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next(), fields.next().unwrap_or("/"));
        match controllers {
            Some("") => quotas(host, "/sys/fs/cgroup", group, quota_v2),
            Some(names) if names.split(',').any(|name| name == "cpu") => {
                quotas(host, "/sys/fs/cgroup/cpu", group, quota_v1)
            }
            Some(_) | None => Vec::new(),
        }
    });
    Ok(quotas.min_by(|a, b| a.cpus.total_cmp(&b.cpus)))
}

fn quotas(
    host: &Host,
    mount: &str,
    group: &str,
    read: fn(&Host, &str) -> Option<f64>,
) -> Vec<Quota> {
    let ancestors = Path::new(group.trim_start_matches('/')).ancestors();
    let found = ancestors.filter_map(|group| {
        let dir = format!("{mount}/{}", group.display());
        let cpus = read(host, &dir)?;
        let stat = host.text(&format!("{dir}/cpu.stat")).unwrap_or_default();
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        Some(Quota { cpus, throttled: throttled.and_then(|n| n.parse().ok()).unwrap_or(0) })
    });
    found.collect()
}

/// `200000 100000` is 2 CPUs; `max 100000` is no limit.
fn quota_v2(host: &Host, dir: &str) -> Option<f64> {
    let text = host.text(&format!("{dir}/cpu.max")).ok()?;
    let (time, period) = text.split_once(' ')?;
    cpus_of(time, period)
}

/// -1 is no limit.
fn quota_v1(host: &Host, dir: &str) -> Option<f64> {
    let read = |name| host.text(&format!("{dir}/cpu.cfs_{name}_us")).ok();
    cpus_of(&read("quota")?, &read("period")?)
}

fn cpus_of(time: &str, period: &str) -> Option<f64> {
    let (time, period) = (time.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (time > 0.0 && period > 0.0).then(|| time / period)
}

fn governor(host: &Host) -> Result<Finding, Unseen> {
    let mut governors = Vec::new();
    for policy in host.names(POLICIES)? {
        governors.push(host.text(&format!("{POLICIES}/{policy}/scaling_governor"))?);
    }
    governors.sort();
    governors.dedup();
    if governors.is_empty() {
        return Err(Unseen(format!("{POLICIES} is empty")));
    }
    let now = governors.join(", ");
    Ok(Finding::when(now == "performance", now, PERFORMANCE))
}

/// The gateway forbids them to itself, unless its environment says otherwise.
fn huge_pages(host: &Host) -> Result<Finding, Unseen> {
    let choices = host.text("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let chosen = choices.split(['[', ']']).nth(1).unwrap_or(&choices).to_owned();
    // Linux 5.0 and later tell whether this process has forbidden them to itself.
    let forbidden = host.status("THP_enabled").is_ok_and(|enabled| enabled == "0");
    if forbidden {
        return Ok(Finding::as_advised(format!("{chosen}, none for this process")));
    }
    Ok(Finding::when(chosen == "never", chosen, SMALL_PAGES))
}
