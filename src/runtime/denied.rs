//! Tests of what happens when the kernel refuses: io_uring as a whole, and single calls later.
//!
//! - Refusals are real: a seccomp filter on the test's own thread, as container runtimes install
//!   them, or a limit on descriptors in a process of its own.
//! - A filter cannot be removed, so every test that installs one runs on a thread that ends with
//!   it.

use std::fs::File;
use std::io::Read;
use std::net::{TcpListener as StdListener, TcpStream as StdStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::tests::run;
use super::*;

#[test]
fn whatever_denies_a_ring_is_named_and_epoll_takes_over() {
    let refusals = [
        (Errno::PERM, "EPERM", "kernel.io_uring_disabled=0"),
        (Errno::ACCESS, "EACCES", "seccomp"),
        (Errno::NOSYS, "ENOSYS", "CONFIG_IO_URING"),
        (Errno::INVAL, "EINVAL", "6.1"),
        (Errno::NOMEM, "ENOMEM", "RLIMIT_MEMLOCK"),
        (Errno::MFILE, "EMFILE", "RLIMIT_NOFILE"),
    ];
    for (errno, label, cure) in refusals {
        refusing(libc::SYS_io_uring_setup, errno, move || denied_as(label, cure));
    }
}

#[test]
fn a_ring_that_cannot_be_set_up_fully_is_denied_too() {
    for call in [libc::SYS_io_uring_register, libc::SYS_io_uring_enter] {
        refusing(call, Errno::PERM, || denied_as("EPERM", "seccomp"));
    }
}

/// Both backends' answers on this thread, which has no io_uring.
fn denied_as(label: &str, cure: &str) {
    let insisting = Config { backend: Backend::IoUring, ..Config::default() };
    let Err(StartError::Denied(denied)) = Runtime::new(&insisting) else {
        panic!("{label} is a denial");
    };
    assert_eq!(denied.label(), label);
    assert!(denied.to_string().contains(cure), "{denied}");
    let runtime = Runtime::new(&Config::default()).unwrap();
    assert_eq!(runtime.backend(), &Running::EpollInstead(denied));
    drop(runtime);
    run(Backend::Auto, Config::default(), |handle| async move {
        let socket = StdListener::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let mut listener = handle.listen(socket).unwrap();
        let peer = StdStream::connect(to).unwrap();
        assert_eq!(listener.accept().await.unwrap().peer, peer.local_addr().unwrap().into());
    });
}

#[test]
fn a_connection_that_cannot_be_set_up_does_not_end_accepting() {
    let without_room = || {
        run(Backend::Epoll, Config::default(), |handle| async move {
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            let to = socket.local_addr().unwrap();
            let mut listener = handle.listen(socket).unwrap();
            // As when /proc/sys/fs/epoll/max_user_watches is reached.
            refuse(libc::SYS_epoll_ctl, Errno::NOSPC);
            let peer = StdStream::connect(to).unwrap();
            assert!(listener.accept().await.unwrap().open().is_err());
            assert_eq!(handle.counters().accepts_refused, 1);
            assert_eq!(handle.counters().accepts, 0);
            assert_eq!((&peer).read(&mut [0; 1]).unwrap(), 0, "it is closed");
            let next = StdStream::connect(to).unwrap();
            let accepted = listener.accept().await.unwrap();
            assert_eq!(accepted.peer, next.local_addr().unwrap().into());
        });
    };
    thread::spawn(without_room).join().unwrap();
}

#[test]
fn an_accept_that_is_forbidden_is_tried_again_later() {
    let without_permission = || {
        run(Backend::Epoll, Config::default(), |handle| async move {
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            let peer = StdStream::connect(socket.local_addr().unwrap()).unwrap();
            let mut listener = handle.listen(socket).unwrap();
            // As by a security module, before the connection leaves the queue.
            refuse(libc::SYS_accept4, Errno::PERM);
            let limit = Duration::from_millis(200);
            assert!(crate::io::timeout(&handle, limit, listener.accept()).await.is_err());
            let counters = handle.counters();
            assert!((1..=8).contains(&counters.accepts_refused), "{counters:?}");
            assert!(listener.close().await.is_empty());
            drop(peer);
        });
    };
    thread::spawn(without_permission).join().unwrap();
}

#[test]
fn without_descriptors_accepting_pauses_and_loses_nobody() {
    const CHILD: &str = "RINGGATE_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_some() {
        for backend in [Backend::Epoll, Backend::IoUring] {
            run(backend, Config::default(), accept_without_descriptors);
        }
        return;
    }
    // The limit is that of a process, which other tests share.
    let name = "runtime::denied::without_descriptors_accepting_pauses_and_loses_nobody";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

async fn accept_without_descriptors(handle: Handle) {
    let limit = rustix::process::Rlimit { current: Some(128), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let socket = StdListener::bind("127.0.0.1:0").unwrap();
    let to = socket.local_addr().unwrap();
    let mut listener = handle.listen(socket).unwrap();
    let peers: Vec<_> = (0..5).map(|_| StdStream::connect(to).unwrap()).collect();
    let fillers: Vec<_> =
        std::iter::repeat_with(|| File::open("/dev/null")).map_while(Result::ok).collect();
    let waited = crate::io::timeout(&handle, Duration::from_millis(200), listener.accept()).await;
    assert!(waited.is_err(), "there is no descriptor for a connection");
    let counters = handle.counters();
    assert!((1..=8).contains(&counters.accepts_refused), "{counters:?}");
    assert!(counters.turns < 100, "it pauses: {counters:?}");
    drop(fillers);
    for peer in peers {
        assert_eq!(listener.accept().await.unwrap().peer, peer.local_addr().unwrap().into());
    }
}

/// Runs `test` on a thread whose `call`s the kernel refuses.
fn refusing(call: libc::c_long, errno: Errno, test: impl FnOnce() + Send + 'static) {
    let refused = move || {
        refuse(call, errno);
        test();
    };
    thread::spawn(refused).join().unwrap();
}

/// From now on, `call` fails with `errno` on this thread.
fn refuse(call: libc::c_long, errno: Errno) {
    let statement = |code: u32, k: u32, skip: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf: skip,
        k,
    };
    let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(errno.raw_os_error()).unwrap();
    let mut filter = [
        // The number of the call, unless it is ours: skip one.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(call).unwrap(), 1),
        statement(libc::BPF_RET | libc::BPF_K, refusal, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: `program` and its four statements outlive the call, which copies them.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}
