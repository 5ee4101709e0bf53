//! Builds the identities of servers with `crypto`, and keeps their ticket keys; and what
//! connections to backends are made with.
//!
//! - Tickets belong to one server and its rules, the bytes of client CAs and revocation lists among
//!   them: they stay good across reloads while all are the same, and no other server accepts them.
//!   So a client that is no longer taken cannot resume its way in.
//! - What servers with the same rules have in common is made once for all of them.
//! - Every server's keys are rotated together, on the control thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::ProducesTickets;
use rustls::time_provider::DefaultTimeProvider;

use super::compile::{
    BackendRules, BuiltBackend, BuiltServer, ClientTrust, Clients, Identities, LoadedPair, Part,
    Refusal, ServerRequest, TlsRules, TlsVersions,
};
use super::system_ca;
use crate::crypto::{
    self, BackendRequest, BackendTrust, CheckedTickets, Choice, ClientRequest, ClientVerifier,
    Description, IdentityError, PairPem, Provider, ServerPolicy, Template, TicketSecrets,
    TrustError, Version,
};
use crate::settings;
use crate::snapshot::{CertificateInfo, CertificateState};

/// Makes real identities.
pub(crate) struct RealIdentities {
    provider: Provider,
    policies: HashMap<TlsRules, MadePolicy>,
    trusts: HashMap<ClientTrust, MadeTrust>,
    /// As they were read last.
    system_ca: Arc<[u8]>,
    /// Made with the first configuration.
    secrets: Option<Arc<TicketSecrets>>,
}

/// What servers with the same rules share.
struct MadePolicy {
    template: Template,
    clients: Option<Arc<ClientVerifier>>,
    client_ca: Arc<[CertificateInfo]>,
    crl_expires: Option<SystemTime>,
}

/// What rules for backends share.
#[derive(Clone)]
struct MadeTrust {
    trust: Arc<BackendTrust>,
    ca: Arc<[CertificateInfo]>,
}

impl RealIdentities {
    /// Computes with the provider that the operator chose.
    pub(crate) fn new(provider: settings::Provider) -> Self {
        let choice = match provider {
            settings::Provider::Auto => Choice::Auto,
            settings::Provider::AwsLcRs => Choice::AwsLcRs,
            settings::Provider::Ring => Choice::Ring,
        };
        Self {
            provider: Provider::new(choice),
            policies: HashMap::new(),
            trusts: HashMap::new(),
            system_ca: Arc::default(),
            secrets: None,
        }
    }

    /// Those of a new group, for `clients` if they are asked for certificates.
    fn tickets(
        &mut self,
        clients: Option<Arc<ClientVerifier>>,
    ) -> Result<Arc<dyn ProducesTickets>, Refusal> {
        let secrets = match self.secrets.take() {
            Some(secrets) => secrets,
            None => Arc::new(TicketSecrets::new().map_err(|_| {
                let reason = "the system gave no random numbers".to_owned();
                Refusal { part: Part::Pair(0), reason }
            })?),
        };
        let group = Arc::new(self.secrets.insert(secrets).group());
        Ok(match clients {
            Some(clients) => {
                Arc::new(CheckedTickets::new(group, clients, Arc::new(DefaultTimeProvider)))
            }
            None => group,
        })
    }

    fn policy(&mut self, rules: &TlsRules) -> Result<&MadePolicy, TrustError> {
        if !self.policies.contains_key(rules) {
            let made = make(&self.provider, rules)?;
            self.policies.insert(rules.clone(), made);
        }
        Ok(&self.policies[rules])
    }

    /// What `given` is read as: the system's CAs are many, and many rules may mean them.
    fn trust(&mut self, given: &ClientTrust) -> Result<MadeTrust, TrustError> {
        if let Some(known) = self.trusts.get(given) {
            return Ok(known.clone());
        }
        let trust = BackendTrust::new(&self.provider, &given.ca, given.crl.as_deref())?;
        let ca = crypto::describe_all(&given.ca).map_err(TrustError::Ca)?;
        let made = MadeTrust { trust: Arc::new(trust), ca: ca.into_iter().map(info).collect() };
        self.trusts.insert(given.clone(), made.clone());
        Ok(made)
    }
}

