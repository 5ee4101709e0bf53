//! What is said of the certificates that a server names: why they are not served, and why clients
//! will not like those that are.
//!
//! Deliberately not here: looking for them ([`identity`](super::identity)).

use std::time::{Duration, SystemTime};

use super::listener::ServerSource;
use super::{BuiltServer, Part};
use crate::config::model::{ClientCa, Credential, Server, Tls};
use crate::snapshot::{CertificateInfo, CertificateState, HostPattern, Rejection, Severity};

/// Names of a certificate that a message lists.
const NAMES_SHOWN_MAX: usize = 3;

/// Why there is no pair, or nothing to check clients with.
pub(super) struct Fault {
    pub(super) part: Part,
    pub(super) reason: String,
    /// It is not there, as opposed to wrong.
    pub(super) absent: bool,
}

/// Why something is not served.
pub(super) fn complaint(
    source: &ServerSource,
    severity: Severity,
    fault: &Fault,
    kept: bool,
) -> Rejection {
    let cause = match fault.part {
        Part::Pair(_) | Part::Key(_) if kept => "the last good certificate stays in use",
        Part::Clients if kept => "clients are checked as before",
        Part::Pair(_) | Part::Key(_) | Part::Clients if fault.absent => {
            "its hosts are closed until it appears; no restart is needed then"
        }
        Part::Pair(_) | Part::Key(_) | Part::Clients => {
            "its hosts are closed until this is mended; no restart is needed then"
        }
    };
    finding(source, fault.part, severity, fault.reason.clone(), cause)
}

/// Why clients will not like, or not be liked by, a certificate that is in use.
pub(super) struct Doubt {
    part: Part,
    what: String,
    cause: &'static str,
}

impl Doubt {
    pub(super) fn about(self, source: &ServerSource) -> Rejection {
        finding(source, self.part, Severity::Warning, self.what, self.cause)
    }
}

/// Clients of an authority that is out of date are refused.
pub(super) fn authority_doubts(built: &BuiltServer, now: SystemTime) -> Vec<Doubt> {
    let part = Part::Clients;
    let expired = built.client_ca.iter().filter_map(|ca| {
        let since = now.duration_since(ca.expires).ok()?;
        let what = format!("the CA certificate {} expired {} ago", ca.serial, days(since));
        Some(Doubt { part, what, cause: "its clients are refused: renew it" })
    });
    let list = built.crl_expires.and_then(|end| now.duration_since(end).ok()).map(|since| {
        let what = format!("a revocation list expired {} ago", days(since));
        let cause = "clients that it concerns are refused until there is a newer one";
        Doubt { part, what, cause }
    });
    expired.chain(list).collect()
}

pub(super) fn validity_doubt(
    part: Part,
    state: &CertificateState,
    now: SystemTime,
) -> Option<Doubt> {
    let CertificateState::Ready(certificate) = state else { return None };
    if let Ok(since) = now.duration_since(certificate.expires) {
        let what = format!("the certificate expired {} ago", days(since));
        let cause = "it is served, but clients refuse it: renew it";
        return Some(Doubt { part, what, cause });
    }
    let ahead = certificate.valid_from.duration_since(now).ok()?;
    let what = format!("the certificate becomes valid only in {}", days(ahead));
    let cause = "it is served, but clients refuse it until then; is the clock of this host right?";
    (!ahead.is_zero()).then_some(Doubt { part, what, cause })
}

/// A certificate without alternative names is judged by its subject, by the clients that still do.
pub(super) fn name_doubt(part: Part, state: &CertificateState, server: &Server) -> Option<Doubt> {
    let CertificateState::Ready(CertificateInfo { subject_alt_names: names, .. }) = state else {
        return None;
    };
    let mut hosts = server.hosts.iter().map(|host| &host.value.pattern);
    let uncovered = hosts.find(|host| !names.iter().any(|name| covers(name, host)))?;
    if names.is_empty() {
        return None;
    }
    let shown = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>();
    let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
    let what = format!("the certificate is for {}{more}, not for {uncovered}", shown.join(", "));
    Some(Doubt { part, what, cause: "clients that check the name refuse it" })
}

/// Whether a certificate for `name` convinces clients of some host that `pattern` takes. What takes
/// any host promises none.
fn covers(name: &str, pattern: &HostPattern) -> bool {
    let name = name.to_ascii_lowercase();
    let suffix = name.strip_prefix("*.");
    match pattern {
        HostPattern::Any => true,
        HostPattern::Exact(host) => {
            name == **host || suffix.is_some() && host.split_once('.').map(|(_, s)| s) == suffix
        }
        HostPattern::Wildcard(domain) => {
            let below = suffix.unwrap_or(&name);
            suffix == Some(domain) || below.ends_with(&format!(".{domain}"))
        }
    }
}

fn finding(
    source: &ServerSource,
    part: Part,
    severity: Severity,
    what: String,
    cause: &str,
) -> Rejection {
    let (line, field) = field(source.tls(), part);
    let field = format!("spec.servers[{}].tls.{field}", source.server().index);
    source.gateway.reject(severity, line, field, what, cause)
}

/// Line and name of the field that names `part`.
fn field(tls: &Tls, part: Part) -> (u64, &'static str) {
    let ca = tls.clients.as_ref().map(|clients| &clients.ca);
    let at = if let Part::Pair(at) | Part::Key(at) = part { at } else { 0 };
    match (part, ca, &tls.credentials[at]) {
        (Part::Clients, Some(ClientCa::File(path)), _) => (path.line, "caCertificates"),
        (Part::Clients, Some(ClientCa::Secret(name)), _) => (name.line, "caCertCredentialName"),
        (_, _, Credential::Secret(name)) => (name.line, "credentialName"),
        (Part::Key(_), _, Credential::Files { key, .. }) => (key.line, "privateKey"),
        (_, _, Credential::Files { certificate, .. }) => (certificate.line, "serverCertificate"),
    }
}

/// A time in words.
pub(super) fn days(time: Duration) -> String {
    match time.as_secs() / (24 * 60 * 60) {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}
