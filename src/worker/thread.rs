//! A worker's thread: its runtime, its mailbox, its listeners.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use crossbeam::channel;
use socket2::SockRef;

use super::balance::{Balance, Incoming};
use super::connection::Connection;
use super::handshakes::Handshakes;
use super::{Fresh, Worker};
use crate::address::Address;
use crate::drain::Drain;
use crate::http::{Gateway, Idle, Mirrors};
use crate::io::{Clock, Spawn, timeout};
use crate::runtime::{self, Accepted, Handle, Listener, Runtime};
use crate::snapshot::{ListenerKey, Source};
use crate::telemetry::{Series, SharedCounters, WorkerLog, WorkerTelemetry};
use crate::tls;
use crate::upstream::Upstreams;

/// How often buffered log lines leave and the heartbeat is shown.
const TICK: Duration = Duration::from_millis(250);

/// A tick in which a worker computes for less than this is a quiet one.
const QUIET: Duration = Duration::from_micros(2_500);
/// After this much work it has freed enough that it pays to give that back.
const WORTH_TIDYING: Duration = Duration::from_millis(200);

/// An order from the control thread.
pub(super) enum Order {
    /// Accept on these sockets, stop accepting on those listeners, then report.
    Listen {
        open: Vec<(ListenerKey, OwnedFd)>,
        close: Vec<ListenerKey>,
        generation: u64,
        done: channel::Sender<()>,
    },
    /// Send a copy of the labelled series.
    Scrape(Box<dyn FnOnce(Series) + Send>),
    /// Have each request be the last of its connection, and go on accepting.
    RetireConnections,
    /// Stop accepting, have open requests be the last of their connections, and report. With a
    /// `limit` also end the thread: when all is done, at the latest after that.
    Drain { limit: Option<Duration>, started: channel::Sender<()> },
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen { .. } => "Listen",
            Self::Scrape(_) => "Scrape",
            Self::RetireConnections => "RetireConnections",
            Self::Drain { .. } => "Drain",
        })
    }
}

/// What a worker is started with.
pub(super) struct Start {
    /// How many workers there are.
    pub(super) workers: usize,
    pub(super) core: Option<core_affinity::CoreId>,
    pub(super) runtime: runtime::Config,
    pub(super) snapshots: Source,
    pub(super) counters: SharedCounters,
    pub(super) log: Option<WorkerLog>,
    pub(super) orders: runtime::Receiver<Order>,
    /// Its view of the other workers, and what they hand over.
    pub(super) balance: Option<(Balance<Fresh>, Incoming<Fresh>)>,
    /// Where it reports whether its runtime started.
    pub(super) started: channel::Sender<Result<runtime::Running, runtime::StartError>>,
}

impl Start {
    /// The thread's whole life.
    pub(super) fn run(self) {
        if let Some(core) = self.core {
            // A core that went away since start-up only costs locality.
            core_affinity::set_for_current(core);
        }
        let Some(runtime) = self.start_runtime() else { return };
        tls::warm_up();
        let life = AssertUnwindSafe(|| self.serve(&runtime));
        if catch_unwind(life).is_err() {
            // The hook has said where. A gateway that goes on with fewer workers, or with none,
            // looks alive to whoever would start it anew.
            std::process::abort();
        }
    }

    /// The runtime. Reports whether it started.
    fn start_runtime(&self) -> Option<Runtime> {
        let (runtime, report) = match Runtime::new(&self.runtime) {
            Ok(runtime) => {
                let backend = runtime.backend().clone();
                (Some(runtime), Ok(backend))
            }
            Err(error) => (None, Err(error)),
        };
        // If the control thread is gone, so is the process.
        let _: Result<(), _> = self.started.send(report);
        runtime
    }

