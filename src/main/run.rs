//! `ringgate run`: from a settings file to serving, and to the end.
//!
//! The control thread's story: compile, start workers, open listeners, then wait for changes and
//! signals. Whatever cannot be started is an error that names the setting to change; once it
//! serves, nothing that is wrong with a resource ends it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::Instant;

use ringgate::address::Address;
use ringgate::admin::{Admin, AdminConfig, BoundListener, Command, Readiness, State};
use ringgate::config::Control;
use ringgate::settings::{self, Settings, threads};
use ringgate::snapshot::{Publisher, Snapshot};
use ringgate::telemetry::prometheus::Reporter;
use ringgate::telemetry::{AccessLog, LogFormat, SharedCounters};
use ringgate::worker::{self, Applied, Bound, Fleet, Running};

use crate::log::{LogLevel, ProcessLog};
use crate::orders::{Asked, Orders};

/// The command line or the settings are wrong (`EX_USAGE` of sysexits.h).
pub(crate) const EXIT_USAGE: u8 = 64;

/// With files for fewer clients than that, somebody has forgotten to raise the limit.
const CLIENTS_MIN: u64 = 2000;

/// How long until it is tried again to bind what could not be bound.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long after a change its memory is given back: one seldom comes alone.
const TIDY_AFTER: Duration = Duration::from_secs(1);

