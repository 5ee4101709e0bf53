//! An HTTP/2 client (hyper over a hand-driven rustls) and an HTTP/2 backend without TLS.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::ReadBufCursor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConnection;
use tokio::net::TcpStream;

use super::PATIENCE;
use super::client::Tls;

/// Runs `test` on a runtime of its own, for at most the harness's patience.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("no hang") })
}

/// One HTTP/2 connection. Clones share it.
#[derive(Clone)]
pub struct H2 {
    sender: SendRequest<Frames>,
    name: String,
}

/// An answer, its body complete.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl H2 {
    /// Connects; call it inside [`block_on`].
    ///
    /// # Panics
    /// When the handshake fails or does not choose h2.
    pub async fn connect(tls: &Tls, to: SocketAddr, name: &str) -> Self {
        let (tcp, connection) = tls.alpn(&["h2", "http/1.1"]).handshake(to, name).unwrap();
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        tcp.set_nonblocking(true).unwrap();
        let stream = TlsStream { tcp: TcpStream::from_std(tcp).unwrap(), tls: connection };
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        // Its end reaches the requests as their errors.
        tokio::spawn(async { drop(connection.await) });
        Self { sender, name: name.to_owned() }
    }

    pub fn builder(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://{}{path}", self.name))
    }

    /// # Errors
    /// The stream or the connection broke.
    pub async fn send(&self, request: Request<Frames>) -> hyper::Result<Answer> {
        let (head, body) = self.open(request).await?.into_parts();
        collect(head.status.as_u16(), head.headers, body).await
    }

    /// The answer's head; its body is still to come.
    ///
    /// # Errors
    /// The stream or the connection broke.
    pub async fn open(&self, request: Request<Frames>) -> hyper::Result<Response<Incoming>> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        sender.send_request(request).await
    }

    /// # Errors
    /// The stream or the connection broke.
    pub async fn get(&self, path: &str) -> hyper::Result<Answer> {
        self.send(self.builder("GET", path).body(Frames::empty()).unwrap()).await
    }

    /// # Errors
    /// The stream or the connection broke.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> hyper::Result<Answer> {
        self.send(self.builder("POST", path).body(Frames::of(body)).unwrap()).await
    }
}

/// Reads a body to its end.
///
/// # Errors
/// The stream broke.
pub async fn collect(status: u16, headers: HeaderMap, mut body: Incoming) -> hyper::Result<Answer> {
    let mut answer = Answer { status, headers, body: Vec::new(), trailers: None };
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => answer.body.extend_from_slice(&data),
            Err(frame) => answer.trailers = frame.into_trailers().ok(),
        }
    }
    Ok(answer)
}

/// A body known in advance.
#[derive(Debug)]
pub struct Frames(VecDeque<Frame<Bytes>>);

impl Frames {
    pub fn empty() -> Self {
        Self(VecDeque::new())
    }

    /// `body` in pieces, so that it is really streamed.
    pub fn of(body: impl Into<Bytes>) -> Self {
        let mut body = body.into();
        let mut frames = VecDeque::new();
        while !body.is_empty() {
            frames.push_back(Frame::data(body.split_to(body.len().min(40_000))));
        }
        Self(frames)
    }

    pub fn trailers(mut self, name: &'static str, value: &'static str) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, value.parse().unwrap());
        self.0.push_back(Frame::trailers(trailers));
        self
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// rustls over a tokio socket, driven by hand.
struct TlsStream {
    tcp: TcpStream,
    tls: ClientConnection,
}

/// The socket as rustls wants it: `WouldBlock` instead of waiting.
struct Ciphertext<'a>(&'a TcpStream);

impl Read for Ciphertext<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Ciphertext<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut Ciphertext(&self.tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => drop(result?),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.tcp.poll_read_ready(cx))?;
        match self.tls.read_tls(&mut Ciphertext(&self.tcp)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
            result => drop(result?),
        }
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Read for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 16 * 1024];
        let room = bytes.len().min(buffer.remaining());
        loop {
            match self.tls.reader().read(&mut bytes[..room]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    buffer.put_slice(&bytes[..result?]);
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(self.poll_receive(cx))?;
        }
    }
}

impl hyper::rt::Write for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let n = self.tls.writer().write(bytes)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tls.send_close_notify();
        self.poll_send(cx)
    }
}

/// A backend that speaks HTTP/2 without TLS and echoes body and trailers. The answer's headers
/// tell what it saw: `x-method`, `x-path`, `x-authority`, `x-version`, `x-te`, `x-attempt`. The
/// first attempt at `/unavailable` is read to its end and told so in gRPC's way.
pub struct H2cBackend {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl H2cBackend {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        thread::spawn({
            let connections = Arc::clone(&connections);
            move || accept_forever(listener, &connections)
        });
        Self { address, connections }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Ends with the test process: a thread parked in accept costs nothing.
fn accept_forever(listener: TcpListener, connections: &AtomicUsize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(echo));
            tokio::spawn(async { drop(connection.await) });
        }
    });
}

async fn echo(request: Request<Incoming>) -> hyper::Result<Response<Echo>> {
    let mut response = Response::new(Echo(None));
    let attempt = request.headers().get("x-envoy-attempt-count");
    let attempt = attempt.map_or("", |count| count.to_str().unwrap()).to_owned();
    if request.uri().path() == "/unavailable" && attempt == "1" {
        collect(0, HeaderMap::new(), request.into_body()).await?;
        response.headers_mut().insert("grpc-status", "14".parse().unwrap());
        return Ok(response);
    }
    let seen = [
        ("x-method", request.method().to_string()),
        ("x-path", request.uri().path().to_owned()),
        ("x-authority", request.uri().authority().map(ToString::to_string).unwrap_or_default()),
        ("x-version", format!("{:?}", request.version())),
        ("x-attempt", attempt),
        ("x-te", request.headers().get("te").map_or("", |te| te.to_str().unwrap()).to_owned()),
    ];
    for (name, value) in seen {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response.body_mut().0 = Some(request.into_body());
    Ok(response)
}

/// The request's own body, frame by frame, then one trailer more.
struct Echo(Option<Incoming>);

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            ended => {
                self.0 = None;
                let request_trailers = ended.and_then(Result::ok).map(Frame::into_trailers);
                let mut trailers = request_trailers.and_then(Result::ok).unwrap_or_default();
                trailers.insert("x-echoed", "yes".parse().unwrap());
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }
}