impl Identities for RealIdentities {
    fn load(&self, pair: &PairPem<'_>) -> Result<LoadedPair, String> {
        let key = crypto::load(&self.provider, pair).map_err(|error| words(&error))?;
        let found = crypto::describe(pair.certificate).map_err(|error| words(&error))?;
        Ok(LoadedPair { key, state: Arc::new(CertificateState::Ready(info(found))) })
    }

    fn server(&mut self, request: &ServerRequest<'_>) -> Result<BuiltServer, Refusal> {
        let policy = self.policy(request.policy).map_err(|error| of_clients(&error))?;
        let clients = policy.clients.clone();
        let tickets = match request.before {
            Some(before) => Arc::clone(&before.ticketer),
            None => self.tickets(clients)?,
        };
        let MadePolicy { template, client_ca, crl_expires, .. } = &self.policies[request.policy];
        let keys = request.pairs.iter().map(|pair| pair.key.clone()).collect();
        Ok(BuiltServer {
            config: template.server(keys, tickets),
            client_ca: Arc::clone(client_ca),
            crl_expires: *crl_expires,
        })
    }

    fn backend(&mut self, rules: &BackendRules<'_>) -> Result<BuiltBackend, Refusal> {
        let made = rules.trust.map(|given| self.trust(given)).transpose();
        let made = made.map_err(|error| of_clients(&error))?;
        let trust = made.as_ref().map(|made| Arc::clone(&made.trust));
        let crl_expires = trust.as_ref().and_then(|trust| trust.crl_expires());
        let config = |alpn| {
            let request = BackendRequest {
                trust: trust.clone(),
                subject_alt_names: rules.subject_alt_names,
                mesh: rules.mesh,
                pair: rules.own.map(|own| &own.key),
                alpn,
            };
            crypto::backend_config(&self.provider, &request)
        };
        let (http1, http2) = (config(b"http/1.1"), config(b"h2"));
        Ok(BuiltBackend {
            http1,
            http2,
            ca: made.map(|made| made.ca).unwrap_or_default(),
            crl_expires,
        })
    }

    fn system_ca(&mut self) -> Result<Arc<[u8]>, String> {
        let read = system_ca::read()?;
        if *self.system_ca != *read {
            self.system_ca = read.into();
        }
        Ok(Arc::clone(&self.system_ca))
    }

    fn rotate_tickets(&mut self) {
        // What is gone is forgotten here; what is not is made again when it is needed.
        self.policies.clear();
        self.trusts.clear();
        if self.secrets.as_ref().is_some_and(|secrets| secrets.rotate().is_err()) {
            tracing::error!("ticket keys not rotated: the system gave no random numbers");
        }
    }
}

fn make(provider: &Provider, rules: &TlsRules) -> Result<MadePolicy, TrustError> {
    let verifier = rules.clients.as_ref().map(|clients| verifier(provider, clients)).transpose()?;
    let crl_expires = verifier.as_ref().and_then(|verifier| verifier.crl_expires());
    let authorities = match &rules.clients {
        Some(clients) => crypto::describe_all(&clients.trust.ca).map_err(TrustError::Ca)?,
        None => Vec::new(),
    };
    let (version_min, version_max) = match rules.versions {
        TlsVersions::Both => (Version::Tls12, Version::Tls13),
        TlsVersions::Only12 => (Version::Tls12, Version::Tls12),
        TlsVersions::Only13 => (Version::Tls13, Version::Tls13),
    };
    let policy = ServerPolicy {
        version_min,
        version_max,
        parameters: &rules.parameters,
        clients: verifier.clone(),
    };
    Ok(MadePolicy {
        template: Template::new(provider, &policy).expect("no minimum is above its maximum"),
        clients: verifier,
        client_ca: authorities.into_iter().map(info).collect(),
        crl_expires,
    })
}

