//! One measurement: one gateway, one scenario, once.
//!
//! - The gateway is started for it and stopped after it.
//! - What counts lies between two samples while the load goes on: CPU time from the kernel,
//!   operations from the backend. Making connections, warming up and ending lie outside.
//! - A failure at any time makes the measurement invalid.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::backend::{Addresses, Counters, ENDPOINTS};
use crate::certificate::Authority;
use crate::check;
use crate::generate::{IDLE, Outcome, READY};
use crate::peer::{Gateway, Peer, Site};
use crate::process::{self, Child, Tree, on_cpu};
use crate::reload;
use crate::scenario::{Figure, Generator, Scenario};
use crate::statistics::Latency;
use crate::tool::{Timing, Tools};

/// After the last idle connection, for buffers to be given back.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How names of ringgate's worker threads begin.
const WORKER_THREAD: &str = "worker-";
const CONTROL_PATIENCE: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Clone)]
pub(crate) struct Measurement {
    pub scenario: &'static str,
    /// Its [`Peer::name`].
    pub peer: String,
    /// From 1.
    pub round: usize,
    /// `None` if the gateway could not do it at all.
    pub figures: Option<Figures>,
    /// Why it is invalid.
    pub fault: Option<String>,
    /// Whether that is the machine's fault, so that it may be better at another time.
    pub disturbed: bool,
}

/// The numbers of a measurement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// The scenario's [`Figure`].
    pub value: f64,
    /// CPU-microseconds of the gateway for each operation.
    pub cpu_micros: f64,
    pub operations: f64,
    pub per_second: f64,
    /// Share of the time that the gateway ran on its CPU.
    pub gateway_busy: f64,
    /// The same for the load generator: near 1, it is what limits throughput.
    pub generator_busy: f64,
    /// Share of the time that anything but gateway and backend ran on their CPU.
    pub others_busy: f64,
    /// The 99th percentile of how late the generator was itself.
    pub generator_late: Duration,
    /// Connections that the gateway made to the backend, with those of the warm-up.
    pub upstream_connections: u64,
    pub latency: Latency,
    /// Memory of the gateway at the end.
    pub pss_kib: u64,
    /// From the gateway's start to its first answer.
    pub started_in: Duration,
    /// With many hosts: until a changed certificate was served.
    pub reloaded_in: Option<Duration>,
}

impl Measurement {
    /// The figures of a measurement without a fault.
    pub(crate) fn valid(&self) -> Option<&Figures> {
        self.figures.as_ref().filter(|_| self.fault.is_none())
    }
}

/// The backend's process and a connection that asks for its counters.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Lives as long as the run.
    child: Child,
    /// Where it runs, and the gateway.
    cpu: usize,
    pub addresses: Addresses,
    pub authority: Authority,
    control: TcpStream,
}

impl Backend {
    /// # Errors
    /// It does not start.
    pub(crate) fn start(own: &Path, cpu: usize, authority: Authority) -> io::Result<Self> {
        let mut command = on_cpu(cpu, own);
        command.args(["backend", "--http2", &format!("--ports={ENDPOINTS}")]);
        command.arg("--certificate").arg(&authority.certificate);
        command.arg("--key").arg(&authority.key);
        let mut child = Child::start(command.stdout(Stdio::piped()))?;
        let stdout = child.inner().stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let addresses = Addresses::parse(&line);
        let addresses = addresses.ok_or_else(|| io::Error::other("the backend does not start"))?;
        let control = TcpStream::connect(addresses.http[0])?;
        control.set_read_timeout(Some(CONTROL_PATIENCE))?;
        Ok(Self { child, cpu, addresses, authority, control })
    }

    fn counters(&mut self) -> io::Result<Counters> {
        self.control.write_all(b"GET /-/counters HTTP/1.1\r\nhost: backend\r\n\r\n")?;
        let mut bytes = [0; 512];
        let size = self.control.read(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..size]);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        body.and_then(Counters::parse).ok_or_else(|| io::Error::other("not a backend's counters"))
    }
}

/// What measurements of one run have in common.
#[derive(Debug)]
pub(crate) struct Bench {
    pub tools: Tools,
    pub backend: Backend,
    pub timing: Timing,
}

