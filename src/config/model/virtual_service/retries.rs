//! `retries` of a rule.

use ::http::StatusCode;

use super::super::fields::{Field, Problems, did_you_mean};
use crate::snapshot::{RetryOn, RetryPolicy};

/// Nobody waits for more.
const RETRIES_MAX: u32 = 1_000;

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<RetryPolicy> {
    let mut fields = field.fields(problems)?;
    let attempts = fields.take("attempts").map(|f| f.integer(0..=RETRIES_MAX, problems));
    let mut policy = RetryPolicy { retries: attempts.unwrap_or(Some(0))?, ..RetryPolicy::DEFAULT };
    let others = ["perTryTimeout", "retryOn", "retryRemoteLocalities"];
    let other = others.into_iter().find_map(|name| fields.take_filled(name));
    if let (0, Some(other)) = (policy.retries, other) {
        let cause = "`attempts` is 0 or missing, which turns retries off";
        problems.error(&other, "cannot stand there without attempts", cause);
    }
    if let Some(timeout) = fields.take("perTryTimeout") {
        policy.per_try_timeout = timeout.duration(problems);
    }
    if let Some(backoff) = fields.take("backoff") {
        policy.backoff = backoff.duration(problems).unwrap_or(policy.backoff);
    }
    if let Some(avoids) = fields.take("retryIgnorePreviousHosts") {
        policy.avoids_tried = avoids.boolean(problems).unwrap_or(true);
    }
    if let Some(on) = fields.take("retryOn") {
        read_on(&on, &mut policy, problems);
    }
    if let Some(remote) = fields.take("retryRemoteLocalities") {
        policy.leaves_localities = remote.boolean(problems).unwrap_or(false);
    }
    fields.finish(problems);
    Some(policy)
}

/// Reads reasons and statuses; a number is a status.
fn read_on(field: &Field<'_>, policy: &mut RetryPolicy, problems: &mut Problems) {
    let Some(text) = field.string(problems) else { return };
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut on = RetryOn::NONE;
    for word in words {
        let known = RetryOn::NAMES.iter().find(|(name, _)| *name == word);
        if let Some((_, reason)) = known {
            on = on | *reason;
        } else if let Some(status) = word.parse::<StatusCode>().ok().filter(|s| s.as_u16() < 600) {
            policy.statuses.push(status);
            on = on | RetryOn::STATUSES;
        } else if word == "retriable-headers" {
            let cause = "nothing in a VirtualService names such headers";
            problems.warn(field, "`retriable-headers` has no effect", cause);
        } else {
            let near = did_you_mean(word, RetryOn::NAMES.iter().map(|(name, _)| *name));
            problems.error(field, format!("`{word}` is no reason for a retry"), &near);
        }
    }
    if !text.trim().is_empty() {
        policy.on = on;
    }
}
