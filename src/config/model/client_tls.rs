//! `tls` of a DestinationRule: how the gateway speaks TLS with backends.
//!
//! Istio's rules of what goes with what; what would leave a backend unchecked that somebody wanted
//! checked is an error.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::fields::{Field, Fields, Located, Problems};
use crate::crypto::MeshPeer;

/// Where a mesh's certificates are mounted, as Istio's agent names them.
const MESH_CERTIFICATE: &str = "/etc/certs/cert-chain.pem";
const MESH_KEY: &str = "/etc/certs/key.pem";
const MESH_CA: &str = "/etc/certs/root-cert.pem";

/// Istio's `ClientTLSSettings`, in modes SIMPLE, MUTUAL and ISTIO_MUTUAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientTls {
    /// Where it stands.
    pub(crate) line: u64,
    /// `spec.trafficPolicy.tls`.
    pub(crate) field: String,
    pub(crate) certificates: ClientCertificates,
    /// Who the backend is in its mesh (mode ISTIO_MUTUAL).
    pub(crate) mesh: Option<MeshPeer>,
    /// One of these has to be the backend's; none means its identity in the mesh, or the name that
    /// was asked for.
    pub(crate) subject_alt_names: Vec<String>,
    /// The name to ask for; `None` for the host that the client asked for.
    pub(crate) sni: Option<Located<Arc<str>>>,
    /// Any certificate is taken.
    pub(crate) accept_untrusted: bool,
}

