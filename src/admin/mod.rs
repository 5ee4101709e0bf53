//! What the gateway tells about itself: certificates, configuration, metrics, readiness.
//!
//! - Three ports, each optional: the administration (loopback), the status port for probes and the
//!   metrics port for scrapes. All are bound before the thread starts, so that a port in use is an
//!   error at start.
//! - One thread of its own serves them; it reads what workers count and asks them for copies, and
//!   never makes one wait. A worker that does not answer is waited for a bounded time.
//! - Pages that may be large are made on a second thread, one at a time, and compressed there for
//!   who takes gzip: a probe does not wait for that.
//! - What it shows is read by GET and HEAD, what it does is asked for by POST. Keys are never
//!   shown.
//!
//! Deliberately not here: TLS and authentication; the administration listens on loopback.

#![forbid(unsafe_code)]

mod aside;
mod body;
mod certs;
mod command;
mod config_dump;
mod gzip;
mod page;
mod scrape;
mod serve;
mod traffic;

pub use command::Command;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use crate::address::Address;
use crate::snapshot::{ListenerKey, Snapshot};
use crate::telemetry::prometheus::Reporter;
use crate::telemetry::{Series, SharedCounters};

/// How long a worker may show no sign of life, of which there are four each second.
const SILENT_SECONDS_MAX: u64 = 10;

/// Where to listen; `None` turns a port off, port 0 takes a free one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AdminConfig {
    /// The administration: everything. Only for the operator of this host.
    pub admin: Option<SocketAddr>,
    /// `/healthz/ready` alone.
    pub status: Option<SocketAddr>,
    /// `/stats/prometheus` alone.
    pub metrics: Option<SocketAddr>,
}

/// What the pages are made of. The closures are called on the administration's thread and must not
/// block.
pub struct State {
    /// The newest snapshot.
    pub snapshot: Box<dyn Fn() -> Arc<Snapshot> + Send>,
    /// One per worker, in their order.
    pub workers: Vec<SharedCounters>,
    /// How many workers run on which driver, with what denied them io_uring, or nothing.
    pub drivers: BTreeMap<(&'static str, &'static str), usize>,
    /// Of threads that count and are no workers.
    pub others: Vec<SharedCounters>,
    /// Asks every worker for a copy of its series. Each sends its index and the copy; the channel
    /// closes when no more will come.
    pub scrape: Box<dyn Fn() -> mpsc::Receiver<(usize, Series)> + Send>,
    /// Whether traffic should come here, as far as the control thread knows.
    pub readiness: Box<dyn Fn() -> Readiness + Send>,
    /// Carries out, or begins to, what the operator asks for.
    pub command: Box<dyn Fn(Command) + Send>,
    /// What is bound now.
    pub listeners: Box<dyn Fn() -> Vec<BoundListener> + Send>,
    /// Who the metrics are of.
    pub reporter: Box<dyn Fn() -> Reporter + Send>,
    /// When the process started.
    pub started: SystemTime,
    /// Of the program.
    pub version: &'static str,
}

impl State {
    /// Whether traffic should come here at `now`. A worker that shows no sign of life still gets
    /// its part of all connections, and serves none.
    fn ready(&self, now: SystemTime) -> Readiness {
        let mut readiness = (self.readiness)();
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        for (index, worker) in self.workers.iter().enumerate() {
            let heartbeat = worker.heartbeat.value();
            let silent = now.saturating_sub(heartbeat);
            // Before its first sign of life it is starting.
            if heartbeat > 0 && silent > SILENT_SECONDS_MAX {
                readiness.ready = false;
                let reason = format!("worker {index} has shown no sign of life for {silent} s");
                readiness.reasons.push(reason);
            }
        }
        readiness
    }
}

/// Whether the gateway can serve.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Every worker applied the first snapshot and its listeners are bound.
    pub ready: bool,
    /// What is in the way, one line each; empty when ready.
    pub reasons: Vec<String>,
}

/// A listener and the address that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundListener {
    /// Of the listener in the snapshot.
    pub key: ListenerKey,
    /// The port in the Gateway.
    pub gateway_port: u16,
    /// Never with port 0.
    pub address: Address,
}

/// The administration cannot start.
#[derive(Debug)]
pub enum AdminError {
    /// A port cannot be bound.
    Bind {
        /// The key in the settings file that names the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The thread cannot be started.
    Thread(io::Error),
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { key, address, source } => {
                write!(f, "cannot listen on {address}: {source}; change `{key}` in the settings")
            }
            Self::Thread(error) => write!(f, "cannot start the administration: {error}"),
        }
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } | Self::Thread(source) => Some(source),
        }
    }
}

/// The running administration. Dropping it closes its ports and ends its thread.
#[derive(Debug)]
pub struct Admin {
    addresses: AdminConfig,
    /// Dropped to end the thread.
    running: Option<watch::Sender<()>>,
    /// `Some` until the drop.
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Binds the ports, then serves them on a thread of its own.
    ///
    /// # Errors
    /// A port cannot be bound, or the thread not be started.
    pub fn start(config: AdminConfig, state: State) -> Result<Self, AdminError> {
        let ports = [
            (serve::Port::Admin, "admin.address", config.admin),
            (serve::Port::Status, "status.address", config.status),
            (serve::Port::Metrics, "metrics.address", config.metrics),
        ];
        let mut bound = Vec::new();
        let mut addresses = AdminConfig::default();
        for (port, key, address) in ports {
            let Some(address) = address else { continue };
            let (listener, got) =
                bind(address).map_err(|source| AdminError::Bind { key, address, source })?;
            *addresses.slot(port) = Some(got);
            bound.push((port, listener));
        }
        let (running, ended) = watch::channel(());
        let thread = serve::start(bound, state, ended).map_err(AdminError::Thread)?;
        Ok(Self { addresses, running: Some(running), thread: Some(thread) })
    }

    /// The addresses that are bound, with the ports that the kernel gave.
    #[must_use]
    pub fn addresses(&self) -> AdminConfig {
        self.addresses
    }
}

impl AdminConfig {
    fn slot(&mut self, port: serve::Port) -> &mut Option<SocketAddr> {
        match port {
            serve::Port::Admin => &mut self.admin,
            serve::Port::Status => &mut self.status,
            serve::Port::Metrics => &mut self.metrics,
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
