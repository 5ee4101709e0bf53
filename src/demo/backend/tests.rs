//! The backend, talked to over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::Backend;

/// Status line and header fields, and the body as it was on the wire.
fn ask(backend: &Backend, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(backend.address()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(backend: &Backend, path: &str) -> (String, String) {
    ask(backend, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"))
}

fn told(backend: &Backend, path: &str) -> Value {
    serde_json::from_str(&get(backend, path).1).unwrap()
}

#[test]
fn the_teapot_is_the_pages() {
    let backend = Backend::start().unwrap();
    let (head, body) = get(&backend, "/status/418");
    assert!(head.starts_with("HTTP/1.1 418 "), "{head}");
    let teapot = [
        "",
        "    -=[ teapot ]=-",
        "",
        "       _...._",
        "     .'  _ _ `.",
        "    | .\"` ^ `\". _,",
        "    \\_;`\"---\"`|//",
        "      |       ;/",
        "      \\_     _/",
        "        `\"\"\"`",
        "",
    ];
    assert_eq!(body, teapot.join("\n"));
}

#[test]
fn statuses_and_paths_that_are_none() {
    let backend = Backend::start().unwrap();
    for (path, status) in [
        ("/status/204", 204),
        ("/status/503", 503),
        ("/status/101", 400),
        ("/status/teapot", 400),
        ("/delay/-1", 400),
        ("/post", 405),
        ("/ws", 426),
        ("/nowhere", 404),
        ("/", 404),
        ("/html", 200),
        ("/delay/0", 200),
    ] {
        let head = get(&backend, path).0;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }
}

#[test]
fn requests_are_told_back() {
    let backend = Backend::start().unwrap();
    let headers = json!({ "Connection": "close", "Host": "h" });
    let got = json!({
        "args": { "a": "b" }, "headers": headers, "origin": "127.0.0.1", "url": "http://h/get?a=b",
    });
    assert_eq!(told(&backend, "/get?a=b"), got);
    assert_eq!(told(&backend, "/headers"), json!({ "headers": headers }));
    assert_eq!(told(&backend, "/ip"), json!({ "origin": "127.0.0.1" }));
    assert_eq!(told(&backend, "/user-agent"), json!({ "user-agent": null }));
    assert_eq!(told(&backend, "/anything/a/b")["method"], "GET");
}

#[test]
fn bodies_are_told_back() {
    let backend = Backend::start().unwrap();
    let post = |path: &str, content_type: &str, body: &str| {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n");
        let fields = format!("content-type: {content_type}\r\ncontent-length: {length}\r\n\r\n");
        ask(&backend, &format!("{head}{fields}{body}"))
    };
    let form = post("/post", "application/x-www-form-urlencoded", "a=b").1;
    assert_eq!(serde_json::from_str::<Value>(&form).unwrap()["form"], json!({ "a": "b" }));
    let data = post("/anything", "application/json", "{\"a\":[1]}").1;
    assert_eq!(serde_json::from_str::<Value>(&data).unwrap()["json"], json!({ "a": [1] }));
    let (head, body) = post("/echo", "text/x", "as it is");
    assert!(head.contains("content-type: text/x"), "{head}");
    assert_eq!(body, "as it is");
}

#[test]
fn streams_come_in_chunks_and_drips_with_their_length() {
    let backend = Backend::start().unwrap();
    let (head, body) = get(&backend, "/stream/3");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(body.matches("\"id\":").count(), 3);
    let (head, body) = get(&backend, "/drip?numbytes=5&duration=0&code=201");
    assert!(head.starts_with("HTTP/1.1 201 ") && head.contains("content-length: 5"), "{head}");
    assert_eq!(body, "*****");
}

#[test]
fn bytes_are_as_many_as_asked_for() {
    let backend = Backend::start().unwrap();
    let mut stream = TcpStream::connect(backend.address()).unwrap();
    stream.write_all(b"GET /bytes/1000 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    assert_eq!(answer.len() - head - 4, 1000);
}

#[test]
fn a_websocket_echoes() {
    let backend = Backend::start().unwrap();
    let mut stream = TcpStream::connect(backend.address()).unwrap();
    let request = "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    stream.write_all(&masked).unwrap();
    let mut echoed = [0; 7];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"\x81\x05Hello");
    stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0x88, 0]);
}

#[test]
fn an_open_request_is_finished_when_the_backend_ends() {
    let backend = Backend::start().unwrap();
    let mut stream = TcpStream::connect(backend.address()).unwrap();
    let request = b"GET /drip?numbytes=4&duration=0.2 HTTP/1.1\r\nhost: h\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    drop(backend);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("****"), "{rest}");
}
