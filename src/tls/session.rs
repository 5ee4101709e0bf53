//! An established connection's two keys, and what may be said on it beside data: alerts, key
//! updates, and in TLS 1.2 the wish to negotiate again, which is declined.
//!
//! - rustls did the handshake and derives further keys; records are ours (`record`).
//! - Nothing that a peer can repeat makes us send: our own key update goes out with the next data,
//!   one for however many were asked for, and a second wish to negotiate again ends the connection.
//! - What a peer can repeat without sending data is bounded by [`IDLE_RECORDS_MAX`].
//! - A key that has sealed as much as is safe is replaced; TLS 1.2 cannot, so the connection ends.
//!
//! - What a server sends after the handshake, tickets, is handed to rustls, which keeps them.
//!
//! Stricter than the standard: a client's handshake message has to lie in one record. The only ones
//! that may come are of five bytes, or are declined.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion,
    SupportedCipherSuite,
};

use super::record::{Content, Protection, Refused};

/// Records without data that may come one after the other.
const IDLE_RECORDS_MAX: u8 = 32;

/// Bytes of handshake messages that a server may have begun: a ticket is at most this long.
const MESSAGE_BYTES_MAX: usize = 4 + 0xffff + 1024;

/// Handshake messages that are known here.
const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Levels and descriptions of alerts (RFC 8446, section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const DECODE_ERROR: u8 = 50;
const ILLEGAL_PARAMETER: u8 = 47;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;

/// Keys and rules of an established connection.
pub(super) struct Session {
    opener: Protection,
    sealer: Protection,
    /// Derives further keys.
    secrets: Secrets,
    /// The beginning of a message from a server that goes on in its next record.
    begun: Vec<u8>,
    /// Records that the peer may still send before the next with data.
    patience: u8,
    /// The peer wants us to have new keys too.
    key_update_due: bool,
    /// The peer was told that we do not negotiate again.
    has_declined: bool,
}

/// rustls's part of an established connection, by the side that is ours.
pub(super) enum Secrets {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// A key, and the number of the first record that is sealed with it.
type Next = Result<(u64, ConnectionTrafficSecrets), rustls::Error>;

impl Secrets {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Server(secrets) => secrets.negotiated_cipher_suite(),
            Self::Client(secrets) => secrets.negotiated_cipher_suite(),
        }
    }

    fn version(&self) -> ProtocolVersion {
        match self {
            Self::Server(secrets) => secrets.protocol_version(),
            Self::Client(secrets) => secrets.protocol_version(),
        }
    }

    fn next_opener(&mut self) -> Next {
        match self {
            Self::Server(secrets) => secrets.update_rx_secret(),
            Self::Client(secrets) => secrets.update_rx_secret(),
        }
    }

    fn next_sealer(&mut self) -> Next {
        match self {
            Self::Server(secrets) => secrets.update_tx_secret(),
            Self::Client(secrets) => secrets.update_tx_secret(),
        }
    }
}

/// What a record meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// This part of the record is plaintext, not empty.
    Data(Range<usize>),
    /// Nothing for the reader.
    Nothing,
    /// Nothing for the reader, and [`Session::decline`] is due.
    Renegotiation,
    /// The peer says that it sends no more.
    Closed,
}

/// Why a connection is broken for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A record was forged, too long, or of a kind that has no place here.
    Record(Refused),
    /// A message is not what it should be.
    Malformed,
    /// A message has a value that it must not have.
    Illegal,
    /// A message that has no place here, or too many without data.
    Unexpected,
    /// The peer ended the connection with this alert.
    Alert(u8),
    /// The key has sealed all that it may.
    Worn,
}

impl Session {
    /// Takes over with `keys` and `secrets` of a connection whose handshake is done and sent.
    ///
    /// # Errors
    /// No suite of ours was negotiated.
    pub(super) fn new(keys: ExtractedSecrets, secrets: Secrets) -> Result<Self, rustls::Error> {
        let suite = secrets.suite();
        let both = Protection::new(suite, keys.rx).zip(Protection::new(suite, keys.tx));
        let (opener, sealer) = both.ok_or(rustls::Error::HandshakeNotComplete)?;
        Ok(Self {
            opener,
            sealer,
            secrets,
            begun: Vec::new(),
            patience: IDLE_RECORDS_MAX,
            key_update_due: false,
            has_declined: false,
        })
    }

    /// What was negotiated.
    pub(super) fn suite(&self) -> SupportedCipherSuite {
        self.secrets.suite()
    }

    fn is_tls13(&self) -> bool {
        self.secrets.version() == ProtocolVersion::TLSv1_3
    }

    fn is_client(&self) -> bool {
        matches!(self.secrets, Secrets::Client(_))
    }

    /// Decrypts a whole record in place, and does what it asks for.
    ///
    /// # Errors
    /// The connection is broken; [`refuse`](Self::refuse) tells the peer.
    pub(super) fn receive(&mut self, record: &mut [u8]) -> Result<Received, Fault> {
        let (content, range) = self.opener.open(record).map_err(Fault::Record)?;
        if content == Content::Data && !range.is_empty() {
            self.patience = IDLE_RECORDS_MAX;
            return Ok(Received::Data(range));
        }
        self.patience = self.patience.checked_sub(1).ok_or(Fault::Unexpected)?;
        match content {
            Content::Data => Ok(Received::Nothing),
            Content::Alert => self.alerted(&record[range]),
            Content::Handshake if self.is_tls13() && self.is_client() => {
                self.hear_server(&record[range])
            }
            Content::Handshake if self.is_tls13() => self.update_key(&record[range]),
            Content::Handshake => self.renegotiation(&record[range]),
        }
    }

