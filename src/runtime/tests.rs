//! The runtime against a real kernel: every test runs on both drivers.
//!
//! Peers are plain blocking sockets on threads of their own. Where the kernel denies io_uring, its
//! half of a test says so and passes.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::address::{Address, PipePath};
use crate::io::{Clock, Connect, Probed, Spawn, Stream};

/// Longer than any step of a test takes; reached only when something hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Defines a test that runs once on each driver.
macro_rules! on_both {
    ($(fn $name:ident($handle:ident: Handle $(, $config:expr)?) $body:block)*) => { $(
        mod $name {
            use super::*;

            async fn body($handle: Handle) $body

            #[test]
            fn epoll() {
                run(Backend::Epoll, config!($($config)?), body);
            }

            #[test]
            fn io_uring() {
                run(Backend::IoUring, config!($($config)?), body);
            }
        }
    )* };
}

macro_rules! config {
    () => {
        Config::default()
    };
    ($config:expr) => {
        $config
    };
}

pub(super) fn run<F: Future<Output = ()>>(backend: Backend, config: Config, body: fn(Handle) -> F) {
    let runtime = match Runtime::new(&Config { backend, ..config }) {
        Err(StartError::Denied(denied)) => return eprintln!("skipped: {denied}"),
        made => made.unwrap(),
    };
    let handle = runtime.handle();
    let limited = crate::io::timeout(&handle, LIMIT, body(handle));
    runtime.block_on(limited).expect("it hangs");
}

fn tiny_buffers() -> Config {
    Config { buffers: 2, buffer_bytes: 256, ..Config::default() }
}

fn tiny_queues() -> Config {
    Config { submission_entries: 2, completion_entries: 4, ..Config::default() }
}

