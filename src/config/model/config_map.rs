//! `ConfigMap`: read only for the CA of clients that a Gateway may name in it.
//!
//! Most ConfigMaps are about something else, so nothing in one is a mistake before a Gateway names
//! it: then its reason is told there.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::fields::{Field, Fields, Problems};
use super::secret::{choose_trust, names};
use crate::config::compile::ClientTrust;

/// A ConfigMap, of which only the CA is kept.
#[derive(Debug)]
pub(crate) struct ConfigMap {
    /// What clients are checked with, if there is any.
    trust: Option<Result<ClientTrust, String>>,
    /// The names of its keys, as a message shows them.
    keys: Box<str>,
}

impl ConfigMap {
    /// CA and revocation lists, or why there are none.
    pub(crate) fn trust(&self) -> Result<ClientTrust, String> {
        self.trust.clone().unwrap_or_else(|| {
            Err(format!(
                "found config map, but didn't have expected keys (cacert) or (ca.crt), which \
                 clients are checked against; found: {}",
                self.keys
            ))
        })
    }
}

/// Reads `data` and `binaryData`.
pub(super) fn read(fields: &mut Fields<'_>) -> ConfigMap {
    let mut keys = texts(fields, "data");
    for (key, mut text) in texts(fields, "binaryData") {
        text.retain(|byte| !byte.is_ascii_whitespace());
        // What is not base64 is no certificate either, which is then said of it.
        let bytes = BASE64_STANDARD.decode(&text).unwrap_or(text);
        keys.insert(key, bytes);
    }
    ConfigMap { trust: choose_trust(&keys), keys: names(&keys).into() }
}

/// What of `name` is text.
fn texts(fields: &mut Fields<'_>, name: &'static str) -> BTreeMap<String, Vec<u8>> {
    // Whatever is wrong is somebody else's affair.
    let mut ignored = Problems::default();
    let entries = fields.take(name).and_then(|field| field.fields(&mut ignored));
    let entries = entries.iter().flat_map(Fields::all);
    let mut text =
        |field: Field<'_>| field.string(&mut ignored).map(|text| text.as_bytes().to_vec());
    entries.filter_map(|(key, field)| Some((key.to_owned(), text(field)?))).collect()
}
