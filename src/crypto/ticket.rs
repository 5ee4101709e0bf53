//! Session tickets: what a client brings back to skip most of its next handshake.
//!
//! - Stateless: the session is sealed into the ticket, so any worker opens it.
//! - Workers load the secret without a lock and write nothing shared; only the control thread
//!   rotates.
//! - Each [`TicketKeys`] is a world of its own, with a key of its own. Servers that trust different
//!   clients must not share one, or a session from one would enter the other.
//! - That key is derived anew for each ticket: ten thousand groups keep one secret, not ten
//!   thousand expanded keys of 600 bytes.
//!
//! ```text
//! key of a group = HMAC-SHA-256(secret, group)
//! ticket         = secret's name (16) | nonce (12) | AES-256-GCM(session; the name) | tag (16)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::GetRandomFailed;
use rustls::server::ProducesTickets;

/// What clients are told, in seconds: twice [`TicketSecrets::ROTATION`], because that is how long a
/// secret opens tickets. A ticket lives at least half as long; after that a full handshake follows.
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

const NAME_LEN: usize = 16;

/// The secret that seals now and the one before it.
#[derive(Debug)]
pub(crate) struct TicketSecrets {
    secrets: ArcSwap<Secrets>,
    /// How many groups there have been.
    groups: AtomicU64,
}

impl TicketSecrets {
    /// How often the control thread calls [`rotate`](Self::rotate).
    pub(crate) const ROTATION: std::time::Duration = std::time::Duration::from_hours(6);

    /// Makes a fresh secret.
    ///
    /// # Errors
    /// The kernel has no randomness.
    pub(crate) fn new() -> Result<Self, GetRandomFailed> {
        let secrets = Secrets { current: Arc::new(Secret::random()?), previous: None };
        Ok(Self { secrets: ArcSwap::from_pointee(secrets), groups: AtomicU64::new(0) })
    }

    /// Seals with a new secret from now on; tickets of the one before are still opened, older ones
    /// are not.
    ///
    /// # Errors
    /// The kernel has no randomness; the secrets stay.
    pub(crate) fn rotate(&self) -> Result<(), GetRandomFailed> {
        let previous = Some(Arc::clone(&self.secrets.load().current));
        let current = Arc::new(Secret::random()?);
        self.secrets.store(Arc::new(Secrets { current, previous }));
        Ok(())
    }

    /// A new group, which opens no other's tickets.
    pub(crate) fn group(self: &Arc<Self>) -> TicketKeys {
        let group = self.groups.fetch_add(1, Ordering::Relaxed);
        TicketKeys { secrets: Arc::clone(self), group }
    }
}

/// One group of servers that may resume each other's sessions.
///
/// It stays in the rustls configurations it was given to while its key rotates.
#[derive(Debug)]
pub(crate) struct TicketKeys {
    secrets: Arc<TicketSecrets>,
    group: u64,
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.secrets.secrets.load().current.seal(session, self.group)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk::<NAME_LEN>()?;
        self.secrets.secrets.load().named(name)?.open(sealed, self.group)
    }
}

#[derive(Debug)]
struct Secrets {
    current: Arc<Secret>,
    previous: Option<Arc<Secret>>,
}

impl Secrets {
    fn named(&self, name: &[u8; NAME_LEN]) -> Option<&Secret> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|secret| secret.name == *name)
            .map(Arc::as_ref)
    }
}

#[derive(Debug)]
struct Secret {
    /// Public: it tells which secret opens a ticket, and nothing about the secret.
    name: [u8; NAME_LEN],
    /// ring prints no key bytes in `Debug`.
    derives: hmac::Key,
}

