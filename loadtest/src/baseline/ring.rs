//! Sockets on one io_uring: as little as a proxy can do with.
//!
//! - One multishot accept; for each socket one multishot receive into buffers shared with the
//!   kernel, and one send at a time, behind which data gathers. One system call for each turn.
//! - A [`Service`] is told what happened and appends to sockets' output; it sees no ring.
//!
//! Soundness: memory that a submitted operation names belongs to that operation until its last
//! completion. Receives write to [`Buffers`] only, which live as long as the process. Sends read
//! [`Socket::sending`], and a socket is removed only when none of its operations is under way.
//! [`serve`] never frees a socket otherwise: when it fails, it leaks them.
//!
//! Deliberately not here: back-pressure, timeouts, cancelling.

use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;
const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 16 * 1024;
const GROUP: u16 = 0;
/// `user_data` of the accept; those of sockets are smaller.
const ACCEPT: u64 = u64::MAX;

/// Names a socket until [`Service::closed`] or [`Sockets::close`].
pub(super) type Key = usize;

/// What is done with sockets.
pub(super) trait Service {
    /// A client has connected.
    fn accepted(&mut self, sockets: &mut Sockets, socket: Key);
    /// `bytes` have arrived.
    fn received(&mut self, sockets: &mut Sockets, socket: Key, bytes: &[u8]);
    /// The other side closed the socket, or it failed; it is gone afterwards.
    fn closed(&mut self, sockets: &mut Sockets, socket: Key);
}

/// Serves who connects to `address`.
///
/// # Errors
/// The address cannot be bound or the kernel denies what is needed.
pub(super) fn serve(address: SocketAddr, service: &mut impl Service) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)?;
    let buffers = Buffers::register(&ring)?;
    let sockets = Sockets { slab: Slab::new(), changed: Vec::new() };
    // Leaked, so that nothing is freed that the kernel still uses, whatever ends the loop.
    let turns = Box::leak(Box::new(Loop { ring, buffers, sockets, listener }));
    turns.accept()?;
    let mut completions = Vec::new();
    loop {
        turns.submit()?;
        completions.extend(turns.ring.completion());
        for completion in completions.drain(..) {
            turns.complete(&completion, service)?;
        }
    }
}

/// One socket and its output.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// What is to be sent when `sending` has been.
    output: Vec<u8>,
    /// The kernel's while `send_under_way`.
    sending: Vec<u8>,
    send_under_way: bool,
    receive_under_way: bool,
    /// Whether the service still knows it.
    open: bool,
    /// Whether it is in [`Sockets::changed`].
    changed: bool,
}

/// All sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    slab: Slab<Socket>,
    /// Those for which something is to be submitted.
    changed: Vec<Key>,
}

impl Sockets {
    /// Connects to `address`, which is on this host: it waits.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) fn connect(&mut self, address: SocketAddr) -> io::Result<Key> {
        self.adopt(TcpStream::connect(address)?)
    }

    /// Where to append what is to be sent at the end of this turn.
    pub(super) fn output(&mut self, key: Key) -> &mut Vec<u8> {
        self.change(key);
        &mut self.slab[key].output
    }

    /// Sends what is left, then closes. The service hears nothing more of it.
    pub(super) fn close(&mut self, key: Key) {
        self.slab[key].open = false;
        self.change(key);
    }

    fn adopt(&mut self, stream: TcpStream) -> io::Result<Key> {
        stream.set_nodelay(true)?;
        let key = self.slab.insert(Socket {
            stream,
            output: Vec::new(),
            sending: Vec::new(),
            send_under_way: false,
            receive_under_way: false,
            open: true,
            changed: false,
        });
        self.change(key);
        Ok(key)
    }

    fn change(&mut self, key: Key) {
        if !mem::replace(&mut self.slab[key].changed, true) {
            self.changed.push(key);
        }
    }
}

struct Loop {
    ring: IoUring,
    buffers: Buffers,
    sockets: Sockets,
    listener: TcpListener,
}

impl Loop {
    fn accept(&mut self) -> io::Result<()> {
        let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build();
        self.push(&accept.user_data(ACCEPT))
    }

