//! The settings file: what the operator sets, and every default with its reason.
//!
//! - Every key has a default, so an empty file is a valid one.
//! - A key that does not exist is an error, and so is one that stands twice: a typo never becomes a
//!   default.
//! - All mistakes of a file are reported at once, each with its line and key.
//!
//! The file as written is a tree of keys and lines ([`written`]); [`Settings`] is what the program
//! uses, and having one tells you that every value in it can be used.
//!
//! Deliberately not here: the resources (`config`), and the defaults of [`Limits`], which live with
//! the type that the data layers read.

#![forbid(unsafe_code)]

pub mod threads;
mod value;
mod written;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use written::Section;

/// Far above any real file; what is larger is not a settings file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that the operator sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The threads that serve.
    pub workers: Workers,
    /// Where listeners are bound.
    pub listen: Listen,
    /// Who this gateway is among the resources.
    pub gateway: Gateway,
    /// Where the resources come from.
    pub source: Source,
    /// How paths in resources are read.
    pub files: Files,
    /// Who is asked for the addresses of names.
    pub dns: Dns,
    /// The TLS implementation.
    pub tls: Tls,
    /// HTTP behaviour that no resource sets.
    pub http: Http,
    /// Limits and timeouts of connections and requests.
    pub limits: Limits,
    /// The administration server.
    pub admin: Admin,
    /// The server of the readiness probe.
    pub status: Status,
    /// The server of the metrics.
    pub metrics: Metrics,
    /// The access log.
    pub access_log: AccessLog,
}

/// `workers`: the threads that serve. Only a restart changes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// How many; `None` means as many as the machine has room for, see [`threads::plan`].
    pub count: Option<usize>,
    /// Whether each stays on one CPU; `None` means if that helps, see [`threads::plan`].
    pub pin: Option<bool>,
    /// What they wait with.
    pub backend: Backend,
    /// How fresh connections are spread over them.
    pub balance: Balancing,
}

/// `workers.balance`: how fresh connections are spread over the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancing {
    /// By the kernel; a worker far above the mean hands them to others.
    Auto,
    /// By the kernel alone.
    Off,
}

/// `workers.backend`: what a worker waits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, or epoll where the kernel denies it.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring; where the kernel denies it, the gateway does not start.
    IoUring,
}

/// `listen`: where listeners are bound, which only a restart changes, and who speaks first there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address of every listener.
    pub address: IpAddr,
    /// From a Gateway's port to the port to bind, as a Service maps `port` to `targetPort`. Ports
    /// that are not in it are bound as they are; 0 binds a free one.
    pub ports: BTreeMap<u16, u16>,
    /// Peers whose connections begin with a header of the PROXY protocol. Changes on SIGHUP.
    pub proxy_protocol: Vec<Network>,
}

/// A range of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The first bits of it count.
    pub address: IpAddr,
    /// How many: at most as many as `address` has.
    pub prefix: u8,
}

/// `gateway`: who this gateway is among the resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its namespace: where `credentialName` is looked up.
    pub namespace: String,
    /// Its labels: what the `selector` of a Gateway matches.
    pub labels: BTreeMap<String, String>,
    /// Where it is: `region/zone/subzone`. Empty if that is not known.
    pub locality: String,
}

/// `source`: where the resources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Every YAML file below it is read, and watched.
    pub directory: PathBuf,
}

/// `files`: how paths in resources are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Prefix of every path that a Gateway names.
    pub root: PathBuf,
}

/// `dns`: who is asked for the addresses of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Instead of those of `/etc/resolv.conf`, unless it is empty.
    pub servers: Vec<SocketAddr>,
}

/// `tls`: the TLS implementation. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signs, seals and hashes.
    pub provider: Provider,
}

/// `tls.provider`: who signs, seals and hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// aws-lc-rs, which measured faster.
    Auto,
    /// aws-lc-rs.
    AwsLcRs,
    /// ring.
    Ring,
}

/// `http`: HTTP behaviour that no resource sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The answer to a request for a host that its connection does not serve.
    pub misdirected: Misdirected,
    /// How many proxies in front of the gateway append to `x-forwarded-for` and are believed.
    pub trusted_proxies: u32,
}

/// `http.misdirected`: the answer to a request for a host that its connection does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdirected {
    /// 421 Misdirected Request: the client tries again on a connection of its own.
    MisdirectedRequest,
    /// 404 Not Found, as Istio answers.
    NotFound,
}

