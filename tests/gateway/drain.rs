//! SIGTERM: not ready at once, what is open may finish, then exit 0.

use std::net::TcpStream;
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::gateway::{Driver, Gateway, on_each_driver};
use crate::harness::h2::{H2, block_on};
use crate::harness::{PATIENCE, eventually, yaml};

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