    /// Submits what the sockets need and waits for something to complete.
    fn submit(&mut self) -> io::Result<()> {
        while let Some(key) = self.sockets.changed.pop() {
            self.sockets.slab[key].changed = false;
            self.advance(key)?;
        }
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn advance(&mut self, key: Key) -> io::Result<()> {
        let socket = &mut self.sockets.slab[key];
        let fd = Fd(socket.stream.as_raw_fd());
        if !socket.send_under_way && !socket.output.is_empty() {
            socket.sending.clear();
            mem::swap(&mut socket.sending, &mut socket.output);
            socket.send_under_way = true;
            let size = u32::try_from(socket.sending.len()).map_err(io::Error::other)?;
            let send = opcode::Send::new(fd, socket.sending.as_ptr(), size);
            let send = send.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
            return self.push(&send.user_data(send_data(key))).and_then(|()| self.receive(key));
        }
        if !socket.open && !socket.send_under_way {
            // Ends the receive, whose completion comes back here.
            socket.stream.shutdown(std::net::Shutdown::Both).ok();
            if !socket.receive_under_way {
                self.sockets.slab.remove(key);
                return Ok(());
            }
        }
        self.receive(key)
    }

    fn receive(&mut self, key: Key) -> io::Result<()> {
        let socket = &mut self.sockets.slab[key];
        if !socket.open || mem::replace(&mut socket.receive_under_way, true) {
            return Ok(());
        }
        let receive = opcode::RecvMulti::new(Fd(socket.stream.as_raw_fd()), GROUP).build();
        self.push(&receive.user_data(receive_data(key)))
    }

    fn complete(&mut self, done: &cqueue::Entry, service: &mut impl Service) -> io::Result<()> {
        let more = cqueue::more(done.flags());
        if done.user_data() == ACCEPT {
            if done.result() >= 0 {
                // SAFETY: the kernel made this descriptor for us in the accept that has completed,
                // and this is the only place that takes it, once for each completion.
                let stream = unsafe { OwnedFd::from_raw_fd(done.result()) }.into();
                // A client that is gone already is none.
                if let Ok(key) = self.sockets.adopt(stream) {
                    service.accepted(&mut self.sockets, key);
                }
            }
            return if more { Ok(()) } else { self.accept() };
        }
        let key = usize::try_from(done.user_data() >> 1).map_err(io::Error::other)?;
        if done.user_data() & 1 == 1 {
            self.sent(key, done.result(), service);
        } else {
            self.received(key, done, more, service);
        }
        Ok(())
    }

    fn sent(&mut self, key: Key, result: i32, service: &mut impl Service) {
        let socket = &mut self.sockets.slab[key];
        socket.send_under_way = false;
        // MSG_WAITALL: less than all is a failure.
        if usize::try_from(result) != Ok(socket.sending.len()) {
            socket.output.clear();
            self.lost(key, service);
        }
        self.sockets.change(key);
    }

    fn received(&mut self, key: Key, done: &cqueue::Entry, more: bool, to: &mut impl Service) {
        self.sockets.slab[key].receive_under_way = more;
        if let Some(filled) = Filled::of(done) {
            if self.sockets.slab[key].open && filled.bytes > 0 {
                to.received(&mut self.sockets, key, self.buffers.get(&filled));
            }
            self.buffers.give_back(filled);
        }
        // No buffer was free; those of this turn are free by the next.
        let starved = done.result() == -libc::ENOBUFS;
        if done.result() <= 0 && !starved {
            self.lost(key, to);
        }
        if !more {
            self.sockets.change(key);
        }
    }

    fn lost(&mut self, key: Key, service: &mut impl Service) {
        if self.sockets.slab[key].open {
            service.closed(&mut self.sockets, key);
            self.sockets.close(key);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: see the module: what an entry points to outlives its operation. Receives name
            // no memory, sends name `Socket::sending`, which stays in its socket and is not touched
            // while `send_under_way`; a Vec's bytes stay where they are when the Slab grows.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

fn send_data(key: Key) -> u64 {
    receive_data(key) | 1
}

fn receive_data(key: Key) -> u64 {
    (key as u64) << 1
}

/// A buffer that a receive has filled: ours until it is given back, which takes this. Made once for
/// each completion.
struct Filled {
    id: u16,
    bytes: usize,
}

impl Filled {
    fn of(done: &cqueue::Entry) -> Option<Self> {
        let id = cqueue::buffer_select(done.flags())?;
        Some(Self { id, bytes: usize::try_from(done.result()).unwrap_or(0) })
    }
}

/// One page, as the kernel wants the list of buffers aligned.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// The buffers that receives write to. Never freed.
struct Buffers {
    /// `BUFFERS` entries, which the kernel reads, in one page.
    entries: *mut BufRingEntry,
    /// `BUFFERS` times `BUFFER_BYTES`.
    bytes: *mut u8,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> io::Result<Self> {
        const { assert!(BUFFERS as usize * size_of::<BufRingEntry>() <= size_of::<Page>()) };
        let page: *mut Page = Box::leak(Box::new(Page([0; 4096])));
        let bytes = Box::leak(vec![0; usize::from(BUFFERS) * BUFFER_BYTES].into_boxed_slice());
        let mut buffers = Self { entries: page.cast(), bytes: bytes.as_mut_ptr(), tail: 0 };
        let address = buffers.entries as u64;
        // SAFETY: the page is aligned, as large as BUFFERS entries (asserted above), and is leaked.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0) }?;
        (0..BUFFERS).for_each(|id| buffers.give(id));
        Ok(buffers)
    }

    /// Lets the kernel write to the buffer again.
    fn give_back(&mut self, filled: Filled) {
        self.give(filled.id);
    }

    /// Lets the kernel write to buffer `id`, which is not the kernel's.
    fn give(&mut self, id: u16) {
        // BUFFERS is a power of two.
        let index = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `index` is less than BUFFERS, so it is in the page; the kernel reads an entry
        // only once the tail has passed it, which is below, and no reference to one is kept.
        let entry = unsafe { &mut *self.entries.wrapping_add(index) };
        entry.set_addr(self.start(id) as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `entries` is the start of the ring, where the tail is.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: it points into the leaked page, is aligned, and both sides use it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// What a receive has written.
    fn get<'a>(&'a self, filled: &'a Filled) -> &'a [u8] {
        let bytes = filled.bytes.min(BUFFER_BYTES);
        // SAFETY: the buffer lies in leaked memory that was initialised with zeros. The kernel does
        // not write to it before `give_back` takes `filled`, which outlives the slice: both borrows
        // end with it.
        unsafe { std::slice::from_raw_parts(self.start(filled.id), bytes) }
    }

    fn start(&self, id: u16) -> *mut u8 {
        self.bytes.wrapping_add(usize::from(id % BUFFERS) * BUFFER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Sends everything back twice and closes after a full stop.
    struct Echo;

    impl Service for Echo {
        fn accepted(&mut self, sockets: &mut Sockets, socket: Key) {
            sockets.output(socket).extend_from_slice(b"hello ");
        }

        fn received(&mut self, sockets: &mut Sockets, socket: Key, bytes: &[u8]) {
            sockets.output(socket).extend_from_slice(bytes);
            sockets.output(socket).extend_from_slice(bytes);
            if bytes.ends_with(b".") {
                sockets.close(socket);
            }
        }

        fn closed(&mut self, _sockets: &mut Sockets, _socket: Key) {}
    }

    #[test]
    fn bytes_arrive_and_a_closed_socket_sends_its_rest() {
        if let Err(error) = IoUring::new(1) {
            return println!("skipped: needs io_uring: {error}");
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::thread::spawn(move || serve(address, &mut Echo).unwrap());
        let connect = || {
            (0..1_000).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                TcpStream::connect(address).ok()
            })
        };
        drop(connect().unwrap());
        for _ in 0..3 {
            let mut stream = connect().unwrap();
            let long = vec![b'x'; 3 * BUFFER_BYTES];
            stream.write_all(&long).unwrap();
            stream.write_all(b".").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"hello x"));
            assert_eq!(answer.len(), 6 + 2 * (long.len() + 1));
        }
    }
}
