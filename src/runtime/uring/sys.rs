//! The ring: operations go in with everything they name, and come out when the kernel is done.
//!
//! - [`Ring::start`] takes the [`Operation`] and keeps it, with its memory and its descriptor,
//!   until the completion that is its last. Only then does [`Ring::reap`] hand it back.
//! - Cancelling asks the kernel to hurry; it frees nothing.
//! - The ring takes the operations that this file makes and no others: a ring whose memory was
//!   overwritten opens no file and starts no program.
//! - Nothing that was started is lost when the submission queue is full, and nothing that completed
//!   when the completion queue is.
//! - Dropping the ring cancels everything and waits until the kernel has let go.
//!
//! With the buffers and the CPU clock this is all that is unsafe. What completions mean is not
//! decided here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use socket2::{SockAddr, SockAddrStorage};

use super::super::buffers::{Lease, Pool};
use super::super::listener::{Connection, Listening};
use super::super::slot::{Key, Slots};
use super::super::socket::Socket;
use super::super::start::{Config, Denied, Step};
use super::super::task::Remote;

/// The only group of provided buffers.
const BUFFER_GROUP: u16 = 0;
/// All that is ever asked of the kernel, cancelling included.
const OPCODES: [(&str, u8); 6] = [
    ("ACCEPT", opcode::Accept::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("READ", opcode::Read::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
];
/// IORING_REGISTER_PROBE, which changes nothing.
const REGISTER_PROBE: u8 = 8;
/// How often, and each time for how long, a dropped ring waits for what it has cancelled.
const LETTING_GO: (u32, Duration) = (50, Duration::from_millis(100));

/// What the kernel can be asked to do.
#[derive(Debug)]
pub(super) enum Operation {
    Accept {
        listening: Rc<Listening>,
        peer: Box<PeerAddress>,
    },
    Connect {
        socket: Rc<Socket>,
        to: Box<SocketAddrAny>,
    },
    /// Again and again, until it ends or is cancelled.
    Receive {
        socket: Rc<Socket>,
    },
    /// Sends `bytes` from `sent` on.
    Send {
        socket: Rc<Socket>,
        bytes: Vec<u8>,
        sent: usize,
    },
    /// Waits for the bell.
    Wake {
        remote: Arc<Remote>,
        rings: Box<u64>,
    },
}

/// Where the kernel writes who connected.
#[derive(Debug)]
pub(super) struct PeerAddress {
    storage: SockAddrStorage,
    len: libc::socklen_t,
}

/// What has happened. Except for `Received` with `more`, the operation is over.
#[derive(Debug)]
pub(super) enum Progress {
    Accepted { listening: Rc<Listening>, key: Key, result: Result<Connection, Errno> },
    Connected { socket: Rc<Socket>, result: Result<(), Errno> },
    Received { socket: Rc<Socket>, result: Result<Option<Lease>, Errno>, more: bool },
    Sent { socket: Rc<Socket>, bytes: Vec<u8>, sent: usize, result: Result<usize, Errno> },
    Woken { remote: Arc<Remote> },
}

/// An io_uring with the operations that it has.
pub(super) struct Ring {
    // Dropped first: the kernel forgets the buffer ring before its memory can go.
    ring: IoUring,
    /// Invariant: every operation that was pushed and has not completed for the last time.
    operations: Slots<Operation>,
    /// Completions that were taken off the queue to make room.
    waiting: VecDeque<cqueue::Entry>,
    buffers: Rc<Pool>,
    /// Times that the submission queue was full.
    pub(super) submissions_full: u64,
    /// Times that completions had to wait in the kernel.
    pub(super) completions_overflowed: u64,
}

impl Ring {
    /// Makes a ring, unless the kernel denies it.
    pub(super) fn new(config: &Config) -> Result<Self, Denied> {
        // First, so that they go last, also when the kernel denies a later step.
        let buffers = Pool::ring(config.buffer_count(), config.buffer_bytes);
        let ring = set_up(config).map_err(|error| Denied::new(Step::Setup, &error))?;
        probe(&ring)?;
        let address = buffers.ring_address().expect("made for the ring");
        // SAFETY: the buffer ring's memory has `count` entries and belongs to `buffers`, which is
        // dropped after `ring`: here by the order of the variables, later by that of the fields.
        let registered = unsafe {
            ring.submitter().register_buf_ring_with_flags(address, buffers.count(), BUFFER_GROUP, 0)
        };
        registered.map_err(|error| Denied::new(Step::Buffers, &error))?;
        enable(&ring).map_err(|error| Denied::new(Step::Restrictions, &error))?;
        // The last of the three calls: what forbids it is to be heard of now, not in the loop.
        ring.submitter().submit().map_err(|error| Denied::new(Step::Enter, &error))?;
        Ok(Self {
            ring,
            operations: Slots::new(),
            waiting: VecDeque::new(),
            buffers,
            submissions_full: 0,
            completions_overflowed: 0,
        })
    }

    pub(super) fn buffers(&self) -> &Rc<Pool> {
        &self.buffers
    }

    /// Queues `operation`; it reaches the kernel with the next [`enter`](Self::enter).
    pub(super) fn start(&mut self, operation: Operation) -> Key {
        let key = self.operations.insert(operation);
        let operation = self.operations.find_mut(key).expect("it was just inserted");
        let entry = operation.entry().user_data(key.to_bits());
        self.push(&entry);
        key
    }

    /// Asks the kernel to end an operation. Does nothing when it is over.
    pub(super) fn cancel(&mut self, key: Key) {
        if self.operations.find(key).is_some() {
            self.push(&cancel(key));
        }
    }

    /// Hands all queued operations to the kernel, and waits until something has completed or
    /// `timeout` is over (`None`: as long as it takes).
    pub(super) fn enter(&mut self, timeout: Option<Duration>) {
        let want = usize::from(timeout != Some(Duration::ZERO) && self.waiting.is_empty());
        let timespec = Timespec::from(timeout.unwrap_or_default());
        let mut arguments = SubmitArgs::new();
        if timeout.is_some() {
            arguments = arguments.timespec(&timespec);
        }
        let entered = self.ring.submitter().submit_with_args(want, &arguments);
        self.settle_enter(entered);
        if self.ring.submission().cq_overflow() {
            self.completions_overflowed += 1;
        }
    }

    /// Appends what has completed to `progress`.
    pub(super) fn reap(&mut self, progress: &mut Vec<Progress>) {
        while let Some(entry) = self.waiting.pop_front() {
            progress.extend(self.complete(&entry));
        }
        // Taken one by one: `complete` needs all of `self`, and the queue is shared memory anyway.
        while let Some(entry) = self.next_completion() {
            progress.extend(self.complete(&entry));
        }
    }

    fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what `entry` names is in `operations` (or it is a cancel, which names
            // nothing), and stays there until its final completion.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submissions_full += 1;
            let submitted = self.ring.submit();
            self.settle_enter(submitted);
        }
    }

    fn settle_enter(&mut self, entered: io::Result<usize>) {
        let Err(error) = entered else { return };
        match Errno::from_io_error(&error) {
            Some(Errno::TIME | Errno::INTR) => {}
            // Too much has completed, or memory is short: make room and come again.
            Some(Errno::BUSY | Errno::AGAIN | Errno::NOMEM) => {
                self.waiting.extend(self.ring.completion());
            }
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// What a completion tells. Operations that it ends leave the slots.
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Progress> {
        let key = Key::from_bits(entry.user_data());
        let result = outcome(entry.result());
        let more = cqueue::more(entry.flags());
        if more {
            let Operation::Receive { socket } = self.operations.find(key)? else { return None };
            let socket = Rc::clone(socket);
            let result = self.received(entry, result);
            return Some(Progress::Received { socket, result, more });
        }
        Some(match self.operations.remove(key)? {
            Operation::Accept { listening, peer } => {
                let result = result.map(|fd| peer.with(accepted(fd)));
                Progress::Accepted { listening, key, result }
            }
            Operation::Connect { socket, .. } => {
                Progress::Connected { socket, result: result.map(drop) }
            }
            Operation::Receive { socket } => {
                let result = self.received(entry, result);
                Progress::Received { socket, result, more }
            }
            Operation::Send { socket, bytes, sent } => {
                Progress::Sent { socket, bytes, sent, result: result.map(|n| n as usize) }
            }
            Operation::Wake { remote, .. } => Progress::Woken { remote },
        })
    }

    /// Takes the buffer that a receive has filled; `None` is the end of the stream.
    fn received(
        &self,
        entry: &cqueue::Entry,
        result: Result<u32, Errno>,
    ) -> Result<Option<Lease>, Errno> {
        let len = result.unwrap_or(0) as usize;
        // SAFETY: `entry` completes a receive from our only group, and each entry comes once.
        let lease =
            cqueue::buffer_select(entry.flags()).map(|id| unsafe { self.buffers.claim(id, len) });
        result.map(|len| lease.filter(|_| len > 0))
    }

    /// Cancels everything and waits until the kernel has let go of it. Returns whether it has.
    pub(super) fn let_go(&mut self) -> bool {
        let (times, pause) = LETTING_GO;
        for _ in 0..times {
            if self.operations.len() == 0 {
                return true;
            }
            let any = opcode::AsyncCancel2::new(CancelBuilder::any().all());
            self.push(&any.build().user_data(Key::NONE.to_bits()));
            self.enter(Some(pause));
            self.reap(&mut Vec::new());
        }
        self.operations.len() == 0
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.let_go() {
            // The kernel may still write to it, so it is never freed.
            std::mem::forget(std::mem::replace(&mut self.operations, Slots::new()));
            std::mem::forget(Rc::clone(&self.buffers));
        }
    }
}

impl Operation {
    /// The entry for the kernel. It names memory of `self`, all of which is on the heap and stays
    /// where it is when `self` moves.
    fn entry(&mut self) -> squeue::Entry {
        match self {
            Self::Accept { listening, peer } => {
                let fd = Fd(listening.socket.as_raw_fd());
                let len = &raw mut peer.len;
                opcode::Accept::new(fd, (&raw mut peer.storage).cast(), len)
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Self::Connect { socket, to } => {
                opcode::Connect::new(descriptor(socket), to.as_ptr().cast(), to.addr_len()).build()
            }
            Self::Receive { socket } => {
                opcode::RecvMulti::new(descriptor(socket), BUFFER_GROUP).build()
            }
            Self::Send { socket, bytes, sent } => {
                let rest = &bytes[*sent..];
                let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
                opcode::Send::new(descriptor(socket), rest.as_ptr(), len)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .build()
            }
            Self::Wake { remote, rings } => {
                let fd = Fd(remote.bell.eventfd.as_raw_fd());
                opcode::Read::new(fd, (&raw mut **rings).cast(), 8).build()
            }
        }
    }
}

impl PeerAddress {
    pub(super) fn new() -> Box<Self> {
        let storage = SockAddrStorage::zeroed();
        let len = storage.size_of();
        Box::new(Self { storage, len })
    }

    /// Joins a connection with its peer's address, which the kernel has written.
    fn with(self, fd: OwnedFd) -> Connection {
        let len = self.len.min(self.storage.size_of());
        // SAFETY: the accept has completed; `storage` holds an address of `len` bytes, and was
        // zeroed before.
        let address = unsafe { SockAddr::new(self.storage, len) };
        (fd, address.as_socket())
    }
}

fn accepted(fd: u32) -> OwnedFd {
    let fd = RawFd::try_from(fd).expect("descriptors are not negative");
    // SAFETY: the accept has just made this descriptor for us, and its only completion named it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn set_up(config: &Config) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_r_disabled()
        .setup_cqsize(config.completion_entries);
    // Linux 6.6 has it: one cache line less per submission.
    match builder.clone().setup_no_sqarray().build(config.submission_entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            builder.build(config.submission_entries)
        }
        built => built,
    }
}

fn probe(ring: &IoUring) -> Result<(), Denied> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| Denied::new(Step::Probe, &error))?;
    match OPCODES.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(Denied::without_opcode(name)),
        None => Ok(()),
    }
}

