//! Records of an established connection: framing, sealing, opening (RFC 8446, section 5; for TLS
//! 1.2 RFC 5246, section 6.2 with RFC 5288 and RFC 7905).
//!
//! - A record is sealed where it is sent from and opened where it was received: plaintext is copied
//!   once on its way out and not at all on its way in.
//! - Sequence numbers are counted here; when a key has sealed enough is for the caller to ask.
//!
//! Deliberately not here: what a record means (`session`), and the handshake.

use std::io::IoSlice;
use std::ops::Range;

use rustls::{ConnectionTrafficSecrets, SupportedCipherSuite};

use crate::crypto::{NONCE_BYTES, Nonce, RecordKey, TAG_BYTES};

/// Content type, version, length.
pub(super) const HEADER_BYTES: usize = 5;
/// Most plaintext of one record.
const PLAIN_BYTES_MAX: usize = 1 << 14;
/// Most that a record's body may have beyond its plaintext.
const OVERHEAD_BYTES_MAX: usize = 256;
/// Most that a record of ours has beyond its plaintext.
const RECORD_OVERHEAD_BYTES: usize = HEADER_BYTES + EXPLICIT_NONCE_BYTES + 1 + TAG_BYTES;
/// Sent by the peer in each record where TLS 1.2 uses AES-GCM.
const EXPLICIT_NONCE_BYTES: usize = 8;
/// What every record says it is: TLS 1.2.
const VERSION: [u8; 2] = [3, 3];
/// A key is given up this many records before it must be: room for what one write seals.
const RESERVE_RECORDS: u64 = 1 << 10;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Alert,
    Handshake,
    Data,
}

/// Why a record is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is not what the peer sealed.
    Forged,
    /// It is longer than a record may be.
    TooLong,
    /// Its content type has no place here.
    Unexpected,
}

/// The length of the record that `bytes` begin with; `None` while its header is not whole.
///
/// # Errors
/// It is longer than a record may be.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    match claimed_length(bytes) {
        Some(length) if length > HEADER_BYTES + PLAIN_BYTES_MAX + OVERHEAD_BYTES_MAX => {
            Err(Refused::TooLong)
        }
        length => Ok(length),
    }
}

/// The length that the record at the beginning of `bytes` says it has, be it allowed or not; `None`
/// while its header is not whole.
pub(super) fn claimed_length(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, high, low] = *bytes.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])))
}

/// How many bytes `begun`, the beginning of a record, lacks as far as is known: the rest of its
/// header, then the rest of it.
pub(super) fn lacking(begun: &[u8]) -> usize {
    claimed_length(begun).unwrap_or(HEADER_BYTES) - begun.len()
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Protection {
    key: RecordKey,
    iv: Nonce,
    /// Number of the next record.
    sequence: u64,
    /// Number of the record from which on another key is due.
    sequence_max: u64,
    format: Format,
}

/// How records differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Tls13,
    /// With half of the nonce in the record.
    Tls12Gcm,
    Tls12,
}

impl Protection {
    /// Begins at `sequence` with `secrets`, which were negotiated with `suite`. `None` for a cipher
    /// that no suite of ours has.
    pub(super) fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Option<Self> {
        let (key, iv) = RecordKey::new(suite, &secrets)?;
        let is_gcm = !matches!(secrets, ConnectionTrafficSecrets::Chacha20Poly1305 { .. });
        let (format, common) = match suite {
            SupportedCipherSuite::Tls13(suite) => (Format::Tls13, &suite.common),
            SupportedCipherSuite::Tls12(suite) if is_gcm => (Format::Tls12Gcm, &suite.common),
            SupportedCipherSuite::Tls12(suite) => (Format::Tls12, &suite.common),
        };
        let sequence_max = common.confidentiality_limit.saturating_sub(RESERVE_RECORDS);
        Some(Self { key, iv, sequence, sequence_max, format })
    }

