//! The control thread's end of the workers.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};

use super::Fresh;
use super::balance::{self, Balance, Incoming};
use super::bind::{SocketFile, bind, bind_beside_ours, bind_pipe};
use super::thread::{Order, Start};
use crate::address::Address;
use crate::runtime;
use crate::snapshot::{ListenerKey, Snapshot, Source};
use crate::telemetry::{AccessLog, Counters, Series, SharedCounters};

/// How long a worker may take to carry out an order before it is called stuck.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after the limit of a drain a worker may take to close what is still open.
const ENDING_TIME_MAX: Duration = Duration::from_secs(2);

/// How the workers are started. Only a restart changes it.
#[derive(Debug, Clone)]
pub struct Config {
    /// One worker for each; pinned to the core if there is one.
    pub cores: Vec<Option<core_affinity::CoreId>>,
    /// The same for every worker.
    pub runtime: runtime::Config,
    /// Whether a worker that is far above the mean hands fresh connections to others.
    pub balance: bool,
}

/// The workers. Dropping it ends them at once.
#[derive(Debug)]
pub struct Fleet {
    workers: Vec<Hand>,
    listeners: BTreeMap<ListenerKey, Bound>,
    /// Those of Unix sockets among the listeners that have one.
    files: BTreeMap<ListenerKey, SocketFile>,
    /// Unix sockets that were bound so far: each is the next worker's.
    turn: usize,
    /// No listener is opened any more.
    is_closed: bool,
    /// Closed when every worker has ended.
    ended: channel::Receiver<()>,
}

/// Where a worker reports whether its runtime started.
type Started = channel::Receiver<Result<runtime::Running, runtime::StartError>>;

/// One worker, seen from the control thread.
#[derive(Debug)]
struct Hand {
    orders: runtime::Sender<Order>,
    counters: SharedCounters,
}

/// Why the workers could not start.
#[derive(Debug)]
pub enum StartError {
    /// The system gave no thread.
    Thread(io::Error),
    /// A worker's runtime did not start.
    Runtime(runtime::StartError),
    /// A worker ended before it said anything, which is a bug.
    Silent,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(error) => write!(f, "cannot start a worker thread: {error}"),
            Self::Runtime(error) => write!(f, "cannot start a worker: {error}"),
            Self::Silent => f.write_str("a worker ended before it had started"),
        }
    }
}

impl std::error::Error for StartError {}

/// What a worker is to accept on.
type Opening = Vec<(ListenerKey, OwnedFd)>;

/// Where a listener accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The Gateway port that it is for; 0 of a Unix socket.
    pub gateway_port: u16,
    /// The address and port, or the path.
    pub address: Address,
}

/// What became of a snapshot's listeners.
#[derive(Debug, Default)]
pub struct Applied {
    /// Now accepting, by their bound addresses.
    pub opened: Vec<(ListenerKey, Bound)>,
    /// No longer accepting.
    pub closed: Vec<(ListenerKey, Bound)>,
    /// Could not be bound. They are tried again when this is called again.
    pub failed: Vec<(Bound, io::Error)>,
    /// Workers that did not report in time.
    pub stuck: usize,
}

impl Fleet {
    /// Starts the workers; they read snapshots from `source` and log to `log`, if there is one.
    /// Tells also on which driver each runs.
    ///
    /// # Errors
    /// A worker could not start; those that could are ended.
    pub fn start(
        config: &Config,
        source: &Source,
        log: Option<&AccessLog>,
    ) -> Result<(Self, Vec<runtime::Running>), StartError> {
        let (running, ended) = channel::bounded(0);
        let (workers, listeners, files) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut fleet = Self { workers, listeners, files, turn: 0, is_closed: false, ended };
        let mut drivers = Vec::new();
        let mut balances = balances(config).into_iter();
        for (index, core) in config.cores.iter().enumerate() {
            let balance = balances.next();
            let place = (index, *core, running.clone());
            let (hand, started) = Hand::start(place, config, balance, source, log)?;
            fleet.workers.push(hand);
            let started = started.recv().map_err(|_| StartError::Silent)?;
            drivers.push(started.map_err(StartError::Runtime)?);
        }
        Ok((fleet, drivers))
    }