/// Serves as `path` says until a signal ends it.
pub(crate) fn run(path: &Path) -> ExitCode {
    let settings = match Settings::load(path) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("ringgate run: the settings cannot be used:\n{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let reload = || Settings::load(path).map_err(|error| error.to_string());
    match on_control_thread(|log| serve(settings, reload, log, || {})) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringgate run: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a story on this thread, which becomes the control thread, and logs it.
pub(crate) fn on_control_thread<T, F: Future<Output = Result<T, Failure>>>(
    story: impl FnOnce(LogLevel) -> F,
) -> Result<T, Failure> {
    let log = ProcessLog::start();
    let log = log.map_err(|error| Failure(format!("cannot start the log: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| Failure(format!("cannot start the control thread: {error}")))?
        .block_on(story(log.level()))
}

/// Why the gateway could not start.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failure(error: impl fmt::Display) -> Failure {
    Failure(error.to_string())
}

/// Serves `settings` until the operator ends it. `reload` reads the settings again; `ready` is
/// called once everything is up.
pub(crate) async fn serve(
    settings: Settings,
    reload: impl Fn() -> Result<Settings, String>,
    log: LogLevel,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let mut orders = Orders::new().map_err(failure)?;
    let mut control = Control::start(&settings).await.map_err(failure)?;
    let mut gateway = Gateway::start(&settings, &control, &orders, log)?;
    ready();
    let mut tidying = Some(Instant::now());
    loop {
        tokio::select! {
            snapshot = control.changed() => {
                gateway.publish(&snapshot);
                tidying.get_or_insert_with(|| Instant::now() + TIDY_AFTER);
            }
            () = until(tidying) => {
                tidying = None;
                gateway.publisher.free_retired();
                worker::give_back_memory();
            }
            () = until(gateway.closing) => gateway.close(),
            () = until(gateway.binding) => gateway.bind_again(&control.current()),
            asked = orders.next() => match asked {
                Asked::Reload => gateway.reload(&mut control, reload()),
                Asked::Close { graceful } => gateway.start_closing(&control.current(), graceful),
                Asked::End => break,
            },
        }
    }
    gateway.drain(&control.current());
    Ok(())
}

/// Waits until a time, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Everything that is running. Fields end in this order: the log outlives the workers that write
/// it.
struct Gateway {
    publisher: Publisher,
    fleet: Fleet,
    shared: Arc<Shared>,
    admin: Admin,
    log: Option<AccessLog>,
    /// When the listeners are to be closed.
    closing: Option<Instant>,
    /// When what could not be bound is tried again.
    binding: Option<Instant>,
    /// What was said of that, so that it is said once.
    unbound: Vec<String>,
    /// The operator had the listeners closed, or will have.
    is_retired: bool,
}

/// What the administration's thread sees of the control thread.
struct Shared {
    listeners: ArcSwap<Vec<BoundListener>>,
    reporter: ArcSwap<Reporter>,
    readiness: ArcSwap<Readiness>,
    /// The operator wants it to be not ready.
    fails_health_check: Arc<AtomicBool>,
}

impl Shared {
    fn new(settings: &Settings, fails_health_check: Arc<AtomicBool>) -> Self {
        Self {
            listeners: ArcSwap::default(),
            reporter: ArcSwap::from_pointee(reporter(&settings.gateway)),
            readiness: ArcSwap::default(),
            fails_health_check,
        }
    }

    fn readiness(&self) -> Readiness {
        let mut readiness = self.readiness.load().as_ref().clone();
        if self.fails_health_check.load(Relaxed) {
            readiness.ready = false;
            readiness.reasons.push("somebody has posted to /healthcheck/fail".to_owned());
        }
        readiness
    }
}

impl Gateway {
    fn start(
        settings: &Settings,
        control: &Control,
        orders: &Orders,
        level: LogLevel,
    ) -> Result<Self, Failure> {
        let first = control.current();
        let mut publisher = Publisher::default();
        publisher.publish(Arc::clone(&first));
        let log = start_access_log(settings)?;
        let config = fleet_config(&settings.workers);
        let (fleet, drivers) =
            Fleet::start(&config, &publisher.source(), log.as_ref()).map_err(failure)?;
        announce_workers(&drivers);
        let chosen = settings.limits.connections_max.is_some();
        announce_open_files(drivers.len(), first.limits.connections_max, chosen);
        let shared = Arc::new(Shared::new(settings, orders.fails_health_check()));
        let command = orders.commands(level);
        let others = log.iter().map(AccessLog::counters).chain([control.counters()]).collect();
        let state = state(&publisher, (&fleet, &drivers), others, &shared, command);
        let admin = Admin::start(admin_config(settings), state).map_err(failure)?;
        let (closing, binding, unbound, is_retired) = (None, None, Vec::new(), false);
        let mut gateway =
            Self { publisher, fleet, shared, admin, log, closing, binding, unbound, is_retired };
        gateway.announce();
        gateway.apply(&first);
        gateway.announce_readiness();
        Ok(gateway)
    }

    fn announce(&self) {
        let AdminConfig { admin, status, metrics } = self.admin.addresses();
        for (name, address) in [("admin", admin), ("status", status), ("metrics", metrics)] {
            if let Some(address) = address {
                tracing::info!("{name} on {address}");
            }
        }
        if let Some(address) = admin.filter(|address| !address.ip().to_canonical().is_loopback()) {
            tracing::warn!(
                "whoever reaches {address} sees the whole configuration and can end the gateway; \
                 with `admin.address: 127.0.0.1:{}` that is this host alone",
                address.port()
            );
        }
    }

    fn announce_readiness(&self) {
        let readiness = self.shared.readiness.load();
        if readiness.ready {
            tracing::info!("ready");
        } else {
            tracing::error!("not ready: {}", readiness.reasons.join("; "));
        }
    }

    /// Makes `snapshot` the one that is served.
    fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        self.publisher.publish(Arc::clone(snapshot));
        self.unbound.clear();
        self.apply(snapshot);
    }

    /// Tries to bind what could not be bound: whoever was in the way may be gone. The kernel itself
    /// needs a while to give back what a process held that was killed.
    fn bind_again(&mut self, snapshot: &Snapshot) {
        self.apply(snapshot);
        if self.binding.is_none() {
            self.announce_readiness();
        }
    }

    /// Opens and closes listeners as `snapshot` says, and tells what became of it.
    fn apply(&mut self, snapshot: &Snapshot) {
        let applied = self.fleet.apply(snapshot);
        self.binding = (!applied.failed.is_empty()).then(|| Instant::now() + BIND_AGAIN_AFTER);
        let before = std::mem::replace(&mut self.unbound, log_applied(&applied));
        self.unbound.iter().filter(|what| !before.contains(what)).for_each(|what| {
            tracing::error!("{what}");
        });
        let listeners = self.fleet.listeners().iter();
        let listeners = listeners.map(|(key, bound)| {
            let Bound { gateway_port, address } = *bound;
            BoundListener { key: *key, gateway_port, address }
        });
        self.shared.listeners.store(Arc::new(listeners.collect()));
        let readiness = if self.is_retired { draining() } else { readiness(&applied) };
        self.shared.readiness.store(Arc::new(readiness));
    }

    /// Stops being ready, and closes the listeners: at once, or when load balancers have had the
    /// time of a drain to notice. Until then each request is the last of its connection.
    fn start_closing(&mut self, snapshot: &Snapshot, graceful: bool) {
        self.is_retired = true;
        self.shared.readiness.store(Arc::new(draining()));
        if !graceful {
            return self.close();
        }
        self.fleet.retire_connections();
        let limit = snapshot.limits.drain_timeout;
        tracing::info!("closing the listeners in {} s", limit.as_secs_f32());
        self.closing = Some(Instant::now() + limit);
    }

    fn close(&mut self) {
        self.closing = None;
        self.fleet.close();
        self.shared.listeners.store(Arc::default());
        tracing::info!("closed the listeners; open requests may finish");
    }

    fn reload(&mut self, control: &mut Control, settings: Result<Settings, String>) {
        if let Some(log) = &self.log {
            log.reopen();
        }
        let settings = match settings {
            Ok(settings) => settings,
            Err(error) => return tracing::error!("{error}; the settings stay as they were"),
        };
        match control.reload(&settings) {
            Ok(snapshot) => {
                tracing::info!("read the settings again");
                self.shared.reporter.store(Arc::new(reporter(&settings.gateway)));
                self.publish(&snapshot);
            }
            Err(error) => tracing::error!("{error}; everything stays as it was"),
        }
    }

    /// Lets open requests finish, then ends the workers and with them the gateway.
    fn drain(mut self, snapshot: &Snapshot) {
        let limit = snapshot.limits.drain_timeout;
        tracing::info!("draining, for at most {} s", limit.as_secs_f32());
        self.fleet.start_drain(limit);
        self.shared.readiness.store(Arc::new(draining()));
        self.fleet.finish(limit);
        tracing::info!("done");
    }
}

/// Together those that run on the same driver for the same reason.
fn announce_workers(drivers: &[Running]) {
    for (driver, count) in counted(drivers.iter().map(Running::to_string)) {
        tracing::info!("workers: {count} on {driver}");
    }
}

/// How often each is among `all`.
fn counted<T: Ord>(all: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_insert(0) += 1;
    }
    counts
}

/// Each client is a file, and so is each connection to an endpoint. The default of
/// `limits.connections_max` is a ceiling that few hosts allow in full; it is worth a warning where
/// somebody has `chosen` it, or where there is hardly room for anybody.
fn announce_open_files(workers: usize, connections_max: usize, chosen: bool) {
    let (max, wanted) = (worker::open_files_max(), (2 * workers * connections_max) as u64);
    if max >= wanted {
        return tracing::info!("open files: up to {max}, room for limits.connections_max");
    }
    let clients = max / 2;
    let room = format!(
        "open files: up to {max}, room for about {clients} clients with a connection to an \
         endpoint each"
    );
    if !chosen && clients >= CLIENTS_MIN {
        return tracing::info!("{room}");
    }
    tracing::warn!(
        "{room}, where limits.connections_max allows {}; raise the hard limit (`ulimit -n \
         {wanted}`, `LimitNOFILE=`), or lower limits.connections_max",
        workers * connections_max,
    );
}

/// Logs it, but for what could not be bound, of which it returns what to say.
fn log_applied(applied: &Applied) -> Vec<String> {
    for (_, bound) in &applied.opened {
        tracing::info!("listening on {}", place(bound));
    }
    for (_, bound) in &applied.closed {
        tracing::info!("no longer on {}", place(bound));
    }
    if applied.stuck > 0 {
        tracing::error!("{} workers did not report in time", applied.stuck);
    }
    let told = applied.failed.iter().map(|(bound, error)| {
        let cure = match bound.address {
            Address::Ip(_) => cure(error),
            Address::Pipe(_) => cure_of_pipe(error),
        };
        format!("cannot listen on {}: {error}; {cure}", place(bound))
    });
    told.collect()
}

/// Where a listener is bound, and what for.
fn place(Bound { gateway_port, address }: &Bound) -> String {
    match address {
        Address::Ip(address) => format!("{address} for Gateway port {gateway_port}"),
        Address::Pipe(path) => path.to_string(),
    }
}

/// What an operator can do about a Unix socket that cannot be bound.
fn cure_of_pipe(error: &io::Error) -> &'static str {
    let cures = [
        (
            io::ErrorKind::AddrInUse,
            "find who listens there with `ss -lxp` and end it, or change the Gateway's `bind`",
        ),
        (
            io::ErrorKind::AlreadyExists,
            "remove it if nobody needs it, or change the Gateway's `bind`",
        ),
        (io::ErrorKind::NotFound, "make its directory, or change the Gateway's `bind`"),
        (
            io::ErrorKind::PermissionDenied,
            "let the gateway's user write to its directory, or change the Gateway's `bind`",
        ),
    ];
    let found = cures.iter().find(|(kind, _)| *kind == error.kind());
    found.map_or("change the Gateway's `bind`", |(_, cure)| cure)
}

/// What an operator can do about an address that cannot be bound.
fn cure(error: &io::Error) -> &'static str {
    let cures = [
        (
            io::ErrorKind::AddrInUse,
            "find who listens there with `ss -ltnp` and end it, or change `listen.ports` and \
             restart",
        ),
        (
            io::ErrorKind::PermissionDenied,
            "ports below 1024 need CAP_NET_BIND_SERVICE or a lower sysctl \
             net.ipv4.ip_unprivileged_port_start; or map this one to a higher port in \
             `listen.ports` and restart",
        ),
        (
            io::ErrorKind::AddrNotAvailable,
            "no interface of this host has that address; change `listen.address` and restart, or \
             the Gateway's `bind`",
        ),
    ];
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
        return "the process, or the host, may open no more files: raise the hard limit \
                (`ulimit -n`, `LimitNOFILE=`, the sysctl fs.file-max) and restart";
    }
    let found = cures.iter().find(|(kind, _)| *kind == error.kind());
    found.map_or("change `listen` in the settings and restart", |(_, cure)| cure)
}