    /// Whether the key has sealed as much as is safe, but for a last write.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= self.sequence_max
    }

    /// Appends records to `out` that carry all of `plain`.
    pub(super) fn seal(&mut self, content: Content, plain: &[IoSlice<'_>], out: &mut Vec<u8>) {
        let mut rest = Rest { slices: plain, used: 0 };
        let mut left: usize = plain.iter().map(|slice| slice.len()).sum();
        // Once, not record by record: growing moves what is there already.
        out.reserve(left + left.div_ceil(PLAIN_BYTES_MAX) * RECORD_OVERHEAD_BYTES);
        while left > 0 {
            let n = left.min(PLAIN_BYTES_MAX);
            self.seal_record(content, n, &mut rest, out);
            left -= n;
        }
    }

    /// Appends one record with the next `n` bytes of `plain`.
    #[allow(clippy::cast_possible_truncation, reason = "a record's length fits into two bytes")]
    fn seal_record(&mut self, content: Content, n: usize, plain: &mut Rest<'_>, out: &mut Vec<u8>) {
        let nonce = self.next_nonce();
        let aad = self.aad([self.format.outer(content), VERSION[0], VERSION[1]], n);
        let body = self.format.explicit_bytes() + n + self.format.type_bytes() + TAG_BYTES;
        let [high, low] = (body as u16).to_be_bytes();
        out.extend_from_slice(&[self.format.outer(content), VERSION[0], VERSION[1], high, low]);
        out.extend_from_slice(&nonce[NONCE_BYTES - self.format.explicit_bytes()..]);
        let start = out.len();
        plain.take(n, out);
        if self.format == Format::Tls13 {
            out.push(content.code());
        }
        let tag = self.key.seal(nonce, aad.bytes(), &mut out[start..]);
        out.extend_from_slice(&tag);
        self.sequence += 1;
    }

    /// Decrypts a whole record in place; returns what it carries and where the plaintext lies.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, Range<usize>), Refused> {
        let explicit = self.format.explicit_bytes();
        let start = HEADER_BYTES + explicit;
        let plain_bytes = record
            .len()
            .checked_sub(start + self.format.type_bytes() + TAG_BYTES)
            .ok_or(Refused::Forged)?;
        let outer = Content::from_code(record[0]).ok_or(Refused::Unexpected)?;
        let mut nonce = self.next_nonce();
        nonce[NONCE_BYTES - explicit..].copy_from_slice(&record[HEADER_BYTES..start]);
        let aad = self.aad([record[0], record[1], record[2]], plain_bytes);
        let opened = self.key.open(nonce, aad.bytes(), &mut record[start..]);
        let len = opened.map_err(|_| Refused::Forged)?;
        self.sequence += 1;
        let (content, len) = self.format.inner(outer, &record[start..start + len])?;
        if len > PLAIN_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        Ok((content, start..start + len))
    }

    /// The initialisation vector with the sequence number mixed in.
    fn next_nonce(&self) -> Nonce {
        let mut nonce = self.iv;
        let low = nonce.last_chunk_mut().expect("a nonce has more than eight bytes");
        *low = (u64::from_be_bytes(*low) ^ self.sequence).to_be_bytes();
        nonce
    }

    /// What a record whose header begins with `kind`, type and version, and that has `n` bytes of
    /// plaintext, is authenticated with beside them.
    #[allow(clippy::cast_possible_truncation, reason = "a record's length fits into two bytes")]
    fn aad(&self, kind: [u8; 3], n: usize) -> Aad {
        let mut bytes = [0; Aad::BYTES_MAX];
        bytes[..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..11].copy_from_slice(&kind);
        let (start, length) = match self.format {
            // The header alone: the sequence number is in the nonce.
            Format::Tls13 => (8, n + 1 + TAG_BYTES),
            Format::Tls12 | Format::Tls12Gcm => (0, n),
        };
        bytes[11..].copy_from_slice(&(length as u16).to_be_bytes());
        Aad { bytes, start }
    }
}

impl Format {
    fn explicit_bytes(self) -> usize {
        if self == Self::Tls12Gcm { EXPLICIT_NONCE_BYTES } else { 0 }
    }

    /// TLS 1.3 puts the content type behind the plaintext.
    fn type_bytes(self) -> usize {
        usize::from(self == Self::Tls13)
    }

    /// What the header says of a record that carries `content`.
    fn outer(self, content: Content) -> u8 {
        if self == Self::Tls13 { Content::Data.code() } else { content.code() }
    }

    /// What `opened` really carries, and the length of it.
    fn inner(self, outer: Content, opened: &[u8]) -> Result<(Content, usize), Refused> {
        if self != Self::Tls13 {
            return Ok((outer, opened.len()));
        }
        if outer != Content::Data {
            return Err(Refused::Unexpected);
        }
        // Padding counts.
        if opened.len() > PLAIN_BYTES_MAX + 1 {
            return Err(Refused::TooLong);
        }
        // Zeros behind the content type are padding.
        let at = opened.iter().rposition(|byte| *byte != 0).ok_or(Refused::Unexpected)?;
        let content = Content::from_code(opened[at]).ok_or(Refused::Unexpected)?;
        Ok((content, at))
    }
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Alert, Self::Handshake, Self::Data]
            .into_iter()
            .find(|content| content.code() == code)
    }
}

/// What a record is authenticated with beside its content.
struct Aad {
    bytes: [u8; Self::BYTES_MAX],
    start: usize,
}

impl Aad {
    /// Sequence number and header.
    const BYTES_MAX: usize = 8 + HEADER_BYTES;

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// What is left of a list of slices.
struct Rest<'a> {
    slices: &'a [IoSlice<'a>],
    /// How much of the first slice is gone.
    used: usize,
}

