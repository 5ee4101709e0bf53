//! `VirtualService`: what is done with the requests for a host.

use ::http::StatusCode;
use bytes::Bytes;

use super::fields::{Field, Fields, Located, Problems, not_supported};
use super::service::optional_string;
use crate::snapshot::{DirectResponse, FullRegex, HostPattern, PathMatch, Redirect, RedirectPort};

/// The domain that short names are completed with.
pub(crate) const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// Longest body that the gateway answers with itself, as in Istio.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A VirtualService.
#[derive(Debug, Clone)]
pub(crate) struct VirtualService {
    /// At least one; short names are completed.
    pub(crate) hosts: Vec<Located<HostPattern>>,
    /// Empty when it is not for gateways.
    pub(crate) gateways: Vec<Located<GatewayName>>,
    pub(crate) export: Export,
    /// In order.
    pub(crate) http: Vec<HttpRoute>,
}

/// The Gateway that a VirtualService binds to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Who may see a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Export {
    /// Its own namespace.
    Own,
    /// These namespaces.
    Named(Vec<String>),
    /// Every namespace.
    All,
}

impl Export {
    /// Istio's order of precedence.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Own => 0,
            Self::Named(_) => 1,
            Self::All => 2,
        }
    }

    /// Whether it can be seen from `namespace`; `own` is that of the resource.
    pub(crate) fn reaches(&self, namespace: &str, own: &str) -> bool {
        match self {
            Self::All => true,
            Self::Own => namespace == own,
            Self::Named(names) => names.iter().any(|name| name == namespace),
        }
    }
}

/// One rule.
#[derive(Debug, Clone)]
pub(crate) struct HttpRoute {
    pub(crate) line: u64,
    pub(crate) name: String,
    /// Any of them; empty means every request.
    pub(crate) matches: Vec<Condition>,
    pub(crate) action: RouteAction,
}

/// One block below `match`.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) name: String,
    pub(crate) path: PathMatch,
}

/// What a rule does.
#[derive(Debug, Clone)]
pub(crate) enum RouteAction {
    /// At least one.
    Forward(Vec<WeightedDestination>),
    Redirect(Redirect),
    Respond(DirectResponse),
}

/// One destination of a rule and its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightedDestination {
    pub(crate) weight: u32,
    pub(crate) destination: Destination,
}

/// A service that requests are forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) line: u64,
    /// The way to it.
    pub(crate) field: String,
    /// In lower case, as written otherwise.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

/// The whole name of `host`, which may be a Service's in `namespace`.
pub(crate) fn complete(host: &str, namespace: &str) -> String {
    if host.contains('.') || host == "*" {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.{CLUSTER_DOMAIN}")
    }
}