fn verifier(provider: &Provider, clients: &Clients) -> Result<Arc<ClientVerifier>, TrustError> {
    let Clients { trust, demands } = clients;
    let request = ClientRequest {
        optional: demands.optional,
        ca_pem: &trust.ca,
        crl_pem: trust.crl.as_deref(),
        subject_alt_names: &demands.subject_alt_names,
        pins: &demands.pins,
        accept_untrusted: demands.accept_untrusted,
    };
    ClientVerifier::new(provider, &request)
}

fn info(described: Description) -> CertificateInfo {
    let Description { serial, subject_alt_names, valid_from, expires, .. } = described;
    CertificateInfo { serial, subject_alt_names, valid_from, expires }
}

// Without the brackets that the finding puts around its own cause.

fn words(error: &IdentityError) -> String {
    format!("{}; {}", error.what(), error.cause())
}

fn of_clients(error: &TrustError) -> Refusal {
    Refusal { part: Part::Clients, reason: format!("{}; {}", error.what(), error.cause()) }
}

#[cfg(test)]
mod tests {
    use super::super::compile::{ClientDemands, ClientTrust};
    use super::*;
    use crate::crypto::Parameters;

    fn generated() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example.com".into()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn pem<'a>(certificate: &'a str, key: &'a str) -> PairPem<'a> {
        PairPem { certificate: certificate.as_bytes(), key: key.as_bytes(), staple: None }
    }

    fn rules(ca: Option<&str>) -> TlsRules {
        let clients = ca.map(|ca| {
            let trust = ClientTrust { ca: ca.as_bytes().into(), crl: None };
            Box::new(Clients { trust, demands: ClientDemands::default() })
        });
        TlsRules { versions: TlsVersions::Both, parameters: Parameters::default(), clients }
    }

    #[test]
    fn tickets_are_those_of_before_or_of_a_new_group() {
        let mut identities = RealIdentities::new(settings::Provider::Auto);
        let (certificate, key) = generated();
        let pair = identities.load(&pem(&certificate, &key)).unwrap();
        let mut server = |policy: &TlsRules, before| {
            identities.server(&ServerRequest { pairs: &[&pair], policy, before }).unwrap().config
        };
        let opens = |config: &rustls::ServerConfig, ticket: &[u8]| {
            config.ticketer.decrypt(ticket).is_some()
        };
        let first = server(&rules(None), None);
        let ticket = first.ticketer.encrypt(b"session").unwrap();
        let renewed = server(&rules(None), Some(&first));
        assert!(opens(&renewed, &ticket));
        let other = server(&rules(None), None);
        assert!(!opens(&other, &ticket));
        let mutual = server(&rules(Some(&certificate)), None);
        assert!(!opens(&mutual, &ticket));
        let again = server(&rules(Some(&certificate)), None);
        assert!(!opens(&again, &mutual.ticketer.encrypt(b"session").unwrap()));
    }

    #[test]
    fn the_rules_of_a_server_are_its_own_although_their_making_is_shared() {
        let mut identities = RealIdentities::new(settings::Provider::Auto);
        let (certificate, key) = generated();
        let pair = identities.load(&pem(&certificate, &key)).unwrap();
        let mut built = |ca| {
            identities.server(&ServerRequest { pairs: &[&pair], policy: &rules(ca), before: None })
        };
        assert!(built(None).unwrap().client_ca.is_empty());
        assert_eq!(built(Some(&certificate)).unwrap().client_ca.len(), 1);
        assert_eq!(built(Some("nothing")).err().unwrap().part, Part::Clients);
        assert!(built(None).unwrap().client_ca.is_empty());
    }
}
