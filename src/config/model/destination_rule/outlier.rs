//! `outlierDetection` of a policy.

use crate::config::model::fields::{Field, Problems};
use crate::snapshot::OutlierDetection;

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<OutlierDetection> {
    let mut fields = field.fields(problems)?;
    let mut detection = OutlierDetection::default();
    if let Some(old) = fields.take("consecutiveErrors") {
        old.integer(0..=u32::MAX, problems);
        let cause = "write `consecutive5xxErrors` or `consecutiveGatewayErrors`, as in Istio";
        problems.warn(&old, "`consecutiveErrors` has no effect any more", cause);
    }
    let splits = fields.take("splitExternalLocalOriginErrors");
    detection.splits_local = splits.and_then(|f| f.boolean(problems)).unwrap_or_default();
    let local = fields.take("consecutiveLocalOriginFailures");
    if detection.splits_local {
        // Envoy's, where failures count on their own.
        detection.local_failures = 5;
    }
    if let Some(local) = local {
        detection.local_failures = local.integer(0..=u32::MAX, problems)?;
        if detection.local_failures > 0 && !detection.splits_local {
            let cause = "without it such failures count as 5xx";
            let what = "needs `splitExternalLocalOriginErrors: true`";
            problems.error(&local, what, cause);
        }
    }
    if let Some(gateway) = fields.take("consecutiveGatewayErrors") {
        detection.gateway_errors = gateway.integer(0..=u32::MAX, problems)?;
    }
    if let Some(server) = fields.take("consecutive5xxErrors") {
        detection.server_errors = server.integer(0..=u32::MAX, problems)?;
    }
    if let Some(interval) = fields.take("interval") {
        detection.interval = interval.duration(problems)?;
    }
    if let Some(time) = fields.take("baseEjectionTime") {
        detection.ejection_time = time.duration(problems)?;
    }
    if let Some(percent) = fields.take("maxEjectionPercent") {
        detection.ejected_percent_max = percent.integer(0..=100, problems)?;
    }
    if let Some(percent) = fields.take("minHealthPercent") {
        detection.healthy_percent_min = percent.integer(0..=100, problems)?;
    }
    fields.finish(problems);
    Some(detection)
}
