//! Which library computes: ring, aws-lc-rs for everything, or each what it is faster at.
//!
//! All offer the same suites and groups in the same order, so that the choice shows in speed only.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs, ring};
use rustls::{CipherSuite, SupportedCipherSuite, Tls13CipherSuite};

/// What the operator asks for in `tls.provider`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Choice {
    /// aws-lc-rs: it agrees on an X25519 key in half the time that ring takes (27 against 52 us),
    /// signs with RSA-2048 in 0.57 of it and seals 16 KB in 0.67; ECDSA P-256 and small records
    /// cost the same. A handshake costs 0.86 times as much with it. But ring hashes and derives the
    /// keys of TLS 1.3, which takes another 3 to 5 % off: it keeps what each HMAC begins with, and
    /// allocates nothing for them.
    #[default]
    Auto,
    /// ring, with the post-quantum group of aws-lc-rs, which ring lacks.
    Ring,
    /// aws-lc-rs.
    AwsLcRs,
}

/// The primitives of every handshake and record. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Provider(Arc<CryptoProvider>);

impl Provider {
    /// Sets up the provider that `choice` stands for.
    pub(crate) fn new(choice: Choice) -> Self {
        Self(Arc::new(match choice {
            Choice::Ring => from_ring(),
            Choice::Auto => from_aws_lc_rs(&mixed()),
            Choice::AwsLcRs => from_aws_lc_rs(aws_lc_rs::ALL_CIPHER_SUITES),
        }))
    }

    /// What rustls's builders take.
    pub(crate) fn rustls(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.0)
    }
}

fn from_ring() -> CryptoProvider {
    use ring::kx_group;
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        cipher_suites: in_our_order(ring::ALL_CIPHER_SUITES),
        ..ring::default_provider()
    }
}

/// All of aws-lc-rs, but with these `suites`.
fn from_aws_lc_rs(suites: &[SupportedCipherSuite]) -> CryptoProvider {
    use aws_lc_rs::kx_group;
    CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        cipher_suites: in_our_order(suites),
        ..aws_lc_rs::default_provider()
    }
}

/// The suites of aws-lc-rs, those of TLS 1.3 mixed.
fn mixed() -> Vec<SupportedCipherSuite> {
    let suites = aws_lc_rs::ALL_CIPHER_SUITES.iter();
    let tls12 = suites.filter(|suite| suite.tls13().is_none()).copied();
    MIXED.iter().map(SupportedCipherSuite::from).chain(tls12).collect()
}

/// Suites of TLS 1.3 that seal with aws-lc-rs, and hash and derive keys with ring.
static MIXED: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let of_ring: Vec<_> =
        ring::ALL_CIPHER_SUITES.iter().filter_map(|suite| suite.tls13()).collect();
    let both = aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(|suite| {
        let sealing = suite.tls13()?;
        Some((sealing, *of_ring.iter().find(|deriving| **deriving == sealing)?))
    });
    both.map(|(sealing, deriving)| mix(sealing, deriving)).collect()
});

fn mix(sealing: &Tls13CipherSuite, deriving: &Tls13CipherSuite) -> Tls13CipherSuite {
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: sealing.common.suite,
            hash_provider: deriving.common.hash_provider,
            confidentiality_limit: sealing.common.confidentiality_limit,
        },
        hkdf_provider: deriving.hkdf_provider,
        aead_alg: sealing.aead_alg,
        quic: None,
    }
}

/// AES-128 first, as in Envoy's default list: it costs a third less than AES-256 and loses nothing
/// that anybody can attack.
fn in_our_order(suites: &[SupportedCipherSuite]) -> Vec<SupportedCipherSuite> {
    let mut suites = suites.to_vec();
    suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    suites
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::NamedGroup;

    #[test]
    fn all_providers_offer_the_same_in_the_same_order() {
        let auto = Provider::new(Choice::Auto).0;
        for choice in [Choice::Ring, Choice::AwsLcRs] {
            let provider = Provider::new(choice).0;
            assert_eq!(suites(&provider), suites(&auto), "{choice:?}");
            assert_eq!(groups(&provider), groups(&auto), "{choice:?}");
        }
    }

    #[test]
    fn aes_128_comes_first_and_the_post_quantum_group_too() {
        let provider = Provider::new(Choice::Auto).0;
        let suites = suites(&provider);
        assert_eq!(suites.len(), 9, "three of TLS 1.3, six of TLS 1.2");
        assert!(suites[..3].iter().all(|name| name.contains("AES_128")), "{suites:?}");
        assert_eq!(suites[0], "TLS13_AES_128_GCM_SHA256");
        assert_eq!(
            groups(&provider),
            [
                NamedGroup::X25519MLKEM768,
                NamedGroup::X25519,
                NamedGroup::secp256r1,
                NamedGroup::secp384r1
            ]
        );
    }

    fn suites(provider: &CryptoProvider) -> Vec<String> {
        provider.cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect()
    }

    fn groups(provider: &CryptoProvider) -> Vec<NamedGroup> {
        provider.kx_groups.iter().map(|group| group.name()).collect()
    }
}
