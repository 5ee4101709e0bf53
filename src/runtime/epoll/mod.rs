//! The epoll driver, for kernels that deny io_uring: the same interface by readiness.
//!
//! - A socket is registered once, edge-triggered, and tried only when the kernel has not said "not
//!   yet" since its last event. So bytes are received when they are asked for, on the spot.
//! - An event carries a key with a generation: one that is late for its socket finds nothing.
//! - No system call here waits, except the one in [`Driver::park`].
//!
//! There is nothing unsafe in it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketAddrAny};

use super::buffers::Chunk;
use super::listener::{Listening, is_passing};
use super::slot::{Key, Slots};
use super::socket::{Connecting, Receiving, Socket, State, Supplies, Writing};
use super::task::Remote;

/// Events of one turn.
const EVENTS_MAX: usize = 1024;
/// Names the bell among the keys of events.
const BELL: Key = Key::NONE;
/// Received into when no buffer is free.
const MAKESHIFT_BYTES: usize = 4096;
/// The kernel has said "not yet": it is tried again after the next event.
const UNTIL_EVENT: Receiving = Receiving::Armed(Key::NONE);

/// See the module.
pub(super) struct Driver {
    epoll: OwnedFd,
    remote: Arc<Remote>,
    supplies: Rc<Supplies>,
    registered: RefCell<Slots<Registered>>,
    /// Kept for its memory. Invariant: empty between turns.
    events: RefCell<Vec<epoll::Event>>,
}

#[derive(Debug, Clone)]
enum Registered {
    Listening(Rc<Listening>),
    Socket(Rc<Socket>),
}

