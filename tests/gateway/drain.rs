//! SIGTERM: not ready at once, what is open may finish, then exit 0.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::{Driver, Gateway, on_each_driver};
use crate::harness::h2::{H2, block_on};
use crate::harness::{PATIENCE, eventually, free_port, yaml};

const HOST: &str = "web.test";

fn start(driver: Driver, backend: &Backend) -> Gateway {
    Gateway::builder()
        .driver(driver)
        .serving(HOST, &yaml::backend("backend.test", backend.port()))
        .start()
}

fn readiness(gateway: &Gateway) -> Option<u16> {
    gateway.try_plain_get(gateway.status(), "/healthz/ready").ok().map(|answer| answer.status)
}

#[test]
fn an_open_request_is_finished_before_the_exit() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let mut gateway = start(driver, &backend);
        assert_eq!(readiness(&gateway), Some(200));
        let mut client = gateway.client(HOST);
        client.send(b"GET /hold HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
        backend.wait_requests(1);
        gateway.signal(Signal::TERM);
        eventually("readiness is gone", || readiness(&gateway) == Some(503));
        assert!(gateway.is_running());
        backend.release();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.text()), (200, "held".to_owned()));
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(gateway.wait().code(), Some(0));
    });
}

#[test]
fn an_open_stream_is_finished_before_the_exit() {
    let backend = Backend::start("a");
    let mut gateway = start(Driver::Auto, &backend);
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        let held = tokio::spawn(async move { client.get("/hold").await });
        // The spawned request runs only while this task waits.
        while backend.requests() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        gateway.signal(Signal::TERM);
        eventually("readiness is gone", || readiness(&gateway) == Some(503));
        backend.release();
        assert_eq!(held.await.unwrap().unwrap().body, b"held");
    });
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn idle_connections_do_not_delay_the_exit_past_the_drain() {
    let backend = Backend::start("a");
    let mut gateway = start(Driver::Auto, &backend);
    let mut idle = gateway.client(HOST);
    assert_eq!(idle.get("/status/200").status, 200);
    let silent = TcpStream::connect(gateway.address(443)).unwrap();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(idle.read_to_close(), b"");
    drop(silent);
}

#[test]
fn what_never_ends_is_cut_at_the_end_of_the_drain() {
    let backend = Backend::start("a");
    let mut gateway = start(Driver::Auto, &backend);
    let mut client = gateway.client(HOST);
    client.send(b"GET /hold HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
    backend.wait_requests(1);
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(start.elapsed() < PATIENCE);
}

fn post(gateway: &Gateway, path: &str) -> u16 {
    let mut client = Client::plain(gateway.admin(), "localhost").unwrap();
    client.request("POST", path, "content-length: 0\r\n", b"").unwrap().status
}

#[test]
fn a_failed_health_check_is_not_ready_and_serves() {
    let backend = Backend::start("a");
    let gateway = start(Driver::Auto, &backend);
    assert_eq!(post(&gateway, "/healthcheck/fail"), 200);
    assert_eq!(readiness(&gateway), Some(503));
    let why = gateway.admin_get("/ready").text();
    assert!(why.contains("/healthcheck/fail"), "{why}");
    assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    assert_eq!(post(&gateway, "/healthcheck/ok"), 200);
    assert_eq!(readiness(&gateway), Some(200));
}

#[test]
fn drained_listeners_stay_closed_and_open_requests_finish() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let mut gateway = start(driver, &backend);
        let address = gateway.address(443);
        let mut client = gateway.client(HOST);
        client.send(b"GET /hold HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
        backend.wait_requests(1);
        assert_eq!(post(&gateway, "/drain_listeners"), 200);
        eventually("the port refuses", || TcpStream::connect(address).is_err());
        assert_eq!(readiness(&gateway), Some(503));
        backend.release();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        // A change of the resources does not open them again.
        gateway.write_resource(
            "more.yaml",
            &yaml::gateway("more", &yaml::http_server(80, &["*"], true)),
        );
        gateway.signal(Signal::HUP);
        eventually("a change is applied", || {
            gateway.admin_get("/config_dump").text().contains("_80")
        });
        assert!(TcpStream::connect(address).is_err());
        assert_eq!(gateway.admin_get("/listeners").text(), "");
        assert_eq!(readiness(&gateway), Some(503));
        assert!(gateway.is_running());
        assert_eq!(post(&gateway, "/quitquitquit"), 200);
        assert_eq!(gateway.wait().code(), Some(0));
    });
}

