//! The io_uring driver: decides what to start, and what completions mean.
//!
//! - One multishot receive per socket, from the shared buffers; one send in flight per socket,
//!   while what is written meanwhile gathers behind it.
//! - "No buffer" is not the end of a stream: the socket waits in `starved` and is armed again when
//!   buffers have come back.
//! - Whatever ends an operation either arms it again or is recorded in the socket's state.

mod sys;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{Shutdown, SocketAddrAny};

use self::sys::{Operation, PeerAddress, Progress, Ring};
use super::buffers::Lease;
use super::listener::Listening;
use super::socket::{Connecting, Receiving, Socket, State, Supplies, Writing};
use super::start::{Config, Denied};
use super::task::Remote;

/// Accepts that wait at the same time: as many connections come with one turn.
const ACCEPTS_MAX: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Driver {
    ring: RefCell<Ring>,
    supplies: Rc<Supplies>,
    /// Sockets whose receive found no buffer.
    starved: RefCell<VecDeque<Rc<Socket>>>,
    /// Kept for its memory. Invariant: empty between turns.
    progress: RefCell<Vec<Progress>>,
}

impl Driver {
    /// Makes the driver of this thread, unless the kernel denies it.
    pub(super) fn new(config: &Config, remote: &Arc<Remote>) -> Result<Self, Denied> {
        let mut ring = Ring::new(config)?;
        ring.start(Operation::Wake { remote: Arc::clone(remote), rings: Box::default() });
        let supplies = Supplies::new(Rc::clone(ring.buffers()));
        Ok(Self {
            ring: RefCell::new(ring),
            supplies,
            starved: RefCell::default(),
            progress: RefCell::default(),
        })
    }

    pub(super) fn supplies(&self) -> &Rc<Supplies> {
        &self.supplies
    }

    pub(super) fn listen(&self, listening: &Rc<Listening>) -> io::Result<()> {
        // On a non-blocking socket an accept would fail instead of waiting.
        Ok(ioctl_fionbio(&listening.socket, false)?)
    }

    pub(super) fn accept(&self, listening: &Rc<Listening>) {
        while listening.wants_more() && listening.state.borrow().armed.len() < ACCEPTS_MAX {
            let peer = PeerAddress::new();
            let key = self.start(Operation::Accept { listening: Rc::clone(listening), peer });
            listening.state.borrow_mut().armed.push(key);
        }
    }

    pub(super) fn stop_accepting(&self, listening: &Rc<Listening>) {
        let mut state = listening.state.borrow_mut();
        state.closing = true;
        state.armed.iter().for_each(|key| self.ring.borrow_mut().cancel(*key));
    }

    pub(super) fn adopt(&self, _: &Rc<Socket>) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn connect(&self, socket: &Rc<Socket>, to: SocketAddrAny) -> io::Result<()> {
        let to = Box::new(to);
        let key = self.start(Operation::Connect { socket: Rc::clone(socket), to });
        socket.state.borrow_mut().connecting = Connecting::Pending(Some(key));
        Ok(())
    }

    pub(super) fn receive(&self, socket: &Rc<Socket>, _turn: u64) {
        let mut state = socket.state.borrow_mut();
        if state.receiving == Receiving::Idle && state.wants_more() {
            let key = self.start(Operation::Receive { socket: Rc::clone(socket) });
            state.receiving = Receiving::Armed(key);
        }
    }

    pub(super) fn flush(&self, socket: &Rc<Socket>) {
        let mut state = socket.state.borrow_mut();
        state.dirty = false;
        if state.abandoned || state.sending.is_some() || !state.write_pending() {
            return;
        }
        if state.gathered.is_empty() {
            // Fails only when the connection is broken, which reading tells too.
            let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
            state.writing = Writing::Closed;
            drop(state);
            socket.writer.wake();
            return;
        }
        let bytes = state.take_gathered();
        self.send(socket, &mut state, bytes, 0);
    }