    fn alerted(&self, alert: &[u8]) -> Result<Received, Fault> {
        let &[level, description] = alert else { return Err(Fault::Malformed) };
        match description {
            CLOSE_NOTIFY => Ok(Received::Closed),
            USER_CANCELED => Ok(Received::Nothing),
            // TLS 1.3 has no warnings but the two above.
            _ if level == WARNING && !self.is_tls13() => Ok(Received::Nothing),
            _ => Err(Fault::Alert(description)),
        }
    }

    /// What a TLS 1.3 server may send now: tickets, of which a record may hold several, or a part,
    /// and key updates.
    fn hear_server(&mut self, bytes: &[u8]) -> Result<Received, Fault> {
        self.begun.extend_from_slice(bytes);
        if self.begun.len() > MESSAGE_BYTES_MAX {
            return Err(Fault::Unexpected);
        }
        let messages = std::mem::take(&mut self.begun);
        let mut rest = &messages[..];
        while let Some((message, behind)) = first_message(rest) {
            match message[0] {
                NEW_SESSION_TICKET => self.keep_ticket(&message[MESSAGE_HEADER_BYTES..])?,
                KEY_UPDATE if behind.is_empty() => {
                    self.update_key(message)?;
                }
                _ => return Err(Fault::Unexpected),
            }
            rest = behind;
        }
        self.begun = rest.to_vec();
        Ok(Received::Nothing)
    }

    fn keep_ticket(&mut self, ticket: &[u8]) -> Result<(), Fault> {
        let Secrets::Client(secrets) = &mut self.secrets else { return Err(Fault::Unexpected) };
        secrets.handle_new_session_ticket(ticket).map_err(|_| Fault::Malformed)
    }

    /// The one message that a TLS 1.3 client may send now. It ends its record, since what follows
    /// has other keys.
    fn update_key(&mut self, message: &[u8]) -> Result<Received, Fault> {
        let &[KEY_UPDATE, 0, 0, 1, wants_ours] = message else { return Err(Fault::Unexpected) };
        let secrets = self.secrets.next_opener().map_err(|_| Fault::Unexpected)?;
        self.opener = Protection::new(self.suite(), secrets).ok_or(Fault::Unexpected)?;
        match wants_ours {
            0 => {}
            1 => self.key_update_due = true,
            _ => return Err(Fault::Illegal),
        }
        Ok(Received::Nothing)
    }

    fn renegotiation(&mut self, message: &[u8]) -> Result<Received, Fault> {
        let wish = if self.is_client() { HELLO_REQUEST } else { CLIENT_HELLO };
        match message.first() {
            Some(kind) if *kind == wish && !self.has_declined => {
                self.has_declined = true;
                Ok(Received::Renegotiation)
            }
            _ => Err(Fault::Unexpected),
        }
    }

    /// Appends the warning that we do not negotiate again.
    pub(super) fn decline(&mut self, out: &mut Vec<u8>) {
        self.alert(WARNING, NO_RENEGOTIATION, out);
    }

    /// Tells the peer of a new key, and seals with it from then on.
    fn refresh(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let secrets = self.secrets.next_sealer().map_err(|_| Fault::Worn)?;
        let fresh = Protection::new(self.suite(), secrets).ok_or(Fault::Worn)?;
        let message = [KEY_UPDATE, 0, 0, 1, 0];
        self.sealer.seal(Content::Handshake, &[IoSlice::new(&message)], out);
        self.sealer = fresh;
        self.key_update_due = false;
        Ok(())
    }

    /// Appends records with all of `plain`.
    ///
    /// # Errors
    /// The key is worn, and TLS 1.2 has no other.
    pub(super) fn seal(&mut self, plain: &[IoSlice<'_>], out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.key_update_due || self.sealer.is_worn() {
            self.refresh(out)?;
        }
        self.sealer.seal(Content::Data, plain, out);
        Ok(())
    }

    /// Appends the record that says that no more data follows.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        self.alert(WARNING, CLOSE_NOTIFY, out);
    }

    /// Appends the alert that says why the connection is given up, where one is due.
    pub(super) fn refuse(&mut self, fault: Fault, out: &mut Vec<u8>) {
        let description = match fault {
            Fault::Record(Refused::Forged) => BAD_RECORD_MAC,
            Fault::Record(Refused::TooLong) => RECORD_OVERFLOW,
            Fault::Record(Refused::Unexpected) | Fault::Unexpected => UNEXPECTED_MESSAGE,
            Fault::Malformed => DECODE_ERROR,
            Fault::Illegal => ILLEGAL_PARAMETER,
            Fault::Alert(_) | Fault::Worn => return,
        };
        self.alert(FATAL, description, out);
    }

    fn alert(&mut self, level: u8, description: u8, out: &mut Vec<u8>) {
        self.sealer.seal(Content::Alert, &[IoSlice::new(&[level, description])], out);
    }
}

/// Kind and length of a handshake message.
const MESSAGE_HEADER_BYTES: usize = 4;

/// The first handshake message of `bytes`, if it is whole, and what is behind it.
fn first_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [_, high, middle, low] = *bytes.first_chunk::<MESSAGE_HEADER_BYTES>()?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    bytes.split_at_checked(MESSAGE_HEADER_BYTES + length)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(Refused::Forged) => f.write_str("the peer sent a forged record"),
            Self::Record(Refused::TooLong) => f.write_str("the peer sent a record too long"),
            Self::Record(Refused::Unexpected) | Self::Unexpected => {
                f.write_str("the peer sent a message that has no place here")
            }
            Self::Malformed | Self::Illegal => f.write_str("the peer sent a malformed message"),
            Self::Alert(code) => {
                write!(f, "the peer sent the alert {:?} ({code})", AlertDescription::from(*code))
            }
            Self::Worn => f.write_str("the key has sealed as much as is safe"),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault.to_string())
    }
}
