//! The control loop: one snapshot after another, as files, names and settings change.
//!
//! - A snapshot is handed out only when it differs from the one before, be it in a rejection.
//! - Each rejection is logged once, when it appears.
//! - Last good: a source that cannot be read leaves everything as it is.
//!
//! Deliberately not here: workers, and how a snapshot reaches them.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::{Compiler, GatewayIdentity, Identities, Inputs, Listen, Output};
use super::identities::RealIdentities;
use super::resolve::Resolver;
use super::source::directory::{Directory, DirectoryError};
use super::source::named::NamedFiles;
use super::source::watch::Watch;
use crate::crypto::TicketSecrets;
use crate::settings::{self, Settings};
use crate::snapshot::{Limits, Policy, Rejection, Serves, Severity, Snapshot};

/// The first snapshot waits so long for names: later ones bring what is slower.
const NAMES_WAIT: Duration = Duration::from_millis(500);

/// Rounds of looking and watching, or compiling and resolving, until nothing new turns up. What
/// turns up after them is found by the next look.
const ROUNDS_MAX: usize = 5;

/// Makes snapshots of what the settings name, on a tokio runtime.
pub struct Control {
    settings: Settings,
    compiler: Compiler,
    directory: Directory,
    named: NamedFiles,
    watch: Watch,
    resolver: Resolver,
    current: Arc<Snapshot>,
    /// When ticket keys are replaced.
    rotation: tokio::time::Interval,
    /// Whether something was noticed that `current` does not show yet.
    is_stale: bool,
    /// Whether the source could be read when it was last looked at.
    is_readable: bool,
}

/// Why there is no first snapshot.
#[derive(Debug)]
pub struct StartError(DirectoryError);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for StartError {}

impl Control {
    /// Reads and watches the source, and compiles the first snapshot.
    ///
    /// # Errors
    /// The source directory cannot be read. Everything else is a rejection.
    pub async fn start(settings: &Settings) -> Result<Self, StartError> {
        let identities = RealIdentities::new(settings.tls.provider);
        Self::start_with(settings, Box::new(identities)).await
    }

