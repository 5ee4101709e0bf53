//! How many workers there are, and on which CPUs.
//!
//! The count is, in this order: `workers.count`; the CPU quota of the control group, rounded down
//! but at least 1, when it is below the number of allowed CPUs; the number of allowed CPUs.
//!
//! Workers are pinned when `workers.pin` says so, each to the next allowed CPU in turn. On `auto`
//! they are pinned when no quota is in force and there are no more workers than allowed CPUs:
//! under a quota the CPUs are shared with others, and a pinned thread waits for its own even while
//! others are idle.

use std::fs;
use std::path::Path;

use super::Workers;

/// What the kernel allows this process to use.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// The CPUs that threads may run on (cpuset, affinity), ascending; never empty.
    pub allowed: Vec<usize>,
    /// CPUs' worth of time that the control groups grant; `None` grants all.
    pub quota: Option<f64>,
}

/// How the workers are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// At least 1.
    pub count: usize,
    /// The CPU of each worker, `count` of them; empty when they are not pinned.
    pub pinned: Vec<usize>,
}

/// Lays out the workers on `machine`.
#[must_use]
pub fn plan(workers: &Workers, machine: &Machine) -> Plan {
    let cpus = machine.allowed.len();
    let quota = machine.quota.filter(|quota| *quota < cpus as f64);
    let count = workers.count.unwrap_or_else(|| quota.map_or(cpus, whole_cpus));
    let pin = workers.pin.unwrap_or_else(|| quota.is_none() && count <= cpus);
    let pinned =
        if pin { machine.allowed.iter().copied().cycle().take(count).collect() } else { vec![] };
    Plan { count, pinned }
}

/// The rest of a fraction is left to the control thread: a worker too many would be throttled, and
/// all its connections with it.
fn whole_cpus(quota: f64) -> usize {
    (1..).take_while(|cpus| *cpus as f64 <= quota).last().unwrap_or(1)
}

impl Machine {
    /// What the kernel says about this thread and the control group that it is in.
    #[must_use]
    pub fn inspect() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { allowed: allowed(), quota: quota(&groups, Path::new("/sys/fs/cgroup")) }
    }
}

fn allowed() -> Vec<usize> {
    let allowed: Vec<_> = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        // More CPUs than the set has room for: the kernel's count is the next best answer.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, Into::into)).collect(),
    };
    if allowed.is_empty() { vec![0] } else { allowed }
}

/// The smallest quota of the group in `groups` (the text of `/proc/self/cgroup`) and the groups
/// above it, in version 2 of the hierarchy at `root`.
fn quota(groups: &str, root: &Path) -> Option<f64> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let ancestors = Path::new(group).ancestors();
    let limits =
        ancestors.filter_map(|group| fs::read_to_string(root.join(group).join("cpu.max")).ok());
    limits.filter_map(|text| cpus_of(&text)).min_by(f64::total_cmp)
}

/// `200000 100000` is 2 CPUs; `max 100000` is no limit.
fn cpus_of(cpu_max: &str) -> Option<f64> {
    let (time, period) = cpu_max.trim().split_once(' ')?;
    let (time, period) = (time.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (time > 0.0 && period > 0.0).then(|| time / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(count: Option<usize>, pin: Option<bool>, machine: &Machine) -> Plan {
        plan(&Workers { count, pin, ..Workers::default() }, machine)
    }

    fn machine(allowed: &[usize], quota: Option<f64>) -> Machine {
        Machine { allowed: allowed.to_vec(), quota }
    }

    #[test]
    fn every_allowed_cpu_gets_a_pinned_worker() {
        let plan = laid_out(None, None, &machine(&[2, 3, 7], None));
        assert_eq!(plan, Plan { count: 3, pinned: vec![2, 3, 7] });
    }

    #[test]
    fn a_quota_below_the_cpus_decides_the_count_and_stops_pinning() {
        for (quota, count) in [(2.0, 2), (2.9, 2), (1.0, 1), (0.1, 1), (3.999, 3)] {
            let plan = laid_out(None, None, &machine(&[0, 1, 2, 3], Some(quota)));
            assert_eq!(plan, Plan { count, pinned: vec![] }, "{quota}");
        }
    }

    #[test]
    fn a_quota_of_all_cpus_or_more_means_nothing() {
        for quota in [4.0, 6.5] {
            let plan = laid_out(None, None, &machine(&[0, 1, 2, 3], Some(quota)));
            assert_eq!(plan, Plan { count: 4, pinned: vec![0, 1, 2, 3] }, "{quota}");
        }
    }

    #[test]
    fn the_settings_come_before_everything() {
        let machine = machine(&[4, 5], Some(1.0));
        assert_eq!(laid_out(Some(3), None, &machine), Plan { count: 3, pinned: vec![] });
        assert_eq!(laid_out(Some(3), Some(true), &machine).pinned, [4, 5, 4]);
        assert_eq!(laid_out(None, Some(false), &machine), Plan { count: 1, pinned: vec![] });
    }

    #[test]
    fn more_workers_than_cpus_are_not_pinned_unless_asked() {
        let machine = machine(&[0, 1], None);
        assert!(laid_out(Some(3), None, &machine).pinned.is_empty());
        assert_eq!(laid_out(Some(3), Some(true), &machine).pinned, [0, 1, 0]);
        assert_eq!(laid_out(Some(1), None, &machine).pinned, [0]);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods/pod1");
        fs::create_dir_all(pod.join("container")).unwrap();
        fs::write(pod.join("cpu.max"), "150000 100000\n").unwrap();
        fs::write(pod.join("container/cpu.max"), "max 100000\n").unwrap();
        let groups = "1:cpu:/\n0::/kubepods/pod1/container\n";
        assert_eq!(quota(groups, root.path()), Some(1.5));
        assert_eq!(quota("0::/\n", root.path()), None);
        assert_eq!(quota("1:cpu:/\n", root.path()), None);
        assert_eq!(quota("", root.path()), None);
    }

    #[test]
    fn this_machine_has_a_cpu() {
        let machine = Machine::inspect();
        assert!(!machine.allowed.is_empty());
        assert!(machine.allowed.is_sorted());
        assert!(machine.quota.is_none_or(|quota| quota > 0.0));
    }
}
