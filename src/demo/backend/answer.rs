//! What the backend answers, path by path, as httpbin does.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::websocket;

/// Of a request that is told in JSON.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// httpbin's limits.
const DELAY_MAX: f64 = 10.0;
const BYTES_MAX: usize = 100 * 1024;
const LINES_MAX: usize = 100;

const TEAPOT: &str = r#"
    -=[ teapot ]=-

       _...._
     .'  _ _ `.
    | ."` ^ `". _,
    \_;`"---"`|//
      |       ;/
      \_     _/
        `"""`
"#;

const PAGE: &str = "\
<!DOCTYPE html>
<html>
  <head><title>httpbin</title></head>
  <body><h1>A page</h1><p>It came through the gateway.</p></body>
</html>
";

/// A request and where it came from.
struct Asked {
    parts: Parts,
    peer: IpAddr,
    /// Of the path, percent-encoded.
    segments: Vec<String>,
}

/// Answers one request.
pub(super) async fn answer(mut request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
    if request.uri().path() == "/ws" {
        let upgrade = hyper::upgrade::on(&mut request);
        return match websocket::key(request.headers()) {
            Some(key) => websocket::accept(&key, upgrade),
            None => plain(StatusCode::UPGRADE_REQUIRED, "a WebSocket is served here\n"),
        };
    }
    let (parts, body) = request.into_parts();
    let segments = parts.uri.path().split('/').skip(1).map(str::to_owned).collect();
    let asked = Asked { parts, peer, segments };
    asked.answer(body).await.unwrap_or_else(|status| plain(status, reason(status)))
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

impl Asked {
    async fn answer(self, body: Incoming) -> Result<Response<Body>, StatusCode> {
        let segments: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        match segments[..] {
            ["status", code] => status(code),
            ["bytes", count] => random(count),
            ["stream", count] => self.stream(count),
            ["drip"] => self.drip(),
            ["delay", seconds] => {
                tokio::time::sleep(delay(seconds)?).await;
                self.tell_body(body, false).await
            }
            ["anything", ..] => self.tell_body(body, true).await,
            ["post"] if self.parts.method != Method::POST => Err(StatusCode::METHOD_NOT_ALLOWED),
            ["post"] => self.tell_body(body, false).await,
            ["echo"] => Ok(self.echo(body)),
            ["html"] => Ok(typed("text/html; charset=utf-8", Body::whole(PAGE))),
            [word] => self.tell(word),
            _ => Err(StatusCode::NOT_FOUND),
        }
    }

    /// What is known without the request's body.
    fn tell(&self, word: &str) -> Result<Response<Body>, StatusCode> {
        let told = match word {
            "get" => json!({
                "args": self.args(),
                "headers": self.headers(),
                "origin": self.origin(),
                "url": self.url(),
            }),
            "headers" => json!({ "headers": self.headers() }),
            "ip" => json!({ "origin": self.origin() }),
            "user-agent" => json!({ "user-agent": self.header("user-agent") }),
            _ => return Err(StatusCode::NOT_FOUND),
        };
        Ok(json_response(&told))
    }

    async fn tell_body(&self, body: Incoming, method: bool) -> Result<Response<Body>, StatusCode> {
        let body = collect(body).await?;
        let content_type = self.header("content-type").unwrap_or_default();
        let text = String::from_utf8_lossy(&body);
        let is_form = content_type.starts_with("application/x-www-form-urlencoded");
        let (form, data) = if is_form { (pairs(&text), "") } else { (Map::new(), &*text) };
        let mut told = json!({
            "args": self.args(),
            "data": data,
            "files": {},
            "form": form,
            "headers": self.headers(),
            "json": serde_json::from_str::<Value>(data).unwrap_or_default(),
            "origin": self.origin(),
            "url": self.url(),
        });
        if method {
            told["method"] = self.parts.method.as_str().into();
        }
        Ok(json_response(&told))
    }

    /// The request's body, as it comes and as it is called.
    fn echo(&self, body: Incoming) -> Response<Body> {
        let mut response = Response::new(Body::Echo(body));
        if let Some(content_type) = self.parts.headers.get(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
        }
        response
    }

    /// Lines of JSON, chunk by chunk.
    fn stream(&self, count: &str) -> Result<Response<Body>, StatusCode> {
        let count = number::<usize>(count)?.min(LINES_MAX);
        let line = |id| {
            let line = json!({
                "args": self.args(),
                "headers": self.headers(),
                "id": id,
                "origin": self.origin(),
                "url": self.url(),
            });
            Bytes::from(format!("{line}\n"))
        };
        Ok(typed("application/json", Body::chunked((0..count).map(line).collect())))
    }

    /// `numbytes` bytes spread over `duration` seconds.
    fn drip(&self) -> Result<Response<Body>, StatusCode> {
        let count: usize = self.parameter("numbytes", 10)?;
        let seconds: f64 = self.parameter("duration", 2.0)?;
        let code: u16 = self.parameter("code", 200)?;
        if count == 0 || count > BYTES_MAX || !(0.0..=DELAY_MAX).contains(&seconds) {
            return Err(StatusCode::BAD_REQUEST);
        }
        let pieces: VecDeque<_> = (0..count).map(|_| Bytes::from_static(b"*")).collect();
        let pause = Duration::from_secs_f64(seconds) / u32::try_from(count).unwrap_or(u32::MAX);
        let mut response = typed("application/octet-stream", Body::paced(pieces, pause));
        *response.status_mut() = final_status(code)?;
        Ok(response)
    }

    fn parameter<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, StatusCode> {
        match self.args().get(name).and_then(Value::as_str) {
            Some(text) => number(text),
            None => Ok(default),
        }
    }

    fn args(&self) -> Map<String, Value> {
        pairs(self.parts.uri.query().unwrap_or_default())
    }

    fn headers(&self) -> Map<String, Value> {
        let mut headers = Map::new();
        for name in self.parts.headers.keys() {
            headers.insert(title_case(name.as_str()), self.header(name.as_str()).into());
        }
        headers
    }

    /// All values of the header, joined.
    fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.parts.headers.get_all(name).iter().map(lossy).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    fn origin(&self) -> String {
        self.header("x-forwarded-for").unwrap_or_else(|| self.peer.to_string())
    }

    fn url(&self) -> String {
        let scheme = self.header("x-forwarded-proto").unwrap_or_else(|| "http".to_owned());
        let host = self.header("host").unwrap_or_default();
        let path = self.parts.uri.path_and_query().map_or("/", |path| path.as_str());
        format!("{scheme}://{host}{path}")
    }
}

fn status(code: &str) -> Result<Response<Body>, StatusCode> {
    let status = final_status(number(code)?)?;
    if status != StatusCode::IM_A_TEAPOT {
        return Ok(with_status(status, Body::empty()));
    }
    let mut response = with_status(status, Body::whole(TEAPOT));
    let more = HeaderValue::from_static("http://tools.ietf.org/html/rfc2324");
    response.headers_mut().insert("x-more-info", more);
    Ok(response)
}

/// An informational status would not end the response.
fn final_status(code: u16) -> Result<StatusCode, StatusCode> {
    let status = StatusCode::from_u16(code).map_err(|_| StatusCode::BAD_REQUEST)?;
    if status.is_informational() { Err(StatusCode::BAD_REQUEST) } else { Ok(status) }
}

fn random(count: &str) -> Result<Response<Body>, StatusCode> {
    let mut bytes = vec![0; number::<usize>(count)?.min(BYTES_MAX)];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(typed("application/octet-stream", Body::whole(bytes)))
}

/// At most httpbin's ten seconds.
fn delay(seconds: &str) -> Result<Duration, StatusCode> {
    let seconds: f64 = number(seconds)?;
    Duration::try_from_secs_f64(seconds.min(DELAY_MAX)).map_err(|_| StatusCode::BAD_REQUEST)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, StatusCode> {
    text.parse().map_err(|_| StatusCode::BAD_REQUEST)
}

async fn collect(mut body: Incoming) -> Result<Bytes, StatusCode> {
    let mut all = BytesMut::new();
    while let Some(frame) = next_frame(&mut body).await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        if all.len() + bytes.len() > BODY_BYTES_MAX {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}

async fn next_frame(body: &mut Incoming) -> Option<hyper::Result<http_body::Frame<Bytes>>> {
    std::future::poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(body), cx)).await
}

/// `a=b&c=d`; a name that comes twice has a list.
fn pairs(text: &str) -> Map<String, Value> {
    let mut map = Map::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Value::String(decode(value));
        let slot = map.entry(decode(name)).or_insert(Value::Null);
        if let Value::Array(values) = slot {
            values.push(value);
        } else if slot.is_null() {
            *slot = value;
        } else {
            *slot = Value::Array(vec![slot.take(), value]);
        }
    }
    map
}

/// Percent-decodes; what is no escape stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%').then(|| tail.get(..2)).flatten();
        let escape = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(if *first == b'+' { b' ' } else { *first });
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn title_case(name: &str) -> String {
    let mut start = true;
    let letter = |c: char| {
        let c = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        c
    };
    name.chars().map(letter).collect()
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn json_response(value: &Value) -> Response<Body> {
    typed("application/json", Body::whole(format!("{value:#}\n")))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    with_status(status, Body::whole(text))
}

fn typed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_repeated_names_listed() {
        let map = pairs("a=1&b=x%20y+z&a=2&c&a=3&d=%zz%4");
        let expected = json!({
            "a": ["1", "2", "3"], "b": "x y z", "c": "", "d": "%zz%4",
        });
        assert_eq!(Value::Object(map), expected);
    }

    #[test]
    fn names_are_shown_in_title_case() {
        assert_eq!(title_case("x-forwarded-for"), "X-Forwarded-For");
    }

    #[test]
    fn the_teapot_is_httpbins() {
        assert_eq!(TEAPOT.len(), 135);
    }
}