    async fn start_with(
        settings: &Settings,
        identities: Box<dyn Identities>,
    ) -> Result<Self, StartError> {
        let directory = Directory::open(&settings.source.directory).map_err(StartError)?;
        let limits = limits(&settings.limits);
        let mut control = Self {
            compiler: Compiler::new(gateway(settings), listen(settings), limits, identities),
            named: NamedFiles::new(settings.files.root.clone()),
            settings: settings.clone(),
            directory,
            watch: Watch::start(),
            resolver: Resolver::default(),
            current: Arc::default(),
            rotation: rotation(),
            is_stale: false,
            is_readable: true,
        };
        control.compiler.set_policy(policy(&settings.http));
        // What this yields is dropped: it only finds out what is to be resolved and read.
        control.gather();
        control.resolver.settle(NAMES_WAIT).await;
        control.look();
        control.compile();
        control.warn_of_nothing();
        Ok(control)
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current)
    }

    /// Waits for the next snapshot. Cancel-safe.
    pub async fn changed(&mut self) -> Arc<Snapshot> {
        loop {
            if std::mem::take(&mut self.is_stale) && self.compile() {
                return self.current();
            }
            tokio::select! {
                () = self.watch.changed() => self.is_stale = self.look(),
                () = self.resolver.changed() => self.is_stale = true,
                _ = self.rotation.tick() => self.compiler.rotate_tickets(),
            }
        }
    }

    /// Reads everything again, by `settings`. Keys that only a restart can change keep their
    /// values, and the log names them.
    ///
    /// # Errors
    /// The new source directory cannot be read: nothing changed.
    pub fn reload(&mut self, settings: &Settings) -> Result<Arc<Snapshot>, StartError> {
        for key in self.settings.changed_needs_restart(settings) {
            tracing::warn!("{key} changed in the settings, it takes effect at the next start");
        }
        if settings.source != self.settings.source {
            self.directory = Directory::open(&settings.source.directory).map_err(StartError)?;
        }
        if settings.files != self.settings.files {
            self.named = NamedFiles::new(settings.files.root.clone());
        }
        self.settings = self.settings.reloaded(settings);
        self.compiler.set_gateway(gateway(&self.settings));
        self.compiler.set_limits(limits(&self.settings.limits));
        self.compiler.set_policy(policy(&self.settings.http));
        self.directory.distrust();
        self.named.distrust();
        self.look();
        self.compile();
        Ok(self.current())
    }

    /// Looks at all files and watches what there is; says whether anything is different.
    fn look(&mut self) -> bool {
        let mut differs = false;
        for _ in 0..ROUNDS_MAX {
            differs |= self.scan();
            let mut places = self.directory.places().clone();
            self.named.add_places(&mut places);
            let is_awaiting = !self.is_readable || self.named.is_awaiting();
            if !self.watch.set(places, is_awaiting) {
                break;
            }
        }
        differs
    }

    fn scan(&mut self) -> bool {
        let files_differ = match self.directory.scan() {
            Ok(differs) => {
                self.is_readable = true;
                differs
            }
            Err(error) => {
                if std::mem::replace(&mut self.is_readable, false) {
                    tracing::error!("{error}; what was read before stays in force");
                }
                false
            }
        };
        self.named.scan() | files_differ
    }

    /// Compiles until everything that the result wants is at hand; says whether `current` is new.
    fn compile(&mut self) -> bool {
        let started = Instant::now();
        let snapshot = self.gather();
        self.accept(snapshot, started)
    }

    /// Compiles until everything that the result wants is at hand.
    fn gather(&mut self) -> Snapshot {
        let mut output = self.compile_once();
        for _ in 1..ROUNDS_MAX {
            let learned = self.resolver.want(&output.names, Instant::now());
            self.named.want(&output.pem_paths);
            if !(learned | self.look()) {
                break;
            }
            output = self.compile_once();
        }
        output.snapshot
    }

    fn compile_once(&mut self) -> Output {
        let (files, secrets) = (self.directory.files(), self.directory.secrets());
        let (named, resolver) = (&mut self.named, &self.resolver);
        self.compiler.compile(Inputs {
            files: &files,
            mounted_secrets: &secrets,
            pem: &mut |path| named.read(path),
            resolved: &|name| -> Option<Vec<IpAddr>> { resolver.addresses(name) },
        })
    }

    /// A directory without resources is no error, they may come later; mostly it is the wrong one.
    fn warn_of_nothing(&self) {
        if self.directory.files().is_empty() && self.directory.secrets().is_empty() {
            tracing::warn!(
                "source.directory {} holds no *.yaml and no *.yml: nothing is served until one \
                 appears",
                self.settings.source.directory.display()
            );
        }
    }

    fn accept(&mut self, mut snapshot: Snapshot, started: Instant) -> bool {
        if self.current.generation > 0 && is_same(&self.current, &snapshot) {
            return false;
        }
        // Compilations that nobody saw do not count.
        snapshot.generation = self.current.generation + 1;
        log_new(&self.current.rejections, &snapshot.rejections);
        log_applied(&snapshot, self.compiler.resources(), started.elapsed());
        self.current = Arc::new(snapshot);
        true
    }
}

/// Whether two generations say the same.
fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    let mut listeners = a.listeners.iter().zip(&b.listeners);
    a.listeners.len() == b.listeners.len()
        && listeners.all(|(a, b)| Arc::ptr_eq(a, b))
        && a.limits == b.limits
        && a.policy == b.policy
        && a.rejections == b.rejections
        && a.certificates == b.certificates
}

fn log_new(before: &[Rejection], now: &[Rejection]) {
    let before: HashSet<_> = before.iter().map(ToString::to_string).collect();
    for rejection in now {
        let text = rejection.to_string();
        if before.contains(&text) {
            continue;
        }
        match rejection.severity {
            Severity::Error => tracing::error!("{text}"),
            Severity::Warning => tracing::warn!("{text}"),
        }
    }
}

