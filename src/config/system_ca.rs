//! The CA certificates that the system trusts, for backends without one of their own.
//!
//! Looked for where Istio looks; `SSL_CERT_FILE` names another file, as for OpenSSL.

use std::{env, fs, io};

/// Where distributions keep them.
const PATHS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The PEM of them.
///
/// # Errors
/// Where they were looked for, and why there are none; for the operator.
pub(super) fn read() -> Result<Vec<u8>, String> {
    let named = env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    if let Some(path) = named {
        return fs::read(&path)
            .map_err(|error| format!("SSL_CERT_FILE, {}: {error}", path.display()));
    }
    for path in PATHS {
        match fs::read(path) {
            Ok(pem) => return Ok(pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{path}: {error}")),
        }
    }
    let first = PATHS[0];
    Err(format!(
        "the system has no CA certificates, such as {first}: install ca-certificates, set \
         SSL_CERT_FILE, or name a CA with `caCertificates` or `credentialName`"
    ))
}
