//! What a rule does with a request beside its action.

use std::time::Duration;

use ::http::StatusCode;
use ::http::header::{HeaderName, HeaderValue};

use super::super::fields::{Field, Fields, Problems};
use super::condition::{not_a_regex, read_text};
use super::headers::{self, Headers};
use super::retries;
use super::rule::{Destination, read_destination};
use crate::snapshot::{
    Abort, Cors, Fault, RegexRewrite, RetryPolicy, RewriteError, Share, TextMatch,
};

/// What is `None` is not said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Treatment {
    pub(crate) headers: Option<Headers>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: Option<RetryPolicy>,
    pub(crate) fault: Option<Fault>,
    pub(crate) cors: Option<Cors>,
    pub(crate) mirrors: Option<Vec<Mirror>>,
}

impl Treatment {
    /// Nothing is said.
    pub(crate) const NONE: Self = Self {
        headers: None,
        rewrite: None,
        timeout: None,
        retries: None,
        fault: None,
        cors: None,
        mirrors: None,
    };

    /// Whether nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        self.headers.is_none()
            && self.rewrite.is_none()
            && self.timeout.is_none()
            && self.retries.is_none()
            && self.fault.is_none()
            && self.cors.is_none()
            && self.mirrors.is_none()
    }
}

/// `rewrite`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rewrite {
    pub(crate) uri: Option<NewUri>,
    pub(crate) authority: Option<HeaderValue>,
}

/// The new path.
#[derive(Debug, Clone)]
pub(crate) enum NewUri {
    /// For what the match has matched.
    Matched(String),
    /// For every match of an expression of its own.
    Regex(RegexRewrite),
}

/// A service that gets copies of requests.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) destination: Destination,
    pub(crate) share: Share,
}

/// Reads all of it. What is wrong leaves out the whole resource.
pub(super) fn read(rule: &mut Fields<'_>, problems: &mut Problems) -> Treatment {
    let headers = rule.take("headers").and_then(|field| headers::read(&field, problems));
    let rewrite = rule.take("rewrite").and_then(|field| read_rewrite(&field, problems));
    let fault = rule.take("fault").and_then(|field| read_fault(&field, problems));
    let cors = rule.take("corsPolicy").and_then(|field| read_cors(&field, problems));
    let mirrors = read_mirrors(rule, problems);
    if rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some())
        && headers.as_ref().is_some_and(|headers| headers.authority.is_some())
    {
        let cause = "`rewrite.authority` and `headers.request` both set it; leave one of them";
        problems.error(&rule.parent, "the host is set twice", cause);
    }
    Treatment {
        headers,
        rewrite,
        timeout: rule.take("timeout").and_then(|field| field.duration(problems)),
        retries: rule.take("retries").and_then(|field| retries::read(&field, problems)),
        fault,
        cors,
        mirrors,
    }
}

fn read_rewrite(field: &Field<'_>, problems: &mut Problems) -> Option<Rewrite> {
    let mut fields = field.fields(problems)?;
    let authority = fields.take("authority");
    let uris = (fields.take("uri"), fields.take("uriRegexRewrite"));
    if authority.is_none() && matches!(uris, (None, None)) {
        problems.error(field, "needs `uri`, `uriRegexRewrite` or `authority`", "");
    }
    let authority = authority.and_then(|field| headers::read_authority(&field, problems));
    let uri = match uris {
        (Some(uri), None) => read_new_uri(&uri, problems).map(NewUri::Matched),
        (None, Some(regex)) => read_regex_rewrite(&regex, problems).map(NewUri::Regex),
        (Some(_), Some(regex)) => {
            problems.error(&regex, "there may be `uri` or `uriRegexRewrite`, not both", "");
            None
        }
        (None, None) => None,
    };
    fields.finish(problems);
    Some(Rewrite { uri, authority })
}

fn read_new_uri(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.string(problems)?;
    if text.starts_with('/') && text.parse::<::http::uri::PathAndQuery>().is_ok() {
        return Some(text.to_owned());
    }
    problems.error(field, format!("`{text}` is no path"), "a path starts with `/`");
    None
}

fn read_regex_rewrite(field: &Field<'_>, problems: &mut Problems) -> Option<RegexRewrite> {
    let mut fields = field.fields(problems)?;
    let pattern = fields.require("match", problems);
    let replacement = fields.require("rewrite", problems);
    fields.finish(problems);
    let (pattern, replacement) = (pattern?, replacement?);
    match RegexRewrite::parse(pattern.string(problems)?, replacement.string(problems)?) {
        Ok(rewrite) => Some(rewrite),
        Err(RewriteError::Pattern(error)) => {
            problems.error(&pattern, not_a_regex(&error), "");
            None
        }
        Err(RewriteError::Replacement(error)) => {
            problems.error(&replacement, format!("cannot be used: {error}"), "");
            None
        }
    }
}

