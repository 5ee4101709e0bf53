//! The control loop: one snapshot after another, as files, names and settings change.
//!
//! - A snapshot is handed out only when it differs from the one before, be it in a rejection.
//! - Each rejection is logged once, when it appears.
//! - Last good: a source that cannot be read leaves everything as it is.
//!
//! Deliberately not here: workers, and how a snapshot reaches them.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::{
    Changes, Compiler, GatewayIdentity, Identities, Inputs, Listen, Output, PemFiles,
};
use super::identities::RealIdentities;
use super::resolve::Resolver;
use super::source::directory::{Directory, DirectoryError, NeedsScan};
use super::source::named::NamedFiles;
use super::source::watch::{Look, Watch};
use crate::crypto::{Digest, TicketSecrets};
use crate::settings::{self, Settings};
use crate::snapshot::{Limits, Network, Policy, Rejection, Severity, Snapshot};
use crate::telemetry::{Counters, SharedCounters};

/// The first snapshot waits so long for names: later ones bring what is slower.
const NAMES_WAIT: Duration = Duration::from_millis(500);

/// Rounds of compiling and resolving until nothing new turns up.
const ROUNDS_MAX: usize = 5;

/// Makes snapshots of what the settings name, on a tokio runtime.
pub struct Control {
    settings: Settings,
    compiler: Compiler,
    directory: Directory,
    named: NamedFiles,
    watch: Watch,
    resolver: Resolver,
    counters: SharedCounters,
    current: Arc<Snapshot>,
    /// When ticket keys are replaced.
    rotation: tokio::time::Interval,
    /// Since when something was noticed that `current` does not show yet.
    stale_since: Option<Instant>,
    /// Whether the source could be read when it was last looked at.
    is_readable: bool,
}

