//! `/config_dump`: the snapshot as JSON. Never keys: they are behind an identity, of which only
//! whether it is ready is shown.

use ::http::HeaderName;
use serde_json::{Value, json};

use super::page::clusters;
use super::traffic;
use crate::snapshot::{
    Abort, Action, Cluster, Condition, Edit, Extras, Fault, Forward, HostMap, Identity, Listener,
    ListenerKey, Mirror, Network, Part, PathMatch, PathRewrite, Redirect, RedirectPort, Rejection,
    RetryOn, RetryPolicy, Route, RouteTable, Serves, Snapshot, Target, TcpRoute, TcpTable,
    Template, TextMatch, TlsServer, TlsServes, UpstreamProtocol, VirtualHost,
};

/// The whole snapshot but its certificates and limits: those have their own pages and settings.
pub(super) fn dump(snapshot: &Snapshot) -> Value {
    let all = clusters(snapshot);
    json!({
        "generation": snapshot.generation,
        "listeners": snapshot.listeners.iter().map(|all| listener(all)).collect::<Vec<_>>(),
        "clusters": all.values().map(|all| cluster(all)).collect::<Vec<_>>(),
        "rejections": snapshot.rejections.iter().map(rejection).collect::<Vec<_>>(),
    })
}

fn listener(listener: &Listener) -> Value {
    let serves = match &listener.serves {
        Serves::Http(table) => json!({ "protocol": "HTTP", "hosts": route_table(table) }),
        Serves::Tcp(table) => json!({ "protocol": "TCP", "routes": tcp_table(table) }),
        Serves::Tls(servers) => json!({
            "protocol": "HTTPS",
            "servers": sorted(servers, |server| tls_server(server)),
        }),
    };
    let (address, port) = match listener.key {
        ListenerKey::Ip { address, port } => (address.to_string(), json!(port.number())),
        ListenerKey::Pipe(path) => (path.to_string(), Value::Null),
    };
    json!({
        "name": listener.key.name(listener.gateway_port),
        "address": address,
        "gateway_port": listener.gateway_port,
        "bind_port": port,
        "serves": serves,
    })
}

fn tls_server(server: &TlsServer) -> Value {
    let certificate = match server.identity() {
        Some(Identity::Ready(_)) => "ready",
        Some(Identity::Missing) => "missing",
        None => "the endpoint's",
    };
    let (key, shown) = match &server.serves {
        TlsServes::Http(_, routes) => ("hosts", route_table(routes)),
        TlsServes::Tcp(_, routes) => ("tcp", tcp_table(routes)),
        TlsServes::Passthrough(routes) => ("passthrough", tcp_table(routes)),
    };
    json!({ "name": server.name, "certificate": certificate, key: shown })
}

fn tcp_table(table: &TcpTable) -> Value {
    sorted(&table.hosts, |routes| routes.0.iter().map(tcp_route).collect())
}

fn tcp_route(route: &TcpRoute) -> Value {
    let ranges = |all: &[Network]| -> Vec<String> { all.iter().map(ToString::to_string).collect() };
    json!({
        "sources": ranges(&route.sources),
        "destinations": ranges(&route.destinations),
        "forward": targets(&route.forward),
    })
}

fn route_table(table: &RouteTable) -> Value {
    sorted(&table.hosts, |host| virtual_host(host))
}

/// `{host: value}`; JSON objects of ours are sorted by key.
fn sorted<T>(map: &HostMap<T>, shown: impl Fn(&T) -> Value) -> Value {
    map.iter().map(|(host, value)| (host.to_string(), shown(value))).collect()
}

fn virtual_host(host: &VirtualHost) -> Value {
    json!({
        "name": host.name,
        "https_redirect": host.https_redirect,
        "routes": host.routes().iter().map(route).collect::<Vec<_>>(),
    })
}

fn route(route: &Route) -> Value {
    let mut shown =
        json!({ "name": route.name, "path": path(&route.path), "action": action(&route.action) });
    if route.ignores_case {
        shown["ignore_case"] = json!(true);
    }
    if !route.conditions.is_empty() {
        shown["conditions"] = route.conditions.iter().map(condition).collect();
    }
    if let Some(extras) = &route.extras {
        shown["extras"] = self::extras(extras);
    }
    shown
}

