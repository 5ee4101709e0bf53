//! The real binary, started in a directory of its own.
//!
//! - The gateway says on stderr which sockets it bound; that is how its ports are learned.
//! - Resources lie in `resources/`, what Gateways name by path below `root/`, the access log in
//!   `access.log`.
//! - When a test fails, everything that the gateway printed is shown.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::certificate::{Authority, Leaf};
use super::client::{Client, Response, Tls};
use super::{PATIENCE, eventually, within, yaml};

/// What moves the bytes of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Auto,
    Epoll,
    IoUring,
}

impl Driver {
    fn setting(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
        }
    }
}

/// Runs `test` once per driver; io_uring is left out, with a message, where the kernel denies it.
pub fn on_each_driver(test: impl Fn(Driver)) {
    test(Driver::Epoll);
    match io_uring::IoUring::new(8) {
        Ok(_) => test(Driver::IoUring),
        Err(error) => println!("skipped: io_uring is denied here ({error}); epoll passed"),
    }
}

/// What a gateway starts with.
pub struct Builder {
    driver: Driver,
    files: Vec<(String, String)>,
    certificates: Vec<(String, Vec<String>)>,
    settings: String,
    load_balancers: String,
    only_settings: Option<String>,
    workers: usize,
    balance: &'static str,
    log_format: &'static str,
    environment: Vec<(&'static str, String)>,
    launch: Launch,
}

/// What is done before the binary takes the process over.
#[derive(Default)]
struct Launch {
    /// Commands of a shell. `DIRECTORY` stands for the gateway's own.
    commands: Vec<String>,
    /// In a mount namespace of its own.
    mounts: bool,
}

impl Launch {
    fn command(&self, root: &Path) -> Command {
        let binary = env!("CARGO_BIN_EXE_ringgate");
        let mut script = self.commands.join(" && ");
        script = script.replace("DIRECTORY", &root.display().to_string());
        if script.is_empty() {
            return Command::new(binary);
        }
        let mut command = Command::new(if self.mounts { "unshare" } else { "sh" });
        command.args(self.mounts.then_some(["-rm", "sh"]).into_iter().flatten());
        command.args(["-c", &format!("{script} && exec \"$@\""), "sh", binary]);
        command
    }
}

/// A running gateway, killed and removed when dropped.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder {
            driver: Driver::Auto,
            files: Vec::new(),
            certificates: Vec::new(),
            settings: String::new(),
            load_balancers: String::new(),
            only_settings: None,
            workers: 2,
            balance: "auto",
            log_format: "text",
            environment: Vec::new(),
            launch: Launch::default(),
        }
    }

    /// Where the Gateway port is served; waits for it to be bound.
    #[track_caller]
    pub fn address(&self, gateway_port: u16) -> SocketAddr {
        self.logged_address("listening on ", &format!(" for Gateway port {gateway_port}"))
    }

    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        self.logged_address("admin on ", "")
    }

    #[track_caller]
    pub fn status(&self) -> SocketAddr {
        self.logged_address("status on ", "")
    }

    #[track_caller]
    pub fn metrics(&self) -> SocketAddr {
        self.logged_address("metrics on ", "")
    }

    /// A TLS client that trusts this gateway's certificates.
    pub fn tls(&self) -> Tls {
        Tls::new(self.authority.roots())
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A new HTTP/1.1 connection over TLS to Gateway port 443 for `name`.
    #[track_caller]
    pub fn client(&self, name: &str) -> Client {
        self.try_client(name).unwrap_or_else(|error| panic!("TLS to {name}: {error}"))
    }

    /// # Errors
    /// The handshake failed.
    pub fn try_client(&self, name: &str) -> std::io::Result<Client> {
        Client::tls(&self.tls(), self.address(443), name)
    }

    /// One request on a new connection.
    #[track_caller]
    pub fn get(&self, name: &str, path: &str) -> Response {
        self.client(name).get(path)
    }

    /// The value of a metric for each worker.
    #[track_caller]
    pub fn by_worker(&self, metric: &str) -> Vec<usize> {
        let page = self.admin_get("/stats/prometheus").text();
        let values = page.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(metric)?.split_once(' ')?;
            labels.starts_with("{worker=").then(|| value.parse().unwrap())
        });
        values.collect()
    }

    /// One request to the admin address.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> Response {
        self.try_plain_get(self.admin(), path).expect("the admin address answers")
    }

    /// # Errors
    /// Nobody answers there.
    pub fn try_plain_get(&self, to: SocketAddr, path: &str) -> std::io::Result<Response> {
        Client::plain(to, "localhost")?.request("GET", path, "", b"")
    }

    /// A path in the gateway's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces a resource file at once, by renaming a complete one over it.
    pub fn write_resource(&self, name: &str, text: &str) {
        replace(&self.path("resources").join(name), text);
    }

    /// Replaces any file in the gateway's own directory at once.
    pub fn write_file(&self, path: &str, text: &str) {
        replace(&self.path(path), text);
    }

    pub fn remove_resource(&self, name: &str) {
        fs::remove_file(self.path("resources").join(name)).unwrap();
    }

    /// Replaces certificate and key of `/certs/NAME/`, one after the other as people do.
    pub fn write_certificate(&self, name: &str, leaf: &Leaf) {
        write_leaf(self.directory.path(), name, leaf);
    }

    /// Whether a line with `text` was logged so far.
    pub fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// The lines of the access log, once there are `n` of them.
    #[track_caller]
    pub fn access_log(&self, n: usize) -> Vec<String> {
        let path = self.path("access.log");
        let lines = || -> Vec<String> {
            fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect()
        };
        eventually(&format!("{n} lines in the access log"), || lines().len() >= n);
        lines()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the gateway exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The address between `before` and `after` in the newest such log line.
    #[track_caller]
    fn logged_address(&self, before: &str, after: &str) -> SocketAddr {
        let mut found = None;
        eventually(&format!("the log line `{before}ADDRESS{after}`"), || {
            found = self.log.lock().unwrap().iter().rev().find_map(|line| {
                let (_, rest) = line.split_once(before)?;
                let (address, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                // The space between the address and `after` was taken by the split.
                let ends = after.is_empty() || format!(" {rest}").trim_end() == after;
                if ends { address.parse().ok() } else { None }
            });
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have exited already, which is what some tests are about.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            println!("--- the gateway's stderr ---\n{}\n---", log.join("\n"));
        }
    }
}

impl Builder {
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// Leaves it to the kernel which worker gets a connection.
    pub fn unbalanced(mut self) -> Self {
        self.balance = "off";
        self
    }

    pub fn log_format(mut self, format: &'static str) -> Self {
        self.log_format = format;
        self
    }

    /// A variable of the gateway's environment.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// The soft limit of open files that it is started with.
    pub fn soft_open_files(mut self, limit: u64) -> Self {
        self.launch.commands.push(format!("ulimit -Sn {limit}"));
        self
    }

    /// The hard limit of open files, and the soft one.
    pub fn open_files(mut self, limit: u64) -> Self {
        self.launch.commands.push(format!("ulimit -n {limit}"));
        self
    }

    /// What it finds in `/etc/resolv.conf`, which is `resolv.conf` in its directory: to be changed
    /// in place. None, aloud, where no process may have mounts of its own.
    pub fn resolv_conf(mut self, text: &str) -> Option<Self> {
        super::outside::own_mounts()?;
        self.files.push(("resolv.conf".to_owned(), text.to_owned()));
        self.launch.commands.push("mount --bind DIRECTORY/resolv.conf /etc/resolv.conf".to_owned());
        self.launch.mounts = true;
        Some(self)
    }

    /// `host` over TLS, all of it routed to the service `backend.test` that `backend` describes.
    pub fn serving(self, host: &str, backend: &str) -> Self {
        let all = yaml::all_to("backend.test");
        self.certificate("web", &[host])
            .resource("gateway.yaml", &yaml::https_gateway("web", &[host], "web"))
            .resource("route.yaml", &yaml::virtual_service("web", "web", &[host], &all))
            .resource("backend.yaml", backend)
    }

    /// A file in the source directory.
    pub fn resource(mut self, name: &str, text: &str) -> Self {
        self.files.push((format!("resources/{name}"), text.to_owned()));
        self
    }

    /// A file in the gateway's own directory.
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// A certificate of the gateway's own authority in `/certs/NAME/`.
    pub fn certificate(mut self, name: &str, hosts: &[&str]) -> Self {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.certificates.push((name.to_owned(), hosts));
        self
    }

    /// Addresses and ranges whose connections begin with a header of the PROXY protocol.
    pub fn behind(mut self, load_balancers: &str) -> Self {
        load_balancers.clone_into(&mut self.load_balancers);
        self
    }

    /// More lines for the settings file.
    pub fn settings(mut self, text: &str) -> Self {
        self.settings.push_str(text);
        self
    }

    /// The whole settings file, instead of one that fits the rest of this builder. `DIRECTORY`
    /// stands for the gateway's own.
    pub fn only_settings(mut self, text: &str) -> Self {
        self.only_settings = Some(text.to_owned());
        self
    }

    /// Starts the binary and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut gateway = self.spawn();
        let ready = within(PATIENCE, || gateway.is_ready() || !gateway.is_running());
        assert!(ready && gateway.is_ready(), "the gateway did not become ready");
        gateway
    }

    /// Starts the binary, ready or not.
    pub fn spawn(self) -> Gateway {
        let directory = tempfile::Builder::new().prefix("ringgate-test-").tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("resources")).unwrap();
        fs::create_dir_all(root.join("root")).unwrap();
        let authority = Authority::new();
        fs::write(root.join("ca.pem"), authority.pem()).unwrap();
        for (name, hosts) in &self.certificates {
            let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
            write_leaf(root, name, &authority.leaf(&hosts));
        }
        for (path, text) in &self.files {
            replace(&root.join(path), text);
        }
        fs::write(root.join("settings.yaml"), self.settings_file(root)).unwrap();
        let mut command = self.launch.command(root);
        command.args(["run", "--settings"]).arg(root.join("settings.yaml"));
        let (child, log) = run(command.envs(self.environment));
        Gateway { child, log, directory, authority }
    }

    fn settings_file(&self, root: &Path) -> String {
        let root = root.display();
        if let Some(text) = &self.only_settings {
            return text.replace("DIRECTORY", &root.to_string());
        }
        format!(
            "workers: {{ count: {}, backend: {}, balance: {} }}\n\
             listen: {{ address: 127.0.0.1, ports: {{ 80: 0, 443: 0, 8443: 0, 9443: 0 }}, \
             proxy_protocol: [ {} ] }}\n\
             source: {{ directory: {root}/resources }}\n\
             files: {{ root: {root}/root }}\n\
             admin: {{ address: \"127.0.0.1:0\" }}\n\
             status: {{ address: \"127.0.0.1:0\" }}\n\
             metrics: {{ address: \"127.0.0.1:0\" }}\n\
             access_log: {{ path: {root}/access.log, format: {} }}\n\
             {}",
            self.workers,
            self.driver.setting(),
            self.balance,
            self.load_balancers,
            self.log_format,
            self.settings
        )
    }
}

impl Gateway {
    fn is_ready(&self) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.trim_end().ends_with("ready"))
    }
}

fn run(command: &mut Command) -> (Child, Arc<Mutex<Vec<String>>>) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let log = Arc::new(Mutex::new(Vec::new()));
    let stderr = BufReader::new(child.stderr.take().unwrap());
    thread::spawn({
        let log = Arc::clone(&log);
        move || {
            for line in stderr.lines().map_while(Result::ok) {
                log.lock().unwrap().push(line);
            }
        }
    });
    (child, log)
}

fn write_leaf(root: &Path, name: &str, leaf: &Leaf) {
    let directory = root.join("root/certs").join(name);
    replace(&directory.join("tls.crt"), &leaf.chain_pem);
    replace(&directory.join("tls.key"), &leaf.key_pem);
}

fn replace(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let fresh = path.with_extension("new~");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

/// Runs the binary to its end: exit code and everything it printed.
pub fn run_to_end(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringgate"));
    super::outside::output_within(command.args(arguments), PATIENCE)
}

/// How long a thing that must not happen is watched for.
pub const QUIET: Duration = Duration::from_millis(300);
