//! Session tickets: what a client brings back to skip most of its next handshake.
//!
//! - Stateless: the session is sealed into the ticket, so any worker opens it.
//! - Workers load the keys without a lock and write nothing shared; only the control thread
//!   rotates.
//! - Each [`TicketKeys`] is a world of its own. Servers that trust different clients must not
//!   share one, or a session from one would enter the other.
//!
//! ```text
//! ticket = key name (16) | nonce (12) | AES-256-GCM(session) | tag (16)
//! ```

use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::GetRandomFailed;
use rustls::server::ProducesTickets;

/// What clients are told, in seconds: twice [`TicketKeys::ROTATION`], because that is how long a
/// key opens tickets. A ticket lives at least half as long; after that a full handshake follows.
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;

const NAME_LEN: usize = 16;

/// The keys of one group of servers that may resume each other's sessions.
///
/// It stays in the rustls configurations it was given to while its keys rotate.
#[derive(Debug)]
pub(crate) struct TicketKeys {
    keys: ArcSwap<Keys>,
}

impl TicketKeys {
    /// How often the control thread calls [`rotate`](Self::rotate).
    pub(crate) const ROTATION: std::time::Duration = std::time::Duration::from_hours(6);

    /// Makes fresh keys.
    ///
    /// # Errors
    /// The kernel has no randomness.
    pub(crate) fn new() -> Result<Self, GetRandomFailed> {
        let keys = Keys { current: Arc::new(Key::random()?), previous: None };
        Ok(Self { keys: ArcSwap::from_pointee(keys) })
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
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().current.seal(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, sealed) = ticket.split_first_chunk::<NAME_LEN>()?;
        self.keys.load().named(name)?.open(sealed)
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

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        let nonce = random::<NONCE_LEN>().ok()?;
        let start = NAME_LEN + NONCE_LEN;
        let mut ticket = Vec::with_capacity(start + session.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[start..];
        let tag = self.aead.seal_in_place_separate_tag(nonce, self.aad(), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.aead.open_in_place(nonce, self.aad(), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }

    fn aad(&self) -> Aad<[u8; NAME_LEN]> {
        Aad::from(self.name)
    }
}

fn random<const N: usize>() -> Result<[u8; N], GetRandomFailed> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| GetRandomFailed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"what rustls wants to see again";

    #[test]
    fn a_ticket_survives_one_rotation_but_not_two() {
        let keys = TicketKeys::new().unwrap();
        let ticket = keys.encrypt(SESSION).unwrap();
        assert_eq!(keys.decrypt(&ticket).as_deref(), Some(SESSION));
        keys.rotate().unwrap();
        assert_eq!(keys.decrypt(&ticket).as_deref(), Some(SESSION));
        keys.rotate().unwrap();
        assert_eq!(keys.decrypt(&ticket), None);
    }

    #[test]
    fn tickets_of_others_are_refused() {
        let ours = TicketKeys::new().unwrap();
        let theirs = TicketKeys::new().unwrap().encrypt(SESSION).unwrap();
        assert_eq!(ours.decrypt(&theirs), None);
        let mut renamed = ours.encrypt(SESSION).unwrap();
        renamed[NAME_LEN..].copy_from_slice(&theirs[NAME_LEN..]);
        assert_eq!(ours.decrypt(&renamed), None, "the right name does not help the wrong key");
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let keys = TicketKeys::new().unwrap();
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
        let keys = TicketKeys::new().unwrap();
        assert_ne!(keys.encrypt(SESSION), keys.encrypt(SESSION));
        assert_eq!(keys.decrypt(&keys.encrypt(b"").unwrap()).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_key_opens_tickets_for_as_long_as_clients_keep_them() {
        let opens = TicketKeys::ROTATION * 2;
        assert_eq!(opens.as_secs(), u64::from(LIFETIME_SECONDS));
    }
}
