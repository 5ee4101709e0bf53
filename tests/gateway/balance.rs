//! Which worker serves a connection: few heavy ones are spread, and none is lost on its way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::h2::{H2, block_on};
use crate::harness::{PATIENCE, eventually, outside, yaml};

const HOST: &str = "web.test";
const HANDED_OVER: &str = "ringgate_worker_connections_handed_over_total";
const ACTIVE: &str = "ringgate_worker_connections_active";
const REQUESTS: &str = "ringgate_worker_requests_total";

fn two_workers(driver: Driver, backend: &Backend) -> Builder {
    let route = yaml::virtual_service("web", "web", &[HOST], &yaml::all_to("backend.test"));
    let servers = yaml::https_server(443, &[HOST], "web") + &yaml::http_server(80, &[HOST], false);
    Gateway::builder()
        .driver(driver)
        .workers(2)
        .certificate("web", &[HOST])
        .resource("gateway.yaml", &yaml::gateway("web", &servers))
        .resource("route.yaml", &route)
        .resource("backend.yaml", &yaml::backend("backend.test", backend.port()))
}

fn handed_over(gateway: &Gateway) -> usize {
    gateway.by_worker(HANDED_OVER).iter().sum()
}

#[test]
fn eight_heavy_connections_are_spread_over_two_workers() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = two_workers(driver, &backend).start();
        let mut before = vec![0, 0];
        // By the kernel's hash alone, one round ends like this in 7 of 10 cases.
        for round in 0..6 {
            let active = block_on(eight_clients(&gateway));
            assert!(active.iter().all(|n| (3..=5).contains(n)), "round {round}: {active:?}");
            eventually("they are closed", || gateway.by_worker(ACTIVE) == [0, 0]);
            let after = gateway.by_worker(REQUESTS);
            let served: Vec<_> = after.iter().zip(&before).map(|(now, then)| now - then).collect();
            assert_eq!(served, active.iter().map(|n| n * 64).collect::<Vec<_>>());
            before = after;
        }
        let accepted = "envoy_listener_downstream_cx_total 48";
        assert!(gateway.admin_get("/stats/prometheus").text().contains(accepted), "each once");
    });
}

/// Eight HTTP/2 connections of 64 streams each; how many each worker has of them.
async fn eight_clients(gateway: &Gateway) -> Vec<usize> {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(H2::connect(&gateway.tls(), gateway.address(443), HOST).await);
    }
    let streams = clients.iter().flat_map(|client| (0..64).map(|_| client.clone()));
    let streams: Vec<_> = streams
        .map(|client| tokio::spawn(async move { client.get("/name").await.unwrap().status }))
        .collect();
    for stream in streams {
        assert_eq!(stream.await.unwrap(), 200);
    }
    gateway.by_worker(ACTIVE)
}

#[test]
fn h2load_keeps_two_workers_equally_busy() {
    let Some(mut h2load) = outside::tool("h2load") else { return };
    let backend = Backend::start("a");
    let gateway = two_workers(Driver::Auto, &backend).start();
    h2load.args(["-n1600", "-c8", "-m64", &format!("--connect-to={}", gateway.address(443))]);
    let (code, text) = outside::output(h2load.arg(format!("https://{HOST}/status/200")));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1600 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    eventually("they are closed", || gateway.by_worker(ACTIVE) == [0, 0]);
    let requests = gateway.by_worker(REQUESTS);
    assert_eq!(requests.iter().sum::<usize>(), 1600);
    assert!(requests.iter().all(|n| (600..=1000).contains(n)), "{requests:?}");
}

#[test]
fn connections_that_the_kernel_piles_up_are_handed_over_unless_that_is_off() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        for (builder, expected) in [
            (two_workers(driver, &backend), true),
            (two_workers(driver, &backend).unbalanced(), false),
            (two_workers(driver, &backend).workers(1), false),
        ] {
            let gateway = builder.start();
            let clients: Vec<_> = (0..64).map(|_| gateway.client(HOST)).collect();
            let active = gateway.by_worker(ACTIVE);
            assert_eq!(active.iter().sum::<usize>(), clients.len(), "{active:?}");
            assert_eq!(handed_over(&gateway) > 0, expected, "{active:?}");
        }
    });
}

#[test]
fn what_is_handed_over_while_a_drain_begins_is_answered() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let mut handed = 0;
        for _ in 0..4 {
            let mut gateway = two_workers(driver, &backend)
                .settings("limits: { linger_timeout: 20s, drain_timeout: 25s }\n")
                .start();
            let address = gateway.address(80);
            let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
            gateway.signal(Signal::TERM);
            handed += handed_over(&gateway);
            let asked: Vec<_> =
                clients.into_iter().map(|client| thread::spawn(move || ask(client))).collect();
            for answer in asked {
                let answer = answer.join().unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
            }
            assert_eq!(gateway.wait().code(), Some(0));
        }
        assert!(handed > 0, "256 connections are not halved by chance");
    });
}

fn ask(mut client: TcpStream) -> String {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(client, "GET /name HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_listener_may_go_while_its_connections_are_handed_over() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = two_workers(driver, &backend).start();
        let plain = gateway.address(80);
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(plain).unwrap()).collect();
        let only_https = yaml::gateway("web", &yaml::https_server(443, &[HOST], "web"));
        gateway.write_resource("gateway.yaml", &only_https);
        eventually("nobody listens any more", || TcpStream::connect(plain).is_err());
        // Whoever waited is served or closed, and nobody is forgotten.
        for client in clients {
            close_or_answer(client, plain);
        }
        eventually("they are closed", || gateway.by_worker(ACTIVE).iter().sum::<usize>() == 0);
        assert_eq!(gateway.get(HOST, "/name").status, 200);
    });
}

fn close_or_answer(mut client: TcpStream, address: SocketAddr) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /name HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    // A connection that the gateway has closed may tell so here already.
    let _: std::io::Result<()> = client.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    let timed_out = read.is_err_and(|error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    });
    assert!(!timed_out, "a connection to {address} hangs");
}
