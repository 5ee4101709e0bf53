//! `Pod`: the labels of an endpoint, which an EndpointSlice does not tell.

use std::collections::BTreeMap;

use super::fields::{Fields, Problems};

/// A Pod. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) labels: BTreeMap<String, String>,
}

pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Pod> {
    Some(Pod { labels: labels(fields, problems) })
}

/// The labels in the metadata of a resource.
pub(super) fn labels(fields: &mut Fields<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let metadata = fields.take("metadata").and_then(|metadata| metadata.fields(problems));
    let labels = metadata.and_then(|mut metadata| metadata.take("labels"));
    labels.map(|labels| labels.strings(problems)).unwrap_or_default()
}
