//! Cipher suites and key exchange groups by the names that Envoy and OpenSSL give them.

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite};

/// The cipher suites of TLS 1.2 that are offered; those of TLS 1.3 are always.
const SUITES: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

const GROUPS: [(&str, NamedGroup); 4] = [
    ("X25519MLKEM768", NamedGroup::X25519MLKEM768),
    ("X25519", NamedGroup::X25519),
    ("P-256", NamedGroup::secp256r1),
    ("P-384", NamedGroup::secp384r1),
];

/// What a server may agree on, in its order of preference; an empty list leaves the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Parameters {
    suites: Vec<&'static str>,
    groups: Vec<&'static str>,
}

impl Parameters {
    /// Adds the cipher suite of this name. False if there is none.
    pub(crate) fn add_suite(&mut self, name: &str) -> bool {
        let found = Self::suite_names().find(|known| *known == name);
        self.suites.extend(found);
        found.is_some()
    }

    /// Adds the key exchange group of this name. False if there is none.
    pub(crate) fn add_group(&mut self, name: &str) -> bool {
        let found = Self::group_names().find(|known| *known == name);
        self.groups.extend(found);
        found.is_some()
    }

    /// The names of all cipher suites.
    pub(crate) fn suite_names() -> impl Iterator<Item = &'static str> {
        SUITES.iter().map(|(name, _)| *name)
    }

    /// The names of all key exchange groups.
    pub(crate) fn group_names() -> impl Iterator<Item = &'static str> {
        GROUPS.iter().map(|(name, _)| *name)
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// `provider` with these alone.
    pub(super) fn narrow(&self, provider: &CryptoProvider) -> CryptoProvider {
        let mut narrow = provider.clone();
        if !self.suites.is_empty() {
            let is_new = |suite: &&SupportedCipherSuite| suite.tls13().is_some();
            let newer = provider.cipher_suites.iter().filter(is_new);
            let older = self.suites.iter().filter_map(|name| suite(provider, name));
            narrow.cipher_suites = newer.chain(older).copied().collect();
        }
        if !self.groups.is_empty() {
            let groups = self.groups.iter().filter_map(|name| group(provider, name));
            narrow.kx_groups = groups.copied().collect();
        }
        narrow
    }
}

fn suite<'a>(provider: &'a CryptoProvider, name: &str) -> Option<&'a SupportedCipherSuite> {
    let (_, wanted) = SUITES.iter().find(|(known, _)| *known == name)?;
    provider.cipher_suites.iter().find(|suite| suite.suite() == *wanted)
}

fn group<'a>(
    provider: &'a CryptoProvider,
    name: &str,
) -> Option<&'a &'static dyn SupportedKxGroup> {
    let (_, wanted) = GROUPS.iter().find(|(known, _)| *known == name)?;
    provider.kx_groups.iter().find(|group| group.name() == *wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Choice, Provider};

    #[test]
    fn every_name_is_there_in_both_providers_and_keeps_its_place() {
        let mut parameters = Parameters::default();
        let suites: Vec<_> = Parameters::suite_names().collect();
        let groups: Vec<_> = Parameters::group_names().collect();
        assert!(suites.iter().rev().all(|name| parameters.add_suite(name)));
        assert!(groups.iter().rev().all(|name| parameters.add_group(name)));
        assert!(!parameters.add_suite("AES128-SHA") && !parameters.add_group("P-521"));
        for choice in [Choice::Ring, Choice::AwsLcRs] {
            let narrow = parameters.narrow(&Provider::new(choice).rustls());
            let all: Vec<_> = narrow.cipher_suites.iter().map(|suite| suite.suite()).collect();
            assert_eq!(all.len(), 9, "those of TLS 1.3 stay");
            let older: Vec<_> = SUITES.iter().rev().map(|(_, suite)| *suite).collect();
            assert_eq!(all[3..], older);
            let all: Vec<_> = narrow.kx_groups.iter().map(|group| group.name()).collect();
            assert_eq!(all, GROUPS.iter().rev().map(|(_, group)| *group).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_not_said_is_not_narrowed() {
        let provider = Provider::new(Choice::Auto).rustls();
        let mut parameters = Parameters::default();
        assert!(parameters.is_default());
        assert!(parameters.add_group("P-256"));
        let narrow = parameters.narrow(&provider);
        assert_eq!(narrow.cipher_suites.len(), provider.cipher_suites.len());
        assert_eq!(narrow.kx_groups.len(), 1);
    }
}