    /// Opens and closes listeners so that they are those of `snapshot`, which must have been
    /// published. Listeners that stay are not touched. What takes the place of another is bound
    /// before that closes, so that the port is never without a socket.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Applied {
        let mut applied = Applied::default();
        let mut orders: Vec<Opening> = self.workers.iter().map(|_| Vec::new()).collect();
        let wanted = if self.is_closed { &[][..] } else { &snapshot.listeners };
        for listener in wanted {
            let gateway_port = listener.gateway_port;
            if let Some(bound) = self.listeners.get_mut(&listener.key) {
                bound.gateway_port = gateway_port;
                continue;
            }
            match self.open(listener.key, &mut orders) {
                Ok(address) => {
                    applied.opened.push((listener.key, Bound { gateway_port, address }));
                }
                Err(error) => {
                    let address = listener.key.address();
                    applied.failed.push((Bound { gateway_port, address }, error));
                }
            }
        }
        let gone = |(key, _): &(&ListenerKey, _)| snapshot.listener(**key).is_none();
        applied.closed = self.listeners.iter().filter(gone).map(|(k, a)| (*k, *a)).collect();
        // Before the sockets: who has connected until then is still served.
        self.files.retain(|key, _| snapshot.listener(*key).is_some());
        applied.stuck = self.order_listeners(orders, &applied.closed, snapshot.generation);
        self.listeners.extend(applied.opened.iter().copied());
        for (key, _) in &applied.closed {
            self.listeners.remove(key);
        }
        applied
    }

    /// Binds what `key` names and gives the sockets to the workers: each its own of a port, and a
    /// Unix socket, of which there is only one, to one of them. Tells where that is.
    fn open(&mut self, key: ListenerKey, orders: &mut [Opening]) -> io::Result<Address> {
        match key.address() {
            Address::Ip(address) => {
                let beside_ours = self.listeners.keys().any(|going| going.overlaps(key));
                let bind = if beside_ours { bind_beside_ours } else { bind };
                let sockets = bind(address, self.workers.len())?;
                let bound = sockets.first().and_then(|socket| socket.local_addr().ok());
                for (order, socket) in orders.iter_mut().zip(sockets) {
                    order.push((key, socket.into()));
                }
                Ok(bound.unwrap_or(address).into())
            }
            Address::Pipe(path) => {
                let (socket, file) = bind_pipe(path)?;
                self.files.extend(file.map(|file| (key, file)));
                orders[self.turn % self.workers.len()].push((key, socket));
                self.turn += 1;
                Ok(Address::Pipe(path))
            }
        }
    }

    /// Sends the orders and waits for the reports; returns how many did not come.
    fn order_listeners(
        &self,
        orders: Vec<Opening>,
        closed: &[(ListenerKey, Bound)],
        generation: u64,
    ) -> usize {
        let (done, reports) = channel::unbounded();
        for (worker, open) in self.workers.iter().zip(orders) {
            let close = closed.iter().map(|(key, _)| *key).collect();
            let order = Order::Listen { open, close, generation, done: done.clone() };
            // A worker that has ended does not report either.
            let _: Result<(), Order> = worker.orders.send(order);
        }
        self.workers.len() - self.reported(done, &reports)
    }

    /// Waits for a report of each worker; how many came in time. `ours` is the sender that the
    /// orders were given clones of: while it lives, a worker that has ended looks like a slow one.
    fn reported(&self, ours: channel::Sender<()>, reports: &channel::Receiver<()>) -> usize {
        drop(ours);
        let deadline = std::time::Instant::now() + ORDER_TIMEOUT;
        self.workers.iter().take_while(|_| reports.recv_deadline(deadline).is_ok()).count()
    }

    /// Where each listener accepts.
    #[must_use]
    pub fn listeners(&self) -> &BTreeMap<ListenerKey, Bound> {
        &self.listeners
    }

    /// Each worker's counters.
    pub fn counters(&self) -> impl Iterator<Item = &SharedCounters> {
        self.workers.iter().map(|worker| &worker.counters)
    }

    /// What other threads need to ask the workers for their series.
    #[must_use]
    pub fn scraper(&self) -> Scraper {
        Scraper { workers: self.workers.iter().map(|worker| worker.orders.clone()).collect() }
    }

    /// From now on each request is the last of its connection. Connections are still accepted.
    pub fn retire_connections(&self) {
        for worker in &self.workers {
            // A worker that has ended has no connections.
            let _: Result<(), Order> = worker.orders.send(Order::RetireConnections);
        }
    }

    /// Stops accepting for good; open requests may finish, and are the last of their connections.
    /// Returns when every worker has begun.
    pub fn close(&mut self) {
        self.is_closed = true;
        self.listeners.clear();
        self.files.clear();
        self.order_drain(None);
    }

    /// The same, and the workers end when all is done, at the latest after `limit`.
    pub fn start_drain(&mut self, limit: Duration) {
        self.files.clear();
        self.order_drain(Some(limit));
    }

    fn order_drain(&self, limit: Option<Duration>) {
        let (started, reports) = channel::unbounded();
        for worker in &self.workers {
            let order = Order::Drain { limit, started: started.clone() };
            // A worker that has ended has nothing to drain.
            let _: Result<(), Order> = worker.orders.send(order);
        }
        // A worker that is stuck is cut by the end of the process.
        self.reported(started, &reports);
    }

    /// Waits until the workers have ended, after [`start_drain`](Self::start_drain) with `limit`.
    /// One that is stuck is cut by the end of the process.
    pub fn finish(self, limit: Duration) {
        let ended = self.ended.recv_timeout(limit.saturating_add(ENDING_TIME_MAX));
        if ended == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a worker does not end; it is cut");
        }
    }
}