on_both! {
    fn bytes_come_back_whatever_their_number(handle: Handle) {
        let server = echo_server(&handle);
        for len in [0, 1, 2, 255, 4_096, 16_383, 16_384, 16_385, 100_000, 3_000_000] {
            echoed(server, len).join(&handle).await;
        }
    }

    fn many_connections_at_once_lose_nothing(handle: Handle) {
        let server = echo_server(&handle);
        join_all(&handle, (0..100).map(|n| echoed(server, 20_000 + n)).collect()).await;
    }

    fn starved_connections_lose_nothing(handle: Handle, tiny_buffers()) {
        let server = echo_server(&handle);
        join_all(&handle, (0..50).map(|n| echoed(server, 10_000 + n)).collect()).await;
    }

    fn full_queues_lose_nothing(handle: Handle, tiny_queues()) {
        let server = echo_server(&handle);
        join_all(&handle, (0..50).map(|n| echoed(server, 10_000 + n)).collect()).await;
    }

    fn a_slow_reader_makes_the_writer_wait(handle: Handle) {
        const TOTAL: usize = 8 << 20;
        let (mut stream, mut peer) = pair(&handle).await;
        let (started, reading) = mailbox();
        let reader = Peer::new(move || {
            block_for(reading);
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).unwrap();
            assert!(bytes == pattern(TOTAL), "8 MB arrive in order");
        });
        let bytes = pattern(TOTAL);
        let (mut written, mut waited) = (0, false);
        while written < TOTAL {
            if !waited && poll_once(|cx| stream.poll_write_ready(cx)).await.is_none() {
                // Neither the kernel nor we take any more: all of it is bounded.
                waited = true;
                handle.sleep(Duration::from_millis(20)).await;
                assert!(stream.unsent() < 2 * socket::HIGH_WATER_BYTES);
                started.send(()).unwrap();
            }
            poll_fn(|cx| stream.poll_write_ready(cx)).await.unwrap();
            let end = TOTAL.min(written + 50_000);
            stream.write(&[IoSlice::new(&bytes[written..end])]).unwrap();
            written = end;
        }
        assert!(waited);
        stream.close_write();
        crate::io::flush(&mut stream).await.unwrap();
        reader.join(&handle).await;
    }

    fn a_slow_consumer_makes_the_peer_wait(handle: Handle) {
        const TOTAL: usize = 32 << 20;
        let (mut stream, mut peer) = pair(&handle).await;
        let writer = Peer::new(move || peer.write_all(&pattern(TOTAL)).unwrap());
        assert!(!fill(&mut stream).await.unwrap().is_empty());
        handle.sleep(Duration::from_millis(100)).await;
        assert!(stream.held() <= 64 * 16 * 1024, "what is received unasked is bounded");
        assert!(!writer.is_done(), "and the peer waits");
        assert!(read_exactly(&mut stream, TOTAL).await == pattern(TOTAL));
        writer.join(&handle).await;
    }

    fn each_half_closes_on_its_own(handle: Handle) {
        let (mut stream, mut peer) = pair(&handle).await;
        let peer = Peer::new(move || {
            peer.write_all(b"question").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            peer.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "answer");
        });
        assert_eq!(read_to_end(&mut stream).await.unwrap(), b"question");
        stream.write(&[IoSlice::new(b"ans")]).unwrap();
        stream.write(&[IoSlice::new(b"wer")]).unwrap();
        stream.close_write();
        assert!(stream.write(&[IoSlice::new(b"late")]).is_err());
        crate::io::flush(&mut stream).await.unwrap();
        peer.join(&handle).await;

        let (mut stream, mut peer) = pair(&handle).await;
        stream.close_write();
        let peer = Peer::new(move || {
            assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
            peer.write_all(b"still open").unwrap();
        });
        assert_eq!(read_to_end(&mut stream).await.unwrap(), b"still open");
        peer.join(&handle).await;
    }

    fn a_reset_is_an_error_and_not_a_hang(handle: Handle) {
        let (mut stream, peer) = pair(&handle).await;
        assert!(poll_once(|cx| stream.poll_fill(cx).map(drop)).await.is_none());
        reset(peer);
        let error = read_to_end(&mut stream).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(stream.write(&[IoSlice::new(b"x")]).is_err(), "it stays broken");
        assert!(read_to_end(&mut stream).await.is_err());
    }

    fn a_reset_wakes_who_waits_to_write(handle: Handle) {
        let (mut stream, peer) = pair(&handle).await;
        stream.write(&[IoSlice::new(&vec![0; 16 << 20])]).unwrap();
        handle.sleep(Duration::from_millis(10)).await;
        reset(peer);
        assert!(crate::io::flush(&mut stream).await.is_err());
        assert!(handle.counters().sends_short > 0, "the kernel had taken a part");
    }

    fn dropping_a_stream_closes_it_in_any_state(handle: Handle) {
        for state in 0..6 {
            let (mut stream, peer) = pair(&handle).await;
            let peer = Peer::new(move || drain_until_closed(peer, state));
            match state {
                0 => {}
                1 => assert!(poll_once(|cx| stream.poll_fill(cx).map(drop)).await.is_none()),
                2 => drop(fill(&mut stream).await.unwrap()),
                3 => stream.write(&[IoSlice::new(b"unsent")]).unwrap(),
                4 => {
                    stream.write(&[IoSlice::new(&vec![0; 16 << 20])]).unwrap();
                    handle.sleep(Duration::from_millis(10)).await;
                }
                _ => stream.close_write(),
            }
            drop(stream);
            peer.join(&handle).await;
        }
    }

    fn streams_dropped_under_fire_leave_others_alone(handle: Handle, tiny_buffers()) {
        let server = echo_server(&handle);
        for round in 0..30u64 {
            let (mut stream, mut peer) = pair(&handle).await;
            let flood = Peer::new(move || while peer.write_all(&[7; 5_000]).is_ok() {});
            let neighbour = echoed(server, 5_000);
            drop(fill(&mut stream).await.unwrap());
            handle.sleep(Duration::from_micros(300 * round % 3_000)).await;
            drop(stream);
            flood.join(&handle).await;
            neighbour.join(&handle).await;
        }
    }

    fn a_reused_descriptor_sees_only_its_own_bytes(handle: Handle) {
        for round in 0..200u8 {
            let (mut stream, mut peer) = pair(&handle).await;
            assert!(poll_once(|cx| stream.poll_fill(cx).map(drop)).await.is_none());
            // These bytes race with the close; the next stream gets the same descriptor.
            peer.write_all(&[255; 64]).unwrap();
            drop(stream);
            let (mut stream, mut peer) = pair(&handle).await;
            peer.write_all(&[round]).unwrap();
            assert_eq!(fill(&mut stream).await.unwrap(), [round]);
        }
    }

    fn a_connect_reaches_its_listener(handle: Handle) {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let peer = Peer::new(move || {
            let mut peer = listener.accept().unwrap().0;
            peer.write_all(b"hello").unwrap();
        });
        let mut stream = handle.connect(to.into()).await.unwrap();
        assert_eq!(read_to_end(&mut stream).await.unwrap(), b"hello");
        peer.join(&handle).await;
    }

    fn a_refused_connect_is_an_error(handle: Handle) {
        let closed = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = handle.connect(closed.into()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    fn a_unix_socket_is_connected_to_by_path_and_by_name(handle: Handle) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock").display().to_string();
        let listener = UnixListener::bind(&path).unwrap();
        let name = format!("@{path}");
        let by_name = UnixAddress::from_abstract_name(&path).unwrap();
        let named = UnixListener::bind_addr(&by_name).unwrap();
        for (listener, path) in [(listener, path), (named, name)] {
            let peer = Peer::new(move || {
                let mut peer = listener.accept().unwrap().0;
                let mut bytes = vec![0; 100_000];
                peer.read_exact(&mut bytes).unwrap();
                peer.write_all(&bytes).unwrap();
            });
            let mut stream = handle.connect(pipe(&path)).await.unwrap();
            assert_eq!(stream.local(), None);
            stream.write(&[IoSlice::new(&pattern(100_000))]).unwrap();
            assert!(read_to_end(&mut stream).await.unwrap() == pattern(100_000));
            peer.join(&handle).await;
        }
    }

    fn a_unix_socket_that_is_not_there_is_an_error(handle: Handle) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock").display().to_string();
        let error = handle.connect(pipe(&path)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        let error = handle.connect(pipe(&path)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    fn a_connect_waits_for_room_in_the_queue_of_a_unix_socket(handle: Handle) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock").display().to_string();
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let queued = handle.connect(pipe(&path)).await.unwrap();
        for _ in 0..3 {
            let mut given_up = Box::pin(handle.connect(pipe(&path)));
            assert!(poll_once(|cx| given_up.as_mut().poll(cx)).await.is_none());
            handle.sleep(Duration::from_millis(2)).await;
        }
        let mut connecting = Box::pin(handle.connect(pipe(&path)));
        assert!(poll_once(|cx| connecting.as_mut().poll(cx)).await.is_none());
        handle.sleep(Duration::from_millis(30)).await;
        assert!(poll_once(|cx| connecting.as_mut().poll(cx)).await.is_none());
        let _accepted = listener.accept().unwrap();
        let _connected = connecting.await.unwrap();
        drop(queued);
    }

    fn a_pending_connect_can_be_dropped(handle: Handle) {
        let (listener, _queued) = full_listener();
        let to = listener.local_addr().unwrap().as_socket().unwrap();
        for _ in 0..5 {
            let mut connecting = Box::pin(handle.connect(to.into()));
            assert!(poll_once(|cx| connecting.as_mut().poll(cx)).await.is_none());
            handle.sleep(Duration::from_millis(2)).await;
        }
    }

    fn a_dropped_accept_loses_no_connection(handle: Handle) {
        let mut listener = handle.listen(StdListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let to = listener.local_addr().unwrap();
        for _ in 0..20 {
            let mut accepting = Box::pin(listener.accept());
            assert!(poll_once(|cx| accepting.as_mut().poll(cx)).await.is_none());
            drop(accepting);
            let peer = StdStream::connect(to).unwrap();
            let accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.peer, peer.local_addr().unwrap().into());
            assert_eq!(accepted.local, to.into());
        }
    }

    fn a_unix_socket_is_accepted_on_by_its_path_alone(handle: Handle) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock").display().to_string();
        let socket = UnixListener::bind(&path).unwrap();
        let Address::Pipe(at) = pipe(&path) else { unreachable!() };
        let mut listener = handle.listen_at(at, socket).unwrap();
        // A client that has a name is not known by it.
        let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let mut client = client.unwrap();
        client.bind(&socket2::SockAddr::unix(dir.path().join("client")).unwrap()).unwrap();
        client.connect(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        let accepted = listener.accept().await.unwrap();
        let ends = (accepted.peer, accepted.local);
        assert_eq!(ends, (Address::Pipe(PipePath::UNNAMED), pipe(&path)));
        let mut stream = accepted.open().unwrap();
        client.write_all(b"question").unwrap();
        assert_eq!(fill(&mut stream).await.unwrap(), b"question");
        drop(stream);
        // Whoever has connected before it closes is handed out.
        let clients: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(listener.close().await.len(), clients.len());
        assert!(UnixStream::connect(&path).is_err(), "nobody listens any more");
    }

    fn the_local_address_is_the_connections_own(handle: Handle) {
        let socket = StdListener::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut listener = handle.listen(socket).unwrap();
        let peer = StdStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.local, peer.peer_addr().unwrap().into(), "IPv4 is written as IPv4");
        assert_eq!(accepted.peer, peer.local_addr().unwrap().into());
    }

    fn an_accepted_connection_can_be_opened_on_another_thread(handle: Handle) {
        for backend in [Backend::Epoll, Backend::Auto] {
            let (sender, mut receiver) = mailbox();
            let other = Peer::new(move || {
                let runtime = Runtime::new(&Config { backend, ..Config::default() }).unwrap();
                runtime.block_on(async {
                    let accepted: Accepted = receiver.recv().await.unwrap();
                    echo(accepted.open().unwrap()).await.unwrap();
                });
            });
            let mut listener = handle.listen(StdListener::bind("127.0.0.1:0").unwrap()).unwrap();
            let client = echoed(listener.local_addr().unwrap(), 100_000);
            sender.send(listener.accept().await.unwrap()).unwrap();
            client.join(&handle).await;
            other.join(&handle).await;
        }
    }

    fn a_closed_listener_hands_out_its_queue(handle: Handle) {
        let socket = StdListener::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let mut listener = handle.listen(socket).unwrap();
        let mut accepting = Box::pin(listener.accept());
        assert!(poll_once(|cx| accepting.as_mut().poll(cx)).await.is_none());
        drop(accepting);
        handle.sleep(Duration::from_millis(2)).await;
        let peers: Vec<_> = (0..40).map(|_| StdStream::connect(to).unwrap()).collect();
        let mut handed_out: Vec<_> =
            listener.close().await.iter().map(|accepted| accepted.peer).collect();
        let mut connected: Vec<Address> =
            peers.iter().map(|peer| peer.local_addr().unwrap().into()).collect();
        handed_out.sort();
        connected.sort();
        assert_eq!(handed_out, connected);
        assert!(StdStream::connect(to).is_err(), "nobody listens any more");
    }

    fn wakes_of_other_threads_are_not_lost(handle: Handle) {
        let (ping, mut pings) = mailbox();
        let (pong, pongs) = std::sync::mpsc::channel();
        let pinger = Peer::new(move || {
            for n in 0..20_000 {
                ping.send(n).unwrap();
                // Every answer is awaited, so the thread parks about as often as it is woken.
                assert_eq!(pongs.recv().unwrap(), n);
            }
        });
        for n in 0..20_000 {
            assert_eq!(pings.recv().await, Some(n));
            pong.send(n).unwrap();
        }
        assert_eq!(pings.recv().await, None);
        pinger.join(&handle).await;
    }

    fn sleeps_end_in_order_and_never_early(handle: Handle) {
        let ended = Rc::new(RefCell::new(Vec::new()));
        let started = Instant::now();
        for wait in [30u64, 5, 0, 12, 90, 1] {
            let ended = Rc::clone(&ended);
            handle.spawn(async move {
                handle.sleep(Duration::from_millis(wait)).await;
                ended.borrow_mut().push((wait, started.elapsed()));
            });
        }
        handle.sleep(Duration::from_millis(100)).await;
        while ended.borrow().len() < 6 {
            handle.sleep(Duration::from_millis(1)).await;
        }
        let ended = ended.borrow();
        assert!(ended.is_sorted_by_key(|(wait, _)| *wait), "{ended:?}");
        assert!(ended.iter().all(|(wait, took)| *took >= Duration::from_millis(*wait)));
    }

    fn a_sleep_can_be_moved_and_dropped(handle: Handle) {
        use crate::io::Sleep as _;
        let started = handle.now();
        let mut later = handle.sleep(Duration::from_millis(1));
        let mut sooner = handle.sleep(LIMIT * 2);
        let mut dropped = handle.sleep(Duration::from_millis(3));
        for sleep in [&mut later, &mut sooner, &mut dropped] {
            assert!(poll_once(|cx| Pin::new(&mut *sleep).poll(cx)).await.is_none());
        }
        drop(dropped);
        later.reset(started + LIMIT * 2);
        sooner.reset(started + Duration::from_millis(5));
        (&mut sooner).await;
        assert!(poll_once(|cx| Pin::new(&mut later).poll(cx)).await.is_none());
        later.reset(started + Duration::from_millis(40));
        (&mut later).await;
        assert!(handle.now() >= started + Duration::from_millis(40));
        sooner.reset(handle.now() + Duration::from_millis(2));
        sooner.await;
        assert!(handle.now() >= started + Duration::from_millis(42), "also after it has passed");
    }

    fn a_panic_ends_only_its_task(handle: Handle) {
        let survived = Rc::new(Cell::new(false));
        handle.spawn(async { panic!("on purpose") });
        let flag = Rc::clone(&survived);
        handle.spawn(async move { flag.set(true) });
        handle.sleep(Duration::from_millis(1)).await;
        assert!(survived.get());
        assert_eq!(handle.counters().task_panics, 1);
        assert_eq!(handle.counters().tasks, 0);
    }

    fn many_tasks_take_turns(handle: Handle) {
        let polled = Rc::new(Cell::new(0u32));
        for _ in 0..10_000 {
            let polled = Rc::clone(&polled);
            handle.spawn(async move {
                for _ in 0..5 {
                    polled.set(polled.get() + 1);
                    yield_now().await;
                }
            });
        }
        while handle.counters().tasks > 0 {
            yield_now().await;
        }
        assert_eq!(polled.get(), 50_000);
        assert!(handle.counters().turns >= 50_000 / 128, "a turn has a budget");
    }

    fn cpu_time_is_that_of_this_thread(handle: Handle) {
        let (done, mut waiting) = mailbox();
        let before = handle.cpu_time();
        let other = Peer::new(move || {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(100) {}
            done.send(()).unwrap();
        });
        waiting.recv().await;
        let waited = handle.cpu_time() - before;
        assert!(waited < Duration::from_millis(50), "{waited:?}");
        let started = Instant::now();
        while handle.cpu_time() - before <= waited + Duration::from_millis(1) {
            assert!(started.elapsed() < LIMIT, "the clock stands still");
        }
        other.join(&handle).await;
    }

    fn busy_tasks_do_not_starve_connections(handle: Handle) {
        let server = echo_server(&handle);
        let client = echoed(server, 100_000);
        while !client.is_done() {
            yield_now().await;
        }
        client.join(&handle).await;
    }

    fn an_idle_stream_holds_no_buffer(handle: Handle) {
        let (mut stream, mut peer) = pair(&handle).await;
        peer.write_all(b"x").unwrap();
        drop(fill(&mut stream).await.unwrap());
        stream.consume(1);
        stream.write(&[IoSlice::new(b"y")]).unwrap();
        crate::io::flush(&mut stream).await.unwrap();
        assert_eq!(stream.held(), 0);
    }
}

