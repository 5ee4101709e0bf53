//! HTTP/1.1 on both sides: what passes unchanged, what is added, what is refused.

use std::thread;

use crate::harness::backend::Backend;
use crate::harness::client::{Client, Response};
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::outside::PythonServer;
use crate::harness::{checksum, outside, pattern, yaml};

const HOST: &str = "web.test";

fn one_host(driver: Driver, port: u16) -> Builder {
    Gateway::builder().driver(driver).serving(HOST, &yaml::backend("backend.test", port))
}

fn start(backend: &Backend) -> Gateway {
    one_host(Driver::Auto, backend.port()).start()
}

#[test]
fn status_headers_and_body_pass_in_both_directions() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).start();
        let mut client = gateway.client(HOST);
        for status in [200, 204, 304, 404, 418, 503] {
            assert_eq!(client.get(&format!("/status/{status}")).status, status);
        }
        let head = client.request("PUT", "/head?q=%2F&r", "x-mine: a\r\nx-mine: b\r\n", b"");
        let head = head.unwrap().text();
        assert!(head.starts_with("PUT /head?q=%2F&r HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("x-mine: a\r\n") && head.contains("x-mine: b\r\n"), "{head}");
        assert_eq!(client.post("/body", b"hello").body, b"hello");
    });
}

#[test]
fn five_megabytes_pass_unharmed_in_both_directions() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).start();
        let mut client = gateway.client(HOST);
        let body = pattern(5 << 20);
        let sum = format!("{} {:x} ", body.len(), checksum(&body));
        assert_eq!(client.post("/sum", &body).text(), sum);
        for path in ["/bytes/5242880", "/chunked/5242880"] {
            let response = client.get(path);
            assert_eq!(response.body.len(), body.len(), "{path}");
            assert_eq!(checksum(&response.body), checksum(&body), "{path}");
        }
    });
}

#[test]
fn chunked_bodies_and_trailers_pass() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let chunks = b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
    let headers = "transfer-encoding: chunked\r\nte: trailers\r\ntrailer: x-sum\r\n";
    let text = client.request("POST", "/sum", headers, chunks).unwrap().text();
    assert!(text.starts_with(&format!("5 {:x}", checksum(b"abcde"))), "{text}");
    assert!(text.ends_with("x-sum: 5"), "{text}");
    let response = client.request("GET", "/trailers", "te: trailers\r\n", b"").unwrap();
    assert_eq!(response.text(), "with trailers");
    assert_eq!(response.trailers, [("x-checksum".to_owned(), "1234".to_owned())]);
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let head = "POST /body HTTP/1.1\r\nhost: web.test\r\nexpect: 100-continue\r\n\
                content-length: 4\r\n\r\n";
    client.send(head.as_bytes()).unwrap();
    assert_eq!(client.response_head().unwrap().status, 100);
    client.send(b"body").unwrap();
    assert_eq!(client.response("POST").unwrap().text(), "body");
    assert_eq!(client.get("/status/200").status, 200);
}

#[test]
fn head_answers_have_the_length_but_no_body() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let response = client.request("HEAD", "/bytes/1000", "", b"").unwrap();
    assert_eq!((response.status, response.header("content-length")), (200, Some("1000")));
    assert_eq!(client.get("/bytes/3").body.len(), 3, "the connection is still in step");
}

#[test]
fn upstream_connections_are_reused() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).workers(1).start();
        for _ in 0..5 {
            let mut client = gateway.client(HOST);
            for _ in 0..5 {
                assert_eq!(client.get("/status/200").status, 200);
            }
        }
        assert_eq!((backend.requests(), backend.connections()), (25, 1));
    });
}

#[test]
fn a_closed_upstream_connection_is_not_reused() {
    let backend = Backend::start("a");
    let gateway = one_host(Driver::Auto, backend.port()).workers(1).start();
    let mut client = gateway.client(HOST);
    for n in 1..=5 {
        assert_eq!(client.get("/bye").text(), "bye");
        assert_eq!(backend.connections(), n);
    }
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let headers = "connection: keep-alive, x-drop-me\r\nx-drop-me: 1\r\nkeep-alive: timeout=9\r\n\
                   proxy-connection: keep-alive\r\nx-keep-me: 1\r\n";
    let head = client.request("GET", "/head", headers, b"").unwrap().text().to_lowercase();
    for gone in ["x-drop-me", "keep-alive:", "proxy-connection"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert!(head.contains("x-keep-me: 1"), "{head}");
    let response = client.get("/hop");
    for gone in ["x-private", "keep-alive", "proxy-connection"] {
        assert_eq!(response.header(gone), None);
    }
    assert_eq!(response.header("x-public"), Some("kept"));
}

#[test]
fn the_upstream_learns_who_asked_and_the_client_who_answered() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let forged = "x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: http\r\nx-request-id: mine\r\n\
                  x-envoy-internal: true\r\nx-envoy-attempt-count: 7\r\n\
                  x-forwarded-client-cert: forged\r\n";
    let head = client.request("GET", "/head", forged, b"").unwrap().text().to_lowercase();
    let value = |name: &str| {
        let lines: Vec<_> =
            head.lines().filter_map(|line| line.strip_prefix(&format!("{name}: "))).collect();
        lines.join(",").replace(' ', "")
    };
    assert_eq!(value("host"), "web.test");
    assert!(value("x-forwarded-for").ends_with("127.0.0.1"), "{head}");
    assert_eq!(value("x-forwarded-proto"), "https");
    assert_eq!(value("x-request-id").len(), 36, "{head}");
    assert_eq!(value("x-envoy-internal"), "");
    assert_eq!(value("x-forwarded-client-cert"), "");
    assert_eq!(value("x-envoy-attempt-count"), "1");

    let response = client.get("/hop");
    assert_eq!(response.header("server"), Some("istio-envoy"));
    assert!(response.header("date").is_some());
    let time = response.header("x-envoy-upstream-service-time").unwrap();
    assert!(time.parse::<u64>().is_ok(), "{time}");
}

