//! The program against its files and against hosts made of files with real contents.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::host::Host;
use super::knob::Matters;
use super::report::{Row, State, compare, knobs};

/// A host of four CPUs with a card of four queues, in every knob as advised.
const ADVISED: &Files = &[
    ("proc/self/limits", LIMITS),
    ("proc/self/status", STATUS),
    ("proc/self/cgroup", "0::/system.slice/ringgate.service\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("proc/sys/fs/file-max", "9223372036854775807\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/core/netdev_max_backlog", "1000\n"),
    ("proc/sys/net/core/default_qdisc", "fq_codel\n"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "1024\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
    ("proc/sys/net/ipv4/tcp_notsent_lowat", "131072\n"),
    ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "0\n"),
    ("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "70\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
    ("proc/net/sockstat", "sockets: used 130\nTCP: inuse 9 orphan 0 tw 3 alloc 12 mem 2\n"),
    ("proc/net/softnet_stat", "0000ec36 00000000 00000002\n0000154b 00000000 00000000\n"),
    ("proc/interrupts", INTERRUPTS),
    ("proc/irq/40/effective_affinity_list", "0\n"),
    ("proc/irq/41/effective_affinity_list", "1\n"),
    ("proc/irq/42/effective_affinity_list", "3\n"),
    ("sys/fs/cgroup/system.slice/ringgate.service/cpu.max", "max 100000\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
    ("sys/devices/system/cpu/online", "0-3\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "performance\n"),
    ("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n"),
    ("sys/class/net/eth0/device/vendor", "0x8086\n"),
    ("sys/class/net/eth0/device/msi_irqs/40", "msix\n"),
    ("sys/class/net/eth0/device/msi_irqs/41", "msix\n"),
    ("sys/class/net/eth0/device/msi_irqs/42", "msix\n"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-2/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-3/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "1\n"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "2\n"),
];

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max processes             96364                96364                processes 
Max open files            1048576              1048576              files     
Max locked memory         unlimited            unlimited            bytes     
";

const STATUS: &str = "\
Name:\tringgate
CapEff:\t0000000000000000
Seccomp:\t0
Cpus_allowed:\tf
Cpus_allowed_list:\t0-3
THP_enabled:\t1
";

/// In a container.
const FILTERED: &str = "Seccomp:\t2\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n";

const INTERRUPTS: &str = "           CPU0       CPU1       CPU2       CPU3
 40:          1          0          0          0  PCI-MSIX-0000:00:03.0   0-edge      eth0
 41:          0      83674          0          0  PCI-MSIX-0000:00:03.0   1-edge      eth0-TxRx-0
 42:          0          0          0      52751  PCI-MSIX-0000:00:03.0   2-edge      eth0-TxRx-1
NMI:          0          0          0          0   Non-maskable interrupts
";

/// Knobs of which the command is for a person, not for a shell.
const PROSE: [&str; 2] = ["cpu-manager", "seccomp"];

/// A host in a directory; removed when dropped.
struct Fake {
    root: tempfile::TempDir,
}

impl Fake {
    fn advised() -> Self {
        let fake = Self { root: tempfile::tempdir().unwrap() };
        ADVISED.iter().for_each(|(path, text)| fake.write(path, text));
        fake
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let fake = Self::advised();
        files.iter().for_each(|(path, text)| fake.write(path, text));
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn without(self, path: &str) -> Self {
        let path = self.root.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        self
    }

    fn rows(&self) -> Vec<Row> {
        compare(&self.host(Ok(()))).rows
    }

    fn host(&self, ring: io::Result<()>) -> Host {
        Host::at(self.root.path(), ring)
    }

    fn row(&self, knob: &str) -> Row {
        self.rows().into_iter().find(|row| row.knob == knob).unwrap()
    }
}

fn seccomp_row(fake: &Fake, errno: i32) -> Row {
    let denied = Err(io::Error::from_raw_os_error(errno));
    compare(&fake.host(denied)).rows.iter().find(|row| row.knob == "seccomp").unwrap().clone()
}

#[test]
fn a_host_as_advised_differs_in_nothing() {
    for row in Fake::advised().rows() {
        assert_eq!(row.state, State::AsAdvised, "{row:?}");
    }
}

/// Paths, and what these files hold.
type Files = [(&'static str, &'static str)];

/// A knob, what makes it differ, and what is then printed.
type Case = (&'static str, &'static Files, &'static str);

const DIFFERING: &[Case] = &[
    (
        "open-files",
        &[(
            "proc/self/limits",
            "Max open files            20000                20000     files\n\
            Max locked memory         unlimited            unlimited            bytes     \n",
        )],
        "ulimit -n 400000",
    ),
    ("fs.nr_open", &[("proc/sys/fs/nr_open", "65536\n")], "sysctl -w fs.nr_open=400000"),
    ("fs.file-max", &[("proc/sys/fs/file-max", "400000\n")], "sysctl -w fs.file-max=800000"),
    (
        "memlock",
        &[(
            "proc/self/limits",
            "Max open files            1048576   1048576   files\n\
            Max locked memory         65536                65536                bytes     \n",
        )],
        "ulimit -l 2048",
    ),
    (
        "kernel.io_uring_disabled",
        &[("proc/sys/kernel/io_uring_disabled", "2\n")],
        "sysctl -w kernel.io_uring_disabled=0",
    ),
    (
        "net.core.somaxconn",
        &[("proc/sys/net/core/somaxconn", "128\n")],
        "sysctl -w net.core.somaxconn=4096",
    ),
    (
        "net.ipv4.tcp_max_syn_backlog",
        &[("proc/sys/net/ipv4/tcp_syncookies", "0\n")],
        "sysctl -w net.ipv4.tcp_syncookies=1",
    ),
    (
        "net.netfilter.nf_conntrack_max",
        &[("proc/sys/net/netfilter/nf_conntrack_count", "200000\n")],
        "sysctl -w net.netfilter.nf_conntrack_max=524288",
    ),
    (
        "net.core.netdev_max_backlog",
        &[("proc/net/softnet_stat", "0000ec36 00000000 0\n0000154b 000000ff 00000000\n")],
        "sysctl -w net.core.netdev_max_backlog=16384",
    ),
    (
        "net.ipv4.ip_local_port_range",
        &[("proc/sys/net/ipv4/ip_local_port_range", "49152\t65535\n")],
        "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
    ),
    (
        "net.ipv4.tcp_tw_reuse",
        &[("proc/net/sockstat", "TCP: inuse 9 orphan 0 tw 20000 alloc 12 mem 2\n")],
        "sysctl -w net.ipv4.tcp_tw_reuse=1",
    ),
    (
        "net.ipv4.tcp_rmem",
        &[("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t212992\n")],
        "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'",
    ),
    (
        "net.ipv4.tcp_wmem",
        &[("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t212992\n")],
        "sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'",
    ),
    (
        "net.ipv4.tcp_notsent_lowat",
        &[("proc/sys/net/ipv4/tcp_notsent_lowat", "4294967295\n")],
        "sysctl -w net.ipv4.tcp_notsent_lowat=131072",
    ),
    (
        "net.ipv4.tcp_slow_start_after_idle",
        &[("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n")],
        "sysctl -w net.ipv4.tcp_slow_start_after_idle=0",
    ),
    (
        "net.ipv4.tcp_congestion_control",
        &[("proc/sys/net/ipv4/tcp_congestion_control", "bbr\n")],
        "sysctl -w net.core.default_qdisc=fq",
    ),
    (
        "net.ipv4.tcp_congestion_control",
        &[("proc/sys/net/ipv4/tcp_congestion_control", "reno\n")],
        "sysctl -w net.ipv4.tcp_congestion_control=cubic",
    ),
    (
        "cpu-manager",
        &[
            ("sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/system.slice/cpu.stat", "nr_periods 900\nnr_throttled 120\n"),
        ],
        "kubelet: cpuManagerPolicy: static; pod: limits = requests, whole CPUs",
    ),
    (
        "governor",
        &[("sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "powersave\n")],
        "for p in /sys/devices/system/cpu/cpufreq/policy*; do echo performance > \
         $p/scaling_governor; done",
    ),
    (
        "huge-pages",
        &[("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")],
        "unset MIMALLOC_ALLOW_THP",
    ),
    (
        "irq-affinity",
        &[("proc/irq/42/effective_affinity_list", "1\n")],
        "i=0; for n in 41 42; do echo $((i % 4)) > /proc/irq/$n/smp_affinity_list; \
         i=$((i + 1)); done",
    ),
    (
        "rps",
        &[("sys/devices/system/cpu/online", "0-7\n")],
        "for q in /sys/class/net/eth0/queues/rx-*; do echo ff > $q/rps_cpus; done",
    ),
    (
        "xps",
        &[("sys/class/net/eth0/queues/tx-1/xps_cpus", "00000000,00000000\n")],
        "i=0; for q in /sys/class/net/eth0/queues/tx-*; do printf %x $((1 << i)) > $q/xps_cpus; \
         i=$((i + 1)); done",
    ),
];

#[test]
fn what_differs_is_named_with_its_command() {
    for (knob, files, command) in DIFFERING {
        let row = Fake::with(files).row(knob);
        assert_eq!(row.command.as_deref(), Some(*command), "{row:?}");
        assert_eq!(row.state, State::Differs, "{row:?}");
    }
    let of_each = knobs().filter(|knob| DIFFERING.iter().any(|(name, ..)| *name == knob.name));
    assert_eq!(of_each.count(), knobs().count() - 1, "each but seccomp, which has a test below");
}

#[test]
fn what_a_command_sets_is_as_advised() {
    for (knob, files, command) in DIFFERING {
        if PROSE.contains(knob) {
            continue;
        }
        let fake = Fake::with(files);
        paste(&fake, command);
        let row = fake.row(knob);
        assert_eq!(row.state, State::AsAdvised, "after {command}: {row:?}");
    }
}

/// Runs `command` in a shell for which the fake is the host.
fn paste(fake: &Fake, command: &str) {
    let root = fake.root.path().display();
    let script = format!(
        "set -e
        sysctl() {{ v=${{2#*=}}; k=$(echo ${{2%%=*}} | tr . /); echo \"$v\" > {root}/proc/sys/$k; }}
        limit() {{ sed -i \"s/^\\($1 *\\)[0-9][0-9]*/\\1$2/\" {root}/proc/self/limits; }}
        ulimit() {{
            case $1 in
            -n) limit 'Max open files' $2 ;;
            -l) limit 'Max locked memory' $(($2 * 1024)) ;;
            esac
        }}
        unset() {{
            test $1 = MIMALLOC_ALLOW_THP
            sed -i 's/^THP_enabled:.*/THP_enabled: 0/' {root}/proc/self/status
        }}
        {}",
        command
            .replace(" /sys/", &format!(" {root}/sys/"))
            .replace(" /proc/", &format!(" {root}/proc/")),
    );
    // What the kernel makes of the affinity that it was told.
    let effective = "for d in ROOT/proc/irq/*; do test ! -f $d/smp_affinity_list || \
                     cp $d/smp_affinity_list $d/effective_affinity_list; done";
    let script = format!("{script}\n{}", effective.replace("ROOT", &root.to_string()));
    // `unset` is a special builtin, which only bash lets a function replace.
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

#[test]
fn a_filter_is_blamed_for_what_it_denies_alone() {
    let fake = Fake::with(&[("proc/self/status", FILTERED)]);
    assert_eq!(fake.row("seccomp").now, "a filter, io_uring allowed");
    for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
        let row = seccomp_row(&fake, errno);
        assert_eq!(row.state, State::Differs, "{row:?}");
        assert!(row.command.unwrap().contains("io_uring_setup"));
    }
    assert_eq!(seccomp_row(&fake, libc::ENOMEM).state, State::AsAdvised, "memlock's affair");
    assert_eq!(seccomp_row(&Fake::advised(), libc::EPERM).state, State::AsAdvised, "no filter");
    fake.write("proc/sys/kernel/io_uring_disabled", "2\n");
    let row = seccomp_row(&fake, libc::EPERM);
    assert_eq!(row.state, State::Unseen);
    assert!(row.now.contains("kernel.io_uring_disabled = 2"), "{row:?}");
}

#[test]
fn locked_memory_does_not_count_with_the_capability() {
    let few = LIMITS.replace("locked memory         unlimited", "locked memory         65536");
    let capable = STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
    let row = Fake::with(&[("proc/self/limits", &few)]).row("memlock");
    assert_eq!((row.state, row.now.as_str()), (State::Differs, "64 KiB"));
    let row =
        Fake::with(&[("proc/self/limits", &few), ("proc/self/status", &capable)]).row("memlock");
    assert_eq!((row.state, row.now.as_str()), (State::AsAdvised, "CAP_IPC_LOCK"));
}

#[test]
fn the_smallest_quota_on_the_way_up_counts() {
    let found = |groups: &str, files: &[(&str, &str)]| {
        let fake = Fake::with(&[("proc/self/cgroup", groups)]);
        files.iter().for_each(|(path, text)| fake.write(path, text));
        fake.row("cpu-manager").now
    };
    let v1 = [
        ("sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", "150000\n"),
        ("sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000\n"),
        ("sys/fs/cgroup/cpu/pod/cpu.stat", "nr_periods 7\nnr_throttled 3\n"),
    ];
    let text = found("4:cpu,cpuacct:/pod/container\n", &v1);
    assert_eq!(text, "CPUs 0-3, quota of 1.5, throttled 3 times");
    let v2 = [
        ("sys/fs/cgroup/cpu.max", "300000 100000\n"),
        ("sys/fs/cgroup/pod/cpu.max", "200000 100000\n"),
    ];
    assert_eq!(found("0::/pod\n", &v2), "CPUs 0-3, quota of 2, throttled 0 times");
    assert_eq!(found("0::/\n", &v2), "CPUs 0-3, quota of 3, throttled 0 times");
    // A container that sees its own group as the root.
    assert_eq!(found("0::/../..\n", &[]), "CPUs 0-3, no quota");
}

#[test]
fn a_quota_of_every_cpu_is_none() {
    let fake = Fake::with(&[("sys/fs/cgroup/system.slice/cpu.max", "400000 100000\n")]);
    assert_eq!(fake.row("cpu-manager").state, State::AsAdvised);
}

#[test]
fn with_bbr_some_sysctls_mean_nothing() {
    let fake = Fake::with(&[
        ("proc/sys/net/ipv4/tcp_congestion_control", "bbr\n"),
        ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n"),
        ("proc/sys/net/core/default_qdisc", "fq\n"),
    ]);
    for knob in ["net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_congestion_control"] {
        assert_eq!(fake.row(knob).state, State::AsAdvised, "{knob}");
    }
}

#[test]
fn one_queue_needs_no_map_and_cannot_be_spread() {
    let fake = Fake::advised()
        .without("sys/class/net/eth0/queues")
        .without("sys/class/net/eth0/device/msi_irqs");
    fake.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n");
    // The kernel has the file and refuses to read it.
    fake.write("sys/class/net/eth0/queues/tx-0/tx_maxrate", "0\n");
    assert_eq!(fake.row("xps").now, "1 queue, 4 CPUs");
    assert_eq!(fake.row("irq-affinity").state, State::AsAdvised);
    let row = fake.row("rps");
    assert_eq!((row.card.as_deref(), row.now.as_str()), (Some("eth0"), "1 queue, 4 CPUs, RPS off"));
}

#[test]
fn interrupts_of_a_virtio_card_are_those_of_the_device_behind_it() {
    let fake = Fake::advised().without("sys/class/net/eth0/device");
    for interrupt in ["40", "41", "42"] {
        fake.write(&format!("sys/devices/pci/msi_irqs/{interrupt}"), "msix\n");
    }
    fake.write("sys/devices/pci/virtio0/vendor", "0x1af4\n");
    let device = fake.root.path().join("sys/class/net/eth0/device");
    std::os::unix::fs::symlink("../../../devices/pci/virtio0", device).unwrap();
    assert_eq!(fake.row("irq-affinity").now, "2 interrupts on 2 CPUs");
}

#[test]
fn a_pods_network_namespace_hides_some() {
    let fake = Fake::advised()
        .without("proc/sys/net/core/default_qdisc")
        .without("proc/sys/net/core/netdev_max_backlog")
        .without("proc/sys/net/netfilter")
        .without("sys/class/net/eth0/device");
    let hidden = |knob: &str| {
        let row = fake.row(knob);
        assert_eq!(row.state, State::Unseen, "{row:?}");
        row.now
    };
    let path = "/proc/sys/net/core/netdev_max_backlog is not there";
    assert_eq!(hidden("net.core.netdev_max_backlog"), path);
    assert!(hidden("net.netfilter.nf_conntrack_max").ends_with("is not there"));
    for knob in ["rps", "xps", "irq-affinity"] {
        assert_eq!(hidden(knob), "/sys/class/net has no network card");
    }
    fake.write("proc/sys/net/ipv4/tcp_congestion_control", "bbr\n");
    assert_eq!(fake.row("net.ipv4.tcp_congestion_control").state, State::AsAdvised);
}

#[test]
fn a_host_without_proc_and_sys_is_no_error() {
    let nothing = Fake { root: tempfile::tempdir().unwrap() };
    let report = compare(&nothing.host(Ok(())));
    assert!(report.rows.iter().all(|row| row.state == State::Unseen), "{report}");
    let text = report.to_string();
    assert!(text.starts_with("Cannot be seen here:\n\n"), "{text}");
    assert!(text.contains("open-files"), "{text}");
}

#[test]
fn nonsense_cannot_be_seen_and_does_not_panic() {
    for nonsense in
        ["", "\n", "x", "-1", "1 2", "9999999999999999999999", "0-99999999999", "[", "]["]
    {
        let fake = Fake::advised();
        ADVISED.iter().for_each(|(path, _)| fake.write(path, nonsense));
        let rows = fake.rows();
        let of = |name: &str| rows.iter().find(|row| row.knob == name).unwrap();
        for knob in ["open-files", "fs.nr_open", "memlock", "net.ipv4.tcp_wmem", "rps"] {
            assert_eq!(of(knob).state, State::Unseen, "{nonsense:?}: {:?}", of(knob));
        }
    }
}

#[test]
fn the_table_has_straight_columns() {
    let fake = Fake::with(&[
        ("proc/sys/net/core/somaxconn", "128\n"),
        ("proc/sys/fs/nr_open", "1024\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
    ]);
    let text = compare(&fake.host(Ok(()))).to_string();
    let expected = "\
Differs from the advice, and matters on every host:

  KNOB                NOW   ADVICE                 COMMAND
  fs.nr_open          1024  as open-files or more  sysctl -w fs.nr_open=400000
  net.core.somaxconn  128   4096 or more           sysctl -w net.core.somaxconn=4096

Differs from the advice, and matters in some cases:

  KNOB        NOW     ADVICE                COMMAND
  huge-pages  always  none for the gateway  unset MIMALLOC_ALLOW_THP

As advised:

  open-files ";
    assert!(text.starts_with(expected), "{text}");
    assert!(!text.contains("Cannot be seen"), "{text}");
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
}

#[test]
fn json_has_every_knob() {
    let fake = Fake::with(&[("proc/sys/net/core/somaxconn", "128\n")]);
    let json = compare(&fake.host(Ok(()))).json();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), knobs().count());
    let found = rows.as_array().unwrap().iter().find(|row| row["knob"] == "net.core.somaxconn");
    let expected = serde_json::json!({
        "knob": "net.core.somaxconn",
        "state": "differs",
        "matters": "always",
        "now": "128",
        "advice": "4096 or more",
        "command": "sysctl -w net.core.somaxconn=4096",
    });
    assert_eq!(found, Some(&expected));
}

/// The files of `tuning/` by their names without `.md`, but for its README.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(tuning()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let name = name.strip_suffix(".md").unwrap_or_else(|| panic!("{name} is not prose"));
        if name != "README" {
            files.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
    files
}

fn tuning() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning")
}

#[test]
fn each_knob_has_its_file_with_the_same_advice_and_commands() {
    let files = files();
    for knob in knobs() {
        let file = files.iter().find(|(name, _)| name == knob.name);
        let (_, text) = file.unwrap_or_else(|| panic!("no tuning/{}.md", knob.name));
        let missing = |what: &str| format!("tuning/{}.md does not say: {what}", knob.name);
        let advice = format!("| advice | {} |", knob.advice);
        assert!(text.contains(&advice), "{}", missing(&advice));
        let matters = match knob.matters {
            Matters::Always => "| matters | on every host |",
            Matters::Sometimes => "| matters | in some cases |",
        };
        assert!(text.contains(matters), "{}", missing(matters));
    }
}

#[test]
fn each_file_has_its_knob_or_says_why_not() {
    let index = fs::read_to_string(tuning().join("README.md")).unwrap();
    let files = files();
    for (name, text) in &files {
        let checked = knobs().any(|knob| knob.name == name);
        assert_ne!(checked, text.contains("\nNo check: "), "tuning/{name}.md");
        assert!(text.starts_with(&format!("# {name}\n")), "tuning/{name}.md");
        for part in ["## What it does", "## When it matters", "## Measured", "## Undo"] {
            assert!(text.contains(&format!("\n{part}\n")), "tuning/{name}.md: {part}");
        }
        assert!(index.contains(&format!("[{name}]({name}.md)")), "{name} is not in the index");
    }
    assert_eq!(index.matches(".md)").count(), files.len(), "a file in the index that is not there");
}

#[test]
fn each_command_stands_in_its_knobs_file() {
    let files = files();
    let denied = seccomp_row(&Fake::with(&[("proc/self/status", FILTERED)]), libc::EPERM);
    let denied = ("seccomp", denied.command.unwrap());
    let printed = DIFFERING.iter().map(|(knob, _, command)| (*knob, (*command).to_owned()));
    for (knob, command) in printed.chain([denied]) {
        let (_, text) = files.iter().find(|(name, _)| name == knob).unwrap();
        let stands = text.lines().any(|line| is_filled(line, &command));
        assert!(stands, "tuning/{knob}.md does not say: {command}");
    }
}

/// Whether `printed` is `line` with something for each word in capitals.
fn is_filled(line: &str, printed: &str) -> bool {
    let words = ["FILES", "KIB", "ENTRIES", "INTERRUPTS", "CPUS", "CARD", "MASK"];
    let pattern = words.iter().fold(regex::escape(line), |text, word| text.replace(word, ".+"));
    regex::Regex::new(&format!("^{pattern}$")).unwrap().is_match(printed)
}

#[test]
fn the_backlog_is_the_workers() {
    let bind = include_str!("../worker/bind.rs");
    assert!(bind.contains("const BACKLOG: i32 = 4096;"), "net.core.somaxconn advises the old one");
}