fn read_fault(field: &Field<'_>, problems: &mut Problems) -> Option<Fault> {
    let mut fields = field.fields(problems)?;
    let (delay, abort) = (fields.take("delay"), fields.take("abort"));
    if delay.is_none() && abort.is_none() {
        problems.error(field, "needs `delay` or `abort`", "");
    }
    let delay = delay.and_then(|delay| read_delay(&delay, problems));
    let abort = abort.and_then(|abort| read_abort(&abort, problems));
    fields.finish(problems);
    Some(Fault { delay, abort })
}

fn read_delay(field: &Field<'_>, problems: &mut Problems) -> Option<(Share, Duration)> {
    let mut fields = field.fields(problems)?;
    fields.refuse(&["exponentialDelay"], problems);
    let delay = fields.require("fixedDelay", problems);
    let delay = delay.and_then(|delay| delay.duration(problems));
    let share = read_share(&mut fields, true, problems);
    fields.finish(problems);
    Some((share, delay?))
}

fn read_abort(field: &Field<'_>, problems: &mut Problems) -> Option<(Share, Abort)> {
    let mut fields = field.fields(problems)?;
    fields.refuse(&["http2Error"], problems);
    let abort = match (fields.take("httpStatus"), fields.take("grpcStatus")) {
        (Some(status), None) => {
            let status = status.integer(200..=599_u16, problems);
            status.and_then(|status| StatusCode::from_u16(status).ok()).map(Abort::Http)
        }
        (None, Some(status)) => read_grpc_status(&status, problems).map(Abort::Grpc),
        _ => {
            problems.error(field, "needs exactly one of `httpStatus` and `grpcStatus`", "");
            None
        }
    };
    let share = read_share(&mut fields, false, problems);
    fields.finish(problems);
    Some((share, abort?))
}

/// How often; `is_old` where the older field is known, too.
fn read_share(fields: &mut Fields<'_>, is_old: bool, problems: &mut Problems) -> Share {
    let old = if is_old { fields.take("percent") } else { None };
    if let Some(percentage) = fields.take("percentage") {
        return read_percentage(&percentage, problems).unwrap_or(Share::ALL);
    }
    match old {
        Some(percent) => {
            percent.number(0.0..=100.0, problems).map_or(Share::ALL, Share::of_percent)
        }
        None => {
            let cause = "`percentage` is missing, which means 0, as in Istio";
            problems.warn(&fields.parent, "never happens", cause);
            Share::of_percent(0.0)
        }
    }
}

fn read_percentage(field: &Field<'_>, problems: &mut Problems) -> Option<Share> {
    let mut fields = field.fields(problems)?;
    let value = fields.take("value").map(|value| value.number(0.0..=100.0, problems));
    fields.finish(problems);
    Some(Share::of_percent(value.unwrap_or(Some(0.0))?))
}

/// gRPC's statuses, in the order of their numbers.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn read_grpc_status(field: &Field<'_>, problems: &mut Problems) -> Option<u8> {
    let choices: Vec<_> = GRPC_STATUSES.into_iter().zip(0..).collect();
    field.one_of(&choices, problems)
}

fn read_cors(field: &Field<'_>, problems: &mut Problems) -> Option<Cors> {
    let mut fields = field.fields(problems)?;
    let old = fields.take("allowOrigin").map(|list| list.items(problems));
    let origins = match fields.take("allowOrigins").map(|list| list.items(problems)) {
        Some(items) => items.iter().filter_map(|item| read_origin(item, problems)).collect(),
        None => {
            let items = old.unwrap_or_default();
            let texts = items.iter().filter_map(|item| item.string(problems));
            texts.map(|text| TextMatch::Exact(text.to_owned())).collect()
        }
    };
    let methods = read_list(fields.take("allowMethods"), METHOD, problems);
    let headers = read_list(fields.take("allowHeaders"), HEADER, problems);
    let exposed = read_list(fields.take("exposeHeaders"), HEADER, problems);
    let max_age = fields.take("maxAge").and_then(|age| read_max_age(&age, problems));
    let credentials = fields.take("allowCredentials").and_then(|c| c.boolean(problems));
    let unmatched = [("UNSPECIFIED", false), ("FORWARD", false), ("IGNORE", true)];
    let ignores = fields.take("unmatchedPreflights").and_then(|f| f.one_of(&unmatched, problems));
    fields.finish(problems);
    Some(Cors {
        origins,
        methods,
        headers,
        exposed,
        max_age: max_age.map(|age| HeaderValue::from(age.as_secs())),
        credentials: credentials.unwrap_or_default(),
        ignores_unmatched: ignores.unwrap_or_default(),
    })
}

