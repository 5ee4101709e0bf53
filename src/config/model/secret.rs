//! `Secret`: the bytes of certificates and keys.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::fields::{Field, Fields, Problems};

/// A Secret, whatever its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    /// By key; `stringData` wins over `data`, as in Kubernetes.
    pub(crate) keys: BTreeMap<String, SecretBytes>,
}

/// Bytes that are shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretBytes(pub(crate) Arc<[u8]>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret bytes", self.0.len())
    }
}

/// Reads `data` and `stringData`; other fields are Kubernetes' affair.
pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Secret> {
    let mut keys = BTreeMap::new();
    for entry in entries(fields.take("data"), problems) {
        if let Some(bytes) = decode(&entry.1, problems) {
            keys.insert(entry.0, bytes);
        }
    }
    for entry in entries(fields.take("stringData"), problems) {
        if let Some(text) = entry.1.string(problems) {
            keys.insert(entry.0, SecretBytes(text.as_bytes().into()));
        }
    }
    Some(Secret { keys })
}

fn entries<'a>(field: Option<Field<'a>>, problems: &mut Problems) -> Vec<(String, Field<'a>)> {
    let Some(fields) = field.and_then(|field| field.fields(problems)) else { return Vec::new() };
    fields.all().map(|(key, field)| (key.to_owned(), field)).collect()
}

fn decode(field: &Field<'_>, problems: &mut Problems) -> Option<SecretBytes> {
    // A PEM file in base64 is often wrapped.
    let text: String = field.string(problems)?.split_ascii_whitespace().collect();
    let bytes = BASE64_STANDARD.decode(text);
    if bytes.is_err() {
        let cause = "plain text belongs in `stringData`; `base64 -w0 FILE` encodes a file";
        problems.error(field, "is not base64", cause);
    }
    bytes.ok().map(|bytes| SecretBytes(bytes.into()))
}
