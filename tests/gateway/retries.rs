//! Timeouts and retries of a rule, seen by client, backend and log.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::harness::backend::Backend;
use crate::harness::client::Client;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::h2::{Frames, H2, H2cBackend, block_on};
use crate::harness::yaml;
use crate::harness::{free_port, pattern};

const HOST: &str = "web.test";

/// A plain gateway for `web.test` whose only rule has `fields` and leads to the `backends`.
fn builder(ports: &[u16], fields: &str) -> Builder {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| format!("{{ address: 127.0.0.1, ports: {{ http: {port} }} }}"))
        .collect();
    let entry = yaml::backend("a.test", 1);
    let (head, _) = entry.split_once("  endpoints:").unwrap();
    let route = "route: [ { destination: { host: a.test, port: { number: 80 } } } ]";
    let rule = format!("  - {{ {fields}{route} }}\n");
    Gateway::builder()
        .resource("gateway.yaml", &yaml::gateway("web", &yaml::http_server(80, &[HOST], false)))
        .resource("route.yaml", &yaml::virtual_service("web", "web", &[HOST], &rule))
        .resource("a.yaml", &format!("{head}  endpoints: [ {} ]\n", endpoints.join(", ")))
}

fn client(gateway: &Gateway) -> Client {
    Client::plain(gateway.address(80), HOST).unwrap()
}

/// A backend that answers its first requests with `answers`, one each, then with 200 and the value
/// of `x-envoy-attempt-count`, a space, and the body's length. An empty answer closes.
struct Scripted {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl Scripted {
    fn start(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                // A broken connection is the gateway's affair.
                thread::spawn(move || drop(serve(&stream, answers, &seen)));
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: &TcpStream, answers: &[&str], seen: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut attempt, mut length, mut is_chunked) = (String::new(), 0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.trim().split_once(": ") {
                match name {
                    "transfer-encoding" => is_chunked = true,
                    "x-envoy-attempt-count" => value.clone_into(&mut attempt),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                }
            }
        }
        let count = seen.fetch_add(1, Ordering::SeqCst);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        while is_chunked {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            reader.read_exact(&mut vec![0; size + 2])?;
            length += size;
            is_chunked = size > 0;
        }
        match answers.get(count) {
            Some(&"") => return Ok(()),
            Some(answer) => {
                write!(stream, "HTTP/1.1 {answer} X\r\ncontent-length: 0\r\n\r\n")?;
            }
            None => {
                let text = format!("{attempt} {length}");
                let length = text.len();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}")?;
            }
        }
    }
}

