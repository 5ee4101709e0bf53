//! Which pages there are, and the short ones.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::aside::Aside;
use super::scrape::{Scraped, Scraper};
use super::{BoundListener, Command, State, certs, command, config_dump};
use crate::snapshot::{
    Action, Cluster, Forward, RouteTable, Serves, Snapshot, TcpTable, TlsServer, TlsServes,
};
use crate::telemetry::{SharedCounters, prometheus, rfc3339};

const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// Every page of the administration, with a word on it; [`command::PATHS`] are no pages.
const INDEX: [(&str, &str); 9] = [
    ("/certs", "certificates: names, serial, validity, and which are missing and why"),
    ("/clusters", "where requests are forwarded to: clusters and their endpoints"),
    ("/config_dump", "what the gateway does: listeners, hosts, routes, clusters, rejections"),
    ("/listeners", "listeners and the addresses that they are bound to (?format=json)"),
    ("/ready", "200 when traffic can come, 503 and the reasons when not"),
    ("/server_info", "version, uptime, workers"),
    ("/stats", "metrics as plain text"),
    ("/stats/prometheus", "metrics for Prometheus"),
    ("/", "this page"),
];

/// A page as it is sent.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

impl Page {
    fn ok(content_type: &'static str, text: String) -> Self {
        Self { status: StatusCode::OK, content_type, text }
    }

    fn json(value: &Value) -> Self {
        Self::ok(JSON, format!("{value:#}\n"))
    }
}

/// Makes pages.
pub(super) struct Pages {
    state: State,
    scraper: Scraper,
    aside: Aside,
}

impl Pages {
    pub(super) fn new(state: State) -> Self {
        Self { scraper: Scraper::new(state.workers.len()), aside: Aside::new(), state }
    }

    /// A page of the administration; `None` when there is none at that path.
    pub(super) async fn admin(&self, uri: &Uri) -> Option<Page> {
        let snapshot = (self.state.snapshot)();
        Some(match uri.path() {
            "/" => Page::ok("text/html; charset=utf-8", index()),
            "/certs" => {
                let now = SystemTime::now();
                self.aside(move || Page::json(&certs::dump(&snapshot.certificates, now))).await
            }
            "/clusters" => self.aside(move || Page::ok(TEXT, clusters_text(&snapshot))).await,
            "/config_dump" => self.aside(move || Page::json(&config_dump::dump(&snapshot))).await,
            "/listeners" if uri.query() == Some("format=json") => {
                Page::json(&self.listeners_json())
            }
            "/listeners" => Page::ok(TEXT, self.listeners_text()),
            "/ready" => self.ready(),
            "/server_info" => Page::json(&self.server_info(&snapshot)),
            "/stats" => self.scraped(|scraped| Page::ok(TEXT, plain(&scraped.render()))).await,
            "/stats/prometheus" => self.prometheus().await,
            _ => return None,
        })
    }

    /// A page of the status port.
    pub(super) fn status(&self, path: &str) -> Option<Page> {
        (path == "/healthz/ready").then(|| self.ready())
    }

    /// Carries out `command`.
    pub(super) fn obey(&self, command: Command) {
        (self.state.command)(command);
    }

    /// A page of the metrics port. Readiness is here too, for who has one port for both.
    pub(super) async fn metrics(&self, path: &str) -> Option<Page> {
        match path {
            "/stats/prometheus" | "/metrics" => Some(self.prometheus().await),
            "/healthz/ready" => Some(self.ready()),
            _ => None,
        }
    }

    async fn prometheus(&self) -> Page {
        self.scraped(|scraped| Page::ok(prometheus::CONTENT_TYPE, scraped.render())).await
    }

    /// What `make` makes of what the workers say.
    async fn scraped(&self, make: impl FnOnce(Scraped) -> Page + Send + 'static) -> Page {
        // First the turn: whoever waits has no copies yet, which may be large.
        let turn = self.aside.turn().await;
        let scraped = self.scraper.scrape(&self.state).await;
        turn.make(move || make(scraped)).await
    }