    /// Serves for as long as there are orders.
    fn serve(self, runtime: &Runtime) {
        let net = runtime.handle();
        let telemetry = Rc::new(WorkerTelemetry::new(self.counters, self.log));
        let gateway = Gateway {
            mirrors: Mirrors::default(),
            idle: Idle::default(),
            retires_connections: Cell::new(false),
            net,
            snapshots: self.snapshots.subscribe().into(),
            upstreams: Upstreams::new(net, Rc::clone(&telemetry)).shared_by(self.workers),
            telemetry,
        };
        let (balance, incoming) = self.balance.unzip();
        let worker = Rc::new(Worker {
            gateway: Rc::new(gateway),
            drain: Drain::default(),
            handshakes: Handshakes::default(),
            files_max: files_max(runtime::open_files_max(), self.workers),
            balance: balance.map(Rc::new),
        });
        if let Some(incoming) = incoming {
            net.spawn(take_in(Rc::clone(&worker), incoming));
        }
        runtime.block_on(obey(worker, self.orders));
    }
}

/// How many of the `open_files` of the process each worker may have for clients. The rest is for
/// endpoints, for the source of the configuration, and for the administration, which nobody could
/// reach otherwise when it is needed most.
fn files_max(open_files: u64, workers: usize) -> usize {
    let for_clients = open_files - open_files / 8;
    usize::try_from(for_clients / workers as u64).unwrap_or(usize::MAX).max(1)
}

/// Carries out orders until the drain is over, or the control thread is gone.
async fn obey(worker: Rc<Worker<Handle>>, mut orders: runtime::Receiver<Order>) {
    worker.gateway.net.spawn(tick(Rc::clone(&worker)));
    let mut listeners = Listeners { worker: Rc::clone(&worker), stops: HashMap::new() };
    while let Some(order) = orders.recv().await {
        match order {
            Order::Listen { open, close, generation, done } => {
                listeners.apply(open, &close);
                // An idle worker must not keep the last generation alive until its next request.
                worker.gateway.snapshots.borrow_mut().current();
                worker.gateway.telemetry.counters().generation.set(generation);
                // Nobody waits any more when the control thread gave up on this worker.
                let _: Result<(), _> = done.send(());
            }
            Order::Scrape(reply) => reply(worker.gateway.telemetry.copy()),
            Order::RetireConnections => worker.gateway.retires_connections.set(true),
            Order::Drain { limit, started } => {
                listeners.stops.values().for_each(Drain::start);
                worker.drain.start();
                // As above.
                let _: Result<(), _> = started.send(());
                if let Some(limit) = limit {
                    finish(&worker, limit).await;
                    break;
                }
            }
        }
    }
    show_life(&worker);
}

/// Serves what other workers hand over, until there is a drain and nothing can come any more.
async fn take_in(worker: Rc<Worker<Handle>>, mut incoming: Incoming<Fresh>) {
    // The drain waits for this task too: what is on its way must not be cut.
    let watch = worker.drain.watch();
    while let Some(fresh) = incoming.next(&watch).await {
        serve(&worker, fresh);
    }
}

/// Waits until everything open has ended, at most for `limit`.
async fn finish(worker: &Worker<Handle>, limit: Duration) {
    // What is still open after that is cut, as the operator's limit says.
    let _: Result<(), _> = timeout(&worker.gateway.net, limit, worker.drain.drained()).await;
}

/// Shows signs of life and lets buffered log lines go, for as long as the worker lives. When it has
/// become quiet it gives memory back: the allocator does that only in the course of further work,
/// and what handshakes have freed is nearly as much again as idle connections hold.
async fn tick(worker: Rc<Worker<Handle>>) {
    let net = &worker.gateway.net;
    let (mut before, mut tidied) = (net.cpu_time(), net.cpu_time());
    loop {
        net.sleep(TICK).await;
        show_life(&worker);
        let used = net.cpu_time();
        if used - before < QUIET && used - tidied >= WORTH_TIDYING {
            runtime::give_back_memory();
            tidied = net.cpu_time();
        }
        before = used;
    }
}

