//! Signatures over certificates and revocation lists, whatever their version: webpki reads no X.509
//! v1, so what it refuses is taken apart here as far as a signature needs.

use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;

use super::der::{contents, take};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// What was signed, how, and the signature. Certificates and revocation lists both look like this.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    message: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// Takes `der` apart; `None` where it is not of that form.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = contents(der, SEQUENCE)?;
        let message = take(&mut outer, SEQUENCE)?.whole;
        let algorithm = take(&mut outer, SEQUENCE)?.contents;
        let signature = bits(take(&mut outer, BIT_STRING)?.contents)?;
        outer.is_empty().then_some(Self { message, algorithm, signature })
    }

    /// Whether the key of `spki`, a SubjectPublicKeyInfo, made the signature.
    pub(super) fn is_by(&self, spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let Some(key) = Key::parse(spki) else { return false };
        algorithms
            .all
            .iter()
            .filter(|known| known.signature_alg_id().as_ref() == self.algorithm)
            .filter(|known| known.public_key_alg_id().as_ref() == key.algorithm)
            .any(|known| known.verify_signature(key.bits, self.message, self.signature).is_ok())
    }
}

/// Whether the key of `spki` signed `message` by `scheme`, as in a handshake of TLS 1.2.
pub(super) fn is_signed(
    message: &[u8],
    signature: &[u8],
    scheme: SignatureScheme,
    spki: &[u8],
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Some(key) = Key::parse(spki) else { return false };
    let same_scheme = algorithms.mapping.iter().filter(|(known, _)| *known == scheme);
    same_scheme
        .flat_map(|(_, known)| *known)
        .filter(|known| known.public_key_alg_id().as_ref() == key.algorithm)
        .any(|known| known.verify_signature(key.bits, message, signature).is_ok())
}

/// A public key as it stands in a certificate.
struct Key<'a> {
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> Key<'a> {
    fn parse(spki: &'a [u8]) -> Option<Self> {
        let mut outer = contents(spki, SEQUENCE)?;
        let algorithm = take(&mut outer, SEQUENCE)?.contents;
        let bits = bits(take(&mut outer, BIT_STRING)?.contents)?;
        outer.is_empty().then_some(Self { algorithm, bits })
    }
}

/// A bit string of whole bytes.
fn bits(contents: &[u8]) -> Option<&[u8]> {
    match contents.split_first()? {
        (0, bits) => Some(bits),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Choice, Provider};
    use proptest::prelude::*;

    #[test]
    fn a_signature_is_told_from_one_by_another_key() {
        let algorithms = Provider::new(Choice::Auto).rustls().signature_verification_algorithms;
        let sign = || {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::default().self_signed(&key).unwrap().der().to_vec()
        };
        let (ours, theirs) = (sign(), sign());
        let spki = |der: &[u8]| {
            let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
            parsed.tbs_certificate.subject_pki.raw.to_vec()
        };
        let signed = Signed::parse(&ours).unwrap();
        assert!(signed.is_by(&spki(&ours), &algorithms));
        assert!(!signed.is_by(&spki(&theirs), &algorithms));
        assert!(!signed.is_by(b"", &algorithms));
        for index in 0..ours.len() {
            let mut changed = ours.clone();
            changed[index] ^= 1;
            let holds = Signed::parse(&changed).is_some_and(|s| s.is_by(&spki(&ours), &algorithms));
            assert!(!holds, "byte {index}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut long = vec![SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff];
            long.extend_from_slice(&bytes);
            for der in [&bytes, &long] {
                prop_assert!(Signed::parse(der).is_none());
                prop_assert!(Key::parse(der).is_none());
            }
        }
    }
}