pub(super) fn read(
    spec: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<VirtualService> {
    let mut spec = spec.fields(problems)?;
    let gateways = spec.take("gateways").map(|field| field.items(problems)).unwrap_or_default();
    let gateways =
        gateways.iter().filter_map(|item| read_gateway(item, namespace, problems)).collect();
    let hosts = spec.require("hosts", problems).map(|f| read_hosts(&f, namespace, problems));
    let export = read_export(spec.take("exportTo"), problems);
    spec.refuse(&["tls", "tcp"], problems);
    let http = match spec.take("http") {
        Some(field) => read_rules(&field, problems),
        None => no_rules(&spec, problems),
    };
    spec.finish(problems);
    Some(VirtualService { hosts: hosts?, gateways, export, http })
}

fn no_rules(spec: &Fields<'_>, problems: &mut Problems) -> Vec<HttpRoute> {
    if !problems.has_errors() {
        problems.error(&spec.parent, "`http` is missing", "a VirtualService needs rules");
    }
    Vec::new()
}

fn read_gateway(
    item: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Located<GatewayName>> {
    let text = item.string(problems)?;
    if text == "mesh" {
        return None;
    }
    let (namespace, name) = match text.split_once('/') {
        None | Some((".", _)) => (namespace, text.trim_start_matches("./")),
        Some(parts) => parts,
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        let what = format!("must be the name of a Gateway or `namespace/name`, not `{text}`");
        problems.error(item, what, "");
        return None;
    }
    let value = GatewayName { namespace: namespace.to_owned(), name: name.to_owned() };
    Some(Located { line: item.line, value })
}

fn read_hosts(
    field: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Vec<Located<HostPattern>> {
    let items = field.items(problems);
    if items.is_empty() {
        let cause = "only delegates have none, and delegates are not supported";
        problems.error(field, "needs at least one host", cause);
    }
    let mut hosts: Vec<Located<HostPattern>> = Vec::new();
    for item in &items {
        let Some(host) = read_host(item, namespace, problems) else { continue };
        if hosts.iter().any(|other| other.value == host.value) {
            problems.error(item, format!("`{}` is listed twice", host.value), "");
        }
        hosts.push(host);
    }
    hosts
}

fn read_host(
    item: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<Located<HostPattern>> {
    let text = item.string(problems)?;
    match complete(text, namespace).parse() {
        Ok(value) => Some(Located { line: item.line, value }),
        Err(error) => {
            problems.error(item, format!("`{text}`: {error}"), "no scheme, port or path");
            None
        }
    }
}

/// Reads `exportTo`.
pub(super) fn read_export(field: Option<Field<'_>>, problems: &mut Problems) -> Export {
    let Some(field) = field else { return Export::All };
    let items = field.items(problems);
    let names: Vec<_> = items.iter().filter_map(|item| item.string(problems)).collect();
    match names[..] {
        [] | ["*"] => Export::All,
        ["."] => Export::Own,
        _ => {
            let problem = names.iter().any(|name| matches!(*name, "*" | "." | "~"));
            if problem {
                let what = not_supported("`~`, or `*` or `.` beside other namespaces,");
                problems.error(&field, what, "");
            }
            Export::Named(names.into_iter().map(str::to_owned).collect())
        }
    }
}

fn read_rules(field: &Field<'_>, problems: &mut Problems) -> Vec<HttpRoute> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one rule", "");
    }
    items.iter().filter_map(|item| read_rule(item, problems)).collect()
}

/// What Istio's `HTTPRoute` has beyond what is read here.
const RULE_UNSUPPORTED: [&str; 11] = [
    "delegate",
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercentage",
    "mirrorPercent",
    "corsPolicy",
    "headers",
];

fn read_rule(item: &Field<'_>, problems: &mut Problems) -> Option<HttpRoute> {
    let mut rule = item.fields(problems)?;
    let name = optional_string(&mut rule, "name", problems).unwrap_or_default();
    let matches = rule.take("match").map(|field| field.items(problems)).unwrap_or_default();
    let matches = matches.iter().filter_map(|block| read_match(block, problems)).collect();
    let actions = (rule.take("route"), rule.take("redirect"), rule.take("directResponse"));
    let action = match actions {
        (Some(route), None, None) => read_route(&route, problems).map(RouteAction::Forward),
        (None, Some(redirect), None) => {
            read_redirect(&redirect, problems).map(RouteAction::Redirect)
        }
        (None, None, Some(response)) => {
            read_response(&response, problems).map(RouteAction::Respond)
        }
        _ => {
            let what = "needs exactly one of `route`, `redirect` and `directResponse`";
            problems.error(item, what, "");
            None
        }
    };
    rule.refuse(&RULE_UNSUPPORTED, problems);
    rule.finish(problems);
    Some(HttpRoute { line: item.line, name, matches, action: action? })
}

/// What Istio's `HTTPMatchRequest` has beyond what is read here.
const MATCH_UNSUPPORTED: [&str; 12] = [
    "scheme",
    "method",
    "authority",
    "headers",
    "withoutHeaders",
    "queryParams",
    "ignoreUriCase",
    "port",
    "gateways",
    "sourceLabels",
    "sourceNamespace",
    "statPrefix",
];

fn read_match(block: &Field<'_>, problems: &mut Problems) -> Option<Condition> {
    let mut fields = block.fields(problems)?;
    let name = optional_string(&mut fields, "name", problems).unwrap_or_default();
    let path = match fields.take("uri") {
        Some(uri) => read_uri(&uri, problems),
        None => Some(PathMatch::Any),
    };
    fields.refuse(&MATCH_UNSUPPORTED, problems);
    fields.finish(problems);
    Some(Condition { name, path: path? })
}

fn read_uri(uri: &Field<'_>, problems: &mut Problems) -> Option<PathMatch> {
    let mut fields = uri.fields(problems)?;
    let found = (fields.take("exact"), fields.take("prefix"), fields.take("regex"));
    fields.finish(problems);
    match found {
        (Some(exact), None, None) => read_path(&exact, problems).map(PathMatch::Exact),
        (None, Some(prefix), None) => read_path(&prefix, problems).map(PathMatch::Prefix),
        (None, None, Some(regex)) => read_regex(&regex, problems),
        _ => {
            problems.error(uri, "needs exactly one of `exact`, `prefix` and `regex`", "");
            None
        }
    }
}

fn read_path(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let path = field.string(problems)?;
    if !path.starts_with('/') {
        problems.warn(field, "matches no request", "every path starts with `/`");
    } else if path.contains('?') {
        problems.warn(field, "matches no request", "paths are compared without their query");
    }
    Some(path.to_owned())
}

/// Longest regular expression, as in Istio.
const REGEX_BYTES_MAX: usize = 1024;

fn read_regex(field: &Field<'_>, problems: &mut Problems) -> Option<PathMatch> {
    let pattern = field.string(problems)?;
    if pattern == ".*" {
        return Some(PathMatch::Any);
    }
    if pattern.len() > REGEX_BYTES_MAX {
        let what = format!("is longer than {REGEX_BYTES_MAX} bytes");
        problems.error(field, what, "");
        return None;
    }
    match FullRegex::parse(pattern) {
        Ok(regex) => Some(PathMatch::Regex(regex)),
        Err(error) => {
            // The last line of the parser's drawing says what is wrong.
            let reason = error.lines().last().unwrap_or_default().trim();
            let reason = reason.trim_start_matches("error: ");
            problems.error(field, format!("is no regular expression: {reason}"), "");
            None
        }
    }
}

fn read_route(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<WeightedDestination>> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one destination", "");
    }
    let targets: Vec<_> = items.iter().filter_map(|item| read_weighted(item, problems)).collect();
    if targets.len() != items.len() {
        return None;
    }
    if targets.len() > 1 && targets.iter().all(|target| target.weight == 0) {
        problems.error(field, "the weights add up to 0", "give each destination its `weight`");
    }
    Some(targets)
}

fn read_weighted(item: &Field<'_>, problems: &mut Problems) -> Option<WeightedDestination> {
    let mut fields = item.fields(problems)?;
    let destination = fields.require("destination", problems);
    let destination = destination.and_then(|field| read_destination(&field, problems));
    let weight = fields.take("weight").map(|f| f.integer(0..=i32::MAX, problems));
    fields.refuse(&["headers"], problems);
    fields.finish(problems);
    let weight = u32::try_from(weight.unwrap_or(Some(0))?).ok()?;
    Some(WeightedDestination { weight, destination: destination? })
}

fn read_destination(field: &Field<'_>, problems: &mut Problems) -> Option<Destination> {
    let mut fields = field.fields(problems)?;
    let host = fields.require("host", problems);
    let port = fields.take("port").map(|port| read_port(&port, problems));
    fields.refuse(&["subset"], problems);
    fields.finish(problems);
    let host = read_name(&host?, problems)?;
    let path = field.path.clone();
    Some(Destination {
        line: field.line,
        field: path,
        host,
        port: port.map_or(Some(None), |p| p.map(Some))?,
    })
}

fn read_port(field: &Field<'_>, problems: &mut Problems) -> Option<u16> {
    let mut fields = field.fields(problems)?;
    let number = fields.require("number", problems).and_then(|number| number.port(problems));
    fields.finish(problems);
    number
}

fn read_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.string(problems)?;
    if let Ok(HostPattern::Exact(name)) = text.parse() {
        return Some(name);
    }
    let cause = "the name of a Service or of a ServiceEntry, or any DNS name; without port";
    problems.error(field, format!("`{text}` is no host name"), cause);
    None
}

fn read_redirect(field: &Field<'_>, problems: &mut Problems) -> Option<Redirect> {
    let mut fields = field.fields(problems)?;
    let path = optional_string(&mut fields, "uri", problems);
    let authority = optional_string(&mut fields, "authority", problems);
    let scheme = fields
        .take("scheme")
        .map(|f| f.one_of(&[("http", "http"), ("https", "https")], problems).map(str::to_owned));
    let port = read_redirect_port(&mut fields, problems);
    let status = fields.take("redirectCode").map(|f| read_redirect_code(&f, problems));
    fields.refuse(&["prefixRewrite"], problems);
    fields.finish(problems);
    Some(Redirect {
        status: status.unwrap_or(Some(StatusCode::MOVED_PERMANENTLY))?,
        scheme: scheme.map_or(Some(None), |scheme| scheme.map(Some))?,
        authority,
        port: port?,
        path,
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
    fields.refuse(&["bytes"], problems);
    let text = optional_string(&mut fields, "string", problems).unwrap_or_default();
    fields.finish(problems);
    if text.len() > BODY_BYTES_MAX {
        problems.error(field, "is longer than 1 MiB", "");
        return None;
    }
    Some(text.into())
}