/// Where the certificates come from that a backend is checked with, and that it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientCertificates {
    /// A Secret in the gateway's namespace.
    Secret {
        name: Located<Arc<str>>,
        /// Whether it has a certificate for the gateway (mode MUTUAL).
        is_mutual: bool,
    },
    Files {
        /// The CAs that vouch for the backend; `None` for those of the system.
        ca: Option<Located<Arc<str>>>,
        /// Revocation lists.
        crl: Option<Located<Arc<str>>>,
        /// Certificate and key of the gateway (mode MUTUAL).
        own: Option<[Located<Arc<str>>; 2]>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// `Some(None)` is mode DISABLE; `None` after an error.
#[allow(clippy::option_option, reason = "no TLS is something that a rule can say")]
pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Option<ClientTls>> {
    let mut tls = field.fields(problems)?;
    let mode = tls.take("mode");
    let modes = [
        ("DISABLE", Mode::Disable),
        ("SIMPLE", Mode::Simple),
        ("MUTUAL", Mode::Mutual),
        ("ISTIO_MUTUAL", Mode::IstioMutual),
    ];
    // The first of Istio's enumeration.
    let chosen = mode.as_ref().map_or(Some(Mode::Disable), |mode| mode.one_of(&modes, problems));
    let of_mesh = mode.filter(|_| chosen == Some(Mode::IstioMutual));
    if of_mesh.is_some() {
        ignore_own(&mut tls, problems);
    }
    let is_mutual = chosen == Some(Mode::Mutual);
    let read = read_settings(&mut tls, of_mesh.as_ref(), is_mutual, problems);
    tls.finish(problems);
    match chosen? {
        Mode::Disable => Some(None),
        Mode::Simple | Mode::Mutual | Mode::IstioMutual => read.map(Some),
    }
}

/// Warns of what a mesh has its own of.
fn ignore_own(tls: &mut Fields<'_>, problems: &mut Problems) {
    let files = ["clientCertificate", "privateKey", "caCertificates", "caCrl", "credentialName"];
    for name in files.into_iter().chain(["insecureSkipVerify"]) {
        if let Some(field) = tls.take_filled(name) {
            let cause = format!("the files of the mesh count, which are beside {MESH_CERTIFICATE}");
            problems.warn(&field, "ignored in this mode", &cause);
        }
    }
}

/// Files of the mesh, as if they were written where its `mode` is.
fn mesh_certificates(mode: &Field<'_>) -> ClientCertificates {
    let file = |path: &str| Located { line: mode.line, value: path.into() };
    let own = Some([file(MESH_CERTIFICATE), file(MESH_KEY)]);
    ClientCertificates::Files { ca: Some(file(MESH_CA)), crl: None, own }
}

/// `of_mesh` is the mode, if it is ISTIO_MUTUAL.
fn read_settings(
    tls: &mut Fields<'_>,
    of_mesh: Option<&Field<'_>>,
    is_mutual: bool,
    problems: &mut Problems,
) -> Option<ClientTls> {
    let names = tls.take("subjectAltNames");
    let insecure = tls.take("insecureSkipVerify");
    let accept_untrusted = insecure.as_ref().map_or(Some(false), |f| f.boolean(problems));
    if accept_untrusted == Some(true)
        && let Some(names) = &names
    {
        let what = "cannot stand beside `insecureSkipVerify`, which checks nothing";
        problems.error(names, what, "remove one of them");
    }
    let items = names.map(|names| names.items(problems)).unwrap_or_default();
    let names: Vec<_> = items.iter().map(|n| n.string(problems).map(str::to_owned)).collect();
    let sni = tls.take("sni").map(|field| read_sni(&field, problems));
    let certificates = match of_mesh {
        Some(mode) => Some(mesh_certificates(mode)),
        None => read_certificates(tls, is_mutual, accept_untrusted == Some(true), problems),
    };
    Some(ClientTls {
        line: tls.parent.line,
        field: tls.parent.path.clone(),
        certificates: certificates?,
        mesh: of_mesh.map(|_| MeshPeer::default()),
        subject_alt_names: names.into_iter().collect::<Option<_>>()?,
        sni: sni.map_or(Some(None), |sni| sni.map(Some))?,
        accept_untrusted: accept_untrusted?,
    })
}

fn read_sni(field: &Field<'_>, problems: &mut Problems) -> Option<Located<Arc<str>>> {
    let name = field.located(problems)?;
    if ServerName::try_from(&*name.value).is_err() {
        let cause = "the name that the backend's certificate is for";
        problems.error(field, format!("`{}` is no host name", name.value), cause);
        return None;
    }
    Some(name)
}

fn read_certificates(
    tls: &mut Fields<'_>,
    is_mutual: bool,
    accept_untrusted: bool,
    problems: &mut Problems,
) -> Option<ClientCertificates> {
    let certificate = tls.take_filled("clientCertificate");
    let key = tls.take_filled("privateKey");
    let (ca, crl) = (tls.take_filled("caCertificates"), tls.take_filled("caCrl"));
    if let Some(name) = tls.take_filled("credentialName") {
        for file in [&certificate, &key, &ca, &crl].into_iter().flatten() {
            let cause = "the Secret has all of it";
            problems.error(file, "cannot stand beside `credentialName`", cause);
        }
        if accept_untrusted && !is_mutual {
            let what = "cannot stand beside `insecureSkipVerify`, which checks nothing";
            problems.error(&name, what, "remove one of them");
        }
        let name = read_secret_name(&name, problems)?;
        return Some(ClientCertificates::Secret { name, is_mutual });
    }
    if accept_untrusted && let Some(ca) = &ca {
        let what = "cannot stand beside `insecureSkipVerify`, which checks nothing";
        problems.error(ca, what, "remove one of them");
    }
    let ca = ca.map(|field| field.located(problems));
    let crl = crl.map(|field| field.located(problems));
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) if is_mutual => {
            Some([certificate.located(problems)?, key.located(problems)?])
        }
        (certificate, key) => {
            if is_mutual {
                let what = "mode MUTUAL needs `clientCertificate` and `privateKey`, or \
                            `credentialName`";
                problems.error(&tls.parent, what, "");
                return None;
            }
            for file in [certificate, key].into_iter().flatten() {
                let cause = "write `mode: MUTUAL` to show backends a certificate";
                problems.warn(&file, "ignored in this mode", cause);
            }
            None
        }
    };
    let ca = ca.map_or(Some(None), |ca| ca.map(Some))?;
    let crl = crl.map_or(Some(None), |crl| crl.map(Some))?;
    Some(ClientCertificates::Files { ca, crl, own })
}

fn read_secret_name(field: &Field<'_>, problems: &mut Problems) -> Option<Located<Arc<str>>> {
    let name = field.located(problems)?;
    if name.value.contains('/') || name.value.is_empty() {
        let cause = "the Secret is always looked up in the gateway's own namespace";
        problems.error(field, "must be the name of a Secret, without namespace", cause);
        return None;
    }
    Some(name)
}
