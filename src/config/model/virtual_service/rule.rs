//! One entry of `http`: for which requests, and what is done with them.

use std::sync::Arc;

use ::http::StatusCode;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;

use super::super::fields::{Field, Fields, Problems};
use super::super::service::optional_string;
use super::ResourceName;
use super::condition::{self, MatchBlock};
use super::headers::{self, Headers};
use super::treatment::{self, Treatment};
use crate::snapshot::{DirectResponse, HostPattern, RedirectPort, TextMatch};

/// Longest body that the gateway answers with itself, as in Istio.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// One rule.
#[derive(Debug, Clone)]
pub(crate) struct HttpRoute {
    pub(crate) line: u64,
    pub(crate) name: String,
    /// Any of them; empty means every request.
    pub(crate) matches: Box<[MatchBlock]>,
    pub(crate) action: RouteAction,
    /// Boxed: few rules have any, and it is larger than all else.
    pub(crate) treatment: Option<Box<Treatment>>,
}

impl HttpRoute {
    /// The same rule with `treatment`.
    pub(crate) fn with(self, treatment: Treatment) -> Self {
        let treatment = (!treatment.is_empty()).then(|| Box::new(treatment));
        Self { treatment, ..self }
    }

    /// What it does beside its action.
    pub(crate) fn treatment(&self) -> &Treatment {
        static NONE: Treatment = Treatment::NONE;
        self.treatment.as_deref().unwrap_or(&NONE)
    }
}

/// What a rule does.
#[derive(Debug, Clone)]
pub(crate) enum RouteAction {
    /// At least one.
    Forward(Box<[WeightedDestination]>),
    Redirect(Moved),
    Respond(DirectResponse),
    /// The rules of another VirtualService stand in its place.
    Delegate(ResourceName),
}

/// A redirect; what is `None` stays as in the request.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) status: StatusCode,
    pub(crate) scheme: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) port: RedirectPort,
    pub(crate) path: Option<String>,
    /// Instead of what the match has matched.
    pub(crate) prefix: Option<String>,
}

/// One destination of a rule and its share.
#[derive(Debug, Clone)]
pub(crate) struct WeightedDestination {
    pub(crate) weight: u32,
    pub(crate) destination: Destination,
    /// `None` where nothing is said: most say nothing.
    pub(crate) headers: Option<Box<Headers>>,
}

/// A service that requests are forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) line: u64,
    /// The way to it.
    pub(crate) field: Box<str>,
    /// In lower case, as written otherwise.
    pub(crate) host: Arc<str>,
    /// A part of its endpoints, which a DestinationRule names.
    pub(crate) subset: Option<Arc<str>>,
    pub(crate) port: Option<u16>,
}

pub(super) fn read_all(
    field: &Field<'_>,
    namespace: &str,
    is_delegate: bool,
    problems: &mut Problems,
) -> Vec<HttpRoute> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one rule", "");
    }
    let mut rules = Vec::new();
    for item in &items {
        let Some(rule) = read_rule(item, namespace, problems) else { continue };
        let delegates = matches!(rule.action, RouteAction::Delegate(_));
        if is_delegate && delegates {
            let cause = "this VirtualService is a delegate itself, because it has no hosts";
            problems.error(item, "cannot delegate", cause);
        }
        rules.push(rule);
    }
    rules
}

fn read_rule(item: &Field<'_>, namespace: &str, problems: &mut Problems) -> Option<HttpRoute> {
    let mut rule = item.fields(problems)?;
    let name = optional_string(&mut rule, "name", problems).unwrap_or_default();
    let matches = rule.take("match").map(|field| field.items(problems)).unwrap_or_default();
    let matches: Box<[_]> =
        matches.iter().filter_map(|block| condition::read(block, namespace, problems)).collect();
    let action = read_action(item, &mut rule, namespace, problems);
    let treatment = treatment::read(&mut rule, problems);
    if let Some(RouteAction::Redirect(moved)) = &action {
        check_prefix(item, moved, &matches, problems);
    }
    match &action {
        Some(RouteAction::Redirect(_)) => treatment.report_unused("redirect", &mut rule, problems),
        Some(RouteAction::Respond(_)) => {
            treatment.report_unused("directResponse", &mut rule, problems);
        }
        Some(RouteAction::Forward(_) | RouteAction::Delegate(_)) | None => {}
    }
    rule.finish(problems);
    let rule = HttpRoute { line: item.line, name, matches, action: action?, treatment: None };
    Some(rule.with(treatment))
}