/// Only what there is.
fn extras(extras: &Extras) -> Value {
    let mut shown = json!({});
    if let Some(timeout) = extras.timeout {
        shown["timeout_ms"] = json!(timeout.as_millis().to_string());
    }
    if let Some(policy) = &extras.retries {
        shown["retries"] = retries(policy);
    }
    if let Some(path) = &extras.rewrite {
        shown["rewrite"] = rewrite(path);
    }
    if let Some(fault) = &extras.fault {
        shown["fault"] = self::fault(fault);
    }
    if let Some(cors) = &extras.cors {
        shown["cors"] = json!({ "origins": cors.origins.iter().map(text).collect::<Value>() });
    }
    if !extras.mirrors.is_empty() {
        let mirror = |mirror: &Mirror| {
            let cluster = mirror.cluster.as_ref().map(|cluster| cluster.name.clone());
            json!({ "cluster": cluster, "millionths": mirror.share.millionths() })
        };
        shown["mirrors"] = extras.mirrors.iter().map(mirror).collect();
    }
    if !extras.response.is_empty() {
        shown["response_headers"] = edits(&extras.response);
    }
    shown
}

fn retries(policy: &RetryPolicy) -> Value {
    let on = RetryOn::NAMES.iter().filter(|(_, reason)| policy.on.intersects(*reason));
    let per_try = policy.per_try_timeout.map(|timeout| timeout.as_millis().to_string());
    json!({
        "retries": policy.retries,
        "on": on.map(|(name, _)| *name).collect::<Vec<_>>(),
        "statuses": policy.statuses.iter().map(|status| status.as_u16()).collect::<Vec<_>>(),
        "per_try_timeout_ms": per_try,
        "backoff_ms": policy.backoff.as_millis().to_string(),
    })
}

fn fault(fault: &Fault) -> Value {
    let delay = fault.delay.map(|(share, delay)| {
        json!({ "millionths": share.millionths(), "ms": delay.as_millis().to_string() })
    });
    let abort = fault.abort.map(|(share, abort)| match abort {
        Abort::Http(status) => {
            json!({ "millionths": share.millionths(), "status": status.as_u16() })
        }
        Abort::Grpc(status) => json!({ "millionths": share.millionths(), "grpc_status": status }),
    });
    json!({ "delay": delay, "abort": abort })
}

/// The names of the headers: values may be secrets of the operator's.
fn edits(edits: &[Edit]) -> Value {
    let names = |fields: &[(HeaderName, Template)]| -> Vec<String> {
        fields.iter().map(|(name, _)| name.to_string()).collect()
    };
    edits
        .iter()
        .map(|edit| {
            let remove: Vec<_> = edit.remove.iter().map(ToString::to_string).collect();
            json!({ "remove": remove, "set": names(&edit.set), "add": names(&edit.add) })
        })
        .collect()
}

fn text(text: &TextMatch) -> Value {
    match text {
        TextMatch::Present => json!({ "present": true }),
        TextMatch::Exact(text) => json!({ "exact": text }),
        TextMatch::Prefix(prefix) => json!({ "prefix": prefix }),
        TextMatch::Regex(regex) => json!({ "regex": regex.pattern() }),
    }
}

fn condition(condition: &Condition) -> Value {
    let (part, name) = match &condition.part {
        Part::Method => ("method", None),
        Part::Scheme => ("scheme", None),
        Part::Authority => ("authority", None),
        Part::Header(name) => ("header", Some(name.as_str())),
        Part::Query(name) => ("query", Some(name.as_str())),
    };
    let mut shown = text(&condition.text);
    shown["of"] = json!(part);
    if let Some(name) = name {
        shown["name"] = json!(name);
    }
    if condition.inverted {
        shown["not"] = json!(true);
    }
    shown
}

fn path(path: &PathMatch) -> Value {
    match path {
        PathMatch::Any => json!({ "any": true }),
        PathMatch::Exact(path) => json!({ "exact": path }),
        PathMatch::Prefix(prefix) => json!({ "prefix": prefix }),
        PathMatch::Regex(regex) => json!({ "regex": regex.pattern() }),
    }
}

fn action(action: &Action) -> Value {
    match action {
        Action::Respond(response) => json!({
            "direct_response": { "status": response.status.as_u16(), "bytes": response.body.len() },
        }),
        Action::Redirect(to) => json!({ "redirect": redirect(to) }),
        Action::Forward(forward) => json!({ "forward": targets(forward) }),
    }
}