#[test]
fn a_timeout_is_504_with_envoys_words() {
    let backend = Backend::start("a");
    let gateway = builder(&[backend.port()], "timeout: 200ms, ").start();
    let mut client = client(&gateway);
    let response = client.get("/hold");
    assert_eq!((response.status, response.text()), (504, "upstream request timeout".to_owned()));
    let head = client.get("/head").text();
    assert!(head.contains("x-envoy-expected-rq-timeout-ms: 200\r\n"), "{head}");
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 504 UT response_timeout "), "{log:#?}");
}

#[test]
fn a_grpc_client_says_how_long_it_waits() {
    let backend = Backend::start("a");
    let gateway = builder(&[backend.port()], "").start();
    let mut client = client(&gateway);
    let call = "content-type: application/grpc\r\ngrpc-timeout: 200m\r\n";
    let late = client.request("POST", "/hold", call, b"").unwrap();
    assert_eq!((late.status, late.header("grpc-status")), (200, Some("14")));
    let head = client.request("GET", "/head", call, b"").unwrap().text();
    assert!(head.contains("grpc-timeout: 200m\r\n"), "{head}");
    let log = gateway.access_log(1);
    assert!(log[0].contains(" UT response_timeout "), "{log:#?}");
}

#[test]
fn a_timeout_covers_the_body_of_the_response() {
    let backend = Backend::start("a");
    let gateway = builder(&[backend.port()], "timeout: 200ms, ").start();
    let mut client = client(&gateway);
    let broken = client.request("GET", "/late", "", b"");
    assert!(broken.is_err(), "{broken:?}");
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 200 UT "), "{log:#?}");
}

#[test]
fn a_timeout_begins_when_the_request_has_arrived() {
    let backend = Backend::start("a");
    let gateway = builder(&[backend.port()], "timeout: 300ms, ").start();
    let mut client = client(&gateway);
    let head = format!("POST /sum HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    client.send(b"ab").unwrap();
    thread::sleep(std::time::Duration::from_millis(600));
    client.send(b"cd").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 200);
}

#[test]
fn without_a_timeout_a_request_takes_as_long_as_it_takes() {
    let backend = Backend::start("a");
    let gateway = builder(&[backend.port()], "").start();
    let mut client = client(&gateway);
    client.send(format!("GET /hold HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).unwrap();
    backend.wait_requests(1);
    backend.release();
    assert_eq!(client.response("GET").unwrap().text(), "held");
}

#[test]
fn by_default_a_dead_endpoint_is_avoided_and_503_is_not_retried() {
    let alive = Backend::start("a");
    let gateway = builder(&[free_port(), alive.port()], "").start();
    let mut client = client(&gateway);
    for _ in 0..16 {
        assert_eq!(client.get("/name").text(), "a");
    }
    let busy = Scripted::start(&["503", "200"]);
    let gateway = builder(&[busy.port], "").start();
    assert_eq!(self::client(&gateway).get("/").status, 503);
    assert_eq!(busy.requests(), 1);
}

#[test]
fn named_reasons_are_retried_and_attempts_are_counted() {
    let cases: [(&str, &'static [&'static str]); 4] = [
        ("5xx", &["500", "503"]),
        ("gateway-error,reset", &["", "502"]),
        ("503,404", &["404", "503"]),
        ("retriable-4xx", &["409", "409"]),
    ];
    for (on, answers) in cases {
        let backend = Scripted::start(answers);
        let retries = format!("retries: {{ attempts: 3, retryOn: \"{on}\", backoff: 1ms }}, ");
        let gateway = builder(&[backend.port], &retries).start();
        let response = client(&gateway).get("/");
        assert_eq!((response.status, response.text()), (200, "3 0".to_owned()), "{on}");
        let metrics = gateway.admin_get("/stats/prometheus").text();
        let retried =
            metrics.lines().find(|line| line.starts_with("envoy_cluster_upstream_rq_retry"));
        assert!(retried.is_some_and(|line| line.ends_with(" 2")), "{on}: {retried:?}");
    }
}

#[test]
fn the_last_answer_is_passed_on_when_attempts_are_spent() {
    let backend = Scripted::start(&["503", "503", "502"]);
    let gateway =
        builder(&[backend.port], "retries: { attempts: 2, retryOn: 5xx, backoff: 1ms }, ").start();
    assert_eq!(client(&gateway).get("/").status, 502);
    assert_eq!(backend.requests(), 3);
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 502 URX via_upstream "), "{log:#?}");
}

#[test]
fn attempts_0_turns_retries_off() {
    let alive = Backend::start("a");
    let gateway = builder(&[free_port(), alive.port()], "retries: { attempts: 0 }, ").start();
    let mut client = client(&gateway);
    let failed = (0..64).filter(|_| client.get("/name").status == 503).count();
    assert!(failed > 0, "each endpoint is chosen for about half of the requests");
}

#[test]
fn a_body_is_sent_again_up_to_the_limit_and_no_further() {
    let retries = "retries: { attempts: 2, retryOn: 5xx, backoff: 1ms }, ";
    for (length, limit, expected) in [(3, "64KiB", 200), (100_000, "128KiB", 200), (5, "4", 503)] {
        let backend = Scripted::start(&["503"]);
        let limit = format!("limits: {{ retry_body_bytes_max: {limit} }}\n");
        let gateway = builder(&[backend.port], retries).settings(&limit).start();
        let response = client(&gateway).post("/", &pattern(length));
        assert_eq!(response.status, expected, "{length} bytes, {limit}");
        if expected == 200 {
            assert_eq!(response.text(), format!("2 {length}"));
        }
        assert_eq!(backend.requests(), if expected == 200 { 2 } else { 1 });
    }
}

#[test]
fn a_chunked_body_is_sent_again_too() {
    let backend = Scripted::start(&["503"]);
    let fields = "retries: { attempts: 2, retryOn: 5xx, backoff: 1ms }, ";
    let gateway = builder(&[backend.port], fields).start();
    let chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let chunked = "transfer-encoding: chunked\r\n";
    let response = client(&gateway).request("POST", "/", chunked, chunks).unwrap();
    assert_eq!((response.status, response.text()), (200, "2 5".to_owned()));
}

#[test]
fn an_unavailable_grpc_service_is_asked_again_with_body_and_trailers() {
    let backend = H2cBackend::start();
    let gateway = Gateway::builder()
        .serving(HOST, &yaml::backend_h2c("backend.test", backend.port()))
        .start();
    block_on(async {
        let client = H2::connect(&gateway.tls(), gateway.address(443), HOST).await;
        let body = pattern(50_000);
        let request =
            client.builder("POST", "/unavailable").header("content-type", "application/grpc");
        let frames = Frames::of(body.clone()).trailers("x-checksum", "1");
        let answer = client.send(request.body(frames).unwrap()).await.unwrap();
        assert_eq!(answer.headers["x-attempt"], "2");
        assert_eq!(answer.body, body);
        assert_eq!(answer.trailers.unwrap()["x-checksum"], "1");
    });
}

#[test]
fn one_attempt_may_take_less_than_all() {
    let backend = Backend::start("a");
    let fields = "retries: { attempts: 2, perTryTimeout: 100ms, retryOn: \"5xx\", backoff: 1ms }, ";
    let gateway = builder(&[backend.port()], fields).start();
    assert_eq!(client(&gateway).get("/hold").status, 504);
    assert_eq!(backend.requests(), 3);
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 504 UT,URX upstream_per_try_timeout "), "{log:#?}");
    let all = "timeout: 250ms, retries: { attempts: 9, perTryTimeout: 100ms, retryOn: reset }, ";
    let gateway = builder(&[backend.port()], all).start();
    assert_eq!(client(&gateway).get("/hold").status, 504);
    let log = gateway.access_log(1);
    assert!(log[0].contains(" 504 UT response_timeout "), "{log:#?}");
}

#[test]
fn a_websocket_is_retried_like_any_request() {
    let alive = Backend::start("a");
    let gateway = builder(&[free_port(), alive.port()], "").start();
    for _ in 0..8 {
        let mut client = client(&gateway);
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
        assert_eq!(client.request("GET", "/websocket", upgrade, b"").unwrap().status, 101);
    }
}