/// What the kernel does is made certain by not entering it while the peers write.
#[test]
fn both_queues_of_a_ring_overflow_and_lose_nothing() {
    run(Backend::IoUring, tiny_queues(), |handle| async move {
        let mut pairs = Vec::new();
        for _ in 0..40 {
            pairs.push(pair(&handle).await);
        }
        for (stream, _) in &mut pairs {
            assert!(poll_once(|cx| stream.poll_fill(cx).map(drop)).await.is_none());
        }
        handle.sleep(Duration::from_millis(1)).await;
        for (_, peer) in &mut pairs {
            peer.write_all(b"x").unwrap();
        }
        for (stream, _) in &mut pairs {
            assert_eq!(read_exactly(stream, 1).await, b"x");
        }
        assert!(handle.counters().submissions_full > 0, "40 receives do not fit into 2 entries");
        assert!(handle.counters().completions_overflowed > 0, "nor 40 completions into 4");
    });
}

#[test]
fn a_receive_without_a_buffer_goes_on_with_the_next() {
    run(Backend::IoUring, tiny_buffers(), |handle| async move {
        let (mut stream, mut peer) = pair(&handle).await;
        assert!(poll_once(|cx| stream.poll_fill(cx).map(drop)).await.is_none());
        handle.sleep(Duration::from_millis(1)).await;
        peer.write_all(&pattern(10_000)).unwrap();
        assert!(read_exactly(&mut stream, 10_000).await == pattern(10_000));
        let counters = handle.counters();
        assert!(counters.buffers_exhausted > 0, "10,000 bytes do not fit into 512");
        assert!(counters.buffers_copied > 0);
    });
}

