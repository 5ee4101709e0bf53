//! What a request costs in system calls, counted by strace on the worker's own thread.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::{Driver, Gateway};
use crate::harness::{eventually, outside, yaml};

const HOST: &str = "web.test";
const CONNECTIONS: usize = 64;
const REQUESTS: usize = 100;

#[test]
fn a_busy_worker_enters_the_kernel_less_than_once_a_request() {
    let Some(strace) = outside::tool("strace") else { return };
    if let Err(error) = io_uring::IoUring::new(8) {
        return println!("skipped: io_uring is denied here ({error})");
    }
    let backend = Backend::start("a");
    let gateway = Gateway::builder()
        .driver(Driver::IoUring)
        .workers(1)
        .serving(HOST, &yaml::backend("backend.test", backend.port()))
        .start();
    let (connected, traced) = (Barrier::new(CONNECTIONS + 1), Barrier::new(CONNECTIONS + 1));
    let counted = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CONNECTIONS).map(|_| scope.spawn(|| ask(&gateway, &connected, &traced))).collect();
        // All at once, so that no connection is missing later, on either side.
        backend.wait_requests(CONNECTIONS);
        backend.release();
        connected.wait();
        let trace = Trace::start(strace, &gateway);
        traced.wait();
        // Kept until the end: closing costs calls of its own.
        let clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let counted = trace.map(Trace::finish);
        drop(clients);
        counted
    });
    let Some(calls) = counted else { return };
    let of = |name: &str| calls.iter().find(|(n, _)| n == name).map_or(0, |(_, count)| *count);
    let enters = of("io_uring_enter");
    assert!((1..=CONNECTIONS * REQUESTS).contains(&enters), "{calls:?}");
    // How often the thread that writes the access log is woken is a matter of time.
    let others = calls.iter().map(|(_, count)| count).sum::<usize>() - enters - of("futex");
    assert!(others <= CONNECTIONS * REQUESTS / 100, "{calls:?}");
    println!("{enters} io_uring_enter, {others} others in {} requests", CONNECTIONS * REQUESTS);
}

/// One client: connects to both sides, waits until the worker is traced, then asks away.
fn ask(gateway: &Gateway, connected: &Barrier, traced: &Barrier) -> Client {
    let mut client = gateway.client(HOST);
    assert_eq!(client.get("/hold").status, 200);
    connected.wait();
    traced.wait();
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/name").status, 200);
    }
    client
}

/// strace, counting the calls of the only worker.
struct Trace {
    strace: Child,
    summary: PathBuf,
}

impl Trace {
    /// None, after saying so, where tracing is not allowed.
    fn start(mut strace: Command, gateway: &Gateway) -> Option<Self> {
        let summary = gateway.path("syscalls");
        let thread = worker(gateway);
        strace.args(["-c", "-U", "name,calls", "-o"]).arg(&summary).args(["-p", &thread]);
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let status = format!("/proc/{thread}/status");
        let mut ended = false;
        eventually("strace is attached", || {
            ended = strace.try_wait().unwrap().is_some();
            ended || !fs::read_to_string(&status).unwrap().contains("TracerPid:\t0\n")
        });
        if ended {
            println!("skipped: strace may not trace here (ptrace is denied)");
            return None;
        }
        Some(Self { strace, summary })
    }

    /// The calls since the start, by name.
    fn finish(mut self) -> Vec<(String, usize)> {
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let summary = fs::read_to_string(&self.summary).unwrap();
        let rows = summary.lines().filter_map(|line| {
            let (name, calls) = line.trim().split_once(char::is_whitespace)?;
            Some((name.to_owned(), calls.trim().parse().ok()?))
        });
        rows.filter(|(name, _)| name != "total").collect()
    }
}

fn worker(gateway: &Gateway) -> String {
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    let mut names = threads.map(|thread| thread.unwrap().path()).filter(|path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("worker"))
    });
    names.next().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}
