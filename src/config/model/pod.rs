//! `Pod`: the labels of an endpoint, which an EndpointSlice does not tell; and the endpoint of a
//! ServiceEntry that selects it.

use std::collections::BTreeMap;

use super::fields::{Field, Fields, Problems};
use super::{EntryAddress, EntryEndpoint};

/// A Pod. What is not modelled is Kubernetes' affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) labels: BTreeMap<String, String>,
    /// What it is to a ServiceEntry that selects it, while it is ready and not being deleted.
    pub(crate) endpoint: Option<Box<EntryEndpoint>>,
}

pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Pod> {
    let metadata = fields.take("metadata").and_then(|metadata| metadata.fields(problems));
    let (mut labels, mut is_leaving) = (BTreeMap::new(), false);
    if let Some(mut metadata) = metadata {
        labels = labels_of(&mut metadata, problems);
        is_leaving = metadata.take("deletionTimestamp").is_some();
    }
    let status = fields.take("status").and_then(|status| status.fields(problems));
    let address = status.and_then(|mut status| ready_address(&mut status, problems));
    let endpoint = address.filter(|_| !is_leaving).map(|address| {
        let (ports, labels) = (BTreeMap::new(), labels.clone());
        Box::new(EntryEndpoint { address, ports, labels, weight: 1, locality: Box::default() })
    });
    Some(Pod { labels, endpoint })
}

/// Where it is reached, if it is ready.
fn ready_address(status: &mut Fields<'_>, problems: &mut Problems) -> Option<EntryAddress> {
    let conditions = status.take("conditions")?.items(problems);
    let is_ready = conditions.iter().any(|condition| says_ready(condition, problems));
    let address = status.take("podIP")?.address(problems)?;
    is_ready.then(|| EntryAddress::Host(address.to_string()))
}

fn says_ready(condition: &Field<'_>, problems: &mut Problems) -> bool {
    let Some(mut condition) = condition.fields(problems) else { return false };
    let mut is = |name, value| {
        let text = condition.take(name).and_then(|field| field.string(problems));
        text == Some(value)
    };
    is("type", "Ready") && is("status", "True")
}

/// The labels in the metadata of a resource.
pub(super) fn labels(fields: &mut Fields<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let metadata = fields.take("metadata").and_then(|metadata| metadata.fields(problems));
    metadata.map(|mut metadata| labels_of(&mut metadata, problems)).unwrap_or_default()
}

fn labels_of(metadata: &mut Fields<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let labels = metadata.take("labels");
    labels.map(|labels| labels.strings(problems)).unwrap_or_default()
}