fn show_life(worker: &Worker<Handle>) {
    let net = &worker.gateway.net;
    let telemetry = &worker.gateway.telemetry;
    let since_1970 = net.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let runtime = net.counters();
    telemetry.counters().heartbeat.set(since_1970.as_secs());
    telemetry.counters().loop_turns.set(runtime.turns);
    let used = net.cpu_time();
    telemetry.counters().cpu_milliseconds.set(used.as_millis().try_into().unwrap_or(u64::MAX));
    if let Some(balance) = &worker.balance {
        balance.observe(used, net.now());
    }
    telemetry.counters().task_panics.set(runtime.task_panics);
    telemetry.flush_log();
}

/// The listeners of one worker, by what tells each to stop.
struct Listeners {
    worker: Rc<Worker<Handle>>,
    stops: HashMap<ListenerKey, Drain>,
}

impl Listeners {
    fn apply(&mut self, open: Vec<(ListenerKey, OwnedFd)>, close: &[ListenerKey]) {
        for key in close {
            if let Some(stop) = self.stops.remove(key) {
                stop.start();
            }
        }
        for (key, socket) in open {
            let bound = SockRef::from(&socket).local_addr().ok();
            let address = shown(key, bound.and_then(|bound| bound.as_socket()));
            let net = &self.worker.gateway.net;
            let listening = match key {
                ListenerKey::Ip { .. } => net.listen(socket),
                ListenerKey::Pipe(path) => net.listen_at(path, socket),
            };
            match listening {
                Ok(listener) => self.open(key, listener),
                Err(error) => tracing::error!("a worker cannot listen on {address}: {error}"),
            }
        }
    }

    fn open(&mut self, key: ListenerKey, listener: Listener) {
        let stop = Drain::default();
        let accepting =
            Accepting { worker: Rc::clone(&self.worker), key, stop: stop.clone(), listener };
        self.stops.insert(key, stop);
        self.worker.gateway.net.spawn(accepting.run());
    }
}

/// A listener that is open.
struct Accepting {
    worker: Rc<Worker<Handle>>,
    key: ListenerKey,
    stop: Drain,
    listener: Listener,
}

impl Accepting {
    /// Accepts until told to stop; whoever had connected by then is still served.
    async fn run(mut self) {
        // The worker's drain waits for this task too: its last connections must not be cut.
        let _watch = self.worker.drain.watch();
        while let Some(accepted) = self.next().await {
            place(&self.worker, Fresh { listener: self.key, accepted });
        }
        for accepted in self.listener.close().await {
            serve(&self.worker, Fresh { listener: self.key, accepted });
        }
    }

    /// The next connection, or `None` when the listener is to close.
    async fn next(&mut self) -> Option<Accepted> {
        let stop = self.stop.watch();
        let next = {
            let mut accepting = pin!(self.listener.accept());
            poll_fn(|cx| {
                if stop.poll_draining(cx).is_ready() {
                    return Poll::Ready(None);
                }
                accepting.as_mut().poll(cx).map(Some)
            })
            .await?
        };
        match next {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                let address = shown(self.key, self.listener.local_addr().ok());
                tracing::error!("a worker no longer listens on {address}: {error}");
                None
            }
        }
    }
}

/// Where a listener is, as far as it is known.
fn shown(key: ListenerKey, bound: Option<SocketAddr>) -> Address {
    bound.map_or_else(|| key.address(), Address::Ip)
}

/// Serves a connection here, or has another worker do so.
fn place(worker: &Rc<Worker<Handle>>, fresh: Fresh) {
    let placed = match &worker.balance {
        Some(balance) => balance.hand_over(fresh),
        None => Err(fresh),
    };
    match placed {
        Ok(()) => worker.gateway.telemetry.counters().connections_handed_over.increment(),
        Err(fresh) => serve(worker, fresh),
    }
}

fn serve(worker: &Rc<Worker<Handle>>, Fresh { listener, accepted }: Fresh) {
    let (remote, local) = (accepted.peer, accepted.local);
    // What the kernel refuses to set up is closed, and counted by the runtime.
    let Ok(stream) = accepted.open() else { return };
    let watch = worker.drain.watch();
    let listener = listener.reached_at(local);
    let connection = Connection { worker: Rc::clone(worker), listener, remote, local, watch };
    if let Some(serving) = connection.serve(stream) {
        worker.gateway.net.spawn(serving);
    }
}
