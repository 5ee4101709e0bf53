//! Builds the identities of servers with `crypto`, and keeps their ticket keys.
//!
//! - Ticket keys belong to one server and its policy: they stay across reloads while both are the
//!   same, and no other server accepts them.
//! - Every server's keys are rotated together, on the control thread.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::compile::{BuiltIdentity, Identities, IdentityRequest, TlsVersions};
use crate::crypto::{self, Choice, IdentityError, Provider, ServerRequest, TicketKeys, Version};
use crate::settings;

/// Makes real identities.
pub(crate) struct RealIdentities {
    provider: Provider,
    /// Alive as long as a configuration uses them.
    tickets: HashMap<(String, TlsVersions), Weak<TicketKeys>>,
}

impl RealIdentities {
    /// Computes with the provider that the operator chose.
    pub(crate) fn new(provider: settings::Provider) -> Self {
        let choice = match provider {
            settings::Provider::Auto => Choice::Auto,
            settings::Provider::AwsLcRs => Choice::AwsLcRs,
            settings::Provider::Ring => Choice::Ring,
        };
        Self { provider: Provider::new(choice), tickets: HashMap::new() }
    }

    fn tickets(&mut self, request: &IdentityRequest<'_>) -> Result<Arc<TicketKeys>, String> {
        let policy = (request.server.to_owned(), request.versions);
        if let Some(keys) = self.tickets.get(&policy).and_then(Weak::upgrade) {
            return Ok(keys);
        }
        let keys = TicketKeys::new().map_err(|_| "the system gave no random numbers".to_owned())?;
        let keys = Arc::new(keys);
        self.tickets.insert(policy, Arc::downgrade(&keys));
        Ok(keys)
    }
}

impl Identities for RealIdentities {
    fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, String> {
        let (version_min, version_max) = match request.versions {
            TlsVersions::Both => (Version::Tls12, Version::Tls13),
            TlsVersions::Only12 => (Version::Tls12, Version::Tls12),
            TlsVersions::Only13 => (Version::Tls13, Version::Tls13),
        };
        let tickets = self.tickets(request)?;
        let (certificate_pem, key_pem) = (request.certificate, request.key);
        let wanted = ServerRequest { certificate_pem, key_pem, version_min, version_max, tickets };
        let config =
            crypto::server_config(&self.provider, &wanted).map_err(|error| words(&error))?;
        let description = crypto::describe(certificate_pem).map_err(|error| words(&error))?;
        Ok(BuiltIdentity {
            config,
            serial: description.serial,
            subject_alt_names: description.subject_alt_names,
            valid_from: description.valid_from,
            expires: description.expires,
        })
    }

    fn rotate_tickets(&mut self) {
        // What is gone is forgotten here, not at every look-up among ten thousand servers.
        self.tickets.retain(|_, keys| keys.strong_count() > 0);
        for keys in self.tickets.values().filter_map(Weak::upgrade) {
            if keys.rotate().is_err() {
                tracing::error!("ticket keys not rotated: the system gave no random numbers");
            }
        }
    }
}

/// Without the brackets that the finding puts around its own cause.
fn words(error: &IdentityError) -> String {
    format!("{}; {}", error.what(), error.cause())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(server: &'a str, versions: TlsVersions) -> IdentityRequest<'a> {
        IdentityRequest { server, certificate: b"", key: b"", versions }
    }

    #[test]
    fn ticket_keys_belong_to_a_server_and_its_policy() {
        let mut identities = RealIdentities::new(settings::Provider::Auto);
        let mut keys = |server, versions| identities.tickets(&request(server, versions)).unwrap();
        let first = keys("a", TlsVersions::Both);
        assert!(Arc::ptr_eq(&first, &keys("a", TlsVersions::Both)), "kept across reloads");
        assert!(!Arc::ptr_eq(&first, &keys("b", TlsVersions::Both)));
        assert!(!Arc::ptr_eq(&first, &keys("a", TlsVersions::Only13)));
    }
}
