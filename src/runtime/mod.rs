//! Tasks, timers and sockets of one thread, on io_uring or epoll. The only layer with `unsafe`.
//!
//! Soundness is one sentence: **memory named in a submitted operation belongs to that operation
//! until its final completion; dropping a future abandons the operation, never frees its memory.**
//!
//! - One thread, one [`Runtime`]. Nothing in it is shared with another thread but the queue and the
//!   eventfd that wake it.
//! - One system call per turn of the loop submits, waits and reaps.
//! - Both drivers give the same [`TcpStream`], [`Listener`] and [`Handle`] and pass the same
//!   tests.
//! - Every buffer, queue and list has a bound or grows with the number of connections only.
//!
//! In reading order: [`start`] (configuration), [`handle`] (what tasks see), [`stream`] and
//! [`listener`], [`engine`] (the loop) over [`task`] and [`timer`], [`socket`] (one connection as a
//! state machine), then the drivers [`uring`] and [`epoll`]. Unsafe code is in `buffers`, `cpu`,
//! `memory` and `uring::sys` alone.
//!
//! Deliberately not here: TLS, HTTP, limits, pinning to a CPU, and any name resolution.

mod buffers;
mod counters;
mod cpu;
mod driver;
mod engine;
mod epoll;
mod files;
mod handle;
mod listener;
mod mailbox;
mod memory;
mod slot;
mod socket;
mod start;
mod stream;
mod task;
mod timer;
mod uring;
mod wake;

#[cfg(test)]
mod denied;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

pub use self::counters::Counters;
pub use self::files::{open_files_max, raise_open_files};
pub use self::handle::{Handle, Sleep};
pub use self::listener::{Accepted, Listener};
pub use self::mailbox::{Receiver, Sender, mailbox};
pub use self::memory::{forbid_huge_pages, give_back_memory};
pub use self::start::{Backend, Config, Denied, Running, StartError};
pub use self::stream::{Piece, TcpStream};

use self::driver::Driver;
use self::engine::Engine;
use self::socket::Supplies;
use self::task::{Remote, Tasks};

/// The runtime of one thread. Dropping it drops its tasks and takes back from the kernel all that
/// it still has.
#[derive(Debug)]
pub struct Runtime {
    engine: Rc<Engine>,
    running: Running,
}

impl Runtime {
    /// Makes the runtime of this thread.
    ///
    /// # Errors
    /// The kernel denies what it needs, or the thread has one already.
    pub fn new(config: &Config) -> Result<Self, StartError> {
        if engine::try_current().is_some() {
            return Err(StartError::Occupied);
        }
        let remote = Arc::new(Remote::new()?);
        let (driver, running) = start_driver(config, &remote)?;
        let supplies = Rc::clone(driver.supplies());
        let engine = Engine::install(Tasks::new(remote), driver, supplies);
        Ok(Self { engine, running })
    }

    /// Which driver runs, and why it is not the one that was wished for.
    #[must_use]
    pub fn backend(&self) -> &Running {
        &self.running
    }

    /// What tasks use of it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(())
    }

    /// Runs tasks until `future` completes. The other tasks stay, for the next call.
    ///
    /// # Panics
    /// When `future` does.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.engine.block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.engine.uninstall();
    }
}

fn start_driver(config: &Config, remote: &Arc<Remote>) -> Result<(Driver, Running), StartError> {
    let running = match config.backend {
        Backend::Epoll => Running::Epoll,
        Backend::Auto | Backend::IoUring => match uring::Driver::new(config, remote) {
            Ok(driver) => return Ok((Driver::Uring(driver), Running::IoUring)),
            Err(denied) if config.backend == Backend::IoUring => {
                return Err(StartError::Denied(denied));
            }
            Err(denied) => Running::EpollInstead(denied),
        },
    };
    let supplies = Supplies::new(buffers::Pool::stack(config.buffer_count(), config.buffer_bytes));
    Ok((Driver::Epoll(epoll::Driver::new(supplies, remote)?), running))
}
