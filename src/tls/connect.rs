//! The client's side: from a fresh connection to a TLS stream.
//!
//! ```text
//! ClientHello -> handshake -> TlsStream
//!                   | failed
//!                   v
//!                 alert, close
//! ```
//!
//! - Whether the server is trusted is for the configuration's verifier to say.
//! - There is no timeout here: drop the future.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;

use super::TlsStream;
use super::handshake::Handshake;
use super::intake::{ALERT, HANDSHAKE, HandshakeError, Intake, shake};
use crate::io::{Stream, flush};

/// Shakes hands on `stream` with a server, which is to be `name` and is told so.
///
/// # Errors
/// There is no TLS stream; an alert, where one is due, was flushed.
pub(crate) async fn connect<S: Stream>(
    mut stream: S,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream<S>, HandshakeError> {
    let connection = UnbufferedClientConnection::new(config, name).map_err(HandshakeError::Tls)?;
    let mut handshake = Handshake::new(connection, Vec::new());
    // A server may begin with its refusal.
    let mut intake = Intake::new(&[HANDSHAKE, ALERT]);
    match shake(&mut stream, &mut handshake, &mut intake).await {
        Ok(()) => {
            let (session, agreed) = handshake.finish().map_err(HandshakeError::Tls)?;
            Ok(TlsStream::new(stream, session, agreed))
        }
        Err(error) => {
            // Why the handshake failed matters more than whether the server hears of it.
            let _: io::Result<()> = flush(&mut stream).await;
            Err(error)
        }
    }
}