impl Bench {
    /// Measures; what goes wrong is in the result.
    pub(crate) fn measure(
        &mut self,
        peer: &Peer,
        scenario: &Scenario,
        site: &Site<'_>,
        round: usize,
    ) -> Measurement {
        let result = self.try_measure(peer, scenario, site);
        let (figures, fault) = match result {
            Ok((figures, fault)) => (Some(figures), fault),
            Err(error) => (None, Some(error.to_string())),
        };
        let disturbance = |figures: &Figures| check::disturbance(scenario, figures);
        let disturbance = figures.as_ref().filter(|_| fault.is_none()).and_then(disturbance);
        let (disturbed, fault) = (disturbance.is_some(), fault.or(disturbance));
        let (scenario, peer) = (scenario.name, peer.name.clone());
        Measurement { scenario, peer, round, figures, fault, disturbed }
    }

    fn try_measure(
        &mut self,
        peer: &Peer,
        scenario: &Scenario,
        site: &Site<'_>,
    ) -> io::Result<(Figures, Option<String>)> {
        check::refuses_strangers(peer, site, &self.backend.authority)?;
        let before = self.backend.counters()?;
        let gateway = Gateway::start(peer, site)?;
        let tls = peer.kind.has_tls(scenario);
        let command = self.tools.command(scenario, gateway.address, tls, self.timing);
        if let Generator::Idle { connections, .. } = scenario.generator {
            return self.idle(&gateway, command, connections, before);
        }
        let mut generator = Running::start(command)?;
        if scenario.generator.is_own() {
            generator.wait_for(READY)?;
        }
        sleep(self.timing.warm_up);
        let first = self.sample(gateway.tree(), generator.child.tree())?;
        sleep(self.timing.seconds);
        let last = self.sample(gateway.tree(), generator.child.tree())?;
        let pss_kib = gateway.tree().pss_kib();
        let printed = generator.finish()?;
        let outcome = self.tools.outcome(scenario, &printed);
        let outcome = outcome.ok_or_else(|| io::Error::other(format!("no result: {printed}")))?;
        let mut figures = Figures::between(&first, &last, scenario.large_body(), pss_kib);
        figures.upstream_connections = self.backend.counters()?.accepted - before.accepted;
        figures.latency = outcome.latency;
        figures.generator_late = outcome.late;
        figures.started_in = gateway.started_in;
        if scenario.hosts > 0 {
            figures.reloaded_in = Some(reload::measure(&gateway, site)?);
        }
        figures.value = match scenario.figure {
            Figure::Cpu => figures.cpu_micros,
            Figure::Memory => pss_kib as f64,
            Figure::Tail => outcome.latency.p99.as_secs_f64() * 1e6,
            Figure::Busiest => busiest(&first, &last),
        };
        let fault = fault(scenario, &outcome, &figures)
            .or_else(|| check::mismatch(scenario, peer.kind, &last.seen.since(&first.seen)));
        Ok((figures, fault))
    }

    fn idle(
        &mut self,
        gateway: &Gateway,
        mut command: Command,
        connections: usize,
        before: Counters,
    ) -> io::Result<(Figures, Option<String>)> {
        let empty = gateway.tree().pss_kib();
        let first = self.sample(gateway.tree(), gateway.tree())?;
        // Ends the generator when it is dropped.
        command.stdin(Stdio::piped());
        let mut generator = Running::start(command)?;
        generator.wait_for(IDLE)?;
        sleep(SETTLE);
        let pss_kib = gateway.tree().pss_kib();
        let last = self.sample(gateway.tree(), gateway.tree())?;
        let mut figures = Figures::between(&first, &last, None, pss_kib);
        figures.generator_busy = 0.0;
        figures.started_in = gateway.started_in;
        figures.upstream_connections = self.backend.counters()?.accepted - before.accepted;
        figures.value = pss_kib.saturating_sub(empty) as f64 / connections as f64;
        drop(generator.child.inner().stdin.take());
        let printed = generator.finish()?;
        let fault = match Outcome::parse(&printed) {
            Some(outcome) if outcome.failures == 0 => None,
            _ => Some(format!("not all connections were made: {printed}")),
        };
        Ok((figures, fault))
    }