/// Why there is no first snapshot.
#[derive(Debug)]
pub struct StartError(DirectoryError);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source.directory {}", self.0)
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
        let (started, limits) = (Instant::now(), limits(&settings.limits));
        let counters = Counters::shared();
        let mut control = Self {
            compiler: Compiler::new(gateway(settings), listen(settings), limits, identities),
            named: NamedFiles::new(settings.files.root.clone()),
            settings: settings.clone(),
            directory: Directory::new(&settings.source.directory),
            watch: Watch::start(),
            resolver: Resolver::new(&settings.dns.servers, Arc::clone(&counters)),
            counters,
            current: Arc::default(),
            rotation: rotation(),
            stale_since: None,
            is_readable: true,
        };
        control.compiler.set_policy(policy(settings));
        let changes = control.directory.scan(&mut control.watch).map_err(StartError)?;
        control.compiler.read(changes);
        control.set_pace();
        // What this yields is dropped: it only finds out what is to be resolved.
        control.gather();
        if control.resolver.settle(NAMES_WAIT).await {
            control.compiler.addresses_changed();
        }
        control.compile(started);
        control.warn_of_nothing();
        Ok(control)
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current)
    }

    /// What the control thread counts.
    #[must_use]
    pub fn counters(&self) -> SharedCounters {
        Arc::clone(&self.counters)
    }

    /// Waits for the next snapshot. Cancel-safe.
    pub async fn changed(&mut self) -> Arc<Snapshot> {
        loop {
            if let Some(since) = self.stale_since.take()
                && self.compile(since)
            {
                return self.current();
            }
            let (directory, named) = (&self.directory, &self.named);
            let look = tokio::select! {
                look = self.watch.changed(|entry, comes_or_goes| {
                    directory.concerns(entry, comes_or_goes) || named.concerns(entry)
                }) => look,
                () = self.resolver.changed() => {
                    self.compiler.addresses_changed();
                    self.stale_since = Some(Instant::now());
                    continue;
                }
                _ = self.rotation.tick() => {
                    self.compiler.rotate_tickets();
                    continue;
                }
            };
            let noticed = Instant::now();
            self.stale_since = self.look(look).then_some(noticed);
        }
    }

    /// Reads everything again, by `settings`. Keys that only a restart can change keep their
    /// values, and the log names them.
    ///
    /// # Errors
    /// The new source directory cannot be read: nothing changed.
    pub fn reload(&mut self, settings: &Settings) -> Result<Arc<Snapshot>, StartError> {
        let started = Instant::now();
        for key in self.settings.changed_needs_restart(settings) {
            tracing::warn!("{key} changed in the settings, it takes effect at the next start");
        }
        if settings.source != self.settings.source {
            self.move_to(&settings.source.directory)?;
        }
        if settings.files != self.settings.files {
            self.named = NamedFiles::new(settings.files.root.clone());
            self.compiler.files_changed();
        }
        if settings.dns != self.settings.dns {
            self.resolver.ask(&settings.dns.servers, started);
        }
        self.settings = self.settings.reloaded(settings);
        self.compiler.set_gateway(gateway(&self.settings));
        self.compiler.set_limits(limits(&self.settings.limits));
        self.compiler.set_policy(policy(&self.settings));
        self.directory.distrust();
        self.named.distrust();
        self.look_at_everything();
        self.compile(started);
        Ok(self.current())
    }

    /// Takes the resources below `root` instead of those so far.
    fn move_to(&mut self, root: &Path) -> Result<(), StartError> {
        let mut directory = Directory::new(root);
        let new = directory.scan(&mut self.watch).map_err(StartError)?;
        let mut changes = std::mem::replace(&mut self.directory, directory).forget();
        changes.extend(new);
        self.compiler.read(changes);
        Ok(())
    }

    /// Looks where `look` says; says whether anything is different.
    fn look(&mut self, look: Look) -> bool {
        let mut changes = Changes::default();
        let mut everything = look.everything;
        for entry in look.entries.iter().filter(|_| !look.everything) {
            changes.named.extend(self.named.refresh(entry, &mut self.watch));
            match self.directory.refresh(entry, &mut self.watch) {
                Ok(found) => changes.extend(found),
                Err(NeedsScan) => everything = true,
            }
        }
        if look.missing {
            changes.named.extend(self.named.refresh_missing(&mut self.watch));
        }
        let differs = !changes.is_empty();
        self.compiler.read(changes);
        if everything {
            return self.look_at_everything() || differs;
        }
        self.set_pace();
        differs
    }

    /// Looks at all files; says whether anything is different.
    fn look_at_everything(&mut self) -> bool {
        self.watch.begin();
        let mut changes = match self.directory.scan(&mut self.watch) {
            Ok(changes) => {
                if !std::mem::replace(&mut self.is_readable, true) {
                    tracing::info!("source.directory can be read again");
                }
                changes
            }
            Err(error) => {
                if std::mem::replace(&mut self.is_readable, false) {
                    let error = StartError(error);
                    tracing::error!("{error}; what was read before stays in force");
                }
                Changes::default()
            }
        };
        changes.named.extend(self.named.scan(&mut self.watch));
        if self.is_readable {
            self.watch.sweep();
        }
        self.set_pace();
        let differs = !changes.is_empty();
        self.compiler.read(changes);
        differs
    }

    fn set_pace(&mut self) {
        self.watch.set_pace(self.named.is_awaiting(), !self.is_readable);
    }

    /// Compiles until everything that the result wants is at hand; says whether `current` is new.
    /// What it shows was noticed, or asked for, at `started`.
    fn compile(&mut self, started: Instant) -> bool {
        let snapshot = self.gather();
        self.accept(snapshot, started)
    }

    /// Compiles until everything that the result wants is at hand.
    fn gather(&mut self) -> Snapshot {
        let mut output = self.compile_once();
        for _ in 1..ROUNDS_MAX {
            if !self.resolver.want(&output.names, Instant::now()) {
                break;
            }
            self.compiler.addresses_changed();
            output = self.compile_once();
        }
        self.named.settle();
        self.set_pace();
        output.snapshot
    }

    fn compile_once(&mut self) -> Output {
        let resolver = &self.resolver;
        self.compiler.compile(Inputs {
            pem: &mut WatchedFiles { named: &mut self.named, watch: &mut self.watch },
            resolved: &|name| -> Option<Vec<IpAddr>> { resolver.addresses(name) },
        })
    }

    /// A directory without resources is no error, they may come later; mostly it is the wrong one.
    fn warn_of_nothing(&self) {
        if self.directory.is_empty() {
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
        log_applied(&snapshot, &self.compiler, started.elapsed());
        self.current = Arc::new(snapshot);
        true
    }
}

/// Named files that are watched from when they are wanted.
struct WatchedFiles<'a> {
    named: &'a mut NamedFiles,
    watch: &'a mut Watch,
}

