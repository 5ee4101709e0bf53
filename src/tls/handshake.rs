//! The handshake: rustls's unbuffered interface, fed one record at a time.
//!
//! - Only whole records are taken from the stream, and none behind the handshake: what follows is
//!   left to the session that comes of it.
//! - After an error, what was written last is the alert that tells the client.
//! - Data of a client that takes us for a server whose ticket allows early data is skipped, as much
//!   as rustls allows for one record at a time: 16 KB in all.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};

use super::session::Session;
use super::stream::Agreed;
use crate::crypto::forwarded;

/// Descriptions of alerts (RFC 8446, section 6).
const HANDSHAKE_FAILURE: u8 = 40;
const CERTIFICATE_REQUIRED: u8 = 116;

/// A handshake under way, at the server's side.
pub(super) struct Handshake {
    connection: UnbufferedServerConnection,
    /// Whole records that rustls is not done with.
    records: Vec<u8>,
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The client has to go on.
    Waiting,
    Done,
    /// The client closed.
    Closed,
}

impl Handshake {
    /// Begins with `records`, whole ones that hold the ClientHello.
    ///
    /// # Errors
    /// `config` is of no use.
    pub(super) fn new(config: Arc<ServerConfig>, records: Vec<u8>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, records })
    }

    /// Where the next record is collected, behind what is there already.
    pub(super) fn records(&mut self) -> &mut Vec<u8> {
        &mut self.records
    }

    /// Goes on with what was collected, and appends what the client is to be sent to `out`.
    ///
    /// # Errors
    /// The handshake failed; `out` then ends with the alert.
    pub(super) fn advance(&mut self, out: &mut Vec<u8>) -> Result<Progress, rustls::Error> {
        loop {
            let status = self.connection.process_tls_records(&mut self.records);
            let UnbufferedStatus { discard, state, .. } = status;
            let progress = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Progress::Waiting),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Progress::Done),
                // Data before the end of the handshake is not allowed: `max_early_data_size` is 0.
                Ok(_) => Some(Progress::Closed),
                Err(error) => {
                    self.take_alert(out);
                    self.reword_alert(&error, out);
                    return Err(error);
                }
            };
            self.records.drain(..discard);
            match progress {
                Some(Progress::Done) if self.connection.is_handshaking() => {
                    return Ok(Progress::Waiting);
                }
                Some(progress) => return Ok(progress),
                None => {}
            }
        }
    }

    fn take_alert(&mut self, out: &mut Vec<u8>) {
        // Only as long as there is one: rustls would go on to read the records that it refused.
        while self.connection.wants_write() {
            let status = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(data)) = status.state else { return };
            encode(data, out);
        }
    }

    /// rustls says `certificate_required` in TLS 1.2 too, which only has it in TLS 1.3: older
    /// clients know `handshake_failure`. The record is not encrypted yet and ends with the alert.
    fn reword_alert(&self, error: &rustls::Error, out: &mut [u8]) {
        let is_old = self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        if is_old
            && *error == rustls::Error::NoCertificatesPresented
            && let Some(description) = out.last_mut().filter(|last| **last == CERTIFICATE_REQUIRED)
        {
            *description = HANDSHAKE_FAILURE;
        }
    }

    /// What was agreed on, and the session; the handshake is done.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn finish(self, sni: Option<Box<str>>) -> Result<(Session, Agreed), rustls::Error> {
        let alpn = self.connection.alpn_protocol().map(Into::into);
        let resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let client = self.connection.peer_certificates().and_then(|chain| chain.first());
        let client = client.and_then(forwarded);
        let session = Session::new(self.connection)?;
        Ok((session, Agreed { sni, alpn, resumed, client }))
    }
}

/// Appends a record to `out`.
fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    // Asked with no room at first: the answer is how much it needs.
    if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
        let start = out.len();
        out.resize(start + needed.required_size, 0);
        data.encode(&mut out[start..]).expect("there is as much room as it asked for");
    }
}