    pub(super) fn stop(&self, socket: &Rc<Socket>) {
        let mut state = socket.state.borrow_mut();
        state.abandon(&self.supplies.spares);
        let mut ring = self.ring.borrow_mut();
        if let Receiving::Armed(key) = state.receiving {
            ring.cancel(key);
        }
        if let Connecting::Pending(Some(key)) = state.connecting {
            ring.cancel(key);
        }
        if let Some(key) = state.sending {
            ring.cancel(key);
        }
    }

    pub(super) fn park(&self, timeout: Option<Duration>, turn: u64) {
        let timeout = if self.feed_starved(turn) { Some(Duration::ZERO) } else { timeout };
        let mut progress = self.progress.take();
        {
            let mut ring = self.ring.borrow_mut();
            ring.enter(timeout);
            ring.reap(&mut progress);
            self.supplies.count(|counters| {
                counters.submissions_full = ring.submissions_full;
                counters.completions_overflowed = ring.completions_overflowed;
            });
        }
        progress.drain(..).for_each(|progress| self.settle(progress, turn));
        self.progress.replace(progress);
    }

    pub(super) fn close(&self) {
        self.starved.take();
        self.ring.borrow_mut().let_go();
    }

    fn start(&self, operation: Operation) -> super::slot::Key {
        self.ring.borrow_mut().start(operation)
    }

    fn send(&self, socket: &Rc<Socket>, state: &mut State, bytes: Vec<u8>, sent: usize) {
        state.in_flight = bytes.len() - sent;
        let socket = Rc::clone(socket);
        state.sending = Some(self.start(Operation::Send { socket, bytes, sent }));
    }

    /// Offers buffers, and arms the receives that found none as far as there are some now. Returns
    /// whether some are left for the next turn, which must come at once: to be armed takes a buffer
    /// on offer also where nothing is there to be received, and then nothing may complete for long.
    fn feed_starved(&self, turn: u64) -> bool {
        let mut left = self.supplies.buffers.publish();
        if left == 0 {
            return false;
        }
        while left > 0 {
            let Some(socket) = self.starved.borrow_mut().pop_front() else { break };
            socket.state.borrow_mut().receiving = Receiving::Idle;
            self.receive(&socket, turn);
            left -= u16::from(socket.state.borrow().receiving != Receiving::Idle);
        }
        !self.starved.borrow().is_empty()
    }

    fn settle(&self, progress: Progress, turn: u64) {
        match progress {
            Progress::Accepted { listening, key, result } => {
                listening.state.borrow_mut().armed.retain(|armed| *armed != key);
                listening.settle(result);
                self.accept(&listening);
                listening.acceptor.wake();
            }
            Progress::Connected { socket, result } => {
                let outcome = result.map_or_else(Connecting::Failed, |()| Connecting::Connected);
                socket.state.borrow_mut().connecting = outcome;
                socket.reader.wake();
            }
            Progress::Received { socket, result, more } => {
                self.settle_receive(&socket, result, more, turn);
                socket.reader.wake();
            }
            Progress::Sent { socket, bytes, sent, result } => {
                self.settle_send(&socket, bytes, sent, result);
                socket.writer.wake();
            }
            Progress::Woken { remote } => {
                self.start(Operation::Wake { remote, rings: Box::default() });
            }
        }
    }

    fn settle_receive(
        &self,
        socket: &Rc<Socket>,
        result: Result<Option<Lease>, Errno>,
        more: bool,
        turn: u64,
    ) {
        let mut state = socket.state.borrow_mut();
        if !more {
            state.receiving = Receiving::Idle;
        }
        if state.abandoned {
            return;
        }
        match result {
            Ok(Some(lease)) => state.received(self.supplies.keep(lease), turn),
            Ok(None) => state.end(),
            Err(Errno::NOBUFS) => {
                self.supplies.run_out();
                state.receiving = Receiving::Starved;
                self.starved.borrow_mut().push_back(Rc::clone(socket));
            }
            Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => state.break_read(errno),
        }
        if let Receiving::Armed(key) = state.receiving
            && state.overfull(turn)
        {
            self.supplies.count(|counters| counters.receives_paused += 1);
            self.ring.borrow_mut().cancel(key);
            state.receiving = Receiving::Stopping;
        }
        drop(state);
        self.receive(socket, turn);
    }

