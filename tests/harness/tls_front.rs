//! TLS in front of a plain backend, by OpenSSL: what ends it here is not what the gateway is made of.

use std::fs;
use std::path::PathBuf;

use super::certificate::Leaf;
use super::outside::{self, PythonServer};

/// Passes what is in TLS on to a plain backend, and notes each handshake.
pub struct TlsFront {
    server: PythonServer,
    directory: tempfile::TempDir,
}

/// What a front is like.
pub struct Options<'a> {
    /// The port of the plain backend.
    pub to: u16,
    /// What it proves itself with.
    pub leaf: &'a Leaf,
    /// The CA of the clients that it takes, PEM; without one it asks for no certificate.
    pub client_ca: Option<String>,
    /// Protocols that it knows, by preference.
    pub alpn: &'a [&'a str],
    /// Whether it speaks no later version than TLS 1.2.
    pub is_old: bool,
}

const SCRIPT: &str = r#"
import asyncio, json, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(DIR + '/tls.crt', DIR + '/tls.key')
if ALPN: context.set_alpn_protocols(ALPN)
if OLD: context.maximum_version = ssl.TLSVersion.TLSv1_2
if CA:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(DIR + '/ca.crt')
names = {}
context.sni_callback = lambda tls, name, _: names.__setitem__(id(tls), name)

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    writer.close()

async def serve(reader, writer):
    tls = writer.get_extra_info('ssl_object')
    subject = dict(part for rdn in (tls.getpeercert() or {}).get('subject', ()) for part in rdn)
    note = [names.get(id(tls)), tls.version(), tls.selected_alpn_protocol(), tls.session_reused,
            subject.get('commonName')]
    with open(DIR + '/handshakes', 'a') as log:
        log.write(json.dumps(note) + '\n')
    plain_reader, plain_writer = await asyncio.open_connection('127.0.0.1', TO)
    await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer))

async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await server.serve_forever()

asyncio.run(main())
"#;

impl TlsFront {
    /// `None`, after saying so, where there is no Python.
    pub fn start(options: &Options<'_>) -> Option<Self> {
        let python = outside::python("ssl")?;
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("tls.crt", &options.leaf.chain_pem);
        write("tls.key", &options.leaf.key_pem);
        write("ca.crt", options.client_ca.as_deref().unwrap_or_default());
        let flag = |is_set| if is_set { "True" } else { "False" };
        let head = format!(
            "DIR = {:?}\nTO = {}\nALPN = {:?}\nOLD = {}\nCA = {}\n",
            directory.path(),
            options.to,
            options.alpn,
            flag(options.is_old),
            flag(options.client_ca.is_some()),
        );
        let server = PythonServer::start(python, &format!("{head}{SCRIPT}"));
        Some(Self { server, directory })
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Of each handshake so far: the SNI, version, protocol, whether it was resumed and the
    /// client's common name, as JSON.
    pub fn handshakes(&self) -> Vec<String> {
        let path: PathBuf = self.directory.path().join("handshakes");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
