//! Builds the identities of servers with `crypto`, and keeps their ticket keys.
//!
//! - Ticket keys belong to one server and its rules, the bytes of client CAs and revocation lists
//!   among them: they stay across reloads while all are the same, and no other server accepts them.
//!   So a client that is no longer taken cannot resume its way in.
//! - Every server's keys are rotated together, on the control thread.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;

use super::compile::{
    BuiltIdentity, Clients, Identities, IdentityRequest, Pair, Part, Refusal, TlsRules, TlsVersions,
};
use crate::crypto::{
    self, Choice, ClientRequest, ClientVerifier, Description, IdentityError, Parameters, Provider,
    ServerPolicy, Template, TicketKeys, TicketSecrets, TrustError, Version,
};
use crate::settings;
use crate::snapshot::CertificateInfo;

/// Makes real identities.
pub(crate) struct RealIdentities {
    provider: Provider,
    /// Those of servers that ask clients for no certificate.
    templates: HashMap<(TlsVersions, Parameters), Template>,
    /// Made with the first keys.
    secrets: Option<Arc<TicketSecrets>>,
    /// Alive as long as a configuration uses them.
    tickets: HashMap<(String, TlsRules), Weak<TicketKeys>>,
}

impl RealIdentities {
    /// Computes with the provider that the operator chose.
    pub(crate) fn new(provider: settings::Provider) -> Self {
        let choice = match provider {
            settings::Provider::Auto => Choice::Auto,
            settings::Provider::AwsLcRs => Choice::AwsLcRs,
            settings::Provider::Ring => Choice::Ring,
        };
        let (templates, tickets) = (HashMap::new(), HashMap::new());
        Self { provider: Provider::new(choice), templates, secrets: None, tickets }
    }

    fn tickets(&mut self, request: &IdentityRequest<'_>) -> Result<Arc<TicketKeys>, Refusal> {
        let owner = (request.server.to_owned(), request.policy.clone());
        if let Some(keys) = self.tickets.get(&owner).and_then(Weak::upgrade) {
            return Ok(keys);
        }
        let keys = Arc::new(self.secrets()?.group());
        self.tickets.insert(owner, Arc::downgrade(&keys));
        Ok(keys)
    }

    fn secrets(&mut self) -> Result<&Arc<TicketSecrets>, Refusal> {
        if self.secrets.is_none() {
            let secrets = TicketSecrets::new().map_err(|_| {
                let reason = "the system gave no random numbers".to_owned();
                Refusal { part: Part::Pair, reason }
            })?;
            self.secrets = Some(Arc::new(secrets));
        }
        Ok(self.secrets.as_ref().expect("it was just made"))
    }

    /// The configuration of a server with `policy`, whose clients `verifier` checks.
    fn config(
        &mut self,
        policy: &TlsRules,
        verifier: Option<Arc<ClientVerifier>>,
        identity: Arc<CertifiedKey>,
        tickets: Arc<TicketKeys>,
    ) -> Arc<ServerConfig> {
        if verifier.is_some() {
            return template(&self.provider, policy, verifier).server(identity, tickets);
        }
        let kind = (policy.versions, policy.parameters.clone());
        let template =
            self.templates.entry(kind).or_insert_with(|| template(&self.provider, policy, None));
        template.server(identity, tickets)
    }

    fn clients(&self, clients: &Clients) -> Result<Arc<ClientVerifier>, TrustError> {
        let Clients { trust, demands } = clients;
        let request = ClientRequest {
            optional: demands.optional,
            ca_pem: &trust.ca,
            crl_pem: trust.crl.as_deref(),
            subject_alt_names: &demands.subject_alt_names,
            pins: &demands.pins,
            accept_untrusted: demands.accept_untrusted,
        };
        ClientVerifier::new(&self.provider, &request)
    }
}

