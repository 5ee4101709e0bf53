//! The handshake: rustls's unbuffered interface, fed one record at a time.
//!
//! - Only whole records are taken from the stream, and none behind the handshake: what follows is
//!   left to the session that comes of it.
//! - Both sides go the same way; what differs between them is [`Side`].
//! - After an error, what was written last is the alert that tells the peer.
//! - Data of a client that takes us for a server whose ticket allows early data is skipped, as much
//!   as rustls allows for one record at a time: 16 KB in all.

use std::ops::{Deref, DerefMut};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind, ProtocolVersion};

use super::session::{Secrets, Session};
use super::stream::Agreed;
use crate::crypto::forwarded;

/// Descriptions of alerts (RFC 8446, section 6).
const HANDSHAKE_FAILURE: u8 = 40;
const CERTIFICATE_REQUIRED: u8 = 116;

/// rustls's end of a connection, at one side.
pub(super) trait Side: DerefMut<Target: Deref<Target = CommonState>> + Sized {
    type Data;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// The keys, and what derives further ones.
    fn into_secrets(self) -> Result<(ExtractedSecrets, Secrets), rustls::Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn into_secrets(self) -> Result<(ExtractedSecrets, Secrets), rustls::Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Ok((keys, Secrets::Server(secrets)))
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn into_secrets(self) -> Result<(ExtractedSecrets, Secrets), rustls::Error> {
        let (keys, secrets) = self.dangerous_into_kernel_connection()?;
        Ok((keys, Secrets::Client(secrets)))
    }
}

/// A handshake under way.
pub(super) struct Handshake<C> {
    connection: C,
    /// Whole records that rustls is not done with.
    records: Vec<u8>,
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The peer has to go on.
    Waiting,
    Done,
    /// The peer closed.
    Closed,
}

impl<C: Side> Handshake<C> {
    /// Begins with `records`, whole ones: at a server those of the ClientHello.
    pub(super) fn new(connection: C, records: Vec<u8>) -> Self {
        Self { connection, records }
    }

    /// Where the next record is collected, behind what is there already.
    pub(super) fn records(&mut self) -> &mut Vec<u8> {
        &mut self.records
    }

    /// Goes on with what was collected, and appends what the peer is to be sent to `out`.
    ///
    /// # Errors
    /// The handshake failed; `out` then ends with the alert.
    pub(super) fn advance(&mut self, out: &mut Vec<u8>) -> Result<Progress, rustls::Error> {
        loop {
            let status = self.connection.process(&mut self.records);
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
            let status = self.connection.process(&mut []);
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
    pub(super) fn finish(self) -> Result<(Session, Agreed), rustls::Error> {
        let alpn = self.connection.alpn_protocol().map(Into::into);
        let resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let (keys, secrets) = self.connection.into_secrets()?;
        let session = Session::new(keys, secrets)?;
        Ok((session, Agreed { alpn, resumed, ..Agreed::default() }))
    }
}

impl Handshake<UnbufferedServerConnection> {
    /// [`finish`](Self::finish), with what a server knows of its client, who asked for `sni`.
    ///
    /// # Errors
    /// As there.
    pub(super) fn accepted(
        self,
        sni: Option<Box<str>>,
    ) -> Result<(Session, Agreed), rustls::Error> {
        let client = self.connection.peer_certificates().and_then(|chain| chain.first());
        let client = client.and_then(forwarded);
        let (session, agreed) = self.finish()?;
        Ok((session, Agreed { sni, client, ..agreed }))
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
