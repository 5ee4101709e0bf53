//! Session tickets: what a client brings back to skip most of its next handshake.
//!
//! - Stateless: the session is sealed into the ticket, so any worker opens it.
//! - Workers load the secret without a lock and write nothing shared; only the control thread
//!   rotates.
//! - Each [`TicketKeys`] is a world of its own. Servers that trust different clients must not
//!   share one, or a session from one would enter the other.
//! - Ten thousand worlds take one expanded key, not ten thousand of 600 bytes: the group is
//!   authenticated with each ticket, so that another group's does not open.
//!
//! ```text
//! ticket = key name (16) | nonce (12) | AES-256-GCM(session; key name, group) | tag (16)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::GetRandomFailed;
use rustls::server::ProducesTickets;

/// What clients are told, in seconds: twice [`TicketSecrets::ROTATION`], because that is how long a
/// key opens tickets. A ticket lives at least half as long; after that a full handshake follows.
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

const NAME_LEN: usize = 16;

/// The key that seals now and the one before it.
#[derive(Debug)]
pub(crate) struct TicketSecrets {
    keys: ArcSwap<Keys>,
    /// How many groups there have been.
    groups: AtomicU64,
}

impl TicketSecrets {
    /// How often the control thread calls [`rotate`](Self::rotate).
    pub(crate) const ROTATION: std::time::Duration = std::time::Duration::from_hours(6);

    /// Makes a fresh key.
    ///
    /// # Errors
    /// The kernel has no randomness.
    pub(crate) fn new() -> Result<Self, GetRandomFailed> {
        let keys = Keys { current: Arc::new(Key::random()?), previous: None };
        Ok(Self { keys: ArcSwap::from_pointee(keys), groups: AtomicU64::new(0) })
    }

    /// Seals with a new key from now on; tickets of the key before are still opened, older ones
    /// are not.
    ///
    /// # Errors
    /// The kernel has no randomness; the keys stay.
    pub(crate) fn rotate(&self) -> Result<(), GetRandomFailed> {
        let previous = Some(Arc::clone(&self.keys.load().current));
        let current = Arc::new(Key::random()?);
        self.keys.store(Arc::new(Keys { current, previous }));
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
/// It stays in the rustls configurations it was given to while its keys rotate.
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
        self.secrets.keys.load().current.seal(session, self.group)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk::<NAME_LEN>()?;
        self.secrets.keys.load().named(name)?.open(sealed, self.group)
    }
}

#[derive(Debug)]
struct Keys {
    current: Arc<Key>,
    previous: Option<Arc<Key>>,
}

impl Keys {
    fn named(&self, name: &[u8; NAME_LEN]) -> Option<&Key> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| key.name == *name)
            .map(Arc::as_ref)
    }
}

#[derive(Debug)]
struct Key {
    /// Public: it tells which key opens a ticket, and nothing about the key.
    name: [u8; NAME_LEN],
    /// Nonces are random: at 2^32 tickets per key, 200,000 a second, two are the same with a
    /// probability of 2^-33. ring prints no key bytes in `Debug`.
    aead: LessSafeKey,
}

impl Key {
    fn random() -> Result<Self, GetRandomFailed> {
        let key = UnboundKey::new(&AES_256_GCM, &random::<32>()?)
            .expect("AES-256 takes every key of 32 bytes");
        Ok(Self { name: random()?, aead: LessSafeKey::new(key) })
    }

    fn seal(&self, session: &[u8], group: u64) -> Option<Vec<u8>> {
        let nonce = random::<NONCE_LEN>().ok()?;
        let start = NAME_LEN + NONCE_LEN;
        let mut ticket = Vec::with_capacity(start + session.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[start..];
        let tag = self.aead.seal_in_place_separate_tag(nonce, self.aad(group), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, sealed: &[u8], group: u64) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.aead.open_in_place(nonce, self.aad(group), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }

    fn aad(&self, group: u64) -> Aad<[u8; NAME_LEN + size_of::<u64>()]> {
        let mut bytes = [0; _];
        let (name, rest) = bytes.split_at_mut(NAME_LEN);
        name.copy_from_slice(&self.name);
        rest.copy_from_slice(&group.to_be_bytes());
        Aad::from(bytes)
    }
}

fn random<const N: usize>() -> Result<[u8; N], GetRandomFailed> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| GetRandomFailed)?;
    Ok(bytes)
}

#[cfg(test)]
impl TicketKeys {
    /// A group with keys of its own.
    pub(crate) fn new() -> Result<Self, GetRandomFailed> {
        Ok(Arc::new(TicketSecrets::new()?).group())
    }

    /// Rotates them.
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
    fn groups_with_the_same_key_refuse_each_other() {
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
    fn a_key_opens_tickets_for_as_long_as_clients_keep_them() {
        let opens = TicketSecrets::ROTATION * 2;
        assert_eq!(opens.as_secs(), u64::from(LIFETIME_SECONDS));
    }
}