fn redirect(redirect: &Redirect) -> Value {
    let port = match redirect.port {
        RedirectPort::FromHost => json!("from host"),
        RedirectPort::ProtocolDefault => json!("protocol default"),
        RedirectPort::Listener => json!("listener"),
        RedirectPort::Fixed(port) => json!(port),
    };
    json!({
        "status": redirect.status.as_u16(),
        "scheme": redirect.scheme,
        "authority": redirect.authority,
        "port": port,
        "path": redirect.path.as_ref().map(rewrite),
    })
}

fn rewrite(rewrite: &PathRewrite) -> Value {
    match rewrite {
        PathRewrite::Prefix { bytes, with } => json!({ "prefix_bytes": bytes, "with": with }),
        PathRewrite::Whole(with) => json!({ "with": with }),
        PathRewrite::Regex(regex) => {
            json!({ "regex": regex.pattern(), "with": regex.replacement() })
        }
    }
}

fn targets(forward: &Forward) -> Value {
    let name = |cluster: &std::sync::Arc<Cluster>| cluster.name.clone();
    let target = |to: &Target| {
        let mut shown = json!({ "weight": to.weight, "cluster": to.cluster.as_ref().map(name) });
        if let Some(changes) = &to.edits {
            let authority = changes.authority.as_ref().and_then(|host| host.to_str().ok());
            shown["authority"] = json!(authority);
            shown["request_headers"] = edits(&changes.request);
            shown["response_headers"] = edits(&changes.response);
        }
        shown
    };
    forward.targets.iter().map(target).collect()
}

fn cluster(cluster: &Cluster) -> Value {
    let endpoints: Vec<_> = cluster.endpoints.iter().map(ToString::to_string).collect();
    let tls = cluster.tls.as_ref().map(|tls| {
        let name = tls.name.as_ref().map(|name| name.to_str());
        json!({ "sni": name, "ready": tls.config.is_some() })
    });
    json!({
        "name": cluster.name,
        "host": cluster.host,
        "protocol": match cluster.protocol {
            UpstreamProtocol::Http1 => "HTTP/1.1",
            UpstreamProtocol::Http2 => "HTTP/2",
        },
        "connect_timeout_ms": cluster.connect_timeout.as_millis().to_string(),
        "tls": tls,
        "traffic": cluster.traffic.as_ref().map(|rules| traffic::dump(rules)),
        "endpoints": endpoints,
    })
}

fn rejection(rejection: &Rejection) -> Value {
    json!({
        "severity": rejection.severity.to_string(),
        "origin": rejection.origin.to_string(),
        "resource": rejection.resource,
        "field": rejection.field,
        "what": rejection.what,
        "cause": rejection.cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{FullRegex, TcpRoutes};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn what_a_route_has_beside_its_action_is_shown() {
        let extras = Extras {
            timeout: Some(Duration::from_secs(5)),
            retries: Some(RetryPolicy::DEFAULT),
            rewrite: Some(PathRewrite::Whole("/x".to_owned())),
            ..Extras::default()
        };
        let shown = super::extras(&extras);
        assert_eq!(shown["timeout_ms"], "5000");
        assert_eq!(shown["retries"]["retries"], 2);
        assert!(shown["retries"]["on"].to_string().contains("connect-failure"));
        assert_eq!(shown["rewrite"], json!({ "with": "/x" }));
        assert!(shown.get("fault").is_none() && shown.get("cors").is_none());
    }

    #[test]
    fn what_is_passed_on_is_shown_with_its_conditions() {
        let routes = TcpRoutes(Box::new([TcpRoute {
            sources: Box::new(["10.0.0.0/8".parse().unwrap()]),
            destinations: Box::default(),
            forward: Forward { targets: vec![Target { weight: 3, cluster: None, edits: None }] },
        }]));
        let mut table = TcpTable::default();
        table.hosts.insert("*.example.com".parse().unwrap(), Arc::new(routes));
        let serves = TlsServes::Passthrough(Arc::new(table));
        let shown = tls_server(&TlsServer { name: "tls.443.a.b.c".to_owned(), serves });
        assert_eq!(shown["certificate"], "the endpoint's");
        let route = &shown["passthrough"]["*.example.com"][0];
        assert_eq!(route["sources"], json!(["10.0.0.0/8"]));
        assert_eq!(route["forward"][0], json!({ "weight": 3, "cluster": null }));
    }

    #[test]
    fn a_regex_is_shown_as_it_was_written() {
        for pattern in ["", "/a.*", "^(?:x)$", "a|b"] {
            let shown = path(&PathMatch::Regex(FullRegex::parse(pattern).unwrap()));
            assert_eq!(shown, json!({ "regex": pattern }));
        }
    }
}
