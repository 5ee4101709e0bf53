//! HTTP/2 towards the client, to HTTP/1.1 and HTTP/2 upstreams, and gRPC over it.

use crate::harness::backend::Backend;
use crate::harness::gateway::{Builder, Driver, Gateway, on_each_driver};
use crate::harness::h2::{Frames, H2, H2cBackend, block_on, collect};
use crate::harness::outside::PythonServer;
use crate::harness::{checksum, eventually, outside, pattern, yaml};

const HOST: &str = "web.test";

fn one_host(driver: Driver, backend: &str) -> Builder {
    Gateway::builder().driver(driver).serving(HOST, backend)
}

fn to_http1(driver: Driver, backend: &Backend) -> Gateway {
    one_host(driver, &yaml::backend("backend.test", backend.port())).start()
}

fn to_h2c(driver: Driver, port: u16) -> Gateway {
    one_host(driver, &yaml::backend_h2c("backend.test", port)).start()
}

async fn connect(gateway: &Gateway) -> H2 {
    H2::connect(&gateway.tls(), gateway.address(443), HOST).await
}

#[test]
fn requests_and_bodies_pass_to_an_http1_upstream() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = to_http1(driver, &backend);
        block_on(async {
            let client = connect(&gateway).await;
            let answer = client.get("/status/418").await.unwrap();
            assert_eq!((answer.status, answer.body), (418, b"status 418".to_vec()));
            assert_eq!(answer.headers["server"], "istio-envoy");
            let request = client.builder("GET", "/head?q").header("cookie", "a=1; b=2");
            let request = request.header("cookie", "c=3").body(Frames::empty()).unwrap();
            let head = client.send(request).await.unwrap().body;
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.starts_with("get /head?q http/1.1\r\n"), "{head}");
            assert!(head.contains("host: web.test\r\n"), "{head}");
            assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
            // Browsers split it.
            assert!(head.contains("cookie: a=1; b=2; c=3\r\n"), "{head}");
        });
    });
}

#[test]
fn five_megabytes_pass_unharmed_in_both_directions() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = to_http1(driver, &backend);
        let body = pattern(5 << 20);
        let sum = checksum(&body);
        block_on(async {
            let client = connect(&gateway).await;
            let down = client.get("/bytes/5242880").await.unwrap().body;
            assert_eq!((down.len(), checksum(&down)), (body.len(), sum));
            let up = client.post("/sum", body).await.unwrap().body;
            let expected = format!("5242880 {sum:x} ");
            assert_eq!(String::from_utf8(up).unwrap(), expected);
        });
    });
}

#[test]
fn a_hundred_streams_at_once_each_get_their_own_answer() {
    on_each_driver(|driver| {
        let backend = Backend::start("a");
        let gateway = to_http1(driver, &backend);
        block_on(async {
            let client = connect(&gateway).await;
            let tasks: Vec<_> = (0..100_usize)
                .map(|n| {
                    let client = client.clone();
                    tokio::spawn(async move { client.post("/body", pattern(n * 400)).await })
                })
                .collect();
            for (n, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.unwrap().unwrap().body, pattern(n * 400), "stream {n}");
            }
        });
    });
}

#[test]
fn a_stream_that_waits_does_not_hold_up_the_others() {
    let backend = Backend::start("a");
    let gateway = to_http1(Driver::Auto, &backend);
    block_on(async {
        let client = connect(&gateway).await;
        let held = tokio::spawn({
            let client = client.clone();
            async move { client.get("/hold").await }
        });
        for _ in 0..10 {
            assert_eq!(client.get("/status/200").await.unwrap().status, 200);
        }
        backend.release();
        assert_eq!(held.await.unwrap().unwrap().body, b"held");
    });
}

#[test]
fn trailers_of_an_http1_upstream_reach_the_client() {
    let backend = Backend::start("a");
    let gateway = to_http1(Driver::Auto, &backend);
    block_on(async {
        let answer = connect(&gateway).await.get("/trailers").await.unwrap();
        assert_eq!(answer.body, b"with trailers");
        assert_eq!(answer.trailers.unwrap()["x-checksum"], "1234");
    });
}

