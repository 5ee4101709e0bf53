//! `Secret`: a certificate and its key, or what clients are checked with.
//!
//! Pairs are loaded when they are read, and their text is not kept: of ten thousand Secrets, what
//! is served is what remains in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::fields::{Field, Fields, Problems};
use crate::config::compile::{ClientTrust, Identities, LoadedPair};
use crate::crypto::PairPem;

/// The keys of a CA and of its revocation lists.
const KNOWN: [(&str, &str); 2] = [("cacert", "crl"), ("ca.crt", "ca.crl")];

/// A Secret, whatever its type.
#[derive(Debug)]
pub(crate) struct Secret {
    /// Certificate and key, or why there are none.
    pub(crate) pair: Result<LoadedPair, String>,
    /// What clients are checked with, if there is any.
    trust: Option<Result<ClientTrust, String>>,
    /// Revocation lists, where there is no CA beside them.
    pub(crate) lists_alone: Option<Arc<[u8]>>,
    /// The names of its keys, as a message shows them.
    keys: Box<str>,
}

impl Secret {
    /// The Secret with the contents `keys`.
    pub(crate) fn load(keys: &BTreeMap<String, Vec<u8>>, identities: &dyn Identities) -> Self {
        let pair = choose_pair(keys).and_then(|pair| identities.load(&pair));
        let trust = choose_trust(keys);
        let lists_alone = trust.is_none().then(|| lists(keys, KNOWN.iter())).flatten();
        Self { pair, trust, lists_alone, keys: names(keys).into() }
    }

    /// CA and revocation lists, or why there are none.
    pub(crate) fn trust(&self) -> Result<ClientTrust, String> {
        self.trust.clone().unwrap_or_else(|| {
            Err(format!(
                "found secret, but didn't have expected keys (cacert) or (ca.crt), which clients \
                 are checked against; found: {}",
                self.keys
            ))
        })
    }
}

/// Reads `data` and `stringData`, which wins as in Kubernetes; other fields are Kubernetes' affair.
pub(super) fn read(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
    identities: &dyn Identities,
) -> Option<Secret> {
    let mut keys = BTreeMap::new();
    for (key, field) in entries(fields.take("data"), problems) {
        if let Some(bytes) = decode(&field, problems) {
            keys.insert(key, bytes);
        }
    }
    for (key, field) in entries(fields.take("stringData"), problems) {
        if let Some(text) = field.string(problems) {
            keys.insert(key, text.into());
        }
    }
    (!problems.has_errors()).then(|| Secret::load(&keys, identities))
}

fn entries<'a>(field: Option<Field<'a>>, problems: &mut Problems) -> Vec<(String, Field<'a>)> {
    let Some(fields) = field.and_then(|field| field.fields(problems)) else { return Vec::new() };
    fields.all().map(|(key, field)| (key.to_owned(), field)).collect()
}

fn decode(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<u8>> {
    // A PEM file in base64 is often wrapped.
    let text: String = field.string(problems)?.split_ascii_whitespace().collect();
    let bytes = BASE64_STANDARD.decode(text);
    if bytes.is_err() {
        let cause = "plain text belongs in `stringData`; `base64 -w0 FILE` encodes a file";
        problems.error(field, "is not base64", cause);
    }
    bytes.ok()
}

/// Certificate chain, key and staple, by either of the names that Istio knows.
fn choose_pair(keys: &BTreeMap<String, Vec<u8>>) -> Result<PairPem<'_>, String> {
    let mut empty = None;
    for (certificate, key, staple) in
        [("cert", "key", None), ("tls.crt", "tls.key", Some("tls.ocsp-staple"))]
    {
        let (Some(chain), Some(private)) = (keys.get(certificate), keys.get(key)) else { continue };
        if !chain.is_empty() && !private.is_empty() {
            let staple = staple.and_then(|name| keys.get(name)).filter(|staple| !staple.is_empty());
            let staple = staple.map(Vec::as_slice);
            return Ok(PairPem { certificate: chain, key: private, staple });
        }
        empty = Some(format!("found keys \"{certificate}\" and \"{key}\", but they were empty"));
    }
    Err(empty.unwrap_or_else(|| {
        format!(
            "found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); \
             found: {}",
            names(keys)
        )
    }))
}

/// CA and revocation lists, by either of the names that Istio knows.
pub(super) fn choose_trust(
    keys: &BTreeMap<String, Vec<u8>>,
) -> Option<Result<ClientTrust, String>> {
    let (name, ca) = KNOWN.iter().find_map(|(ca, _)| Some((*ca, keys.get(*ca)?)))?;
    if ca.is_empty() {
        return Some(Err(format!("found key \"{name}\", but it was empty")));
    }
    // A list whose own CA is not there is meant for the one that is: Istio leaves it out.
    let meant = KNOWN.iter().filter(|(own, _)| *own == name || !keys.contains_key(*own));
    Some(Ok(ClientTrust { ca: ca.as_slice().into(), crl: lists(keys, meant) }))
}

/// The revocation lists of `known`, one after the other.
fn lists<'a>(
    keys: &BTreeMap<String, Vec<u8>>,
    known: impl Iterator<Item = &'a (&'static str, &'static str)>,
) -> Option<Arc<[u8]>> {
    let lists: Vec<_> = known.filter_map(|(_, crl)| keys.get(*crl)).map(Vec::as_slice).collect();
    (!lists.is_empty()).then(|| lists.join(&b'\n').into())
}

pub(super) fn names(keys: &BTreeMap<String, Vec<u8>>) -> String {
    keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}
