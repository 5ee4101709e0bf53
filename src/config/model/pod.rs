//! `Pod`: the labels of an endpoint, which an EndpointSlice does not tell.

use std::collections::BTreeMap;

use super::fields::{Fields, Problems};

/// A Pod. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) labels: BTreeMap<String, String>,
}

pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Pod> {
    let labels = fields.take("metadata")?.fields(problems)?.take("labels");
    Some(Pod { labels: labels.map(|labels| labels.strings(problems)).unwrap_or_default() })
}