#[test]
fn a_broken_upstream_ends_its_stream_only() {
    let backend = Backend::start("a");
    let gateway = to_http1(Driver::Auto, &backend);
    block_on(async {
        let client = connect(&gateway).await;
        assert!(matches!(client.get("/close").await.unwrap().status, 502 | 503));
        assert!(client.get("/cut").await.is_err(), "a cut body is an error, not an end");
        assert_eq!(client.get("/status/200").await.unwrap().status, 200);
    });
}

#[test]
fn an_abandoned_stream_leaves_the_connection_usable() {
    let backend = Backend::start("a");
    let gateway = to_http1(Driver::Auto, &backend);
    block_on(async {
        let client = connect(&gateway).await;
        for _ in 0..20 {
            let request = client.builder("GET", "/bytes/3000000").body(Frames::empty()).unwrap();
            drop(client.open(request).await.unwrap());
        }
        assert_eq!(client.get("/status/200").await.unwrap().status, 200);
    });
}

#[test]
fn an_h2c_upstream_is_spoken_to_in_http2_over_one_connection() {
    on_each_driver(|driver| {
        let backend = H2cBackend::start();
        let gateway = to_h2c(driver, backend.port());
        block_on(async {
            let client = connect(&gateway).await;
            for n in 0..10 {
                let body = pattern(n * 30_000);
                let request = client
                    .builder("POST", "/echo")
                    .header("te", "trailers")
                    .body(Frames::of(body.clone()).trailers("x-sum", "7"))
                    .unwrap();
                let answer = client.send(request).await.unwrap();
                assert_eq!(answer.headers["x-version"], "HTTP/2.0");
                assert_eq!(answer.headers["x-authority"], HOST);
                assert_eq!(answer.headers["x-te"], "trailers");
                assert_eq!(checksum(&answer.body), checksum(&body));
                let trailers = answer.trailers.unwrap();
                assert_eq!(
                    (&trailers["x-sum"], &trailers["x-echoed"]),
                    (&"7".parse().unwrap(), &"yes".parse().unwrap())
                );
            }
        });
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn an_http1_client_reaches_an_h2c_upstream() {
    let backend = H2cBackend::start();
    let gateway = to_h2c(Driver::Auto, backend.port());
    let response = gateway.client(HOST).post("/x", b"from h1");
    assert_eq!((response.status, response.text()), (200, "from h1".to_owned()));
    assert_eq!(response.header("x-version"), Some("HTTP/2.0"));
}

#[test]
fn an_answer_streams_while_its_request_is_still_sent() {
    let backend = H2cBackend::start();
    let gateway = to_h2c(Driver::Auto, backend.port());
    block_on(async {
        let client = connect(&gateway).await;
        let body = pattern(2 << 20);
        let request = client.builder("POST", "/echo").body(Frames::of(body.clone())).unwrap();
        // The echo would stall here if the gateway waited for the whole request first and the
        // windows were exhausted.
        let (head, incoming) = client.open(request).await.unwrap().into_parts();
        let answer = collect(head.status.as_u16(), head.headers, incoming).await.unwrap();
        assert_eq!(checksum(&answer.body), checksum(&body));
    });
}

#[test]
fn h2load_sees_no_failure() {
    let Some(mut h2load) = outside::tool("h2load") else { return };
    let backend = Backend::start("a");
    let gateway = to_http1(Driver::Auto, &backend);
    h2load.args(["-n2000", "-c8", "-m16"]);
    h2load.arg(format!("--connect-to={}", gateway.address(443)));
    let (code, text) = outside::output(h2load.arg(format!("https://{HOST}/status/200")));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
}

#[test]
fn chromium_shows_the_page() {
    let Some(mut chromium) = outside::tool("chromium") else { return };
    let backend = Backend::start("the page that Chromium shows");
    let gateway = to_http1(Driver::Auto, &backend);
    let rules = format!("MAP {HOST} 127.0.0.1:{}", gateway.address(443).port());
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--ignore-certificate-errors",
        "--dump-dom",
    ]);
    chromium.arg(format!("--user-data-dir={}", gateway.path("chromium").display()));
    chromium.arg(format!("--host-resolver-rules={rules}"));
    let (_, text) = outside::output(chromium.arg(format!("https://{HOST}/name")));
    assert!(text.contains("the page that Chromium shows"), "{text}");
    let log = gateway.access_log(1).join("\n");
    assert!(log.contains("\"GET /name HTTP/2\" 200"), "{log}");
}

#[test]
fn grpc_of_python_calls_unary_and_streaming() {
    let Some(mut python) = outside::python("grpc") else { return };
    let Some(server) = outside::python("grpc") else { return };
    let backend = PythonServer::start(server, GRPC_SERVER);
    let gateway = to_h2c(Driver::Auto, backend.port);
    python.args(["-c", GRPC_CLIENT, &gateway.address(443).port().to_string()]);
    let (code, text) = outside::output(python.arg(gateway.path("ca.pem")));
    assert!(code == Some(0) && text.contains("all calls answered"), "{code:?}: {text}");
    let sum = |metric: &str, label: &str| -> u64 {
        let page = gateway.admin_get("/stats/prometheus").text();
        let samples = page.lines().filter(|line| line.starts_with(metric) && line.contains(label));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    let calls =
        |status: &str| sum("istio_requests_total{", &format!("grpc_response_status=\"{status}\""));
    eventually("the calls are counted by status", || calls("0") == 4 && calls("5") == 1);
    assert_eq!(sum("istio_request_messages_total{", "request_protocol=\"grpc\""), 3 + 500 + 3);
    assert_eq!(sum("istio_response_messages_total{", "request_protocol=\"grpc\""), 1 + 500 + 1 + 3);
}

const GRPC_SERVER: &str = "
import grpc
from concurrent import futures

def unary(request, context):
    if request == b'fail':
        context.abort(grpc.StatusCode.NOT_FOUND, 'no such thing')
    context.set_trailing_metadata((('x-count', '1'),))
    return request[::-1]

def down(request, context):
    for n in range(int(request)):
        yield b'x' * n

def up(requests, context):
    return str(sum(len(request) for request in requests)).encode()

def both(requests, context):
    for request in requests:
        yield request.upper()

server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('test.Echo', {
    'Unary': grpc.unary_unary_rpc_method_handler(unary),
    'Down': grpc.unary_stream_rpc_method_handler(down),
    'Up': grpc.stream_unary_rpc_method_handler(up),
    'Both': grpc.stream_stream_rpc_method_handler(both),
}),))
print(server.add_insecure_port('127.0.0.1:0'), flush=True)
server.start()
server.wait_for_termination()
";