#[test]
fn a_ring_of_an_impossible_size_is_denied_and_epoll_takes_over() {
    let config = Config { submission_entries: 1 << 20, ..Config::default() };
    let runtime = Runtime::new(&config).unwrap();
    assert!(matches!(runtime.backend(), Running::EpollInstead(_)), "{}", runtime.backend());
    assert_eq!(runtime.block_on(async { 7 }), 7);
    drop(runtime);
    let insisting = Config { backend: Backend::IoUring, ..config };
    let error = Runtime::new(&insisting).unwrap_err();
    assert!(matches!(error, StartError::Denied(_)), "{error}");
}

/// What it allocates beyond this is its task and one slot each for task, receive and timer.
#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<socket::Socket>() <= 240, "{}", size_of::<socket::Socket>());
    assert!(size_of::<TcpStream>() <= 64, "{}", size_of::<TcpStream>());
}

#[test]
fn a_thread_has_one_runtime_at_a_time() {
    let runtime = Runtime::new(&Config::default()).unwrap();
    assert!(matches!(Runtime::new(&Config::default()), Err(StartError::Occupied)));
    drop(runtime);
    assert!(Runtime::new(&Config::default()).is_ok());
}

#[test]
fn a_dropped_runtime_takes_everything_back() {
    for backend in [Backend::Auto, Backend::Epoll] {
        let runtime = Runtime::new(&Config { backend, ..Config::default() }).unwrap();
        let handle = runtime.handle();
        let (kept, (mut peer, _other)) = runtime.block_on(async {
            let server = echo_server(&handle);
            let mut peer = StdStream::connect(server).unwrap();
            peer.write_all(b"x").unwrap();
            peer.set_nonblocking(true).unwrap();
            while peer.peek(&mut [0; 1]).is_err() {
                handle.sleep(Duration::from_millis(1)).await;
            }
            peer.set_nonblocking(false).unwrap();
            let (mut kept, other) = pair(&handle).await;
            kept.write(&[IoSlice::new(&vec![0; 16 << 20])]).unwrap();
            assert!(poll_once(|cx| kept.poll_fill(cx).map(drop)).await.is_none());
            (kept, (peer, other))
        });
        drop(runtime);
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 1);
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0, "the server's task is gone");
        // It outlives the runtime, and takes the ring along.
        drop(kept);
    }
}