/// Ready when every worker has reported and every listener is bound.
fn readiness(applied: &Applied) -> Readiness {
    let mut reasons: Vec<String> = applied
        .failed
        .iter()
        .map(|(bound, error)| format!("cannot listen on {}: {error}", bound.address))
        .collect();
    if applied.stuck > 0 {
        reasons.push(format!("{} workers did not report in time", applied.stuck));
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

fn draining() -> Readiness {
    Readiness { ready: false, reasons: vec!["draining".to_owned()] }
}

fn start_access_log(settings: &Settings) -> Result<Option<AccessLog>, Failure> {
    let Some(path) = &settings.access_log.path else {
        return Ok(None);
    };
    let format = match settings.access_log.format {
        settings::LogFormat::Text => LogFormat::Text,
        settings::LogFormat::Json => LogFormat::Json,
    };
    let log = AccessLog::start(path, format).map_err(|error| {
        let cure = log_cure(&error);
        Failure(format!("cannot write {}: {error}; {cure}change `access_log.path`", path.display()))
    })?;
    Ok(Some(log))
}

/// What an operator can do about a log that cannot be opened, other than to have another.
fn log_cure(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        "make the directory that it is to be in, or "
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "let the user that ringgate runs as write it, or "
    } else {
        ""
    }
}

fn fleet_config(workers: &settings::Workers) -> worker::Config {
    let plan = threads::plan(workers, &threads::Machine::inspect());
    let mut cores: Vec<_> =
        plan.pinned.iter().map(|id| Some(core_affinity::CoreId { id: *id })).collect();
    cores.resize(plan.count, None);
    let backend = match workers.backend {
        settings::Backend::Auto => worker::Backend::Auto,
        settings::Backend::Epoll => worker::Backend::Epoll,
        settings::Backend::IoUring => worker::Backend::IoUring,
    };
    worker::Config {
        cores,
        runtime: worker::RuntimeConfig { backend, ..worker::RuntimeConfig::default() },
        balance: workers.balance == settings::Balancing::Auto,
    }
}

fn admin_config(settings: &Settings) -> AdminConfig {
    AdminConfig {
        admin: Some(settings.admin.address),
        status: Some(settings.status.address),
        metrics: Some(settings.metrics.address),
    }
}

fn reporter(gateway: &settings::Gateway) -> Reporter {
    Reporter::new(&gateway.namespace, |name| gateway.labels.get(name).map(String::as_str))
}

fn state(
    publisher: &Publisher,
    (fleet, drivers): (&Fleet, &[Running]),
    others: Vec<SharedCounters>,
    shared: &Arc<Shared>,
    command: impl Fn(Command) + Send + 'static,
) -> State {
    let (source, scraper) = (publisher.source(), fleet.scraper());
    let (listening, readiness, reporting) =
        (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
    State {
        snapshot: Box::new(move || source.current()),
        workers: fleet.counters().cloned().collect(),
        drivers: counted(drivers.iter().map(Running::labels)),
        others,
        scrape: Box::new(move || {
            let (sender, receiver) = mpsc::channel(scraper.workers().max(1));
            scraper.ask(move |worker, series| {
                // There is room for every worker; a scrape that gave up needs none.
                let _: Result<(), _> = sender.try_send((worker, series));
            });
            receiver
        }),
        readiness: Box::new(move || readiness.readiness()),
        command: Box::new(command),
        listeners: Box::new(move || listening.listeners.load().as_ref().clone()),
        reporter: Box::new(move || reporting.reporter.load().as_ref().clone()),
        started: SystemTime::now(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_bound_has_a_cure_of_its_own() {
        for (errno, expected) in [
            (libc::EADDRINUSE, "`ss -ltnp`"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EADDRNOTAVAIL, "`listen.address`"),
            (libc::EMFILE, "LimitNOFILE="),
            (libc::EIO, "change `listen`"),
        ] {
            let cure = cure(&io::Error::from_raw_os_error(errno));
            assert!(cure.contains(expected), "{errno}: {cure}");
        }
    }
}