fn log_applied(snapshot: &Snapshot, resources: usize, took: Duration) {
    tracing::info!(
        "applied generation {} in {} ms: resources {resources}, listeners {}, hosts {}, \
         certificates {}, rejections {}",
        snapshot.generation,
        took.as_millis(),
        snapshot.listeners.len(),
        hosts(snapshot).len(),
        snapshot.certificates.len(),
        snapshot.rejections.len(),
    );
}

/// The virtual hosts by name.
fn hosts(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for listener in &snapshot.listeners {
        match &listener.serves {
            Serves::Http(table) => hosts.extend(table.hosts.iter().map(|(_, h)| h.name.clone())),
            Serves::Tls(servers) => servers.iter().for_each(|(_, server)| {
                hosts.extend(server.routes.hosts.iter().map(|(_, host)| host.name.clone()));
            }),
        }
    }
    hosts
}

/// Where listeners are bound.
pub(super) fn listen(settings: &Settings) -> Listen {
    Listen { address: settings.listen.address, ports: settings.listen.ports.clone() }
}

/// Who the gateway is.
pub(super) fn gateway(settings: &Settings) -> GatewayIdentity {
    let gateway = settings.gateway.clone();
    GatewayIdentity { namespace: gateway.namespace, labels: gateway.labels }
}

fn rotation() -> tokio::time::Interval {
    let first = tokio::time::Instant::now() + TicketSecrets::ROTATION;
    tokio::time::interval_at(first, TicketSecrets::ROTATION)
}

fn policy(http: &settings::Http) -> Policy {
    Policy {
        misdirected: match http.misdirected {
            settings::Misdirected::MisdirectedRequest => ::http::StatusCode::MISDIRECTED_REQUEST,
            settings::Misdirected::NotFound => ::http::StatusCode::NOT_FOUND,
        },
        trusted_proxies: http.trusted_proxies,
    }
}