/// A thread that plays the peer. Its panics reach the test.
struct Peer {
    thread: thread::JoinHandle<()>,
}

impl Peer {
    fn new(play: impl FnOnce() + Send + 'static) -> Self {
        Self { thread: thread::spawn(play) }
    }

    fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits while the runtime goes on.
    async fn join(self, handle: &Handle) {
        while !self.is_done() {
            handle.sleep(Duration::from_millis(1)).await;
        }
        self.thread.join().expect("the peer is content");
    }
}

async fn join_all(handle: &Handle, peers: Vec<Peer>) {
    for peer in peers {
        peer.join(handle).await;
    }
}

/// Serves until the runtime ends.
fn echo_server(handle: &Handle) -> SocketAddr {
    let socket = StdListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut listener = handle.listen(socket).unwrap();
    let handle = *handle;
    handle.spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().open().unwrap();
            handle.spawn(async move { echo(stream).await.unwrap() });
        }
    });
    address
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    loop {
        poll_fn(|cx| stream.poll_write_ready(cx)).await?;
        let bytes = fill(&mut stream).await?;
        if bytes.is_empty() {
            stream.close_write();
            return crate::io::flush(&mut stream).await;
        }
        stream.write(&[IoSlice::new(&bytes)])?;
        stream.consume(bytes.len());
    }
}