/// `limits`: limits and timeouts of connections and requests; `None` keeps the default, which
/// stands with its reason at `snapshot::Limits`. There each field is explained, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of snapshot::Limits")]
pub struct Limits {
    pub connections_max: Option<usize>,
    pub handshakes_max: Option<usize>,
    pub handshake_timeout: Option<Duration>,
    pub head_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub stream_idle_timeout: Option<Duration>,
    pub tcp_idle_timeout: Option<Duration>,
    pub head_bytes_max: Option<usize>,
    pub header_fields_max: Option<usize>,
    pub h2_streams_max: Option<u32>,
    pub h2_stream_window_bytes: Option<u32>,
    pub h2_connection_window_bytes: Option<u32>,
    pub upstream_idle_max: Option<usize>,
    pub upstream_idle_timeout: Option<Duration>,
    pub retry_body_bytes_max: Option<usize>,
    pub mirrors_max: Option<usize>,
    pub linger_timeout: Option<Duration>,
    pub drain_timeout: Option<Duration>,
}

/// `admin`: the administration server. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `status`: the server of the readiness probe. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `metrics`: the server of the metrics. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `access_log`: one line for each request. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// The file that lines are appended to; `None` writes no log.
    pub path: Option<PathBuf>,
    /// What a line looks like.
    pub format: LogFormat,
}

/// `access_log.format`: what a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Envoy's default text format.
    Text,
    /// A JSON object with Istio's keys.
    Json,
}

impl Default for Workers {
    fn default() -> Self {
        // The machine and its container know better than a number that was written once.
        // And who has several workers wants them all to work.
        Self { count: None, pin: None, backend: Backend::Auto, balance: Balancing::Auto }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            // A gateway is there to be reached.
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            // The targetPorts of Istio's Service: no privilege is needed to bind them.
            ports: BTreeMap::from([(80, 8080), (443, 8443)]),
            // Whoever may send one says who the client is: nobody, until the operator says so.
            proxy_protocol: Vec::new(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        // Istio's own ingress gateway, which the selectors of existing Gateways name.
        let label = ("istio".to_owned(), "ingressgateway".to_owned());
        Self {
            namespace: "istio-system".to_owned(),
            labels: BTreeMap::from([label]),
            // Only who installs it knows.
            locality: String::new(),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        // Where a package or a ConfigMap puts the configuration of a daemon.
        Self { directory: PathBuf::from("/etc/ringgate") }
    }
}

impl Default for Files {
    fn default() -> Self {
        // Paths mean what they say.
        Self { root: PathBuf::from("/") }
    }
}

impl Default for Tls {
    fn default() -> Self {
        // Which one is faster is measured, not a matter of taste.
        Self { provider: Provider::Auto }
    }
}

impl Default for Http {
    fn default() -> Self {
        // What RFC 9110 says of such a request, and: no client is believed about who it is.
        Self { misdirected: Misdirected::MisdirectedRequest, trusted_proxies: 0 }
    }
}

impl Default for Admin {
    fn default() -> Self {
        // Istio's port. Whoever reaches it sees the whole configuration: this host alone.
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 15_000)) }
    }
}

impl Default for Status {
    fn default() -> Self {
        // Istio's port, on every address: the kubelet and load balancers ask from outside.
        Self { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15_021)) }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // Istio's port, on every address: Prometheus asks from outside.
        Self { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15_090)) }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        // Where a container's log is collected, in the format that log pipelines know from Istio.
        Self { path: Some(PathBuf::from("/dev/stdout")), format: LogFormat::Text }
    }
}

