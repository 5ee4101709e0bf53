//! Backends that do not speak HTTP to the gateway: what arrives is what was sent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::certificate::Leaf;

/// A running backend; it stops accepting when dropped.
pub struct Raw {
    port: u16,
    connections: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Raw {
    /// Says its name and a line feed, echoes what it gets, says `end of NAME` after the client's
    /// end, and closes.
    pub fn echo(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |stream| echo(stream, &name))
    }

    /// Echoes what it gets and says nothing of its own.
    pub fn mirror() -> Self {
        Self::start(|mut stream| copy(&mut stream))
    }

    /// Sends without end, and adds up in `sent` what was taken from it.
    pub fn flood(sent: Arc<AtomicUsize>) -> Self {
        Self::start(move |mut stream| {
            let bytes = [0; 64 * 1024];
            loop {
                let n = stream.write(&bytes)?;
                sent.fetch_add(n, Ordering::SeqCst);
            }
        })
    }

    /// Closes the connection without a word.
    pub fn closing() -> Self {
        Self::start(|_| Ok(()))
    }

    /// Terminates TLS with `leaf` and answers each connection's first request with `name`.
    pub fn tls(name: &str, leaf: &Leaf) -> Self {
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
        let chain = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes());
        let chain = chain.collect::<Result<_, _>>().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (config, name) = (Arc::new(config), name.to_owned());
        Self::start(move |stream| answer(stream, &config, &name))
    }

    fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, stopped) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let raw = Self { port, connections: Arc::clone(&connections), stopped: stopped.clone() };
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                // A broken connection is the peer's affair: the thread ends.
                thread::spawn(move || drop(serve(stream)));
            }
        });
        raw
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; when that fails it is gone already.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn echo(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    copy(&mut stream)?;
    stream.write_all(format!("end of {name}").as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

fn copy(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..n])?;
    }
}

fn answer(stream: TcpStream, config: &Arc<ServerConfig>, name: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut tls = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let length = name.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
    tls.write_all(answer.as_bytes())?;
    tls.conn.send_close_notify();
    tls.flush()
}