const GRPC_CLIENT: &str = "
import grpc, sys
credentials = grpc.ssl_channel_credentials(open(sys.argv[2], 'rb').read())
channel = grpc.secure_channel('127.0.0.1:' + sys.argv[1], credentials, (
    ('grpc.ssl_target_name_override', 'web.test'), ('grpc.default_authority', 'web.test')))

unary = channel.unary_unary('/test.Echo/Unary')
reply, call = unary.with_call(b'abc' * 50000, timeout=20)
assert reply == (b'abc' * 50000)[::-1]
assert ('x-count', '1') in [tuple(pair) for pair in call.trailing_metadata()]
try:
    unary(b'fail', timeout=20)
    raise SystemExit('no error')
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == 'no such thing', error

down = channel.unary_stream('/test.Echo/Down')
assert [len(reply) for reply in down(b'500', timeout=20)] == list(range(500))
up = channel.stream_unary('/test.Echo/Up')
assert up((b'x' * 1000 for _ in range(500)), timeout=20) == b'500000'

import queue
sent = queue.Queue()
replies = channel.stream_stream('/test.Echo/Both')(iter(sent.get, None), timeout=20)
for word in (b'one', b'two', b'three'):
    sent.put(word)
    assert next(replies) == word.upper()
sent.put(None)
assert list(replies) == []
print('all calls answered')
";