impl Settings {
    /// The settings in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong: every mistake that was found.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let bytes = read(path).map_err(|what| SettingsError::of_file(path, what))?;
        Self::parse(path, &bytes)
    }

    /// The settings in `bytes`, which `path` names in errors.
    ///
    /// # Errors
    /// Every mistake that was found.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let settings = written::document(bytes, &mut problems, read_settings);
        problems.sort_by_key(|problem| problem.line);
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(SettingsError { path: path.to_owned(), problems }),
        }
    }

    /// The keys whose values differ in `new`, and which only a restart can change.
    #[must_use]
    pub fn changed_needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("workers.count", self.workers.count != new.workers.count),
            ("workers.pin", self.workers.pin != new.workers.pin),
            ("workers.backend", self.workers.backend != new.workers.backend),
            ("workers.balance", self.workers.balance != new.workers.balance),
            ("listen.address", self.listen.address != new.listen.address),
            ("listen.ports", self.listen.ports != new.listen.ports),
            ("tls.provider", self.tls.provider != new.tls.provider),
            ("admin.address", self.admin.address != new.admin.address),
            ("status.address", self.status.address != new.status.address),
            ("metrics.address", self.metrics.address != new.metrics.address),
            ("access_log.path", self.access_log.path != new.access_log.path),
            ("access_log.format", self.access_log.format != new.access_log.format),
        ];
        changed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// What a running gateway uses after a reload: `new`, but for the keys of
    /// [`changed_needs_restart`](Self::changed_needs_restart).
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        Self {
            workers: self.workers.clone(),
            listen: Listen {
                proxy_protocol: new.listen.proxy_protocol.clone(),
                ..self.listen.clone()
            },
            tls: self.tls.clone(),
            admin: self.admin.clone(),
            status: self.status.clone(),
            metrics: self.metrics.clone(),
            access_log: self.access_log.clone(),
            ..new.clone()
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// The file as the user named it.
    pub path: PathBuf,
    /// Sorted by line; never empty.
    pub problems: Vec<Problem>,
}

/// One mistake in a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// The key, `workers.count`; empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl SettingsError {
    fn of_file(path: &Path, what: String) -> Self {
        let problem = Problem { line: 0, key: String::new(), what };
        Self { path: path.to_owned(), problems: vec![problem] }
    }
}

impl fmt::Display for SettingsError {
    /// `file:line: key: what`, one line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:", self.path.display())?;
            if problem.line > 0 {
                write!(f, "{}:", problem.line)?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}", problem.what)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // A directory, or a FIFO that would be waited for.
    if std::fs::metadata(path).is_ok_and(|found| found.is_dir() || found.file_type().is_fifo()) {
        return Err("is no file; name the settings file itself".to_owned());
    }
    let file = std::fs::File::open(path).map_err(|error| cannot_open(&error))?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes, so no settings file"));
    }
    Ok(bytes)
}

fn cannot_open(error: &std::io::Error) -> String {
    let cures = [
        (ErrorKind::NotFound, "make it, `{}` is enough to begin with, or change `--settings`"),
        (ErrorKind::PermissionDenied, "let the user that ringgate runs as read it"),
    ];
    let cure = cures.iter().find(|(kind, _)| *kind == error.kind());
    let cure = cure.map_or_else(String::new, |(_, cure)| format!("; {cure}"));
    format!("cannot be opened: {error}{cure}")
}

fn read_settings(top: &mut Section<'_>) -> Settings {
    Settings {
        workers: top.section("workers", read_workers),
        listen: top.section("listen", read_listen),
        gateway: top.section("gateway", read_gateway),
        source: top.section("source", |section| Source {
            directory: section.value("directory", Source::default().directory, value::path),
        }),
        files: top.section("files", |section| Files {
            root: section.value("root", Files::default().root, value::path),
        }),
        dns: top.section("dns", |section| Dns {
            // The host's administrator has said it already.
            servers: section.items("servers", Vec::new(), value::dns_server),
        }),
        tls: top.section("tls", |section| Tls {
            provider: section.value("provider", Tls::default().provider, provider),
        }),
        http: top.section("http", read_http),
        limits: top.section("limits", read_limits),
        admin: top.section("admin", |section| Admin {
            address: section.value("address", Admin::default().address, value::socket_address),
        }),
        status: top.section("status", |section| Status {
            address: section.value("address", Status::default().address, value::socket_address),
        }),
        metrics: top.section("metrics", |section| Metrics {
            address: section.value("address", Metrics::default().address, value::socket_address),
        }),
        access_log: top.section("access_log", read_access_log),
    }
}

fn read_workers(section: &mut Section<'_>) -> Workers {
    let default = Workers::default();
    Workers {
        count: section.value("count", default.count, value::auto_or_count),
        pin: section.value("pin", default.pin, value::auto_or_bool),
        backend: section.value("backend", default.backend, |value| {
            value::one_of(
                value,
                &[
                    ("auto", Backend::Auto),
                    ("io_uring", Backend::IoUring),
                    ("epoll", Backend::Epoll),
                ],
            )
        }),
        balance: section.value("balance", default.balance, |value| {
            value::one_of(value, &[("auto", Balancing::Auto), ("off", Balancing::Off)])
        }),
    }
}

