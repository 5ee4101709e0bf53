//! What tasks use of their runtime: spawn, connect, listen, sleep, tell the time.
//!
//! [`Handle`] and [`Sleep`] are plain data and find the runtime through the thread they are on, so
//! they may live in types that must be `Send`. On any other thread they panic.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use crate::address::{Address, PipePath};
use crate::io::{Clock, Connect, Spawn};

use super::counters::Counters;
use super::cpu;
use super::engine::{self, Timer};
use super::listener::Listener;
use super::stream::TcpStream;

/// The runtime of this thread.
///
/// # Panics
/// Its methods do on a thread that has no runtime.
#[derive(Debug, Clone, Copy)]
pub struct Handle(pub(super) ());

impl Handle {
    /// Accepts connections from `listener`, which is bound and listens already.
    ///
    /// # Errors
    /// The kernel refused to set its mode or options.
    pub fn listen(&self, listener: impl Into<OwnedFd>) -> io::Result<Listener> {
        Listener::new(engine::current(), listener.into())
    }

    /// The same with a Unix socket, which is bound to `path`.
    ///
    /// # Errors
    /// The kernel refused to set its mode.
    pub fn listen_at(&self, path: PipePath, listener: impl Into<OwnedFd>) -> io::Result<Listener> {
        Listener::of_pipe(engine::current(), listener.into(), path)
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The kernel refused to set its mode or options.
    pub fn adopt(&self, connection: std::net::TcpStream) -> io::Result<TcpStream> {
        let engine = engine::current();
        connection.set_nodelay(true)?;
        let flags = engine.driver.socket_flags();
        connection.set_nonblocking(flags.contains(rustix::net::SocketFlags::NONBLOCK))?;
        TcpStream::adopt(&engine, OwnedFd::from(connection))
    }

    /// The CPU time that this thread has used so far, the kernel's work for it included.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        cpu::used()
    }

    /// What the runtime has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        engine::current().counters()
    }
}

impl Connect for Handle {
    type Stream = TcpStream;

    fn connect(&self, to: Address) -> impl Future<Output = io::Result<Self::Stream>> + 'static {
        TcpStream::connect(engine::current(), to)
    }
}

impl Spawn for Handle {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        engine::current().tasks.spawn(task);
    }
}

impl Clock for Handle {
    type Sleep = Sleep;
    type Bare = Self;

    fn bare(&self) -> Self {
        *self
    }

    fn now(&self) -> Instant {
        engine::current().now()
    }

    fn wall(&self) -> SystemTime {
        engine::current().wall()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::until(deadline)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        engine::current().sleep(duration)
    }
}

/// Completes at its deadline. It takes a timer only once it is polled.
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    /// Invariant: pending at `deadline`, or stale.
    timer: Option<Timer>,
}

impl Sleep {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { deadline, timer: None }
    }

    fn disarm(&mut self) {
        // Without an engine there is no timer either: it went with the runtime.
        if let Some((timer, engine)) = self.timer.take().zip(engine::try_current()) {
            engine.disarm(timer);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let engine = engine::current();
        if engine.now() >= self.deadline {
            self.disarm();
            return Poll::Ready(());
        }
        self.timer = Some(engine.arm(self.timer, self.deadline, cx.waker()));
        Poll::Pending
    }
}

impl crate::io::Sleep for Sleep {
    fn reset(&mut self, deadline: Instant) {
        self.disarm();
        self.deadline = deadline;
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}