impl PemFiles for WatchedFiles<'_> {
    fn want(&mut self, paths: &BTreeSet<Arc<str>>) {
        self.named.want(paths, self.watch);
    }

    fn look(&self, path: &str) -> io::Result<Digest> {
        self.named.look(path)
    }

    fn take(&mut self, path: &str) -> io::Result<Vec<u8>> {
        self.named.take(path)
    }

    fn place(&self, path: &str) -> String {
        self.named.real(path).display().to_string()
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

fn log_applied(snapshot: &Snapshot, compiler: &Compiler, took: Duration) {
    tracing::info!(
        "applied generation {} in {} ms: resources {}, listeners {}, hosts {}, certificates {}, \
         rejections {}",
        snapshot.generation,
        took.as_millis(),
        compiler.resources(),
        snapshot.listeners.len(),
        compiler.hosts(),
        snapshot.certificates.len(),
        snapshot.rejections.len(),
    );
}

/// Where listeners are bound.
pub(super) fn listen(settings: &Settings) -> Listen {
    Listen { address: settings.listen.address, ports: settings.listen.ports.clone() }
}

/// Who the gateway is.
pub(super) fn gateway(settings: &Settings) -> GatewayIdentity {
    let gateway = settings.gateway.clone();
    let settings::Gateway { namespace, labels, locality } = gateway;
    GatewayIdentity { namespace, labels, locality, admin: settings.admin.address }
}

fn rotation() -> tokio::time::Interval {
    let first = tokio::time::Instant::now() + TicketSecrets::ROTATION;
    tokio::time::interval_at(first, TicketSecrets::ROTATION)
}

fn policy(settings: &Settings) -> Policy {
    let (http, listen) = (&settings.http, &settings.listen);
    let network = |network: &settings::Network| Network::new(network.address, network.prefix);
    Policy {
        misdirected: match http.misdirected {
            settings::Misdirected::MisdirectedRequest => ::http::StatusCode::MISDIRECTED_REQUEST,
            settings::Misdirected::NotFound => ::http::StatusCode::NOT_FOUND,
        },
        trusted_proxies: http.trusted_proxies,
        proxy_protocol: listen.proxy_protocol.iter().filter_map(network).collect(),
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
        tcp_idle_timeout: set.tcp_idle_timeout.unwrap_or(default.tcp_idle_timeout),
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
    use crate::config::compile::{
        BackendRules, BuiltBackend, BuiltServer, LoadedPair, Part, Refusal, ServerRequest,
    };
    use crate::crypto::PairPem;

    /// Far longer than anything takes; only a test that fails waits for it.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Answers what certificate it was shown, as an error: no configuration is needed to see it.
    struct Echo;

    impl Identities for Echo {
        fn load(&self, pair: &PairPem<'_>) -> Result<LoadedPair, String> {
            Err(format!("saw {}", String::from_utf8_lossy(pair.certificate)))
        }

        fn server(&mut self, _: &ServerRequest<'_>) -> Result<BuiltServer, Refusal> {
            Err(Refusal { part: Part::Pair(0), reason: "nothing was loaded".to_owned() })
        }

        fn backend(&mut self, _: &BackendRules<'_>) -> Result<BuiltBackend, Refusal> {
            Err(Refusal { part: Part::Pair(0), reason: "nothing was loaded".to_owned() })
        }

        fn system_ca(&mut self) -> Result<Arc<[u8]>, String> {
            Err("there is none".to_owned())
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
        move |snapshot| snapshot.listeners.iter().any(|l| l.gateway_port == port)
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

    /// What the next change makes the control loop look at.
    async fn next_look(control: &mut Control) -> Look {
        let (directory, named) = (&control.directory, &control.named);
        let changed = control.watch.changed(|entry, comes_or_goes| {
            directory.concerns(entry, comes_or_goes) || named.concerns(entry)
        });
        tokio::time::timeout(PATIENCE, changed).await.unwrap()
    }

    #[tokio::test]
    async fn a_change_of_one_file_is_no_reason_to_look_at_others() {
        let site = Site::new();
        site.write("source/a.yaml", &http_gateway(1001));
        site.write("source/tls.yaml", TLS_GATEWAY);
        site.write("source/secrets/cred/..1/tls.crt", "1");
        symlink("..1", site.path("source/secrets/cred/..data")).unwrap();
        symlink("..data/tls.crt", site.path("source/secrets/cred/tls.crt")).unwrap();
        site.write("root/etc/certs/tls.key", "key");
        site.write("root/etc/certs/tls.crt", "first");
        let mut control = site.control().await;
        let changes: [(&str, &dyn Fn()); 4] = [
            ("source/a.yaml", &|| site.write("source/a.yaml", &http_gateway(1002))),
            ("source/b.yaml", &|| site.write("source/b.yaml", &http_gateway(1003))),
            ("root/etc/certs/tls.crt", &|| site.write("root/etc/certs/tls.crt", "second")),
            ("source/secrets/cred/..data", &|| {
                site.write("source/secrets/cred/..2/tls.crt", "2");
                symlink("..2", site.path("source/secrets/cred/new")).unwrap();
                let link = site.path("source/secrets/cred/..data");
                fs::rename(site.path("source/secrets/cred/new"), link).unwrap();
            }),
        ];
        for (entry, change) in changes {
            change();
            let look = next_look(&mut control).await;
            assert!(!look.everything, "{entry}");
            let entry = site.dir.path().canonicalize().unwrap().join(entry);
            assert!(look.entries.contains(&entry), "{:?}", look.entries);
            let entries = look.entries.clone();
            assert!(control.look(look), "{entries:?}");
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
        assert!(!control.look_at_everything());
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
            // `tests/gateway/` has manifests and dashboard.
            let known = ["examples", "fields.md", "grafana", "kubernetes", "ringgate.yaml"];
            assert!(known.contains(&name.as_str()), "{name} is not loaded");
        }
    }
}