/// Sends `bytes` on a new connection and reads one answer.
fn raw(gateway: &Gateway, bytes: &str) -> Response {
    let mut client = gateway.client(HOST);
    client.send(bytes.as_bytes()).unwrap();
    client.response("GET").unwrap_or_else(|error| panic!("{bytes:?}: {error}"))
}

#[test]
fn malformed_requests_are_400_and_never_reach_the_upstream() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let malformed = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web.test\r\nhost: evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : web.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web.test\r\n folded: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web.test\r\nx: a\0b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "BAD REQUEST LINE\r\nhost: web.test\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nhost: web.test\r\n\r\n",
        "CONNECT http://web.test/ HTTP/1.1\r\nhost: web.test\r\n\r\n",
        "CONNECT web.test:80 HTTP/1.1\r\nhost: web.test\r\n\r\n",
    ];
    for request in malformed {
        assert_eq!(raw(&gateway, request).status, 400, "{request:?}");
    }
    assert_eq!(backend.requests(), 0);
}

#[test]
fn a_head_beyond_the_limit_is_431() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let large = format!("x-large: {}\r\n", "x".repeat(62 * 1024));
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    for fields in [large, many] {
        let request = format!("GET / HTTP/1.1\r\nhost: web.test\r\n{fields}\r\n");
        assert_eq!(raw(&gateway, &request).status, 431);
    }
    assert_eq!(backend.requests(), 0);
}

/// RFC 9112, section 6.3: the transfer coding counts, and the connection must not be used again.
#[test]
fn a_request_with_two_framings_reaches_the_upstream_with_one_and_is_the_last() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let both = "POST /head HTTP/1.1\r\nhost: web.test\r\ncontent-length: 30\r\n\
                transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web.test\r\n\r\n";
    let response = raw(&gateway, both);
    assert_eq!(response.header("connection"), Some("close"));
    let head = response.text().to_lowercase();
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(backend.requests(), 1, "what follows is not a request");
}

#[test]
fn http_1_0_is_426() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    assert_eq!(raw(&gateway, "GET / HTTP/1.0\r\nhost: web.test\r\n\r\n").status, 426);
}

#[test]
fn an_upgrade_to_anything_but_websocket_is_ignored() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let upgrade = "connection: upgrade\r\nupgrade: irc\r\n";
    let response = gateway.client(HOST).request("GET", "/head", upgrade, b"").unwrap();
    assert_eq!(response.status, 200);
    assert!(!response.text().to_lowercase().contains("upgrade"), "it is not passed on");
}

#[test]
fn an_upstream_that_refuses_is_503() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gateway = one_host(Driver::Auto, gone).start();
    let mut client = gateway.client(HOST);
    assert_eq!(client.get("/").status, 503);
    assert_eq!(client.get("/").status, 503, "the client's connection stays");
    let lines = gateway.access_log(2);
    assert!(lines[0].contains(" UF,URX "), "{lines:?}");
}

#[test]
fn an_upstream_that_breaks_off_is_never_taken_for_a_complete_answer() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).start();
        for path in ["/close", "/garbage"] {
            let status = gateway.get(HOST, path).status;
            assert!(matches!(status, 502 | 503), "{path}: {status}");
        }
        let cut = gateway.client(HOST).request("GET", "/cut", "", b"");
        assert!(cut.is_err(), "a cut body ends the connection: {cut:?}");
        assert_eq!(gateway.get(HOST, "/status/200").status, 200);
    });
}