/// Asks the workers for their series, from any thread.
#[derive(Debug, Clone)]
pub struct Scraper {
    workers: Vec<runtime::Sender<Order>>,
}

impl Scraper {
    /// Asks every worker; each calls its own clone of `reply`, on its own thread, with its number
    /// and a copy.
    pub fn ask(&self, reply: impl Fn(usize, Series) + Clone + Send + 'static) {
        for (index, worker) in self.workers.iter().enumerate() {
            let reply = reply.clone();
            let order = Order::Scrape(Box::new(move |series| reply(index, series)));
            // A worker that has ended does not answer.
            let _: Result<(), Order> = worker.send(order);
        }
    }

    /// How many answers there will be.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }
}

/// One end for each worker; none where there is nothing to balance.
fn balances(config: &Config) -> Vec<(Balance<Fresh>, Incoming<Fresh>)> {
    let workers = config.cores.len();
    if config.balance && workers > 1 { balance::among(workers) } else { Vec::new() }
}

impl Hand {
    /// The worker, which holds `running` to its end, and where it will report whether it started.
    fn start(
        (index, core, running): (usize, Option<core_affinity::CoreId>, channel::Sender<()>),
        config: &Config,
        balance: Option<(Balance<Fresh>, Incoming<Fresh>)>,
        source: &Source,
        log: Option<&AccessLog>,
    ) -> Result<(Self, Started), StartError> {
        let (orders, mailbox) = runtime::mailbox();
        let (report, started) = channel::bounded(1);
        let counters = Counters::shared();
        let start = Start {
            workers: config.cores.len(),
            core,
            runtime: config.runtime.clone(),
            snapshots: source.clone(),
            counters: SharedCounters::clone(&counters),
            log: log.map(AccessLog::worker),
            orders: mailbox,
            balance,
            started: report,
        };
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let _running = running;
                start.run();
            })
            .map_err(StartError::Thread)?;
        Ok((Self { orders, counters }, started))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Publisher;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    fn single() -> Fleet {
        let config =
            Config { cores: vec![None], runtime: runtime::Config::default(), balance: false };
        Fleet::start(&config, &Publisher::default().source(), None).unwrap().0
    }

    #[test]
    fn a_worker_that_is_stuck_does_not_keep_the_process_from_ending() {
        let (release, stuck) = channel::bounded::<()>(0);
        let fleet = single();
        fleet.scraper().ask(move |_, _| {
            // Until the test is over.
            let _: Result<(), _> = stuck.recv();
        });
        let (ended, end) = channel::bounded(1);
        std::thread::spawn(move || {
            fleet.finish(Duration::ZERO);
            ended.send(()).unwrap();
        });
        assert_eq!(end.recv_timeout(10 * ENDING_TIME_MAX), Ok(()));
        drop(release);
    }

    #[test]
    fn a_worker_that_panics_takes_the_process_with_it() {
        const CHILD: &str = "RINGGATE_TEST_WORKER_PANICS";
        if std::env::var_os(CHILD).is_none() {
            let name = "worker::fleet::tests::a_worker_that_panics_takes_the_process_with_it";
            let mut child = Command::new(std::env::current_exe().unwrap());
            let output = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
            let signal = ExitStatus::signal(&output.status);
            return assert_eq!(signal, Some(libc::SIGABRT), "{output:?}");
        }
        let mut fleet = single();
        fleet.scraper().ask(|_, _| panic!("a bug in a worker"));
        // By then the worker has ended, were it not for its panic.
        fleet.start_drain(Duration::ZERO);
        fleet.finish(Duration::ZERO);
    }
}
