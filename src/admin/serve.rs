//! The administration's thread: accepts, and answers by port and path.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, LocalSet};

use super::body::Whole;
use super::page::{Page, Pages, TEXT};
use super::{Command, State, command, gzip};

/// For a request's head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Admin,
    Status,
    Metrics,
}

impl Port {
    /// Connections of it; for one more the oldest gives way. Where pages may be of megabytes, each
    /// may hold one that its client does not read.
    pub(super) fn connections_max(self) -> usize {
        match self {
            Self::Status => 64,
            Self::Admin | Self::Metrics => 16,
        }
    }
}

/// Starts the thread; it ends when the sender of `ended` is gone.
pub(super) fn start(
    ports: Vec<(Port, TcpListener)>,
    state: State,
    ended: watch::Receiver<()>,
) -> io::Result<JoinHandle<()>> {
    // The other thread makes large pages and packs them; a second would only take more from the
    // workers.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("admin-pages")
        .max_blocking_threads(1)
        .build()?;
    let ports = {
        let _entered = runtime.enter();
        let register = |(port, listener)| Ok((port, tokio::net::TcpListener::from_std(listener)?));
        ports.into_iter().map(register).collect::<io::Result<Vec<_>>>()?
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        let pages = Rc::new(Pages::new(state));
        LocalSet::new().block_on(&runtime, serve(ports, pages, ended));
    })
}

async fn serve(
    ports: Vec<(Port, tokio::net::TcpListener)>,
    pages: Rc<Pages>,
    mut ended: watch::Receiver<()>,
) {
    let mut accepting = JoinSet::new();
    for (port, listener) in ports {
        accepting.spawn_local(accept(port, listener, Rc::clone(&pages)));
    }
    // Fails when the sender is gone, which is what is waited for. What is open is cut off.
    let _ = ended.changed().await;
}

async fn accept(port: Port, listener: tokio::net::TcpListener, pages: Rc<Pages>) {
    let mut connections = JoinSet::new();
    // In the order of coming.
    let mut open = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    make_room(&mut open, port.connections_max());
                    let serving = serve_connection(port, stream, Rc::clone(&pages));
                    open.push_back(connections.spawn_local(serving));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Room for one more. Refusing that one instead would let whoever connects and keeps silent keep
/// probes out, and with them the gateway's traffic.
fn make_room(open: &mut VecDeque<AbortHandle>, max: usize) {
    open.retain(|connection| !connection.is_finished());
    if open.len() >= max
        && let Some(oldest) = open.pop_front()
    {
        oldest.abort();
    }
}

async fn serve_connection(port: Port, stream: TcpStream, pages: Rc<Pages>) {
    let last = Cell::new(None);
    let service = service_fn(|request| answer(port, &pages, &last, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // How a client ends its connection is its own affair.
    let _ = connection.await;
    if let Some(command) = last.take() {
        pages.obey(command);
    }
}

/// `last` is carried out when the connection has ended.
async fn answer(
    port: Port,
    pages: &Pages,
    last: &Cell<Option<Command>>,
    request: Request<Incoming>,
) -> Result<Response<Whole>, Infallible> {
    if port == Port::Admin && command::is_known(request.uri().path()) {
        return Ok(obey(pages, last, &request));
    }
    let page = match port {
        Port::Admin => pages.admin(request.uri()).await,
        Port::Status => pages.status(request.uri().path()),
        Port::Metrics => pages.metrics(request.uri().path()).await,
    };
    let Some(page) = page else {
        let text = "no such page; the administration lists its pages at /\n";
        return Ok(response(StatusCode::NOT_FOUND, TEXT, text.to_owned()));
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(only("GET, HEAD"));
    }
    Ok(send(pages, page, request.headers()).await)
}

/// `page` as the client wants it, who sent `headers`.
async fn send(pages: &Pages, page: Page, headers: &HeaderMap) -> Response<Whole> {
    let Page { status, content_type, text } = page;
    if text.len() < gzip::WORTH_IT {
        return response(status, content_type, text);
    }
    let is_gzip = gzip::is_accepted(headers);
    let mut response = if is_gzip {
        let packed = pages.aside(move || gzip::pack(text.as_bytes())).await;
        response(status, content_type, packed)
    } else {
        response(status, content_type, text)
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn obey(
    pages: &Pages,
    last: &Cell<Option<Command>>,
    request: &Request<Incoming>,
) -> Response<Whole> {
    if request.method() != Method::POST {
        return only("POST");
    }
    if !command::is_own(request.headers()) {
        let text = "a page of another origin gives no commands\n";
        return response(StatusCode::FORBIDDEN, TEXT, text.to_owned());
    }
    let command = match command::parse(request.uri()) {
        Ok(command) => command,
        Err(text) => return response(StatusCode::BAD_REQUEST, TEXT, text),
    };
    let mut response = response(StatusCode::OK, TEXT, "OK\n".to_owned());
    if command == Command::Quit {
        last.set(Some(command));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    } else {
        pages.obey(command);
    }
    response
}

/// For any other method than `methods`.
fn only(methods: &'static str) -> Response<Whole> {
    let text = format!("only {methods}\n");
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    content: impl Into<Bytes>,
) -> Response<Whole> {
    let mut response = Response::new(Whole::from(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
