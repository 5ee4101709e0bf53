//! A block below `match`: which requests a rule is for.

use std::collections::BTreeMap;

use ::http::header::{HOST, HeaderName};

use super::super::fields::{Field, Fields, Problems};
use super::super::service::optional_string;
use super::{ResourceName, read_gateway};
use crate::snapshot::{Condition, FullRegex, Part, TextMatch};

/// All of it has to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct MatchBlock {
    pub(crate) name: String,
    /// Never [`TextMatch::Present`].
    pub(crate) uri: Option<TextMatch>,
    pub(crate) ignores_case: bool,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) place: Place,
}

/// By which way a request or connection has to come; the same in every block.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// Port of the Gateway's server.
    pub(crate) port: Option<u16>,
    /// Instead of those of the VirtualService; empty for the mesh alone.
    pub(crate) gateways: Option<Vec<ResourceName>>,
    /// Labels that the gateway must have.
    pub(crate) source_labels: BTreeMap<String, String>,
    /// Namespace that the gateway must be in.
    pub(crate) source_namespace: Option<String>,
}

impl Place {
    /// Whether it is every gateway and port.
    pub(crate) fn is_everywhere(&self) -> bool {
        self.port.is_none()
            && self.gateways.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_none()
    }

    /// Takes its fields out of `fields`.
    pub(super) fn read(
        fields: &mut Fields<'_>,
        namespace: &str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let port = fields.take("port").map(|port| port.port(problems));
        let gateways = read_gateways(fields.take("gateways"), namespace, problems);
        let source_labels = fields.take("sourceLabels").map(|field| field.labels(problems));
        let source_namespace = optional_string(fields, "sourceNamespace", problems);
        Some(Self {
            port: port.map_or(Some(None), |port| port.map(Some))?,
            gateways,
            source_labels: source_labels.unwrap_or_default(),
            source_namespace,
        })
    }
}

impl MatchBlock {
    /// Whether it takes every request that comes by a gateway and port that it is for.
    pub(crate) fn is_catch_all(&self) -> bool {
        let every_path = match &self.uri {
            None | Some(TextMatch::Present) => true,
            Some(TextMatch::Prefix(prefix)) => prefix == "/",
            Some(TextMatch::Regex(regex)) => regex.pattern() == ".*",
            Some(TextMatch::Exact(_)) => false,
        };
        every_path && self.conditions.is_empty()
    }
}