impl Identities for RealIdentities {
    fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, Refusal> {
        let clients = request.policy.clients.as_ref();
        let verifier = clients.map(|clients| self.clients(clients)).transpose();
        let verifier = verifier.map_err(|error| of_clients(&error))?;
        let crl_expires = verifier.as_ref().and_then(|verifier| verifier.crl_expires());
        let client_ca = match clients {
            Some(clients) => crypto::describe_all(&clients.trust.ca)
                .map_err(|error| of_clients(&TrustError::Ca(error)))?,
            None => Vec::new(),
        };
        let Pair { certificate, key } = request.pair;
        let identity = crypto::load(&self.provider, certificate, key);
        let identity = identity.map_err(|error| of_pair(&error))?;
        let tickets = self.tickets(request)?;
        let config = self.config(request.policy, verifier, identity, tickets);
        let certificate = crypto::describe(certificate).map_err(|error| of_pair(&error))?;
        Ok(BuiltIdentity {
            config,
            certificate: info(certificate),
            client_ca: client_ca.into_iter().map(info).collect(),
            crl_expires,
        })
    }

    fn rotate_tickets(&mut self) {
        // What is gone is forgotten here, not at every look-up among ten thousand servers.
        self.tickets.retain(|_, keys| keys.strong_count() > 0);
        self.templates.clear();
        if self.secrets.as_ref().is_some_and(|secrets| secrets.rotate().is_err()) {
            tracing::error!("ticket keys not rotated: the system gave no random numbers");
        }
    }
}

fn template(
    provider: &Provider,
    policy: &TlsRules,
    clients: Option<Arc<ClientVerifier>>,
) -> Template {
    let (version_min, version_max) = match policy.versions {
        TlsVersions::Both => (Version::Tls12, Version::Tls13),
        TlsVersions::Only12 => (Version::Tls12, Version::Tls12),
        TlsVersions::Only13 => (Version::Tls13, Version::Tls13),
    };
    let policy = ServerPolicy { version_min, version_max, parameters: &policy.parameters, clients };
    Template::new(provider, &policy).expect("no minimum is above its maximum")
}

fn info(described: Description) -> CertificateInfo {
    let Description { serial, subject_alt_names, valid_from, expires, .. } = described;
    CertificateInfo { serial, subject_alt_names, valid_from, expires }
}

// Without the brackets that the finding puts around its own cause.

fn of_pair(error: &IdentityError) -> Refusal {
    Refusal { part: Part::Pair, reason: format!("{}; {}", error.what(), error.cause()) }
}

fn of_clients(error: &TrustError) -> Refusal {
    Refusal { part: Part::Clients, reason: format!("{}; {}", error.what(), error.cause()) }
}

#[cfg(test)]
mod tests {
    use super::super::compile::{ClientDemands, ClientTrust};
    use super::*;

    fn clients(ca: &str, crl: Option<&str>, name: &str) -> Option<Clients> {
        let crl = crl.map(|crl| crl.as_bytes().into());
        let trust = ClientTrust { ca: ca.as_bytes().into(), crl };
        let subject_alt_names = vec![name.to_owned()];
        Some(Clients { trust, demands: ClientDemands { subject_alt_names, ..Default::default() } })
    }

    #[test]
    fn ticket_keys_belong_to_a_server_and_all_of_its_rules() {
        let mut identities = RealIdentities::new(settings::Provider::Auto);
        let pair = Pair { certificate: b"".as_slice().into(), key: b"".as_slice().into() };
        let mut keys = |server, versions, clients| {
            let parameters = Parameters::default();
            let policy = TlsRules { versions, parameters, clients };
            let request = IdentityRequest { server, pair: &pair, policy: &policy };
            identities.tickets(&request).ok().unwrap()
        };
        let both = TlsVersions::Both;
        let all = [
            keys("a", both, None),
            keys("b", both, None),
            keys("a", TlsVersions::Only13, None),
            keys("a", both, clients("ca", None, "n")),
            keys("a", both, clients("ca 2", None, "n")),
            keys("a", both, clients("ca", Some("crl"), "n")),
            keys("a", both, clients("ca", Some("crl 2"), "n")),
            keys("a", both, clients("ca", None, "m")),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| !Arc::ptr_eq(one, other)), "{index}");
        }
        assert!(Arc::ptr_eq(&all[0], &keys("a", both, None)), "kept across reloads");
        assert!(Arc::ptr_eq(&all[3], &keys("a", both, clients("ca", None, "n"))));
    }
}
