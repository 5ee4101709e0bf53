//! The key of one direction of a connection, after its handshake: seals and opens in place.
//!
//! rustls makes the secrets; sealing with them here saves the two copies and the allocation that
//! its own record layer makes of every record. The library is the one that the negotiated suite
//! seals with.
//!
//! Deliberately not here: nonces, headers and anything else of the record format (`tls`).

use std::fmt;

use rustls::crypto::ring as suites_of_ring;
use rustls::{ConnectionTrafficSecrets, SupportedCipherSuite};

/// Bytes of a nonce, in every suite.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes that authenticate a record, in every suite.
pub(crate) const TAG_BYTES: usize = 16;

/// A nonce.
pub(crate) type Nonce = [u8; NONCE_BYTES];

/// A key of an authenticated cipher.
pub(crate) struct RecordKey(Library);

enum Library {
    /// Boxed, because the other one is a pointer.
    Ring(Box<ring::aead::LessSafeKey>),
    AwsLcRs(aws_lc_rs::aead::LessSafeKey),
}

/// The record was not made with this key, or was changed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

impl RecordKey {
    /// The key in `secrets`, which were negotiated with `suite`, and its initialisation vector.
    /// `None` for a cipher that no suite of ours has.
    pub(crate) fn new(
        suite: SupportedCipherSuite,
        secrets: &ConnectionTrafficSecrets,
    ) -> Option<(Self, Nonce)> {
        use ConnectionTrafficSecrets as Secrets;
        let (cipher, key, iv) = match secrets {
            Secrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            Secrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            Secrets::Chacha20Poly1305 { key, iv } => (Cipher::Chacha20Poly1305, key, iv),
            _ => return None,
        };
        let library = if is_of_ring(suite) {
            let key = ring::aead::UnboundKey::new(cipher.of_ring(), key.as_ref());
            Library::Ring(Box::new(ring::aead::LessSafeKey::new(key.ok()?)))
        } else {
            let key = aws_lc_rs::aead::UnboundKey::new(cipher.of_aws_lc_rs(), key.as_ref());
            Library::AwsLcRs(aws_lc_rs::aead::LessSafeKey::new(key.ok()?))
        };
        Some((Self(library), iv.as_ref().try_into().ok()?))
    }

    /// Encrypts `bytes`, at most a record, in place; returns what authenticates them and `aad`.
    /// A nonce must not be used twice.
    pub(crate) fn seal(&self, nonce: Nonce, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        const SHORT: &str = "a record is far below the length that a cipher takes";
        let mut tag = [0; TAG_BYTES];
        match &self.0 {
            Library::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes);
                tag.copy_from_slice(sealed.expect(SHORT).as_ref());
            }
            Library::AwsLcRs(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes);
                tag.copy_from_slice(sealed.expect(SHORT).as_ref());
            }
        }
        tag
    }

    /// Decrypts `bytes`, whose end is what authenticates the rest and `aad`, in place; returns the
    /// length of the plaintext at its beginning.
    ///
    /// # Errors
    /// The bytes are not what the peer sealed. What is in `bytes` then means nothing.
    pub(crate) fn open(&self, nonce: Nonce, aad: &[u8], bytes: &mut [u8]) -> Result<usize, Forged> {
        let plain = match &self.0 {
            Library::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(aad), bytes).map_err(|_| Forged)?
            }
            Library::AwsLcRs(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(aad), bytes).map_err(|_| Forged)?
            }
        };
        Ok(plain.len())
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey")
    }
}

#[derive(Clone, Copy)]
enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

impl Cipher {
    fn of_ring(self) -> &'static ring::aead::Algorithm {
        match self {
            Self::Aes128Gcm => &ring::aead::AES_128_GCM,
            Self::Aes256Gcm => &ring::aead::AES_256_GCM,
            Self::Chacha20Poly1305 => &ring::aead::CHACHA20_POLY1305,
        }
    }

    fn of_aws_lc_rs(self) -> &'static aws_lc_rs::aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aws_lc_rs::aead::AES_128_GCM,
            Self::Aes256Gcm => &aws_lc_rs::aead::AES_256_GCM,
            Self::Chacha20Poly1305 => &aws_lc_rs::aead::CHACHA20_POLY1305,
        }
    }
}

/// Whether `suite` is one of the statics of ring: equal suites that seal with aws-lc-rs have other
/// addresses.
fn is_of_ring(suite: SupportedCipherSuite) -> bool {
    use SupportedCipherSuite::{Tls12, Tls13};
    suites_of_ring::ALL_CIPHER_SUITES.iter().any(|own| match (own, suite) {
        (Tls12(own), Tls12(suite)) => std::ptr::eq(*own, suite),
        (Tls13(own), Tls13(suite)) => std::ptr::eq(*own, suite),
        (Tls12(_), Tls13(_)) | (Tls13(_), Tls12(_)) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Choice, Provider};

    #[test]
    fn ring_seals_only_where_it_was_asked_to() {
        for (choice, expected) in
            [(Choice::Auto, false), (Choice::AwsLcRs, false), (Choice::Ring, true)]
        {
            for suite in &Provider::new(choice).rustls().cipher_suites {
                assert_eq!(is_of_ring(*suite), expected, "{choice:?} {suite:?}");
            }
        }
    }
}