/// Restricts the ring to what is used from now on, for good, and lets it begin.
fn enable(ring: &IoUring) -> io::Result<()> {
    let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS;
    let mut restrictions: Vec<_> =
        OPCODES.iter().map(|(_, code)| Restriction::sqe_op(*code)).collect();
    restrictions.push(Restriction::sqe_flags_allowed(flags.bits()));
    // Without any, some kernels would allow all.
    restrictions.push(Restriction::register_op(REGISTER_PROBE));
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

fn cancel(key: Key) -> squeue::Entry {
    // Whether it is found does not matter: the operation completes either way.
    opcode::AsyncCancel::new(key.to_bits())
        .build()
        .user_data(Key::NONE.to_bits())
        .flags(squeue::Flags::SKIP_SUCCESS)
}

fn descriptor(socket: &Socket) -> Fd {
    Fd(socket.fd.as_raw_fd())
}

fn outcome(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("operations", &self.operations.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_takes_no_other_operations() {
        let mut ring = match Ring::new(&Config::default()) {
            Ok(ring) => ring,
            Err(denied) => return println!("skipped: {denied}"),
        };
        let denied = -libc::EACCES;
        let linked = cancel(Key::NONE).flags(squeue::Flags::IO_LINK);
        for entry in [opcode::Nop::new().build(), linked] {
            ring.push(&entry);
            ring.enter(Some(Duration::from_secs(10)));
            assert_eq!(ring.next_completion().map(|entry| entry.result()), Some(denied));
        }
        let error = ring.ring.submitter().register_files(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