    fn sample(&mut self, gateway: Tree, generator: Tree) -> io::Result<Sample> {
        Ok(Sample {
            gateway: gateway.cpu(),
            workers: gateway.threads_cpu(WORKER_THREAD),
            seen: self.backend.counters()?,
            generator: generator.cpu(),
            backend: self.backend.child.tree().cpu(),
            idle: process::idle(self.backend.cpu),
            at: Instant::now(),
        })
    }
}

/// The busiest worker's part of what all workers did, in percent.
fn busiest(first: &Sample, last: &Sample) -> f64 {
    let used = last.workers.iter().zip(&first.workers).map(|(last, first)| *last - *first);
    let used: Vec<_> = used.map(|used| used.as_secs_f64()).collect();
    100.0 * used.iter().copied().fold(0.0, f64::max) / used.iter().sum::<f64>()
}

/// Why figures do not count, if so.
fn fault(scenario: &Scenario, outcome: &Outcome, figures: &Figures) -> Option<String> {
    if outcome.failures > 0 {
        return Some(format!("{} requests failed", outcome.failures));
    }
    if figures.operations <= 0.0 {
        return Some("nothing was served".to_owned());
    }
    // A gateway that closes some pays for it in its figure; without keep-alive it is one a request.
    let connections = figures.upstream_connections as f64;
    let kept = scenario.setup.is_relay() || connections * 2.0 <= figures.operations;
    if !kept && figures.operations > 1_000.0 {
        return Some(format!(
            "{} upstream connections: no keep-alive",
            figures.upstream_connections
        ));
    }
    let clients = scenario.generator.connections() as u64;
    if scenario.setup.is_relay() && figures.upstream_connections < clients {
        let upstream = figures.upstream_connections;
        return Some(format!("{clients} clients had {upstream} upstream connections"));
    }
    if let Generator::Handshake { resume, .. } = scenario.generator {
        let wrong = if resume { outcome.full_handshakes } else { outcome.resumed_handshakes };
        // The warm-up may not have been long enough for each connection's first ticket.
        if wrong * 100 > outcome.requests {
            return Some(format!("{wrong} of {} handshakes of the other kind", outcome.requests));
        }
    }
    None
}

struct Sample {
    gateway: Duration,
    /// Of each worker thread of ringgate.
    workers: Vec<Duration>,
    generator: Duration,
    backend: Duration,
    /// The CPU of gateway and backend.
    idle: Duration,
    /// What the backend saw so far.
    seen: Counters,
    at: Instant,
}

impl Figures {
    fn between(first: &Sample, last: &Sample, large_body: Option<u64>, pss_kib: u64) -> Self {
        let seconds = (last.at - first.at).as_secs_f64();
        let operations = match large_body {
            Some(body) => (last.seen.bytes - first.seen.bytes) as f64 / body as f64,
            None => (last.seen.requests - first.seen.requests) as f64,
        };
        let cpu = last.gateway.saturating_sub(first.gateway).as_secs_f64();
        let generator = last.generator.saturating_sub(first.generator).as_secs_f64();
        let backend = last.backend.saturating_sub(first.backend).as_secs_f64();
        let idle = last.idle.saturating_sub(first.idle).as_secs_f64();
        let cpu_micros = cpu * 1e6 / operations;
        Self {
            value: cpu_micros,
            cpu_micros,
            operations,
            per_second: operations / seconds,
            gateway_busy: cpu / seconds,
            generator_busy: generator / seconds,
            others_busy: (seconds - idle - cpu - backend).max(0.0) / seconds,
            pss_kib,
            ..Self::default()
        }
    }
}

/// A load generator at work.
struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = Child::start(&mut command)?;
        let stdout = child.inner().stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, stdout: BufReader::new(stdout) })
    }

    /// Waits until it prints `word`.
    fn wait_for(&mut self, word: &str) -> io::Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.trim() == word {
            return Ok(());
        }
        Err(io::Error::other(format!("the generator is not {word} but says: {}", line.trim())))
    }

    /// All that it printed and was not read.
    fn finish(mut self) -> io::Result<String> {
        let mut printed = String::new();
        self.stdout.read_to_string(&mut printed)?;
        self.child.inner().wait()?;
        Ok(printed)
    }
}