fn read_listen(section: &mut Section<'_>) -> Listen {
    let default = Listen::default();
    let ports = section.pairs("ports", default.ports, value::port, value::port_or_zero);
    let address = section.value("address", default.address, value::ip_address);
    let proxy_protocol = section.items("proxy_protocol", default.proxy_protocol, value::network);
    Listen { address, ports, proxy_protocol }
}

fn read_gateway(section: &mut Section<'_>) -> Gateway {
    let default = Gateway::default();
    Gateway {
        namespace: section.value("namespace", default.namespace, value::name),
        labels: section.pairs("labels", default.labels, value::text, value::text),
        locality: section.value("locality", default.locality, value::locality),
    }
}

fn provider(value: &written::Value) -> Result<Provider, String> {
    let names =
        [("auto", Provider::Auto), ("ring", Provider::Ring), ("aws-lc-rs", Provider::AwsLcRs)];
    value::one_of(value, &names)
}

fn read_http(section: &mut Section<'_>) -> Http {
    let default = Http::default();
    Http {
        misdirected: section.value("misdirected", default.misdirected, |value| {
            let names = [("421", Misdirected::MisdirectedRequest), ("404", Misdirected::NotFound)];
            value::one_of(value, &names)
        }),
        trusted_proxies: section.value("trusted_proxies", default.trusted_proxies, |value| {
            value::number(value, 0..=value::PROXIES_MAX)
        }),
    }
}

fn read_limits(section: &mut Section<'_>) -> Limits {
    Limits {
        connections_max: section.optional("connections_max", value::amount),
        handshakes_max: section.optional("handshakes_max", value::amount),
        handshake_timeout: section.optional("handshake_timeout", value::duration_above_zero),
        head_timeout: section.optional("head_timeout", value::duration_above_zero),
        idle_timeout: section.optional("idle_timeout", value::duration_above_zero),
        stream_idle_timeout: section.optional("stream_idle_timeout", value::duration_above_zero),
        tcp_idle_timeout: section.optional("tcp_idle_timeout", value::duration_above_zero),
        head_bytes_max: section.optional("head_bytes_max", value::head_bytes),
        header_fields_max: section.optional("header_fields_max", value::header_fields),
        h2_streams_max: section.optional("h2_streams_max", value::h2_streams),
        h2_stream_window_bytes: section.optional("h2_stream_window_bytes", value::h2_window),
        h2_connection_window_bytes: section
            .optional("h2_connection_window_bytes", value::h2_window),
        upstream_idle_max: section.optional("upstream_idle_max", value::amount_or_zero),
        upstream_idle_timeout: section
            .optional("upstream_idle_timeout", value::duration_above_zero),
        retry_body_bytes_max: section.optional("retry_body_bytes_max", value::retry_body_bytes),
        mirrors_max: section.optional("mirrors_max", value::amount_or_zero),
        linger_timeout: section.optional("linger_timeout", value::duration),
        drain_timeout: section.optional("drain_timeout", value::duration),
    }
}

