//! The loop of one thread: tasks, then timers, then the kernel.
//!
//! ```text
//! turn:  read the clock -> fire timers -> poll woken tasks (at most a budget)
//!        -> flush what was written -> one system call: submit, wait, reap -> wake
//! ```
//!
//! - There is at most one engine per thread; [`current`] finds it.
//! - A panic in the driver, in a timer or in a waker aborts the process: unwinding through it could
//!   free memory that the kernel still has, or strand every connection.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime};

use super::counters::Counters;
use super::driver::Driver;
use super::handle::Sleep;
use super::slot::Key;
use super::socket::{Socket, Supplies};
use super::task::Tasks;
use super::timer::Wheel;

/// Polls in one turn, so that tasks that wake each other cannot keep the kernel waiting.
const POLLS_PER_TURN: usize = 128;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Engine>>> = const { RefCell::new(None) };
}

/// The engine of this thread.
///
/// # Panics
/// When it has none.
pub(super) fn current() -> Rc<Engine> {
    try_current().expect("a runtime's handle, sleeps and streams are used on its own thread")
}

/// The engine of this thread, if it has one.
pub(super) fn try_current() -> Option<Rc<Engine>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// See the module.
pub(super) struct Engine {
    pub(super) tasks: Tasks,
    pub(super) driver: Driver,
    pub(super) supplies: Rc<Supplies>,
    clock: Clock,
    timers: RefCell<Wheel<Waker>>,
    turn: Cell<u64>,
    /// Kept for their memory. Invariant: empty between turns.
    flushing: RefCell<Vec<Rc<Socket>>>,
    fired: RefCell<Vec<Waker>>,
}

/// The time, read once a turn.
struct Clock {
    /// Tick 0 of the timers.
    origin: Instant,
    now: Cell<Instant>,
    /// Read when it is first asked for.
    wall: Cell<Option<SystemTime>>,
}

/// A timer of one engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timer {
    runtime: u64,
    key: Key,
}

impl Engine {
    /// Makes the engine of this thread, which has none.
    pub(super) fn install(tasks: Tasks, driver: Driver, supplies: Rc<Supplies>) -> Rc<Self> {
        let now = Instant::now();
        let engine = Rc::new(Self {
            tasks,
            driver,
            supplies,
            clock: Clock { origin: now, now: Cell::new(now), wall: Cell::new(None) },
            timers: RefCell::new(Wheel::new()),
            turn: Cell::new(0),
            flushing: RefCell::default(),
            fired: RefCell::default(),
        });
        CURRENT.with(|current| current.replace(Some(Rc::clone(&engine))));
        engine
    }

    /// Drops all tasks and leaves the thread.
    pub(super) fn uninstall(&self) {
        self.tasks.close();
        self.flush();
        self.guarded(|| self.driver.close());
        CURRENT.with(|current| current.replace(None));
    }

    /// Turns until `future` completes.
    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let wakeup = self.tasks.main();
        let waker = Waker::from(Arc::clone(&wakeup));
        wakeup.wake_by_ref();
        loop {
            self.guarded(|| self.begin_turn());
            for key in std::iter::from_fn(|| self.tasks.next_ready()).take(POLLS_PER_TURN) {
                if key != Key::NONE {
                    self.tasks.poll(key);
                    continue;
                }
                wakeup.unqueue();
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    self.guarded(|| self.end_turn(Some(Duration::ZERO)));
                    return output;
                }
            }
            self.guarded(|| self.end_turn(None));
        }
    }

    /// The number of this turn.
    pub(super) fn turn(&self) -> u64 {
        self.turn.get()
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now.get()
    }

    pub(super) fn wall(&self) -> SystemTime {
        let wall = self.clock.wall.get().unwrap_or_else(SystemTime::now);
        self.clock.wall.set(Some(wall));
        wall
    }

    pub(super) fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::until(self.now() + duration)
    }

    /// Has `waker` called at `deadline`: moves `timer` if it is pending, else makes a new one.
    pub(super) fn arm(&self, timer: Option<Timer>, deadline: Instant, waker: &Waker) -> Timer {
        if let Some(timer) = timer.filter(|timer| self.rewake(*timer, waker)) {
            return timer;
        }
        let tick = self.clock.tick_after(deadline);
        let key = self.timers.borrow_mut().insert(tick, waker.clone());
        Timer { runtime: self.tasks.remote().runtime, key }
    }

    /// Forgets `timer`.
    pub(super) fn disarm(&self, timer: Timer) {
        if timer.runtime == self.tasks.remote().runtime {
            let waker = self.timers.borrow_mut().remove(timer.key);
            // Dropped while nothing is borrowed.
            drop(waker);
        }
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            turns: self.turn.get(),
            task_panics: self.tasks.panics(),
            tasks: self.tasks.len() as u64,
            ..self.supplies.counters()
        }
    }

    /// Has a pending timer call `waker`. Returns whether it is still pending.
    fn rewake(&self, timer: Timer, waker: &Waker) -> bool {
        if timer.runtime != self.tasks.remote().runtime {
            return false;
        }
        let mut timers = self.timers.borrow_mut();
        let Some(present) = timers.find_mut(timer.key) else { return false };
        if present.will_wake(waker) {
            return true;
        }
        let replaced = std::mem::replace(present, waker.clone());
        drop(timers);
        drop(replaced);
        true
    }

    fn begin_turn(&self) {
        self.turn.set(self.turn.get() + 1);
        self.clock.read();
        let mut fired = self.fired.take();
        self.timers.borrow_mut().advance(self.clock.tick_before(self.now()), &mut fired);
        fired.drain(..).for_each(Waker::wake);
        self.fired.replace(fired);
        self.tasks.collect_remote();
    }

    fn end_turn(&self, timeout: Option<Duration>) {
        self.flush();
        let bell = &self.tasks.remote().bell;
        bell.expect();
        let ready = self.tasks.collect_remote() || self.tasks.any_ready();
        let timeout = if ready { Some(Duration::ZERO) } else { timeout.or_else(|| self.pause()) };
        self.driver.park(timeout, self.turn.get());
        bell.ignore();
    }

    /// How long until a timer may fire.
    fn pause(&self) -> Option<Duration> {
        let tick = self.timers.borrow().next()?;
        let due = self.clock.origin + Duration::from_millis(tick);
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn flush(&self) {
        let mut batch = self.flushing.take();
        self.supplies.swap_dirty(&mut batch);
        for socket in batch.drain(..) {
            self.driver.flush(&socket);
        }
        self.flushing.replace(batch);
    }

    /// Runs `part`, from which no panic may escape.
    fn guarded<T>(&self, part: impl FnOnce() -> T) -> T {
        let guard = AbortOnPanic;
        let output = part();
        std::mem::forget(guard);
        output
    }
}

impl Clock {
    fn read(&self) {
        self.now.set(Instant::now());
        self.wall.set(None);
    }

    /// The first tick at which `deadline` has passed.
    fn tick_after(&self, deadline: Instant) -> u64 {
        let span = deadline.saturating_duration_since(self.origin);
        u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// The last tick that has passed at `now`.
    fn tick_before(&self, now: Instant) -> u64 {
        let span = now.saturating_duration_since(self.origin);
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// Aborts when it is dropped, which only unwinding does.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