fn read_origin(item: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let origin = read_text(item, problems)?;
    if matches!(&origin, TextMatch::Exact(text) if text.is_empty()) {
        problems.error(item, "must not be empty", "an origin is `https://` and a host");
    }
    if matches!(origin, TextMatch::Present) {
        problems.error(item, "needs exactly one of `exact`, `prefix` and `regex`", "");
        return None;
    }
    Some(origin)
}

/// Browsers are told whole seconds.
fn read_max_age(field: &Field<'_>, problems: &mut Problems) -> Option<Duration> {
    let age = field.duration(problems)?;
    if age.subsec_millis() != 0 {
        problems.error(field, "must be a whole number of seconds", "");
    }
    Some(age)
}

/// What the items of a list are, and whether one is.
type Item = (&'static str, fn(&str) -> bool);

/// Those that Istio takes.
const METHODS: [&str; 10] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE", "*"];

const METHOD: Item = ("method", |text| METHODS.contains(&text));
const HEADER: Item = ("name of a header", |text| HeaderName::from_bytes(text.as_bytes()).is_ok());

/// The items as one value, each of them what it has to be; `None` without any.
fn read_list(
    field: Option<Field<'_>>,
    (what, is_one): Item,
    problems: &mut Problems,
) -> Option<HeaderValue> {
    let field = field?;
    let items = field.items(problems);
    let texts: Vec<_> = items.iter().filter_map(|item| item.string(problems)).collect();
    for (item, text) in items.iter().zip(&texts).filter(|(_, text)| !is_one(text)) {
        problems.error(item, format!("`{text}` is no {what}"), "");
    }
    let joined = HeaderValue::from_str(&texts.join(","));
    if joined.is_err() {
        problems.error(&field, "holds a character that no header may hold", "");
    }
    joined.ok().filter(|value| !value.is_empty())
}

fn read_mirrors(rule: &mut Fields<'_>, problems: &mut Problems) -> Option<Vec<Mirror>> {
    let (newer, older) = (rule.take("mirrorPercentage"), rule.take("mirrorPercent"));
    let mirror = rule.take("mirror");
    let mirrors = rule.take("mirrors");
    if let (Some(_), Some(mirrors)) = (&mirror, &mirrors) {
        problems.error(mirrors, "there may be `mirror` or `mirrors`, not both", "");
    }
    if let (None, Some(percent)) = (&mirror, newer.as_ref().or(older.as_ref())) {
        problems.warn(percent, "has no effect", "there is no `mirror` beside it");
    }
    let share = match (newer, older) {
        (Some(newer), _) => read_percentage(&newer, problems),
        (None, Some(older)) => older.number(0.0..=100.0, problems).map(Share::of_percent),
        (None, None) => Some(Share::ALL),
    };
    let one = mirror.and_then(|field| {
        let destination = read_destination(&field, problems)?;
        Some(vec![Mirror { destination, share: share? }])
    });
    let several = mirrors.map(|field| {
        field.items(problems).iter().filter_map(|item| read_mirror(item, problems)).collect()
    });
    one.or(several)
}

fn read_mirror(item: &Field<'_>, problems: &mut Problems) -> Option<Mirror> {
    let mut fields = item.fields(problems)?;
    let destination = fields.require("destination", problems);
    let share = fields.take("percentage").map(|field| read_percentage(&field, problems));
    fields.finish(problems);
    let destination = read_destination(&destination?, problems)?;
    Some(Mirror { destination, share: share.unwrap_or(Some(Share::ALL))? })
}

impl Treatment {
    /// What has no effect, or is forbidden, on a rule that forwards nothing.
    pub(super) fn report_unused(
        &self,
        action: &str,
        rule: &mut Fields<'_>,
        problems: &mut Problems,
    ) {
        let forbidden = [("fault", self.fault.is_some()), ("rewrite", self.rewrite.is_some())];
        for (name, _) in forbidden.iter().filter(|(_, is_there)| *is_there) {
            if let Some(field) = rule.take(name) {
                problems.error(&field, format!("cannot stand beside `{action}`"), "");
            }
        }
        for name in ["timeout", "retries", "corsPolicy", "mirror", "mirrors"] {
            if let Some(field) = rule.take(name) {
                let cause = format!("`{action}` forwards no request");
                problems.warn(&field, "has no effect", &cause);
            }
        }
        let changes =
            |headers: &Headers| !headers.request.is_empty() || headers.authority.is_some();
        if self.headers.as_ref().is_some_and(changes)
            && let Some(field) = rule.take("headers")
        {
            let cause = format!("`{action}` forwards no request");
            problems.warn(&field, "`request` has no effect", &cause);
        }
    }
}