pub(super) fn read(
    block: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<MatchBlock> {
    let mut fields = block.fields(problems)?;
    let name = optional_string(&mut fields, "name", problems).unwrap_or_default();
    let uri = fields.take("uri").map(|uri| read_uri(&uri, problems));
    let ignores_case = read_case(&mut fields, uri.as_ref(), problems);
    let mut conditions = Vec::new();
    for (name, part) in
        [("scheme", Part::Scheme), ("method", Part::Method), ("authority", Part::Authority)]
    {
        let field = fields.take(name);
        let text = field.and_then(|field| read_text(&field, problems));
        conditions.extend(text.map(|text| Condition { part, text, inverted: false }));
    }
    read_headers(fields.take("headers"), false, &mut conditions, problems);
    read_headers(fields.take("withoutHeaders"), true, &mut conditions, problems);
    read_query(fields.take("queryParams"), &mut conditions, problems);
    let place = Place::read(&mut fields, namespace, problems);
    if let Some(prefix) = fields.take("statPrefix") {
        prefix.string(problems);
        problems.warn(&prefix, "has no effect", "there are no statistics of single rules");
    }
    fields.finish(problems);
    Some(MatchBlock {
        name,
        uri: uri.map_or(Some(None), |uri| uri.map(Some))?,
        ignores_case,
        conditions,
        place: place?,
    })
}

fn read_gateways(
    field: Option<Field<'_>>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Vec<ResourceName>> {
    let items = field?.items(problems);
    let names = items.iter().filter_map(|item| read_gateway(item, namespace, problems));
    let names = names.map(|gateway| gateway.value).collect();
    (!items.is_empty()).then_some(names)
}

fn read_case(
    fields: &mut Fields<'_>,
    uri: Option<&Option<TextMatch>>,
    problems: &mut Problems,
) -> bool {
    let Some(field) = fields.take("ignoreUriCase") else { return false };
    let ignores = field.boolean(problems).unwrap_or_default();
    if ignores && matches!(uri, Some(Some(TextMatch::Regex(_)))) {
        let cause = "regular expressions keep their case; begin this one with `(?i)`";
        problems.warn(&field, "has no effect", cause);
    }
    ignores
}

fn read_uri(uri: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let text = read_any_text(uri, problems)?;
    match &text {
        TextMatch::Present => {
            problems.error(uri, "needs exactly one of `exact`, `prefix` and `regex`", "");
            return None;
        }
        TextMatch::Exact(path) | TextMatch::Prefix(path) => warn_of_path(uri, path, problems),
        TextMatch::Regex(_) => {}
    }
    Some(text)
}

fn warn_of_path(uri: &Field<'_>, path: &str, problems: &mut Problems) {
    let cause = if path.is_empty() {
        return;
    } else if !path.starts_with('/') {
        "every path starts with `/`"
    } else if path.contains('?') {
        "paths are compared without their query"
    } else {
        return;
    };
    problems.warn(uri, format!("`{path}` matches no request"), cause);
}

/// A `StringMatch`; without any of its fields, or with the regex `*`, it stands for presence.
pub(super) fn read_text(field: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let text = read_any_text(field, problems)?;
    if matches!(&text, TextMatch::Prefix(prefix) if prefix.is_empty()) {
        problems.error(field, "`prefix` must not be empty", "`{}` stands for any value");
    }
    Some(text)
}

/// The same, in which a prefix may be empty, as that of a path.
fn read_any_text(field: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let mut fields = field.fields(problems)?;
    let found = (fields.take("exact"), fields.take("prefix"), fields.take("regex"));
    fields.finish(problems);
    match found {
        (None, None, None) => Some(TextMatch::Present),
        (Some(exact), None, None) => Some(TextMatch::Exact(exact.string(problems)?.to_owned())),
        (None, Some(prefix), None) => Some(TextMatch::Prefix(prefix.string(problems)?.to_owned())),
        (None, None, Some(regex)) => read_regex(&regex, problems),
        _ => {
            problems.error(field, "needs exactly one of `exact`, `prefix` and `regex`", "");
            None
        }
    }
}

/// Longest regular expression, as in Istio.
const REGEX_BYTES_MAX: usize = 1024;

fn read_regex(field: &Field<'_>, problems: &mut Problems) -> Option<TextMatch> {
    let pattern = field.string(problems)?;
    if pattern == "*" {
        return Some(TextMatch::Present);
    }
    if pattern.is_empty() {
        problems.error(field, "must not be empty", "");
        return None;
    }
    if pattern.len() > REGEX_BYTES_MAX {
        let what = format!("is longer than {REGEX_BYTES_MAX} bytes");
        problems.error(field, what, "");
        return None;
    }
    match FullRegex::parse(pattern) {
        Ok(regex) => Some(TextMatch::Regex(regex)),
        Err(error) => {
            problems.error(field, not_a_regex(&error), "");
            None
        }
    }
}

/// Says why a text is no regular expression: the last line of the parser's drawing.
pub(super) fn not_a_regex(error: &str) -> String {
    let reason = error.lines().last().unwrap_or_default().trim();
    format!("is no regular expression: {}", reason.trim_start_matches("error: "))
}

/// Names that Istio keeps for the request's parts and ignores as headers.
const PARTS: [&str; 4] = ["uri", "scheme", "method", "authority"];

fn read_headers(
    field: Option<Field<'_>>,
    inverted: bool,
    conditions: &mut Vec<Condition>,
    problems: &mut Problems,
) {
    let Some(fields) = field.and_then(|field| field.fields(problems)) else { return };
    for (name, value) in fields.all() {
        if PARTS.contains(&name) {
            let cause = format!("write it as `{name}` beside `headers`");
            problems.warn(&value, "is ignored, as by Istio", &cause);
            continue;
        }
        let part = read_header_name(name, &value, problems);
        let text =
            if value.is_null() { Some(TextMatch::Present) } else { read_text(&value, problems) };
        conditions.extend(part.zip(text).map(|(part, text)| Condition { part, text, inverted }));
    }
}

fn read_header_name(name: &str, value: &Field<'_>, problems: &mut Problems) -> Option<Part> {
    if name.starts_with("@request.auth.claims") {
        let cause = "it needs JWTs to be verified, which is not done";
        problems.error(value, "conditions on claims are not supported", cause);
        return None;
    }
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(HOST) => Some(Part::Authority),
        Ok(name) => Some(Part::Header(name)),
        Err(_) => {
            problems.error(value, format!("`{name}` is no header name"), "");
            None
        }
    }
}

fn read_query(field: Option<Field<'_>>, conditions: &mut Vec<Condition>, problems: &mut Problems) {
    let Some(fields) = field.and_then(|field| field.fields(problems)) else { return };
    for (name, value) in fields.all() {
        let text =
            if value.is_null() { Some(TextMatch::Present) } else { read_text(&value, problems) };
        let part = Part::Query(name.to_owned());
        conditions.extend(text.map(|text| Condition { part, text, inverted: false }));
    }
}