#[test]
fn a_graceful_drain_is_not_ready_first_and_serves_until_the_listeners_close() {
    let backend = Backend::start("a");
    let gateway = Gateway::builder()
        .serving(HOST, &yaml::backend("backend.test", backend.port()))
        .settings("limits: { drain_timeout: 1s }\n")
        .start();
    let address = gateway.address(443);
    let asked = Instant::now();
    assert_eq!(post(&gateway, "/drain_listeners?graceful"), 200);
    eventually("readiness is gone", || readiness(&gateway) == Some(503));
    let mut served = 0;
    eventually("the port refuses", || {
        let is_open = gateway.try_client(HOST).is_ok_and(|mut client| {
            client.request("GET", "/name", "", b"").is_ok_and(|answer| answer.status == 200)
        });
        served += usize::from(is_open);
        !is_open && TcpStream::connect(address).is_err()
    });
    assert!(asked.elapsed() >= std::time::Duration::from_secs(1));
    assert!(served > 0, "it served until then");
}

#[test]
fn the_process_logs_as_much_as_it_is_told_to() {
    let backend = Backend::start("a");
    let gateway = start(Driver::Auto, &backend);
    assert_eq!(post(&gateway, "/logging?level=error"), 200);
    let more = |port: u16| yaml::gateway("more", &yaml::http_server(port, &["*"], true));
    let bound = |port: u16| {
        let listeners = gateway.admin_get("/listeners").text();
        let line = listeners.lines().find(|line| line.contains(&format!("_{port}::")))?.to_owned();
        Some(format!("listening on {} ", line.split("::").nth(1).unwrap()))
    };
    gateway.write_resource("more.yaml", &more(80));
    eventually("a port is bound", || bound(80).is_some());
    let silent = bound(80).unwrap();
    assert_eq!(post(&gateway, "/logging?level=info"), 200);
    gateway.write_resource("more.yaml", &more(8443));
    eventually("the next is, and logged", || bound(8443).is_some_and(|line| gateway.logged(&line)));
    assert!(!gateway.logged(&silent), "it was told to be silent");
}

#[test]
fn nobody_waits_for_whoever_should_read_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (port, root) = (free_port(), directory.path().display());
    let settings = directory.path().join("settings.yaml");
    std::fs::create_dir(directory.path().join("resources")).unwrap();
    let text = format!(
        "source: {{ directory: {root}/resources }}\n\
         admin: {{ address: \"127.0.0.1:{port}\" }}\n\
         status: {{ address: \"127.0.0.1:0\" }}\n\
         metrics: {{ address: \"127.0.0.1:0\" }}\n"
    );
    std::fs::write(&settings, text).unwrap();
    let (reader, mut full) = std::io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringgate"));
    command.args(["run", "--settings"]).arg(&settings).stderr(full.try_clone().unwrap());
    // Until the reader is gone.
    let filling = std::thread::spawn(move || while full.write_all(&[b'x'; 4096]).is_ok() {});
    let mut gateway = Killed(command.stdout(Stdio::null()).spawn().unwrap());
    drop(command);
    let admin = SocketAddr::from(([127, 0, 0, 1], port));
    let ready = || Client::plain(admin, "localhost")?.request("GET", "/ready", "", b"");
    eventually("it is ready", || ready().is_ok_and(|answer| answer.status == 200));
    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    eventually("it ends", || gateway.0.try_wait().unwrap().is_some());
    assert_eq!(gateway.0.wait().unwrap().code(), Some(0));
    drop(reader);
    filling.join().unwrap();
}

/// Not left behind, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