/// Instead of a prefix something can only stand where a prefix was matched.
fn check_prefix(item: &Field<'_>, moved: &Moved, matches: &[MatchBlock], problems: &mut Problems) {
    let is_other = |uri: &TextMatch| !matches!(uri, TextMatch::Prefix(_));
    let has_other = matches.iter().filter_map(|block| block.uri.as_ref()).any(is_other);
    if moved.prefix.is_some() && has_other {
        let cause = "write `uri: { prefix: … }` in `match`, or `uri` in `redirect`";
        problems.error(item, "`prefixRewrite` needs a prefix that was matched", cause);
    }
}

fn read_action(
    item: &Field<'_>,
    rule: &mut Fields<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<RouteAction> {
    let names = ["route", "redirect", "directResponse", "delegate"];
    match names.map(|name| rule.take(name)) {
        [Some(route), None, None, None] => {
            read_route(&route, true, problems).map(RouteAction::Forward)
        }
        [None, Some(redirect), None, None] => {
            read_redirect(&redirect, problems).map(RouteAction::Redirect)
        }
        [None, None, Some(response), None] => {
            read_response(&response, problems).map(RouteAction::Respond)
        }
        [None, None, None, Some(delegate)] => {
            read_delegate(&delegate, namespace, problems).map(RouteAction::Delegate)
        }
        _ => {
            let what = "needs exactly one of `route`, `redirect`, `directResponse` and `delegate`";
            problems.error(item, what, "");
            None
        }
    }
}

fn read_delegate(
    field: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<ResourceName> {
    let mut fields = field.fields(problems)?;
    let name = fields.require("name", problems);
    let own = optional_string(&mut fields, "namespace", problems);
    fields.finish(problems);
    let own = own.filter(|own| !own.is_empty());
    let namespace = own.map_or_else(|| namespace.into(), Into::into);
    Some(ResourceName { namespace, name: name?.string(problems)?.into() })
}

/// Reads the destinations of a rule; those of `http` may have headers.
pub(super) fn read_route(
    field: &Field<'_>,
    has_headers: bool,
    problems: &mut Problems,
) -> Option<Box<[WeightedDestination]>> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one destination", "");
    }
    let read = |item| read_weighted(item, has_headers, problems);
    let targets: Vec<_> = items.iter().filter_map(read).collect();
    if targets.len() != items.len() {
        return None;
    }
    if targets.len() > 1 && targets.iter().all(|target| target.weight == 0) {
        problems.error(field, "the weights add up to 0", "give each destination its `weight`");
    }
    let sum: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    if sum > u32::MAX.into() {
        let what = format!("the weights add up to {sum}, more than {}", u32::MAX);
        problems.error(field, what, "use smaller numbers in the same ratio");
    }
    Some(targets.into())
}

fn read_weighted(
    item: &Field<'_>,
    has_headers: bool,
    problems: &mut Problems,
) -> Option<WeightedDestination> {
    let mut fields = item.fields(problems)?;
    let destination = fields.require("destination", problems);
    let destination = destination.and_then(|field| read_destination(&field, problems));
    let weight = fields.take("weight").map(|f| f.integer(0..=i32::MAX, problems));
    let headers = if has_headers { fields.take("headers") } else { None };
    let headers = headers.map(|field| headers::read(&field, problems));
    fields.finish(problems);
    let weight = u32::try_from(weight.unwrap_or(Some(0))?).ok()?;
    let headers = headers.map_or(Some(None), |headers| headers.map(Box::new).map(Some));
    Some(WeightedDestination { weight, destination: destination?, headers: headers? })
}

pub(super) fn read_destination(field: &Field<'_>, problems: &mut Problems) -> Option<Destination> {
    let mut fields = field.fields(problems)?;
    let host = fields.require("host", problems);
    let port = fields.take("port").map(|port| read_port(&port, problems));
    let subset = fields.take("subset").map(|field| field.string(problems));
    fields.finish(problems);
    let host = read_name(&host?, problems)?;
    let subset = subset.map_or(Some(None), |subset| subset.map(Some))?;
    let path = field.path.as_str().into();
    Some(Destination {
        line: field.line,
        field: path,
        host,
        subset: subset.filter(|name| !name.is_empty()).map(Into::into),
        port: port.map_or(Some(None), |p| p.map(Some))?,
    })
}

fn read_port(field: &Field<'_>, problems: &mut Problems) -> Option<u16> {
    let mut fields = field.fields(problems)?;
    let number = fields.require("number", problems).and_then(|number| number.port(problems));
    fields.finish(problems);
    number
}