/// Sends `len` bytes to an echo server and expects them back.
fn echoed(server: SocketAddr, len: usize) -> Peer {
    Peer::new(move || {
        let mut stream = StdStream::connect(server).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&pattern(len)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == pattern(len), "{len} bytes come back, not {}", back.len());
        writing.join().unwrap();
    })
}

async fn pair(handle: &Handle) -> (TcpStream, StdStream) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let peer = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    (handle.adopt(listener.accept().unwrap().0).unwrap(), peer)
}

fn pipe(path: &str) -> Address {
    Address::Pipe(PipePath::new(path).unwrap())
}

/// A listener whose queue is full, so that connects wait.
fn full_listener() -> (socket2::Socket, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let queued = (0..4)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            _ = socket.connect(&listener.local_addr().unwrap());
            socket
        })
        .collect();
    (listener, queued)
}

/// What is lent next, copied. Nothing is consumed.
async fn fill(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    poll_fn(|cx| stream.poll_fill(cx).map_ok(|lent| lent.to_vec())).await
}

async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let bytes = fill(stream).await?;
        if bytes.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&bytes);
        stream.consume(bytes.len());
    }
}

async fn read_exactly(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let bytes = fill(stream).await.unwrap();
        assert!(!bytes.is_empty(), "closed early");
        all.extend_from_slice(&bytes);
        stream.consume(bytes.len());
    }
    all
}

/// Polls once; `None` is pending.
async fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    poll_fn(|cx| match poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for a message on a thread without a runtime.
fn block_for(mut receiver: Receiver<()>) {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut receiving = std::pin::pin!(receiver.recv());
    while receiving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        thread::park();
    }
}

/// Reads until the stream is closed or reset; in state 2 there is something to read for it.
fn drain_until_closed(mut peer: StdStream, state: u32) {
    if state == 2 {
        peer.write_all(b"unread").unwrap();
    }
    let mut buffer = vec![0; 1 << 16];
    while peer.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

fn reset(peer: StdStream) {
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
}

/// Bytes of which every piece is different.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| n.wrapping_mul(31) ^ (n >> 8) ^ (n >> 16))
        .map(|n| n.to_le_bytes()[0])
        .collect()
}
