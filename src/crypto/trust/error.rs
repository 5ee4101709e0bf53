//! Why peers cannot be checked, in words for the operator.

use crate::crypto::IdentityError;
use crate::crypto::pem::Fault;

/// What is wrong with CA certificates or revocation lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrustError {
    /// The CA certificates cannot be read.
    Ca(IdentityError),
    /// The PEM of the revocation lists holds none.
    NoCrl,
    /// The PEM of the revocation lists is damaged.
    CrlPem {
        /// Which PEM block, from 1.
        block: usize,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A PEM block does not hold a revocation list.
    NotCrl {
        /// Which list, from 1.
        list: usize,
    },
    /// The list is for a part of the certificates only, or changes another list.
    PartialCrl {
        /// Which list, from 1.
        list: usize,
    },
}

impl TrustError {
    /// What is wrong, without the cure.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Ca(IdentityError::NoCertificate { .. }) => {
                "there is no CA certificate in it".into()
            }
            Self::Ca(error) => error.what(),
            Self::NoCrl => "there is no revocation list in it".into(),
            Self::CrlPem { block, fault } => {
                format!("PEM block {block} of the revocation lists {fault}")
            }
            Self::NotCrl { list } => format!("revocation list {list} is not a valid X.509 CRL"),
            Self::PartialCrl { list } => {
                format!("revocation list {list} has a critical extension that is not supported")
            }
        }
    }

    /// The probable cause and how to cure it.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Ca(IdentityError::NoCertificate { holds_key: true }) => {
                "it is a private key, which nobody else should have: use the CA's certificate"
                    .into()
            }
            Self::Ca(IdentityError::NoCertificate { .. }) => {
                "put the certificates of the CAs there, as PEM blocks that begin a line \
                 with `-----BEGIN CERTIFICATE-----`"
                    .into()
            }
            Self::Ca(error) => error.cause(),
            Self::NoCrl => "put it there as a PEM block that begins a line with \
                            `-----BEGIN X509 CRL-----`; `openssl crl -inform der` converts DER"
                .into(),
            Self::CrlPem { .. } | Self::NotCrl { .. } => {
                "it was cut or changed on its way here: copy the original again".into()
            }
            Self::PartialCrl { .. } => {
                "use a list that is complete, not a delta and not for some certificates only".into()
            }
        }
    }
}