impl Secret {
    fn random() -> Result<Self, GetRandomFailed> {
        let derives = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()?);
        Ok(Self { name: random()?, derives })
    }

    /// Nonces are random: at 2^32 tickets per key, 200,000 a second of one group, two are the same
    /// with a probability of 2^-33.
    fn key(&self, group: u64) -> LessSafeKey {
        let derived = hmac::sign(&self.derives, &group.to_be_bytes());
        let key = UnboundKey::new(&AES_256_GCM, derived.as_ref())
            .expect("SHA-256 gives the 32 bytes that AES-256 takes");
        LessSafeKey::new(key)
    }

    fn seal(&self, session: &[u8], group: u64) -> Option<Vec<u8>> {
        let nonce = random::<NONCE_LEN>().ok()?;
        let start = NAME_LEN + NONCE_LEN;
        let mut ticket = Vec::with_capacity(start + session.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (key, name) = (self.key(group), Aad::from(&self.name));
        let tag = key.seal_in_place_separate_tag(nonce, name, &mut ticket[start..]).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, sealed: &[u8], group: u64) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let (key, name) = (self.key(group), Aad::from(&self.name));
        let length = key.open_in_place(nonce, name, &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

fn random<const N: usize>() -> Result<[u8; N], GetRandomFailed> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| GetRandomFailed)?;
    Ok(bytes)
}

#[cfg(test)]
impl TicketKeys {
    /// A group with a secret of its own.
    pub(crate) fn new() -> Result<Self, GetRandomFailed> {
        Ok(Arc::new(TicketSecrets::new()?).group())
    }

    /// Rotates it.
    pub(crate) fn rotate(&self) -> Result<(), GetRandomFailed> {
        self.secrets.rotate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"what rustls wants to see again";

    fn keys() -> TicketKeys {
        TicketKeys::new().unwrap()
    }

    #[test]
    fn a_ticket_survives_one_rotation_but_not_two() {
        let secrets = Arc::new(TicketSecrets::new().unwrap());
        let keys = secrets.group();
        let ticket = keys.encrypt(SESSION).unwrap();
        assert_eq!(keys.decrypt(&ticket).as_deref(), Some(SESSION));
        secrets.rotate().unwrap();
        assert_eq!(keys.decrypt(&ticket).as_deref(), Some(SESSION));
        secrets.rotate().unwrap();
        assert_eq!(keys.decrypt(&ticket), None);
    }

    #[test]
    fn tickets_of_others_are_refused() {
        let (ours, theirs) = (keys(), keys().encrypt(SESSION).unwrap());
        assert_eq!(ours.decrypt(&theirs), None);
        let mut renamed = ours.encrypt(SESSION).unwrap();
        renamed[NAME_LEN..].copy_from_slice(&theirs[NAME_LEN..]);
        assert_eq!(ours.decrypt(&renamed), None, "the right name does not help the wrong key");
    }

    #[test]
    fn groups_of_the_same_secret_refuse_each_other() {
        let secrets = Arc::new(TicketSecrets::new().unwrap());
        let (a, b) = (secrets.group(), secrets.group());
        let ticket = a.encrypt(SESSION).unwrap();
        assert_eq!(b.decrypt(&ticket), None);
        secrets.rotate().unwrap();
        assert_eq!(b.decrypt(&ticket), None);
        assert_eq!(a.decrypt(&ticket).as_deref(), Some(SESSION));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let keys = keys();
        let ticket = keys.encrypt(SESSION).unwrap();
        for length in 0..ticket.len() {
            assert_eq!(keys.decrypt(&ticket[..length]), None, "cut to {length}");
        }
        for index in 0..ticket.len() * 8 {
            let mut flipped = ticket.clone();
            flipped[index / 8] ^= 1 << (index % 8);
            assert_eq!(keys.decrypt(&flipped), None, "bit {index}");
        }
    }

    #[test]
    fn the_same_session_never_seals_to_the_same_ticket() {
        let keys = keys();
        assert_ne!(keys.encrypt(SESSION), keys.encrypt(SESSION));
        assert_eq!(keys.decrypt(&keys.encrypt(b"").unwrap()).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_secret_opens_tickets_for_as_long_as_clients_keep_them() {
        let opens = TicketSecrets::ROTATION * 2;
        assert_eq!(opens.as_secs(), u64::from(LIFETIME_SECONDS));
    }
}