/// The limits as set, and the defaults of those that are not.
pub(crate) fn limits(set: &settings::Limits) -> Limits {
    let default = Limits::default();
    Limits {
        connections_max: set.connections_max.unwrap_or(default.connections_max),
        handshakes_max: set.handshakes_max.unwrap_or(default.handshakes_max),
        handshake_timeout: set.handshake_timeout.unwrap_or(default.handshake_timeout),
        head_timeout: set.head_timeout.unwrap_or(default.head_timeout),
        idle_timeout: set.idle_timeout.unwrap_or(default.idle_timeout),
        stream_idle_timeout: set.stream_idle_timeout.unwrap_or(default.stream_idle_timeout),
        head_bytes_max: set.head_bytes_max.unwrap_or(default.head_bytes_max),
        header_fields_max: set.header_fields_max.unwrap_or(default.header_fields_max),
        h2_streams_max: set.h2_streams_max.unwrap_or(default.h2_streams_max),
        h2_stream_window_bytes: set
            .h2_stream_window_bytes
            .unwrap_or(default.h2_stream_window_bytes),
        h2_connection_window_bytes: set
            .h2_connection_window_bytes
            .unwrap_or(default.h2_connection_window_bytes),
        upstream_idle_max: set.upstream_idle_max.unwrap_or(default.upstream_idle_max),
        upstream_idle_timeout: set.upstream_idle_timeout.unwrap_or(default.upstream_idle_timeout),
        retry_body_bytes_max: set.retry_body_bytes_max.unwrap_or(default.retry_body_bytes_max),
        mirrors_max: set.mirrors_max.unwrap_or(default.mirrors_max),
        linger_timeout: set.linger_timeout.unwrap_or(default.linger_timeout),
        drain_timeout: set.drain_timeout.unwrap_or(default.drain_timeout),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::config::compile::{BuiltIdentity, IdentityRequest, Part, Refusal};

    /// Far longer than anything takes; only a test that fails waits for it.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Answers what certificate it was shown, as an error: no configuration is needed to see it.
    struct Echo;

    impl Identities for Echo {
        fn server(&mut self, request: &IdentityRequest<'_>) -> Result<BuiltIdentity, Refusal> {
            let reason = format!("saw {}", String::from_utf8_lossy(&request.pair.certificate));
            Err(Refusal { part: Part::Pair, reason })
        }
    }

    struct Site {
        dir: tempfile::TempDir,
        settings: Settings,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut settings = Settings::default();
            settings.source.directory = dir.path().join("source");
            settings.files.root = dir.path().join("root");
            fs::create_dir(dir.path().join("source")).unwrap();
            fs::create_dir(dir.path().join("root")).unwrap();
            Self { dir, settings }
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.dir.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
            fs::write(self.path(path), text).unwrap();
        }

        async fn control(&self) -> Control {
            Control::start_with(&self.settings, Box::new(Echo)).await.unwrap()
        }
    }

    /// Waits for a snapshot in which `is_seen`.
    async fn until(control: &mut Control, is_seen: impl Fn(&Snapshot) -> bool) {
        let wait = async {
            let mut snapshot = control.current();
            while !is_seen(&snapshot) {
                snapshot = control.changed().await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "the last snapshot: {:?}", control.current());
    }

    fn http_gateway(port: u16) -> String {
        format!(
            "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{ name: g{port} }}
spec:
  selector: {{ istio: ingressgateway }}
  servers:
  - port: {{ number: {port}, name: http, protocol: HTTP }}
    hosts: ['*']
"
        )
    }

    fn listens(port: u16) -> impl Fn(&Snapshot) -> bool {
        move |snapshot| snapshot.listeners.iter().any(|l| l.key.gateway_port == port)
    }

    fn says(text: &str) -> impl Fn(&Snapshot) -> bool {
        move |snapshot| {
            format!("{:?}{:?}", snapshot.rejections, snapshot.certificates).contains(text)
        }
    }

    const TLS_GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: tls }
spec:
  selector: { istio: ingressgateway }
  servers:
  - port: { number: 443, name: https, protocol: HTTPS }
    hosts: [a.example.com]
    tls:
      mode: SIMPLE
      serverCertificate: /etc/certs/tls.crt
      privateKey: /etc/certs/tls.key
";

    #[tokio::test]
    async fn files_that_appear_change_move_and_go_are_seen() {
        let site = Site::new();
        let mut control = site.control().await;
        site.write("source/a.yaml", &http_gateway(1001));
        until(&mut control, listens(1001)).await;
        site.write("source/a.yaml", &http_gateway(1002));
        until(&mut control, |s| listens(1002)(s) && !listens(1001)(s)).await;
        site.write("source/new", &http_gateway(1003));
        fs::rename(site.path("source/new"), site.path("source/a.yaml")).unwrap();
        until(&mut control, listens(1003)).await;
        site.write("source/deep/er/b.yml", &http_gateway(1004));
        until(&mut control, |s| listens(1003)(s) && listens(1004)(s)).await;
        fs::remove_file(site.path("source/a.yaml")).unwrap();
        until(&mut control, |s| !listens(1003)(s) && listens(1004)(s)).await;
        fs::remove_dir_all(site.path("source/deep")).unwrap();
        until(&mut control, |s| s.listeners.is_empty()).await;
        site.write("source/deep/b.yaml", &http_gateway(1005));
        until(&mut control, listens(1005)).await;
    }

    #[tokio::test]
    async fn a_swap_of_kubernetes_is_seen() {
        let site = Site::new();
        site.write("source/map/..1/a.yaml", &http_gateway(1001));
        symlink("..1", site.path("source/map/..data")).unwrap();
        symlink("..data/a.yaml", site.path("source/map/a.yaml")).unwrap();
        let mut control = site.control().await;
        assert!(listens(1001)(&control.current()));
        for (version, port) in [("..2", 1002), ("..3", 1003)] {
            site.write(&format!("source/map/{version}/a.yaml"), &http_gateway(port));
            symlink(version, site.path("source/map/..data_tmp")).unwrap();
            fs::rename(site.path("source/map/..data_tmp"), site.path("source/map/..data")).unwrap();
            until(&mut control, listens(port)).await;
        }
    }

    #[tokio::test]
    async fn certificates_that_appear_later_are_seen() {
        let site = Site::new();
        site.write("source/tls.yaml", TLS_GATEWAY);
        let mut control = site.control().await;
        assert!(!says("saw first")(&control.current()));
        site.write("root/etc/certs/tls.key", "key");
        site.write("root/etc/certs/tls.crt", "first");
        until(&mut control, says("saw first")).await;
        site.write("root/etc/certs/tls.crt", "second");
        until(&mut control, says("saw second")).await;
    }

    #[tokio::test]
    async fn a_source_that_is_gone_leaves_everything_in_force() {
        let site = Site::new();
        site.write("source/a.yaml", &http_gateway(1001));
        let mut control = site.control().await;
        fs::rename(site.path("source"), site.path("away")).unwrap();
        assert!(!control.look());
        assert!(listens(1001)(&control.current()));
        site.write("source/b.yaml", &http_gateway(1002));
        until(&mut control, |s| listens(1002)(s) && !listens(1001)(s)).await;
    }

    #[tokio::test]
    async fn what_says_the_same_is_no_new_snapshot() {
        let site = Site::new();
        site.write("source/a.yaml", &http_gateway(1001));
        let mut control = site.control().await;
        let before = control.current();
        site.write("source/a.yaml", &format!("{}\n# a comment\n", http_gateway(1001)));
        let settings = site.settings.clone();
        let after = control.reload(&settings).unwrap();
        assert!(Arc::ptr_eq(&before, &after));
    }

    #[tokio::test]
    async fn reload_takes_what_needs_no_restart() {
        let site = Site::new();
        let mut control = site.control().await;
        let mut settings = site.settings.clone();
        settings.limits.connections_max = Some(7);
        settings.workers.count = Some(9);
        let snapshot = control.reload(&settings).unwrap();
        assert_eq!(snapshot.limits.connections_max, 7);
        assert_eq!(control.settings.workers.count, None);
        settings.source.directory = site.path("missing");
        let error = control.reload(&settings).unwrap_err().to_string();
        assert!(error.contains(&site.path("missing").display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_missing_source_is_an_error_that_names_it() {
        let mut settings = Settings::default();
        settings.source.directory = "/nowhere/at/all".into();
        let error = Control::start_with(&settings, Box::new(Echo)).await.err().unwrap().to_string();
        assert!(error.starts_with("source.directory /nowhere/at/all cannot be read: "), "{error}");
    }

    #[test]
    fn the_settings_file_that_is_shipped_says_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/ringgate.yaml");
        let mut shipped = Settings::load(&path).unwrap();
        assert_eq!(limits(&shipped.limits), Limits::default());
        assert!(shipped.limits.linger_timeout.is_some(), "the limits are written out");
        shipped.limits = settings::Limits::default();
        assert_eq!(shipped, Settings::default());
    }

    #[tokio::test]
    async fn every_other_file_that_is_shipped_is_a_good_resource() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let site = Site::new();
        site.write("root/etc/istio/ingressgateway-certs/tls.crt", "shipped");
        let mut settings = site.settings.clone();
        let mut examples = 0;
        for example in fs::read_dir(config.join("examples")).unwrap() {
            settings.source.directory = example.unwrap().path();
            let control = Control::start_with(&settings, Box::new(Echo)).await.unwrap();
            let rejections = &control.current().rejections;
            let of_file = |r: &&Rejection| !r.to_string().contains("ingressgateway-certs");
            assert_eq!(rejections.iter().filter(of_file).count(), 0, "{rejections:?}");
            assert!(control.compiler.resources() > 0);
            examples += 1;
        }
        assert!(examples > 0);
        for entry in fs::read_dir(&config).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = ["examples", "fields.md", "ringgate.yaml"].contains(&name.as_str());
            assert!(known, "{name} is not loaded");
        }
    }
}
