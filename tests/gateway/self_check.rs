//! The harness against itself: client against backend, without a gateway between them.

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::{checksum, free_port, outside, pattern};

fn direct(backend: &Backend) -> Client {
    Client::plain(backend.address(), "backend.test").unwrap()
}

#[test]
fn client_and_backend_agree_on_every_kind_of_body() {
    let backend = Backend::start("self");
    let mut client = direct(&backend);
    assert_eq!(client.get("/").text(), "self");
    assert_eq!(client.get("/status/404").status, 404);
    assert_eq!(client.get("/status/204").body, b"");
    let body = pattern(300_000);
    assert_eq!(client.post("/body", &body).body, body);
    assert_eq!(client.get("/bytes/70000").body, pattern(70_000));
    assert_eq!(client.get("/chunked/70000").body, pattern(70_000));
    assert_eq!(client.get("/trailers").trailers, [("x-checksum".into(), "1234".into())]);
    let sum = client.post("/sum", b"abc").text();
    assert_eq!(sum, format!("3 {:x} ", checksum(b"abc")));
    let head = client.request("HEAD", "/bytes/9", "", b"").unwrap();
    assert_eq!((head.header("content-length"), head.body.len()), (Some("9"), 0));
    assert_eq!((backend.connections(), backend.requests()), (1, 9));
}

#[test]
fn chunked_request_bodies_and_their_trailers_are_read() {
    let backend = Backend::start("self");
    let chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
    let headers = "transfer-encoding: chunked\r\n";
    let text = direct(&backend).request("POST", "/sum", headers, chunks).unwrap().text();
    assert_eq!(text, format!("5 {:x} x-sum: 5", checksum(b"abcde")));
}

#[test]
fn interim_answers_upgrades_and_sudden_ends_are_told_apart() {
    let backend = Backend::start("self");
    let expect = "expect: 100-continue\r\ncontent-length: 2\r\n";
    let mut client = direct(&backend);
    let head = format!("POST /body HTTP/1.1\r\nhost: x\r\n{expect}\r\n");
    client.send(head.as_bytes()).unwrap();
    assert_eq!(client.response_head().unwrap().status, 100);
    client.send(b"ok").unwrap();
    assert_eq!(client.response("POST").unwrap().body, b"ok");

    let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n";
    assert_eq!(client.request("GET", "/websocket", upgrade, b"").unwrap().status, 101);
    client.send(b"ping").unwrap();
    assert_eq!(client.read_exact(4).unwrap(), b"ping");

    for path in ["/close", "/cut", "/garbage"] {
        assert!(direct(&backend).request("GET", path, "", b"").is_err(), "{path}");
    }
}

#[test]
fn held_requests_wait_for_their_release() {
    let backend = Backend::start("self");
    let mut client = direct(&backend);
    client.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    backend.wait_requests(1);
    backend.release();
    assert_eq!(client.response("GET").unwrap().text(), "held");
}

#[test]
fn ports_are_free_and_different() {
    let ports: Vec<_> = (0..20).map(|_| free_port()).collect();
    let mut distinct = ports.clone();
    distinct.dedup();
    assert_eq!(ports, distinct);
}

#[test]
fn a_program_that_hangs_is_killed() {
    let limit = std::time::Duration::from_millis(50);
    let (code, _) = outside::output_within(std::process::Command::new("sleep").arg("60"), limit);
    assert_eq!(code, None);
}