#[test]
fn an_answer_starts_before_its_body_is_there() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    client.send(b"GET /late HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
    assert_eq!(client.response_head().unwrap().status, 200);
    backend.release();
    assert_eq!(client.read_exact(4).unwrap(), b"late");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let mut client = gateway.client(HOST);
    let requests: String = (200..210)
        .map(|status| format!("GET /status/{status} HTTP/1.1\r\nhost: web.test\r\n\r\n"))
        .collect();
    client.send(requests.replace("/204 ", "/211 ").replace("/205 ", "/212 ").as_bytes()).unwrap();
    for status in [200, 201, 202, 203, 211, 212, 206, 207, 208, 209] {
        assert_eq!(client.response("GET").unwrap().status, status);
    }
}

#[test]
fn a_websocket_passes_bytes_until_either_side_closes() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).start();
        let mut client = gateway.client(HOST);
        let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZQ==\r\n";
        let response = client.request("GET", "/websocket", upgrade, b"").unwrap();
        assert_eq!(response.status, 101);
        assert_eq!(response.header("x-seen-key"), Some("dGhlIHNhbXBsZQ=="));
        assert_eq!(response.header("upgrade"), Some("websocket"));
        for size in [1, 125, 4_000, 100_000] {
            let sent = pattern(size);
            client.send(&sent).unwrap();
            assert_eq!(checksum(&client.read_exact(size).unwrap()), checksum(&sent));
        }
    });
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = one_host(driver, backend.port()).start();
        let (tls, address) = (gateway.tls(), gateway.address(443));
        thread::scope(|scope| {
            for index in 0..16 {
                let tls = &tls;
                scope.spawn(move || {
                    let mut client = Client::tls(tls, address, HOST).unwrap();
                    for n in 0..20 {
                        let body = format!("client {index} request {n}");
                        assert_eq!(client.post("/body", body.as_bytes()).text(), body);
                    }
                });
            }
        });
    });
}

#[test]
fn curl_sends_and_receives() {
    let Some(mut curl) = outside::tool("curl") else { return };
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let port = gateway.address(443).port();
    curl.args(["-s", "--http1.1", "--fail", "-d", "from curl", "--cacert"]);
    curl.arg(gateway.path("ca.pem")).arg("--resolve").arg(format!("{HOST}:{port}:127.0.0.1"));
    curl.arg(format!("https://{HOST}:{port}/body"));
    assert_eq!(outside::output(&mut curl), (Some(0), "from curl".to_owned()));
}

#[test]
fn pythons_http_client_keeps_its_connection() {
    let Some(mut python) = outside::tool("python3") else { return };
    let backend = Backend::start("a");
    let gateway = start(&backend);
    let script = "
import http.client, socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
connection = http.client.HTTPSConnection('web.test', int(sys.argv[1]), context=context)
real = socket.create_connection
connection._create_connection = lambda to, *rest: real(('127.0.0.1', to[1]), *rest)
for n in range(3):
    connection.request('POST', '/body', b'x' * 100000)
    response = connection.getresponse()
    assert response.status == 200 and len(response.read()) == 100000
print('three answers')
";
    python.args(["-c", script, &gateway.address(443).port().to_string()]);
    let (code, text) = outside::output(python.arg(gateway.path("ca.pem")));
    assert_eq!((code, text.trim()), (Some(0), "three answers"));
}

#[test]
fn wrk_sees_no_error() {
    let Some(mut wrk) = outside::tool("wrk") else { return };
    let backend = Backend::start("a");
    let any = yaml::https_gateway("web", &["*"], "web");
    let route = yaml::virtual_service("web", "web", &["*"], &yaml::all_to("backend.test"));
    let gateway = one_host(Driver::Auto, backend.port())
        .resource("gateway.yaml", &any)
        .resource("route.yaml", &route)
        .start();
    wrk.args(["-t1", "-c8", "-d1s"]).arg(format!("https://{}/status/200", gateway.address(443)));
    let (code, text) = outside::output(&mut wrk);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("requests in"), "{text}");
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    assert!(backend.requests() > 0);
}

#[test]
fn websockets_of_python_are_understood() {
    let Some(mut python) = outside::python("websockets") else { return };
    let Some(server) = outside::python("websockets") else { return };
    let backend = PythonServer::start(server, WEBSOCKET_SERVER);
    let gateway = one_host(Driver::Auto, backend.port).start();
    let script = "
import ssl, sys
from websockets.sync.client import connect
context = ssl.create_default_context(cafile=sys.argv[2])
context.check_hostname = True
import socket
sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
with connect('wss://web.test/chat', sock=sock, ssl=context, server_hostname='web.test') as ws:
    for message in ['hello', 'x' * 200000, b'\\x00\\x01']:
        ws.send(message)
        assert ws.recv() == message
print('three echoes')
";
    python.args(["-c", script, &gateway.address(443).port().to_string()]);
    let (code, text) = outside::output(python.arg(gateway.path("ca.pem")));
    assert_eq!((code, text.trim()), (Some(0), "three echoes"), "{text}");
}

const WEBSOCKET_SERVER: &str = "
from websockets.sync.server import serve
def echo(ws):
    for message in ws:
        ws.send(message)
with serve(echo, '127.0.0.1', 0) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
";
