//! Knobs of each network card: which CPUs handle its packets.
//!
//! A card is an interface with a device behind it; a pod's own network namespace has none.

use super::host::{Host, Unseen, cpus};
use super::knob::{Check, Finding, Knob, Matters};

pub(super) const KNOBS: [Knob; 3] = [
    Knob {
        name: "irq-affinity",
        matters: Matters::Sometimes,
        advice: "more than one CPU for a card with several queues",
        check: Check::Card(irq_affinity),
    },
    Knob {
        name: "rps",
        matters: Matters::Sometimes,
        advice: "all CPUs for a card with fewer queues",
        check: Check::Card(rps),
    },
    Knob {
        name: "xps",
        matters: Matters::Sometimes,
        advice: "CPUs of its own for each of several queues",
        check: Check::Card(xps),
    },
];

const SPREAD: &str = "i=0; for n in INTERRUPTS; do echo $((i % CPUS)) > \
                      /proc/irq/$n/smp_affinity_list; i=$((i + 1)); done";
const RECEIVE: &str = "for q in /sys/class/net/CARD/queues/rx-*; do echo MASK > $q/rps_cpus; done";
const TRANSMIT: &str = "i=0; for q in /sys/class/net/CARD/queues/tx-*; do printf %x $((1 << i)) > \
                        $q/xps_cpus; i=$((i + 1)); done";

const NET: &str = "/sys/class/net";

/// The interfaces with a device behind them.
pub(super) fn cards(host: &Host) -> Result<Vec<String>, Unseen> {
    let mut names = host.names(NET)?;
    names.retain(|name| host.exists(&format!("{NET}/{name}/device")));
    if names.is_empty() { Err(Unseen(format!("{NET} has no network card"))) } else { Ok(names) }
}

fn irq_affinity(host: &Host, card: &str) -> Result<Finding, Unseen> {
    let (queues, online) = (queues(host, card, "rx-")?.len(), online(host)?.len());
    if queues < 2 || online < 2 {
        return Ok(Finding::as_advised(counted(queues, online)));
    }
    let interrupts = busy_interrupts(host, card)?;
    let mut served = Vec::new();
    for interrupt in &interrupts {
        served.append(&mut affinity(host, interrupt)?);
    }
    served.sort_unstable();
    served.dedup();
    let now = format!("{} interrupts on {} CPUs", interrupts.len(), served.len());
    if served.len() > 1 || interrupts.len() < 2 {
        return Ok(Finding::as_advised(now));
    }
    let values = [("INTERRUPTS", &*interrupts.join(" ")), ("CPUS", &*online.to_string())];
    Ok(Finding::differs(now, SPREAD, &values))
}

/// The card's interrupts that carry packets: those for its configuration hardly ever occur.
fn busy_interrupts(host: &Host, card: &str) -> Result<Vec<String>, Unseen> {
    let device = format!("{NET}/{card}/device");
    // A virtio device's interrupts are those of the PCI device that it is behind.
    let own = host.names(&format!("{device}/msi_irqs"));
    let all = own.or_else(|_| host.names(&format!("{device}/../msi_irqs")))?;
    let counts = host.text("/proc/interrupts")?;
    let count = |interrupt: &str| {
        let line = counts.lines().find_map(|line| line.trim_start().strip_prefix(interrupt));
        let counts = line.and_then(|line| line.strip_prefix(':')).unwrap_or("");
        counts.split_whitespace().map_while(|count| count.parse::<u64>().ok()).sum::<u64>()
    };
    let total: u64 = all.iter().map(|interrupt| count(interrupt)).sum();
    Ok(all.into_iter().filter(|interrupt| count(interrupt) > total / 100).collect())
}

fn affinity(host: &Host, interrupt: &str) -> Result<Vec<usize>, Unseen> {
    let dir = format!("/proc/irq/{interrupt}");
    let effective = host.text(&format!("{dir}/effective_affinity_list"));
    let list = effective.or_else(|_| host.text(&format!("{dir}/smp_affinity_list")))?;
    cpus(&list).ok_or_else(|| Unseen(format!("{dir}: CPUs {list}")))
}

fn rps(host: &Host, card: &str) -> Result<Finding, Unseen> {
    let (queues, online) = (queues(host, card, "rx-")?, online(host)?);
    let now = counted(queues.len(), online.len());
    if queues.len() >= online.len() {
        return Ok(Finding::as_advised(now));
    }
    for queue in &queues {
        if is_empty(&host.text(&format!("{NET}/{card}/queues/{queue}/rps_cpus"))?) {
            let values = [("CARD", card), ("MASK", &*mask(&online))];
            return Ok(Finding::differs(format!("{now}, RPS off"), RECEIVE, &values));
        }
    }
    Ok(Finding::as_advised(format!("{now}, RPS on")))
}

fn xps(host: &Host, card: &str) -> Result<Finding, Unseen> {
    let (queues, online) = (queues(host, card, "tx-")?, online(host)?.len());
    let now = counted(queues.len(), online);
    if queues.len() < 2 {
        // The kernel has no map for the only queue.
        return Ok(Finding::as_advised(now));
    }
    for queue in &queues {
        if is_empty(&host.text(&format!("{NET}/{card}/queues/{queue}/xps_cpus"))?) {
            return Ok(Finding::differs(format!("{now}, XPS off"), TRANSMIT, &[("CARD", card)]));
        }
    }
    Ok(Finding::as_advised(format!("{now}, XPS on")))
}

/// The card's queues whose names begin with `kind`.
fn queues(host: &Host, card: &str, kind: &str) -> Result<Vec<String>, Unseen> {
    let mut names = host.names(&format!("{NET}/{card}/queues"))?;
    names.retain(|name| name.starts_with(kind));
    Ok(names)
}

fn online(host: &Host) -> Result<Vec<usize>, Unseen> {
    let list = host.text("/sys/devices/system/cpu/online")?;
    cpus(&list).ok_or_else(|| Unseen(format!("/sys/devices/system/cpu/online: {list}")))
}

fn counted(queues: usize, cpus: usize) -> String {
    let (s, p) = (if queues == 1 { "" } else { "s" }, if cpus == 1 { "" } else { "s" });
    format!("{queues} queue{s}, {cpus} CPU{p}")
}

fn is_empty(mask: &str) -> bool {
    mask.chars().all(|c| matches!(c, '0' | ','))
}

/// Hexadecimal, in groups of 32 CPUs, as the kernel reads it.
fn mask(cpus: &[usize]) -> String {
    let groups = cpus.iter().max().map_or(0, |last| last / 32) + 1;
    let mut words = vec![0_u32; groups];
    for cpu in cpus {
        words[groups - 1 - cpu / 32] |= 1 << (cpu % 32);
    }
    let first = format!("{:x}", words[0]);
    words[1..].iter().fold(first, |text, word| format!("{text},{word:08x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_written_as_the_kernel_reads_it() {
        assert_eq!(mask(&[0, 1]), "3");
        assert_eq!(mask(&(0..32).collect::<Vec<_>>()), "ffffffff");
        assert_eq!(mask(&[0, 33]), "2,00000001");
        assert_eq!(mask(&[95]), "80000000,00000000,00000000");
    }
}