fn read_name(field: &Field<'_>, problems: &mut Problems) -> Option<Arc<str>> {
    let text = field.string(problems)?;
    match text.parse() {
        Ok(HostPattern::Exact(name)) => return Some(name),
        // That of a ServiceEntry with the same host.
        Ok(wildcard @ HostPattern::Wildcard(_)) => return Some(wildcard.to_string().into()),
        Ok(HostPattern::Any) | Err(_) => {}
    }
    let cause = "the name of a Service or of a ServiceEntry, or any DNS name; without port";
    problems.error(field, format!("`{text}` is no host name"), cause);
    None
}

fn read_redirect(field: &Field<'_>, problems: &mut Problems) -> Option<Moved> {
    let mut fields = field.fields(problems)?;
    let text = |fields: &mut Fields<'_>, name, problems: &mut Problems| {
        optional_string(fields, name, problems).filter(|text| !text.is_empty())
    };
    let path = text(&mut fields, "uri", problems);
    let prefix = text(&mut fields, "prefixRewrite", problems);
    if path.is_some() && prefix.is_some() {
        problems.error(field, "there may be `uri` or `prefixRewrite`, not both", "");
    }
    let authority = text(&mut fields, "authority", problems);
    let scheme = fields
        .take("scheme")
        .map(|f| f.one_of(&[("http", "http"), ("https", "https")], problems).map(str::to_owned));
    let port = read_redirect_port(&mut fields, problems);
    if [&path, &prefix, &authority].into_iter().all(Option::is_none)
        && scheme.is_none()
        && matches!(port, Some(RedirectPort::FromHost))
    {
        let what = "needs `uri`, `prefixRewrite`, `authority`, `scheme`, `port` or `derivePort`";
        problems.error(field, what, "as it is it leads back to where it came from");
    }
    let status = fields.take("redirectCode").map(|f| read_redirect_code(&f, problems));
    fields.finish(problems);
    Some(Moved {
        status: status.unwrap_or(Some(StatusCode::MOVED_PERMANENTLY))?,
        scheme: scheme.map_or(Some(None), |scheme| scheme.map(Some))?,
        authority,
        port: port?,
        path,
        prefix,
    })
}

fn read_redirect_port(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<RedirectPort> {
    match (fields.take("port"), fields.take("derivePort")) {
        (None, None) => Some(RedirectPort::FromHost),
        (Some(port), None) => port.port(problems).map(RedirectPort::Fixed),
        (None, Some(derive)) => derive.one_of(
            &[
                ("FROM_PROTOCOL_DEFAULT", RedirectPort::ProtocolDefault),
                ("FROM_REQUEST_PORT", RedirectPort::Listener),
            ],
            problems,
        ),
        (Some(_), Some(derive)) => {
            problems.error(&derive, "there may be `port` or `derivePort`, not both", "");
            None
        }
    }
}

fn read_redirect_code(field: &Field<'_>, problems: &mut Problems) -> Option<StatusCode> {
    let code = field.integer(0..=u16::MAX, problems)?;
    if code == 0 {
        return Some(StatusCode::MOVED_PERMANENTLY);
    }
    if !matches!(code, 301 | 302 | 303 | 307 | 308) {
        let what = format!("must be 301, 302, 303, 307 or 308, not {code}");
        problems.error(field, what, "");
        return None;
    }
    StatusCode::from_u16(code).ok()
}

fn read_response(field: &Field<'_>, problems: &mut Problems) -> Option<DirectResponse> {
    let mut fields = field.fields(problems)?;
    let status = fields.require("status", problems);
    let status = status.and_then(|field| field.integer(200..=599_u16, problems));
    let body = fields.take("body").map(|body| read_body(&body, problems));
    fields.refuse(&["headers"], problems);
    fields.finish(problems);
    Some(DirectResponse {
        status: StatusCode::from_u16(status?).ok()?,
        body: body.unwrap_or(Some(Bytes::new()))?,
    })
}

fn read_body(field: &Field<'_>, problems: &mut Problems) -> Option<Bytes> {
    let mut fields = field.fields(problems)?;
    let (text, bytes) = (fields.take("string"), fields.take("bytes"));
    fields.finish(problems);
    let body = match (text, bytes) {
        (Some(text), None) => text.string(problems)?.to_owned().into_bytes(),
        (None, Some(bytes)) => read_bytes(&bytes, problems)?,
        (None, None) => Vec::new(),
        (Some(_), Some(bytes)) => {
            problems.error(&bytes, "there may be `string` or `bytes`, not both", "");
            return None;
        }
    };
    if body.len() > BODY_BYTES_MAX {
        problems.error(field, "is longer than 1 MiB", "");
        return None;
    }
    Some(body.into())
}

fn read_bytes(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<u8>> {
    let bytes = BASE64_STANDARD.decode(field.string(problems)?).ok();
    if bytes.is_none() {
        problems.error(field, "is not base64", "");
    }
    bytes
}
