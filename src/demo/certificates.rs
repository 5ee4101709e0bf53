//! A CA for one afternoon and the server's certificate from it.
//!
//! The CA's key is never written: it signs once and is forgotten.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::HOST;

/// Where the page has the gateway look for them, below `files.root`.
const MOUNT: &str = "etc/istio/ingressgateway-certs";
/// Before now, for clocks that differ; and how long a demo may be left running.
const SLACK: Duration = Duration::from_secs(3_600);
const VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// The files, all PEM.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// What a client has to trust.
    pub ca: PathBuf,
    /// The server's certificate, for [`HOST`].
    pub certificate: PathBuf,
    /// Its key, ECDSA P-256, PKCS#8; for nobody but its owner to read.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes new ones: `ca.crt` in `dir`, `tls.crt` and `tls.key` in
    /// `dir/files/etc/istio/ingressgateway-certs`. Files that are there are replaced.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let mount = dir.join(super::resources::FILES).join(MOUNT);
        fs::create_dir_all(&mount)?;
        let made = Made::new().map_err(io::Error::other)?;
        let files = Self {
            ca: dir.join("ca.crt"),
            certificate: mount.join("tls.crt"),
            key: mount.join("tls.key"),
        };
        fs::write(&files.ca, made.ca)?;
        write_secret(&files.key, &made.key)?;
        fs::write(&files.certificate, made.certificate)?;
        Ok(files)
    }
}

/// The same as PEM text.
struct Made {
    ca: String,
    certificate: String,
    key: String,
}

impl Made {
    fn new() -> Result<Self, rcgen::Error> {
        let ca_key = KeyPair::generate()?;
        let ca_params = ca_params()?;
        let ca = ca_params.self_signed(&ca_key)?.pem();
        let key = KeyPair::generate()?;
        let issuer = Issuer::new(ca_params, ca_key);
        let certificate = server_params()?.signed_by(&key, &issuer)?.pem();
        Ok(Self { ca, certificate, key: key.serialize_pem() })
    }
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(Vec::new(), "ringgate demo CA")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(vec![HOST.to_owned()], HOST)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let now = SystemTime::now();
    params.not_before = (now - SLACK).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ringgate demo");
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// Created for the owner alone, not narrowed afterwards: there is no moment at which others can
/// read it.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::pem::Pem;
    use x509_parser::prelude::GeneralName;

    fn pem(path: &Path) -> Pem {
        x509_parser::pem::parse_x509_pem(&fs::read(path).unwrap()).unwrap().1
    }

    #[test]
    fn a_ca_and_a_certificate_of_it_for_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let files = Certificates::create(dir.path()).unwrap();
        let (ca, leaf) = (pem(&files.ca), pem(&files.certificate));
        let (ca, leaf) = (ca.parse_x509().unwrap(), leaf.parse_x509().unwrap());
        assert!(ca.is_ca() && !leaf.is_ca());
        assert_eq!(leaf.issuer(), ca.subject());
        assert!(leaf.validity().is_valid() && ca.validity().is_valid());
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::DNSName(HOST)]);
        let common_name = leaf.subject().iter_common_name().next().unwrap();
        assert_eq!(common_name.as_str().unwrap(), HOST);
    }

    #[test]
    fn the_key_is_for_its_owner_and_belongs_to_the_certificate() {
        let dir = tempfile::tempdir().unwrap();
        Certificates::create(dir.path()).unwrap();
        let files = Certificates::create(dir.path()).unwrap();
        let mode = fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = KeyPair::from_pem(&fs::read_to_string(&files.key).unwrap()).unwrap();
        let leaf = pem(&files.certificate);
        let leaf = leaf.parse_x509().unwrap();
        let public: &[u8] = &leaf.public_key().subject_public_key.data;
        assert_eq!(public, key.public_key_raw());
    }
}
