//! Tickets of a server that asks its clients for certificates: who would not get in by a full
//! handshake now, because a certificate or a revocation list has expired since, does not resume.
//!
//! rustls checks a client's certificate in full handshakes only, and each resumed one brings a
//! ticket for the next, so that a session would outlive its certificate for good. The session that
//! is sealed into a ticket holds the certificates: they are checked again whenever one is opened.
//! Where they no longer hold, the ticket is worth nothing, and a full handshake says why.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;

use super::ClientVerifier;

/// Opens tickets of clients that are taken still.
#[derive(Debug)]
pub(crate) struct CheckedTickets {
    tickets: Arc<dyn ProducesTickets>,
    clients: Arc<ClientVerifier>,
    clock: Arc<dyn TimeProvider>,
}

impl CheckedTickets {
    /// `tickets`, for the servers that `clients` are checked at.
    pub(crate) fn new(
        tickets: Arc<dyn ProducesTickets>,
        clients: Arc<ClientVerifier>,
        clock: Arc<dyn TimeProvider>,
    ) -> Self {
        Self { tickets, clients, clock }
    }

    /// Whether whose session it is would get in now.
    fn may_resume(&self, session: &[u8]) -> Option<bool> {
        let chain = client_chain(session)?;
        let Some((leaf, presented)) = chain.split_first() else {
            return Some(self.clients.optional);
        };
        let now = self.clock.current_time()?;
        Some(self.clients.accept_untrusted || self.clients.check(leaf, presented, now).is_ok())
    }
}

impl ProducesTickets for CheckedTickets {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.tickets.encrypt(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let session = self.tickets.decrypt(ticket)?;
        self.may_resume(&session).unwrap_or(false).then_some(session)
    }
}

/// The certificates of the client in a session as rustls 0.23 writes it, which is:
///
/// ```text
/// has a name (1) | length (1), name        version (2) | suite (2) | length (1), secret
/// extended master secret (1) | has a chain (1) | length (3), certificates | ...
/// certificate = length (3), DER
/// ```
///
/// `None` where it is not of that form: nobody resumes then.
fn client_chain(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut rest = session;
    match number(&mut rest, 1)? {
        0 => {}
        1 => drop(prefixed(&mut rest, 1)?),
        _ => return None,
    }
    let _version_and_suite = take(&mut rest, 4)?;
    let _secret = prefixed(&mut rest, 1)?;
    let _is_extended = take(&mut rest, 1)?;
    let mut certificates = match number(&mut rest, 1)? {
        0 => &[],
        1 => prefixed(&mut rest, 3)?,
        _ => return None,
    };
    let mut chain = Vec::new();
    while !certificates.is_empty() {
        chain.push(CertificateDer::from(prefixed(&mut certificates, 3)?));
    }
    Some(chain)
}

/// What stands behind its length of `digits` bytes.
fn prefixed<'a>(rest: &mut &'a [u8], digits: usize) -> Option<&'a [u8]> {
    let length = number(rest, digits)?;
    take(rest, length)
}

fn number(rest: &mut &[u8], digits: usize) -> Option<usize> {
    let digits = take(rest, digits)?;
    Some(digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(n)?;
    *rest = after;
    Some(taken)
}
