//! The world of these tests: connects that yield pipes, tasks in a list, time that tests advance.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use ::http::Request;
use bytes::{Buf, Bytes};
use http_body::Frame;

use crate::address::Address;
use crate::io::pipe::{self, Chunking, End};
use crate::io::{Clock, Connect, Sleep, Spawn, Stream};
use crate::snapshot::{Cluster, UpstreamProtocol};
use crate::telemetry::{Counters, WorkerTelemetry};
use crate::upstream::{Data, Error, Exchange};

thread_local! {
    /// Sleeps are plain data, so they find the time here. Each test has its own thread.
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

/// A handle to the world of one test.
#[derive(Clone)]
pub(crate) struct World(Rc<Inner>);

struct Inner {
    chunking: Chunking,
    tasks: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>>,
    accepted: RefCell<VecDeque<(Address, End)>>,
    refusing: RefCell<HashSet<Address>>,
    silent: Cell<bool>,
    pub(crate) connects: Cell<usize>,
}

impl World {
    pub(crate) fn new(chunking: Chunking) -> Self {
        Self(Rc::new(Inner {
            chunking,
            tasks: RefCell::default(),
            accepted: RefCell::default(),
            refusing: RefCell::default(),
            silent: Cell::new(false),
            connects: Cell::new(0),
        }))
    }

    /// Connects to `endpoint` fail from now on.
    pub(crate) fn refuse(&self, endpoint: Address) {
        self.0.refusing.borrow_mut().insert(endpoint);
    }

    /// Connects to `endpoint` succeed again.
    pub(crate) fn allow(&self, endpoint: Address) {
        self.0.refusing.borrow_mut().remove(&endpoint);
    }

    /// Connects never complete from now on.
    pub(crate) fn black_hole(&self) {
        self.0.silent.set(true);
    }

    /// The oldest connection that no test took yet.
    pub(crate) fn accept(&self) -> (Address, End) {
        self.0.accepted.borrow_mut().pop_front().expect("a connection")
    }

    pub(crate) fn connects(&self) -> usize {
        self.0.connects.get()
    }

    /// Runs `future` and all tasks until nothing moves any more.
    pub(crate) fn settle<F: Future + ?Sized>(&self, future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        loop {
            let flag = Arc::new(Flag::default());
            let waker = Waker::from(Arc::clone(&flag));
            let mut cx = Context::from_waker(&waker);
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return Poll::Ready(output);
            }
            self.run_tasks(&mut cx);
            if !flag.0.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
        }
    }

    /// Runs the tasks alone.
    pub(crate) fn idle(&self) {
        let never: Pin<Box<dyn Future<Output = ()>>> = Box::pin(std::future::pending());
        assert!(self.settle(&mut { never }).is_pending());
    }

    /// Runs `future` to its end.
    pub(crate) fn finish<F: Future>(&self, future: F) -> F::Output {
        match self.settle(&mut Box::pin(future)) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("stalled"),
        }
    }

    pub(crate) fn advance(&self, by: Duration) {
        NOW.set(NOW.get() + by);
    }

    fn run_tasks(&self, cx: &mut Context<'_>) {
        let tasks = self.0.tasks.take();
        let open = tasks
            .into_iter()
            .filter_map(|mut task| task.as_mut().poll(cx).is_pending().then_some(task));
        let open: Vec<_> = open.collect();
        if !self.0.tasks.borrow().is_empty() {
            cx.waker().wake_by_ref();
        }
        self.0.tasks.borrow_mut().extend(open);
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Connect for World {
    type Stream = End;

    fn connect(&self, to: Address) -> impl Future<Output = io::Result<End>> + 'static {
        let world = self.clone();
        async move {
            world.0.connects.set(world.0.connects.get() + 1);
            if world.0.silent.get() {
                std::future::pending::<()>().await;
            }
            if world.0.refusing.borrow().contains(&to) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = pipe::pair(world.0.chunking);
            world.0.accepted.borrow_mut().push_back((to, far));
            Ok(near)
        }
    }
}

impl Spawn for World {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.borrow_mut().push(Box::pin(task));
    }
}

impl Clock for World {
    type Sleep = Until;
    type Bare = Time;