impl Rest<'_> {
    /// Appends the next `n` bytes to `out`.
    fn take(&mut self, mut n: usize, out: &mut Vec<u8>) {
        while n > 0 {
            let first = &self.slices[0][self.used..];
            let part = first.len().min(n);
            out.extend_from_slice(&first[..part]);
            n -= part;
            self.used += part;
            if self.used == self.slices[0].len() {
                self.slices = &self.slices[1..];
                self.used = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};
    use rustls::crypto::{aws_lc_rs, ring};

    fn protections(suite: SupportedCipherSuite) -> (Protection, Protection) {
        let make = || {
            let (key, iv) = (AeadKey::from([7; 32]), Iv::new([9; NONCE_BYTES]));
            let name = format!("{:?}", suite.suite());
            let secrets = if name.contains("CHACHA20") {
                ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
            } else {
                ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            };
            Protection::new(suite, (3, secrets)).unwrap()
        };
        (make(), make())
    }

    /// Suites with keys of 32 bytes, of both libraries.
    fn suites() -> impl Iterator<Item = SupportedCipherSuite> {
        let all = [ring::ALL_CIPHER_SUITES, aws_lc_rs::ALL_CIPHER_SUITES].concat();
        all.into_iter().filter(|suite| !format!("{:?}", suite.suite()).contains("AES_128"))
    }

    #[test]
    fn what_is_sealed_is_opened() {
        for suite in suites() {
            let (mut sealer, mut opener) = protections(suite);
            let plain = vec![5; 40_000];
            let parts = [IoSlice::new(&plain[..1]), IoSlice::new(&[]), IoSlice::new(&plain[1..])];
            let mut out = Vec::new();
            sealer.seal(Content::Data, &parts, &mut out);
            sealer.seal(Content::Alert, &[IoSlice::new(&[1, 0])], &mut out);
            let mut found = Vec::new();
            let mut rest = &mut out[..];
            while !rest.is_empty() {
                let length = length(rest).unwrap().unwrap();
                let (record, behind) = rest.split_at_mut(length);
                let (content, range) = opener.open(record).unwrap();
                found.push((content, record[range].to_vec()));
                rest = behind;
            }
            let data: Vec<_> = found[..3].iter().flat_map(|(_, plain)| plain.clone()).collect();
            assert!(data == plain, "{suite:?}");
            assert_eq!(found[3], (Content::Alert, vec![1, 0]));
            assert_eq!(found.len(), 4);
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        for suite in suites() {
            let (mut sealer, _) = protections(suite);
            let mut sealed = Vec::new();
            sealer.seal(Content::Data, &[IoSlice::new(b"truth")], &mut sealed);
            for at in 0..sealed.len() {
                let (_, mut opener) = protections(suite);
                let mut record = sealed.clone();
                record[at] ^= 1;
                if matches!(length(&record), Ok(Some(length)) if length == record.len()) {
                    assert!(opener.open(&mut record).is_err(), "{suite:?} {at}");
                }
            }
        }
    }

    #[test]
    fn records_cannot_be_repeated_or_reordered() {
        for suite in suites() {
            let (mut sealer, mut opener) = protections(suite);
            let mut records = [Vec::new(), Vec::new()];
            for record in &mut records {
                sealer.seal(Content::Data, &[IoSlice::new(b"x")], record);
            }
            assert_eq!(opener.open(&mut records[1].clone()), Err(Refused::Forged), "reordered");
            opener.open(&mut records[0].clone()).unwrap();
            assert_eq!(opener.open(&mut records[0].clone()), Err(Refused::Forged), "repeated");
            opener.open(&mut records[1].clone()).unwrap();
        }
    }

    #[test]
    fn padding_is_removed_and_nothing_but_padding_refused() {
        let suite = ring::cipher_suite::TLS13_AES_256_GCM_SHA384;
        for (inner, expected) in [
            (&[7, 23, 0, 0, 0][..], Ok((Content::Data, 5..6))),
            (&[23], Ok((Content::Data, 5..5))),
            (&[0, 0, 0], Err(Refused::Unexpected)),
            (&[7, 20], Err(Refused::Unexpected)),
        ] {
            let (sealer, mut opener) = protections(suite);
            let mut record = vec![23, 3, 3, 0, u8::try_from(inner.len() + TAG_BYTES).unwrap()];
            let aad: [u8; 5] = record[..].try_into().unwrap();
            record.extend_from_slice(inner);
            let tag = sealer.key.seal(sealer.next_nonce(), &aad, &mut record[5..]);
            record.extend_from_slice(&tag);
            assert_eq!(opener.open(&mut record), expected);
        }
    }

    #[test]
    fn what_is_too_short_or_too_long_is_refused() {
        for suite in suites() {
            for body in 0..TAG_BYTES {
                let (_, mut opener) = protections(suite);
                let mut record = vec![23, 3, 3, 0, u8::try_from(body).unwrap()];
                record.resize(HEADER_BYTES + body, 0);
                assert_eq!(opener.open(&mut record), Err(Refused::Forged));
            }
        }
        assert_eq!(length(&[23, 3, 3, 0x41]), Ok(None));
        assert_eq!(length(&[23, 3, 3, 0x41, 0]), Ok(Some(HEADER_BYTES + 16_640)));
        assert_eq!(length(&[23, 3, 3, 0x41, 1]), Err(Refused::TooLong));
    }
}
