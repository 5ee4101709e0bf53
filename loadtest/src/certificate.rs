//! The certificates of the run: one for each kind of key, for `localhost`, trusted by nobody; and the
//! backend's, which gateways check.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};

/// The name in the backend's certificate, which gateways ask for.
pub(crate) const BACKEND: &str = "backend.loadtest.internal";

/// What a certificate is signed with and for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Key {
    /// P-256.
    Ecdsa,
    /// 2048 bits.
    Rsa,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Ecdsa => "ecdsa",
            Self::Rsa => "rsa",
        }
    }
}

/// PEM files.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub bundle: PathBuf,
}

impl Certificate {
    /// Where the files are that [`Certificate::create`] makes.
    pub(crate) fn below(dir: &Path, key: Key) -> Self {
        let file = |ending: &str| dir.join(format!("{}.{ending}", key.name()));
        Self { certificate: file("crt"), key: file("key"), bundle: file("pem") }
    }

    /// # Errors
    /// A file cannot be written; for RSA, `openssl` is not installed.
    pub(crate) fn create(dir: &Path, kind: Key) -> io::Result<()> {
        let key = match kind {
            Key::Ecdsa => KeyPair::generate().map_err(io::Error::other)?,
            Key::Rsa => rsa()?,
        };
        let params = CertificateParams::new(["localhost".to_owned()]).map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        let key = key.serialize_pem();
        let files = Self::below(dir, kind);
        fs::write(files.bundle, format!("{certificate}{key}"))?;
        fs::write(files.certificate, certificate)?;
        fs::write(files.key, key)
    }
}

/// Who vouches for the backend, in PEM files.
#[derive(Debug)]
pub(crate) struct Authority {
    /// Its own certificate, which gateways trust.
    pub ca: PathBuf,
    /// The certificate of another one, which vouches for nobody.
    pub stranger: PathBuf,
    /// The backend's.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Where the files are that [`Authority::create`] makes.
    pub(crate) fn below(dir: &Path) -> Self {
        Self {
            ca: dir.join("ca.crt"),
            stranger: dir.join("stranger.crt"),
            certificate: dir.join("backend.crt"),
            key: dir.join("backend.key"),
        }
    }

    /// # Errors
    /// A file cannot be written.
    pub(crate) fn create(dir: &Path) -> io::Result<Self> {
        let (files, ca) = (Self::below(dir), authority("loadtest")?);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let params = CertificateParams::new([BACKEND.to_owned()]).map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &ca).map_err(io::Error::other)?;
        fs::write(&files.ca, ca.pem())?;
        fs::write(&files.stranger, authority("stranger")?.pem())?;
        fs::write(&files.certificate, certificate.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    }
}

fn authority(name: &str) -> io::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().map_err(io::Error::other)?;
    CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)
}

/// ring makes no RSA keys.
fn rsa() -> io::Result<KeyPair> {
    let mut openssl = Command::new("openssl");
    openssl.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let output = openssl
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("openssl: {error}")))?;
    let pem = String::from_utf8_lossy(&output.stdout);
    KeyPair::from_pem(&pem).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_made() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Key::Ecdsa, Key::Rsa] {
            if kind == Key::Rsa && Command::new("openssl").arg("version").output().is_err() {
                println!("skipped: needs openssl");
                continue;
            }
            Certificate::create(dir.path(), kind).unwrap();
            let files = Certificate::below(dir.path(), kind);
            let bundle = fs::read_to_string(files.bundle).unwrap();
            let both = [files.certificate, files.key].map(|file| fs::read_to_string(file).unwrap());
            assert_eq!(bundle, both.concat());
        }
    }
}
