//! Why a certificate and key cannot be served, in words for the operator.

use std::fmt;

use super::pem::Fault;

/// What is wrong with a certificate, its key, or both.
///
/// It never holds bytes of the input, so it can be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdentityError {
    /// The certificate PEM holds no certificate.
    NoCertificate {
        /// It holds a private key instead: the two were probably swapped.
        holds_key: bool,
    },
    /// The certificate or key is binary, DER or PKCS#12.
    Binary,
    /// The certificate PEM is damaged.
    CertificatePem {
        /// Which PEM block, from 1.
        block: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A block of the certificate PEM does not hold an X.509 certificate.
    NotX509 {
        /// Which certificate, from 1.
        certificate: usize,
    },
    /// The key PEM holds no private key.
    NoKey {
        /// It holds a certificate instead: the two were probably swapped.
        holds_certificate: bool,
    },
    /// The key PEM is damaged.
    KeyPem {
        /// Which PEM block, from 1.
        block: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The private key needs a passphrase.
    EncryptedKey,
    /// The key PEM holds more than one private key.
    SeveralKeys {
        /// How many.
        found: usize,
    },
    /// The private key is damaged, or of a type or size that cannot sign here.
    UnsupportedKey,
    /// The key is not the one of the first certificate.
    KeyMismatch {
        /// The certificate, from 1, that it does belong to.
        belongs_to: Option<usize>,
    },
    /// What is to be stapled is no OCSP response with an answer.
    BadStaple,
    /// The lowest allowed protocol version is above the highest.
    NoVersion,
}

impl IdentityError {
    /// What is wrong, without the cure.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::NoCertificate { .. } => "there is no certificate in it".into(),
            Self::Binary => "certificate or key is binary, not PEM".into(),
            Self::CertificatePem { block, fault } => {
                format!("PEM block {block} of the certificate {fault}")
            }
            Self::NotX509 { certificate } => {
                format!("certificate {certificate} is not a valid X.509 certificate")
            }
            Self::NoKey { .. } => "there is no private key in it".into(),
            Self::KeyPem { block, fault } => format!("PEM block {block} of the key {fault}"),
            Self::EncryptedKey => "the private key is encrypted".into(),
            Self::SeveralKeys { found } => format!("there are {found} private keys in it"),
            Self::UnsupportedKey => "the private key is damaged or of an unsupported kind".into(),
            Self::KeyMismatch { .. } => {
                "the private key does not belong to the first certificate".into()
            }
            Self::BadStaple => "the OCSP staple is not a successful response in DER".into(),
            Self::NoVersion => "the minimum protocol version is above the maximum".into(),
        }
    }

    /// The probable cause and how to cure it.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::NoCertificate { holds_key: true } | Self::NoKey { holds_certificate: true } => {
                "certificate and key are swapped: exchange them".into()
            }
            Self::NoCertificate { .. } => {
                "put the leaf certificate first, as a PEM block that begins a line with \
                 `-----BEGIN CERTIFICATE-----`"
                    .into()
            }
            Self::Binary => {
                "convert DER with `openssl x509 -inform der` and `openssl pkey -inform der`, \
                 PKCS#12 with `openssl pkcs12 -nodes`"
                    .into()
            }
            Self::CertificatePem { .. } | Self::KeyPem { .. } => {
                "it was cut or changed on its way here: copy the original again".into()
            }
            Self::NotX509 { .. } => {
                "check it with `openssl x509 -noout -text`, then copy the original again".into()
            }
            Self::NoKey { .. } => {
                "add it as a PEM block that begins a line with `-----BEGIN PRIVATE KEY-----`, \
                 `-----BEGIN RSA PRIVATE KEY-----` or `-----BEGIN EC PRIVATE KEY-----`"
                    .into()
            }
            Self::EncryptedKey => {
                "nobody is there to type the passphrase: store it decrypted, as `openssl pkey` \
                 writes it"
                    .into()
            }
            Self::SeveralKeys { .. } => "leave only the key of the first certificate".into(),
            Self::UnsupportedKey => {
                "use RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519".into()
            }
            Self::KeyMismatch { belongs_to: Some(certificate) } => {
                format!("it belongs to certificate {certificate}: move that one to the front")
            }
            Self::KeyMismatch { belongs_to: None } => {
                "one of the two was replaced without the other".into()
            }
            Self::BadStaple => "fetch it again with `openssl ocsp -respout`, or remove it".into(),
            Self::NoVersion => "exchange the two".into(),
        }
    }
}

impl fmt::Display for IdentityError {
    /// `what (cause)`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what(), self.cause())
    }
}

impl std::error::Error for IdentityError {}