    /// What `make` makes on the second thread: it may take long.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.aside.turn().await.make(make).await
    }

    fn ready(&self) -> Page {
        let readiness = self.state.ready(SystemTime::now());
        if readiness.ready {
            return Page::ok(TEXT, "LIVE\n".to_owned());
        }
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let text = format!("NOT READY\n{}\n", readiness.reasons.join("\n"));
        Page { status, content_type: TEXT, text }
    }

    fn listeners_text(&self) -> String {
        let mut text = String::new();
        for bound in (self.state.listeners)() {
            line(
                &mut text,
                format_args!("{}::{}", bound.key.name(bound.gateway_port), bound.address),
            );
        }
        text
    }

    fn listeners_json(&self) -> Value {
        let listeners = (self.state.listeners)();
        let listener = |bound: &BoundListener| {
            json!({
                "name": bound.key.name(bound.gateway_port),
                "gateway_port": bound.gateway_port,
                "local_address": bound.address.to_string(),
            })
        };
        json!({ "listener_statuses": listeners.iter().map(listener).collect::<Vec<_>>() })
    }

    fn server_info(&self, snapshot: &Snapshot) -> Value {
        let ready = self.state.ready(SystemTime::now()).ready;
        let worker = |counters: &SharedCounters| {
            json!({
                "generation": counters.generation.value(),
                "heartbeat": rfc3339(seconds(counters.heartbeat.value())),
                "loop_turns": counters.loop_turns.value(),
                "connections": counters.connections_active.value(),
            })
        };
        json!({
            "version": self.state.version,
            "state": if ready { "LIVE" } else { "PRE_INITIALIZING" },
            "started": rfc3339(self.state.started),
            "uptime_seconds": self.state.started.elapsed().unwrap_or_default().as_secs(),
            "generation": snapshot.generation,
            "workers": self.state.workers.iter().map(worker).collect::<Vec<_>>(),
        })
    }
}

/// The clusters that routes lead to, by name.
pub(super) fn clusters(snapshot: &Snapshot) -> BTreeMap<&str, &Arc<Cluster>> {
    let all = snapshot.listeners.iter().flat_map(|listener| forwards(&listener.serves));
    all.flat_map(|forward| &forward.targets)
        .filter_map(|target| target.cluster.as_ref())
        .map(|cluster| (cluster.name.as_str(), cluster))
        .collect()
}

/// All that leads to clusters.
fn forwards(serves: &Serves) -> Vec<&Forward> {
    match serves {
        Serves::Http(table) => http_forwards(table).collect(),
        Serves::Tcp(table) => tcp_forwards(table).collect(),
        Serves::Tls(servers) => {
            servers.iter().flat_map(|(_, server)| server_forwards(server)).collect()
        }
    }
}

fn server_forwards(server: &TlsServer) -> Vec<&Forward> {
    match &server.serves {
        TlsServes::Http(_, table) => http_forwards(table).collect(),
        TlsServes::Tcp(_, table) | TlsServes::Passthrough(table) => tcp_forwards(table).collect(),
    }
}

fn http_forwards(table: &RouteTable) -> impl Iterator<Item = &Forward> {
    let routes = table.hosts.iter().flat_map(|(_, host)| host.routes());
    routes.filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(forward),
        Action::Respond(_) | Action::Redirect(_) => None,
    })
}

fn tcp_forwards(table: &TcpTable) -> impl Iterator<Item = &Forward> {
    table.hosts.iter().flat_map(|(_, routes)| &routes.0).map(|route| &route.forward)
}

fn clusters_text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for (name, cluster) in clusters(snapshot) {
        if cluster.endpoints.is_empty() {
            line(&mut text, format_args!("{name}::no endpoint"));
        }
        for endpoint in &cluster.endpoints {
            line(&mut text, format_args!("{name}::{endpoint}"));
        }
    }
    text
}

fn index() -> String {
    let rows = INDEX.map(|(path, about)| {
        format!("<tr><td><a href=\"{path}\">{path}</a></td><td>{about}</td></tr>\n")
    });
    let commands = command::PATHS
        .map(|(path, about)| format!("<tr><td>POST {path}</td><td>{about}</td></tr>\n"));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><title>ringgate</title></head><body>\n\
         <h1>ringgate</h1>\n<table>\n{}{}</table>\n</body></html>\n",
        rows.concat(),
        commands.concat()
    )
}

/// `name{labels}: value` for each sample of a Prometheus page.
fn plain(page: &str) -> String {
    let mut text = String::new();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = sample.rsplit_once(' ') {
            line(&mut text, format_args!("{name}: {value}"));
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

fn seconds(since_epoch: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch)
}