    fn bare(&self) -> Time {
        Time
    }

    fn now(&self) -> Instant {
        Time.now()
    }

    fn wall(&self) -> SystemTime {
        Time.wall()
    }

    fn sleep_until(&self, deadline: Instant) -> Until {
        Time.sleep_until(deadline)
    }
}

/// The time of the world alone.
#[derive(Clone)]
pub(crate) struct Time;

impl Clock for Time {
    type Sleep = Until;
    type Bare = Self;

    fn bare(&self) -> Self {
        Self
    }

    fn now(&self) -> Instant {
        NOW.get()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn sleep_until(&self, deadline: Instant) -> Until {
        Until(deadline)
    }
}

/// A pending sleep. Nobody wakes it: `settle` polls everything after time was advanced.
pub(crate) struct Until(Instant);

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if NOW.get() >= self.0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Sleep for Until {
    fn reset(&mut self, deadline: Instant) {
        self.0 = deadline;
    }
}

/// A cluster with endpoints on ports 1 to `endpoints`.
pub(crate) fn cluster(endpoints: u16, protocol: UpstreamProtocol) -> Cluster {
    Cluster {
        name: "outbound|80||x.default.svc.cluster.local".to_owned(),
        host: "x.default.svc.cluster.local".to_owned(),
        protocol,
        endpoints: (1..=endpoints).map(|port| Address::from(([127, 0, 0, 1], port))).collect(),
        connect_timeout: Duration::from_secs(10),
        traffic: None,
        tls: None,
    }
}

/// What counts, without a log.
pub(crate) fn telemetry() -> Rc<WorkerTelemetry> {
    Rc::new(WorkerTelemetry::new(Counters::shared(), None))
}

/// A request body that a test feeds frame by frame.
#[derive(Clone, Default)]
pub(crate) struct Fed(Rc<RefCell<Feed>>);

#[derive(Default)]
struct Feed {
    frames: VecDeque<Result<Frame<Bytes>, io::Error>>,
    ended: bool,
    waiting: Option<Waker>,
}

impl Fed {
    /// All of `frames`, then the end.
    pub(crate) fn whole(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Self {
        let fed = Self::default();
        frames.into_iter().for_each(|frame| fed.push(Ok(frame)));
        fed.end();
        fed
    }

    pub(crate) fn push(&self, frame: Result<Frame<Bytes>, io::Error>) {
        self.change(|feed| feed.frames.push_back(frame));
    }

    pub(crate) fn end(&self) {
        self.change(|feed| feed.ended = true);
    }

    pub(crate) fn left(&self) -> usize {
        self.0.borrow().frames.len()
    }

    fn change(&self, change: impl FnOnce(&mut Feed)) {
        let mut feed = self.0.borrow_mut();
        change(&mut feed);
        if let Some(waker) = feed.waiting.take() {
            waker.wake();
        }
    }
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut feed = self.0.borrow_mut();
        match feed.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if feed.ended => Poll::Ready(None),
            None => {
                feed.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let feed = self.0.borrow();
        feed.ended && feed.frames.is_empty()
    }
}

/// The next frame of the response, with its data as plain bytes.
pub(crate) fn poll_frame(
    exchange: &mut Exchange<World, Fed>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
    let body = Pin::new(exchange.response.body_mut());
    let plain =
        |frame: Frame<Data<World>>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
    http_body::Body::poll_frame(body, cx).map_ok(plain)
}

/// A request without a body.
pub(crate) fn bare(method: &str) -> Request<Fed> {
    Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a.example")
        .body(Fed::whole([]))
        .unwrap()
}

/// All that `end` can read now.
pub(crate) fn read(end: &mut impl Stream) -> String {
    let mut all = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Ok(lent)) = end.poll_fill(&mut cx) {
        let n = lent.len();
        if n == 0 {
            break;
        }
        all.extend_from_slice(lent);
        end.consume(n);
    }
    String::from_utf8(all).unwrap()
}

pub(crate) fn write(end: &mut impl Stream, bytes: impl AsRef<[u8]>) {
    end.write(&[IoSlice::new(bytes.as_ref())]).unwrap();
}