    fn settle_send(
        &self,
        socket: &Rc<Socket>,
        bytes: Vec<u8>,
        sent: usize,
        result: Result<usize, Errno>,
    ) {
        let mut state = socket.state.borrow_mut();
        state.sending = None;
        state.in_flight = 0;
        let sent = match result {
            Ok(0) | Err(Errno::CANCELED) => return state.break_write(Errno::PIPE),
            Ok(n) => sent + n,
            Err(Errno::AGAIN | Errno::INTR) => sent,
            Err(errno) => return state.break_write(errno),
        };
        if sent < bytes.len() && !state.abandoned {
            self.supplies.count(|counters| counters.sends_short += 1);
            return self.send(socket, &mut state, bytes, sent);
        }
        self.supplies.spares.put(bytes);
        if state.write_pending() {
            self.supplies.mark_dirty(socket, &mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    /// A driver without a loop, where the kernel allows one.
    fn driver() -> Option<Driver> {
        let remote = Arc::new(Remote::new().unwrap());
        Driver::new(&Config::default(), &remote)
            .inspect_err(|denied| println!("skipped: {denied}"))
            .ok()
    }

    fn pair() -> (Rc<Socket>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Socket::new(OwnedFd::from(listener.accept().unwrap().0)), peer)
    }

    fn write(driver: &Driver, socket: &Rc<Socket>, bytes: &[u8]) {
        socket.state.borrow_mut().gathered.extend_from_slice(bytes);
        driver.flush(socket);
    }

    #[test]
    fn a_receive_does_not_wait_behind_silent_ones() {
        let patience = Duration::from_secs(60);
        let Some(driver) = driver() else { return };
        let pairs: Vec<_> = (0..40).map(|_| pair()).collect();
        for (socket, _) in &pairs {
            socket.state.borrow_mut().receiving = Receiving::Starved;
            driver.starved.borrow_mut().push_back(Rc::clone(socket));
        }
        let (last, mut peer) = pairs.last().map(|(last, peer)| (last, peer)).unwrap();
        peer.write_all(b"x").unwrap();
        let began = Instant::now();
        for turn in 1.. {
            driver.park(Some(patience), turn);
            if last.state.borrow().held() == 1 {
                break;
            }
        }
        assert!(began.elapsed() < patience, "it waited for an event of others");
    }

    #[test]
    fn a_short_send_is_completed() {
        const TOTAL: usize = 16 << 20;
        let Some(driver) = driver() else { return };
        let (socket, mut peer) = pair();
        let bytes: Vec<u8> = (0..TOTAL).map(|n| ((n * 31) ^ (n >> 9)).to_le_bytes()[0]).collect();
        write(&driver, &socket, &bytes);
        driver.park(Some(Duration::from_millis(1)), 1);
        // The kernel has taken what the socket holds and waits; now it has to stop.
        let key = socket.state.borrow().sending.expect("16 MB do not fit into a socket");
        driver.ring.borrow_mut().cancel(key);
        driver.park(Some(Duration::from_millis(1)), 2);
        assert_eq!(driver.supplies.counters().sends_short, 1);
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; TOTAL];
            peer.read_exact(&mut all).unwrap();
            all
        });
        while socket.state.borrow().unsent() > 0 {
            driver.park(Some(Duration::from_secs(1)), 3);
        }
        assert!(reader.join().unwrap() == bytes, "in order, and none twice");
    }
}