impl Driver {
    /// Makes the driver of this thread.
    pub(super) fn new(supplies: Rc<Supplies>, remote: &Arc<Remote>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &remote.bell.eventfd, data(BELL), flags)?;
        Ok(Self {
            epoll,
            remote: Arc::clone(remote),
            supplies,
            registered: RefCell::new(Slots::new()),
            events: RefCell::new(Vec::with_capacity(EVENTS_MAX)),
        })
    }

    pub(super) fn supplies(&self) -> &Rc<Supplies> {
        &self.supplies
    }

    pub(super) fn listen(&self, listening: &Rc<Listening>) -> io::Result<()> {
        ioctl_fionbio(&listening.socket, true)?;
        let key = self.register(&listening.socket, Registered::Listening(Rc::clone(listening)))?;
        listening.state.borrow_mut().registration = Some(key);
        Ok(())
    }

    pub(super) fn accept(&self, listening: &Rc<Listening>) {
        while listening.wants_more() && !listening.state.borrow().drained {
            let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
            match listening.accept_now(flags) {
                Err(Errno::AGAIN) => listening.state.borrow_mut().drained = true,
                Err(errno) if is_passing(errno) => {}
                outcome => return listening.settle(outcome),
            }
        }
    }

    pub(super) fn stop_accepting(&self, listening: &Rc<Listening>) {
        let mut state = listening.state.borrow_mut();
        state.closing = true;
        self.unregister(&listening.socket, state.registration.take());
    }

    pub(super) fn adopt(&self, socket: &Rc<Socket>) -> io::Result<()> {
        let key = self.register(&socket.fd, Registered::Socket(Rc::clone(socket)))?;
        socket.state.borrow_mut().registration = Some(key);
        Ok(())
    }

    pub(super) fn connect(&self, socket: &Rc<Socket>, to: &SocketAddrAny) -> io::Result<()> {
        match rustix::net::connect(&socket.fd, to) {
            Ok(()) => Ok(()),
            Err(Errno::INPROGRESS | Errno::INTR) => {
                socket.state.borrow_mut().connecting = Connecting::Pending(None);
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn receive(&self, socket: &Rc<Socket>, turn: u64) {
        let mut state = socket.state.borrow_mut();
        if state.receiving != Receiving::Idle || !state.wants_at_once() {
            return;
        }
        match self.receive_now(socket) {
            Ok(None) => state.end(),
            Ok(Some((chunk, all))) => {
                if all && !state.peer_closed {
                    state.receiving = UNTIL_EVENT;
                }
                state.received(chunk, turn);
            }
            Err(Errno::AGAIN) => state.receiving = UNTIL_EVENT,
            Err(Errno::INTR) => {}
            Err(errno) => state.break_read(errno),
        }
    }

    pub(super) fn flush(&self, socket: &Rc<Socket>) {
        let mut state = socket.state.borrow_mut();
        state.dirty = false;
        if state.abandoned || state.sending.is_some() {
            return;
        }
        if let Err(errno) = self.send_gathered(socket, &mut state) {
            match errno {
                // Until the next event.
                Errno::AGAIN => state.sending = Some(Key::NONE),
                errno => state.break_write(errno),
            }
        }
        drop(state);
        socket.writer.wake();
    }

    pub(super) fn stop(&self, socket: &Rc<Socket>) {
        let mut state = socket.state.borrow_mut();
        state.abandon(&self.supplies.spares);
        let registration = state.registration.take();
        drop(state);
        self.unregister(&socket.fd, registration);
    }

    pub(super) fn park(&self, timeout: Option<Duration>, _turn: u64) {
        let mut events = self.events.take();
        // Longer ones than a timespec holds are as good as none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("epoll_wait failed: {errno}"),
        }
        events.drain(..).for_each(|event| self.settle(event));
        self.events.replace(events);
    }

    fn register(&self, fd: &impl AsFd, what: Registered) -> io::Result<Key> {
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        let flags = both | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let key = self.registered.borrow_mut().insert(what);
        match epoll::add(&self.epoll, fd, data(key), flags) {
            Ok(()) => Ok(key),
            Err(errno) => {
                self.registered.borrow_mut().remove(key);
                Err(errno.into())
            }
        }
    }

    fn unregister(&self, fd: &impl AsFd, registration: Option<Key>) {
        if let Some(key) = registration {
            // Fails only for a descriptor that is not registered, which is what is wanted.
            let _ = epoll::delete(&self.epoll, fd);
            self.registered.borrow_mut().remove(key);
        }
    }

    /// One receive, and whether it took all that was there; `Ok(None)` is the end of the stream.
    fn receive_now(&self, socket: &Socket) -> Result<Option<(Chunk, bool)>, Errno> {
        let Some(mut lease) = self.supplies.buffers.take() else {
            self.supplies.count(|counters| counters.buffers_exhausted += 1);
            let mut makeshift = [0; MAKESHIFT_BYTES];
            let (_, n) = rustix::net::recv(&socket.fd, &mut makeshift, RecvFlags::empty())?;
            return Ok((n > 0).then(|| (Chunk::copy(&makeshift[..n]), n < MAKESHIFT_BYTES)));
        };
        let room = lease.bytes().len();
        let (_, n) = rustix::net::recv(&socket.fd, lease.bytes_mut(), RecvFlags::empty())?;
        lease.truncate(n);
        Ok((n > 0).then(|| (self.supplies.keep(lease), n < room)))
    }

    /// Sends all that was gathered, then closes the write half if it is time.
    fn send_gathered(&self, socket: &Socket, state: &mut State) -> Result<(), Errno> {
        while state.write_pending() && !state.gathered.is_empty() {
            let rest = &state.gathered[state.gathered_sent..];
            let n = match rustix::net::send(&socket.fd, rest, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => continue,
                sent => sent?,
            };
            if n < rest.len() {
                self.supplies.count(|counters| counters.sends_short += 1);
            }
            state.gathered_sent += n;
            if state.gathered_sent == state.gathered.len() {
                self.supplies.spares.put(state.take_gathered());
            }
        }
        if state.write_pending() {
            // Fails only when the connection is broken, which reading tells too.
            let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
            state.writing = Writing::Closed;
        }
        Ok(())
    }

    fn settle(&self, event: epoll::Event) {
        let key = Key::from_bits(event.data.u64());
        if key == BELL {
            // Only to reset it; it is readable now.
            let _ = rustix::io::read(&self.remote.bell.eventfd, &mut [0; 8]);
            return;
        }
        let registered = self.registered.borrow().find(key).cloned();
        match registered {
            Some(Registered::Listening(listening)) => {
                listening.state.borrow_mut().drained = false;
                listening.acceptor.wake();
            }
            Some(Registered::Socket(socket)) => self.settle_socket(&socket, event.flags),
            None => {}
        }
    }

    fn settle_socket(&self, socket: &Rc<Socket>, flags: epoll::EventFlags) {
        let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        let readable = broken | epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let writable = broken | epoll::EventFlags::OUT;
        let mut state = socket.state.borrow_mut();
        if matches!(state.connecting, Connecting::Pending(_)) && flags.intersects(writable) {
            state.connecting = connect_outcome(socket);
        }
        // The end of the stream has no event of its own when it comes together with bytes.
        state.peer_closed |= flags.intersects(broken | epoll::EventFlags::RDHUP);
        if flags.intersects(readable) {
            state.receiving = Receiving::Idle;
        }
        if flags.intersects(writable) && state.sending.take().is_some() {
            self.supplies.mark_dirty(socket, &mut state);
        }
        drop(state);
        socket.reader.wake();
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("epoll", &self.epoll).finish_non_exhaustive()
    }
}

fn connect_outcome(socket: &Socket) -> Connecting {
    match rustix::net::sockopt::socket_error(&socket.fd).and_then(|result| result) {
        Ok(()) => Connecting::Connected,
        Err(errno) => Connecting::Failed(errno),
    }
}

fn data(key: Key) -> epoll::EventData {
    epoll::EventData::new_u64(key.to_bits())
}