fn read_access_log(section: &mut Section<'_>) -> AccessLog {
    let default = AccessLog::default();
    AccessLog {
        path: section.value("path", default.path, value::path_or_off),
        format: section.value("format", default.format, |value| {
            value::one_of(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        Settings::parse(Path::new("r.yaml"), text.as_bytes()).unwrap_err().to_string()
    }

    fn parsed(text: &str) -> Settings {
        Settings::parse(Path::new("r.yaml"), text.as_bytes()).unwrap()
    }

    #[test]
    fn nothing_means_the_defaults() {
        for text in ["", "# nothing\n", "workers:\n", "{}"] {
            assert_eq!(parsed(text), Settings::default(), "{text:?}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let settings = parsed(
            "workers: { count: 3, pin: true, backend: epoll, balance: off }
listen: { address: '::1', ports: { 443: 0, 80: 81 }, proxy_protocol: [10.0.0.0/8, '::1'] }
gateway: { namespace: edge, labels: { app: gw, version: '1' }, locality: r/z/s }
source: { directory: /srv/conf }
files: { root: /srv/root }
dns: { servers: [10.0.0.1, '::1', '127.0.0.1:5353'] }
tls: { provider: aws-lc-rs }
http: { misdirected: 404, trusted_proxies: 2 }
limits: { idle_timeout: 500ms, head_bytes_max: 16KiB, connections_max: 7, drain_timeout: 0s }
admin: { address: '127.0.0.1:1' }
status: { address: '[::1]:2' }
metrics: { address: 127.0.0.1:3 }
access_log: { path: off, format: json }
",
        );
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let text = str::to_owned;
        let expected = Settings {
            workers: Workers {
                count: Some(3),
                pin: Some(true),
                backend: Backend::Epoll,
                balance: Balancing::Off,
            },
            listen: Listen {
                address: "::1".parse().unwrap(),
                ports: BTreeMap::from([(443, 0), (80, 81)]),
                proxy_protocol: vec![
                    Network { address: "10.0.0.0".parse().unwrap(), prefix: 8 },
                    Network { address: "::1".parse().unwrap(), prefix: 128 },
                ],
            },
            gateway: Gateway {
                namespace: text("edge"),
                labels: BTreeMap::from([(text("app"), text("gw")), (text("version"), text("1"))]),
                locality: text("r/z/s"),
            },
            source: Source { directory: "/srv/conf".into() },
            files: Files { root: "/srv/root".into() },
            dns: Dns { servers: ["10.0.0.1:53", "[::1]:53", "127.0.0.1:5353"].map(address).into() },
            tls: Tls { provider: Provider::AwsLcRs },
            http: Http { misdirected: Misdirected::NotFound, trusted_proxies: 2 },
            limits: Limits {
                idle_timeout: Some(Duration::from_millis(500)),
                head_bytes_max: Some(16 * 1024),
                connections_max: Some(7),
                drain_timeout: Some(Duration::ZERO),
                ..Limits::default()
            },
            admin: Admin { address: address("127.0.0.1:1") },
            status: Status { address: address("[::1]:2") },
            metrics: Metrics { address: address("127.0.0.1:3") },
            access_log: AccessLog { path: None, format: LogFormat::Json },
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let text = "workers:
  count: 0
  pni: true
  backend: kqueue
listen:
  address: localhost
  ports: { 0: 80, 443: 99999, 80: 1, 80: 2 }
  proxy_protocol: [10.0.0.0/8, 10.0.0.0/33, [], lb.example.com]
gateway: { labels: { version: 1 }, locality: r//s }
limits:
  head_bytes_max: 1KiB
  idle_timeout: 15
  head_timeout: 0s
admin: nowhere
wrokers: {}
surprise: {}
admin: {}
";
        let expected = "\
r.yaml:2: workers.count: must be `auto` or a number from 1 to 1024, not `0`
r.yaml:3: workers.pni: unknown key, did you mean `pin`?
r.yaml:4: workers.backend: must be `auto` or `io_uring` or `epoll`, not `kqueue`
r.yaml:6: listen.address: must be an IP address such as `0.0.0.0` or `::`, not `localhost`
r.yaml:7: listen.ports.0: the key must be a number from 1 to 65535, not `0`
r.yaml:7: listen.ports.443: must be a number from 0 to 65535, not `99999`
r.yaml:7: listen.ports.80: stands here for the second time
r.yaml:8: listen.proxy_protocol[1]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not `10.0.0.0/33`
r.yaml:8: listen.proxy_protocol[2]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not a list
r.yaml:8: listen.proxy_protocol[3]: must be an IP address or a range of them such as `10.0.0.0/8`, \
not `lb.example.com`
r.yaml:9: gateway.labels.version: must be text, put it in quotes, not `1`
r.yaml:9: gateway.locality: must be a region, or `region/zone`, or `region/zone/subzone`, not `r//s`
r.yaml:11: limits.head_bytes_max: must be bytes or a size such as `64KiB`, from 8192 to 16777216 \
bytes, not `1KiB`
r.yaml:12: limits.idle_timeout: must be a duration such as `500ms`, `15s`, `1m` or `1h`, not `15`
r.yaml:13: limits.head_timeout: must be longer than nothing, not `0s`
r.yaml:14: admin: must be keys and values, not `nowhere`
r.yaml:15: wrokers: unknown key, did you mean `workers`?
r.yaml:16: surprise: unknown key, there are workers, listen, gateway, source, files, dns, tls, \
http, limits, admin, status, metrics, access_log
r.yaml:17: admin: stands here for the second time";
        assert_eq!(errors(text), expected);
    }

    #[test]
    fn what_is_no_settings_file_is_said() {
        let two = errors("workers: {}\n---\nlisten: {}\n");
        assert_eq!(two, "r.yaml:3: holds several documents; a settings file is a single one");
        let resource = "apiVersion: v1\nkind: Secret\nmetadata: {}\n";
        assert_eq!(
            errors(resource),
            "r.yaml:1: is a Kubernetes resource, not a settings file; resources belong below \
             `source.directory`"
        );
        assert!(
            errors("a:\n\tb: c\n").ends_with("YAML is indented with spaces, never with tabs"),
            "{}",
            errors("a:\n\tb: c\n")
        );
        let directory = Settings::load(Path::new("/")).unwrap_err().to_string();
        assert_eq!(directory, "/: is no file; name the settings file itself");
    }

    #[test]
    fn numbers_in_quotes_and_windows_line_ends() {
        assert_eq!(
            errors("listen: { ports: { 443: '8443' } }"),
            "r.yaml:1: listen.ports.443: must be a number from 0 to 65535, not the text `8443` \
             (leave out the quotes)"
        );
        assert_eq!(parsed("workers:\r\n  count: 3\r\n"), parsed("workers:\n  count: 3\n"));
    }

    #[test]
    fn what_is_no_yaml_or_no_file_is_said() {
        assert_eq!(
            errors("listen: { ports: { 80: 8080\nfiles: {}\n"),
            "r.yaml:2: is not YAML: while parsing a flow mapping, did not find expected ',' or \
             '}'; a comma between two entries is missing, or the bracket after the last"
        );
        assert_eq!(errors("- a\n"), "r.yaml:1: must be keys and values, not a list");
        let missing = Settings::load(Path::new("/nowhere/r.yaml")).unwrap_err().to_string();
        assert_eq!(
            missing,
            "/nowhere/r.yaml: cannot be opened: No such file or directory (os error 2); make it, \
             `{}` is enough to begin with, or change `--settings`"
        );
    }

    #[test]
    fn keys_that_need_a_restart_keep_their_value_until_then() {
        let old = Settings::default();
        let new =
            parsed("workers: { count: 9 }\nadmin: { address: '[::]:1' }\nfiles: { root: /a }");
        assert_eq!(old.changed_needs_restart(&new), ["workers.count", "admin.address"]);
        let after = old.reloaded(&new);
        assert_eq!(after.files.root, Path::new("/a"));
        assert_eq!(old.changed_needs_restart(&after), [""; 0]);
        assert_eq!(old.changed_needs_restart(&old), [""; 0]);
    }

    /// The keys of a mapping of mappings, with the section before each.
    fn keys_of(yaml: &str) -> Vec<String> {
        let sections: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
        let sections = sections.as_object().unwrap();
        let keys = |section: &str, keys: &serde_json::Value| -> Vec<String> {
            keys.as_object().unwrap().keys().map(|key| format!("{section}.{key}")).collect()
        };
        sections.iter().flat_map(|(name, section)| keys(name, section)).collect()
    }

    #[test]
    fn the_readme_has_a_row_for_every_key_and_says_what_a_hangup_does() {
        let readme = include_str!("../../README.md");
        let shipped = include_str!("../../config/ringgate.yaml");
        let other = parsed(
            "workers: { count: 3, pin: true, backend: epoll, balance: off }
listen: { address: '::1', ports: { 443: 0 }, proxy_protocol: [0.0.0.0/0] }
tls: { provider: ring }
admin: { address: '127.0.0.1:1' }
status: { address: '127.0.0.1:2' }
metrics: { address: '127.0.0.1:3' }
access_log: { path: off, format: json }
",
        );
        let restart = Settings::default().changed_needs_restart(&other);
        let keys = keys_of(shipped);
        for key in &keys {
            let row = readme.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
            let row = row.unwrap_or_else(|| panic!("no row for {key}"));
            let hangup = row.split(" | ").nth(2);
            let expected = if restart.contains(&key.as_str()) { "no" } else { "yes" };
            assert_eq!(hangup, Some(expected), "{row}");
        }
        let table = readme.split("## Settings").nth(1).unwrap().split("## Ports").next().unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, keys.len(), "a row for a key that is not in config/ringgate.yaml");
    }
}
