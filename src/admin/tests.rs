//! The administration, talked to over real sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;
use crate::snapshot::{
    Action, BindPort, Cluster, Forward, HostMap, Identity, Listener, Origin, PathMatch, Rejection,
    Route, RouteTable, Serves, Severity, Target, TlsServer, TlsServes, UpstreamProtocol,
    VirtualHost,
};
use crate::telemetry::Counters;
use crate::telemetry::request::Record;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const KEY: ListenerKey = ListenerKey::Ip { address: LOOPBACK, port: BindPort::Fixed(8443) };

fn snapshot() -> Snapshot {
    let cluster = Arc::new(Cluster {
        name: "outbound|8000||httpbin.default.svc.cluster.local".into(),
        host: "httpbin.default.svc.cluster.local".into(),
        protocol: UpstreamProtocol::Http1,
        endpoints: vec![([127, 0, 0, 1], 8000).into()],
        connect_timeout: Duration::from_secs(10),
        traffic: None,
        tls: None,
    });
    let target = Target { weight: 1, cluster: Some(cluster), edits: None };
    let action = Action::Forward(Forward { targets: vec![target] });
    let path = PathMatch::Prefix("/status".into());
    let route = Route { name: "first".into(), ..Route::new(path, action) };
    let host = VirtualHost::new("httpbin.example.com:443".into(), false, vec![route]);
    let mut routes = RouteTable::default();
    routes.hosts.insert("httpbin.example.com".parse().unwrap(), Arc::new(host));
    let server = TlsServer {
        name: "https.443.https.mygateway.default".into(),
        serves: TlsServes::Http(Identity::Missing, Arc::new(routes)),
    };
    let mut servers = HostMap::default();
    servers.insert("httpbin.example.com".parse().unwrap(), Arc::new(server));
    let listener = Listener { key: KEY, gateway_port: 443, serves: Serves::Tls(servers) };
    let rejection = Rejection {
        severity: Severity::Warning,
        origin: Origin::Object { namespace: "default".into(), name: "mygateway".into() },
        resource: "Gateway default/mygateway".into(),
        field: "spec".into(),
        what: "odd".into(),
        cause: String::new(),
    };
    Snapshot {
        generation: 7,
        listeners: vec![Arc::new(listener)],
        rejections: vec![rejection],
        ..Snapshot::default()
    }
}

/// Two workers, of which only the first ever answers a scrape.
fn state() -> State {
    let snapshot = Arc::new(snapshot());
    State {
        snapshot: Box::new(move || Arc::clone(&snapshot)),
        workers: vec![Counters::shared(), Counters::shared()],
        drivers: BTreeMap::from([(("epoll", "EPERM"), 1), (("io_uring", ""), 1)]),
        others: Vec::new(),
        scrape: Box::new(|| {
            let (copies, receiver) = mpsc::channel(2);
            let mut series = Series::default();
            series.record(&Record { status: 200, ..Record::new(UNIX_EPOCH) });
            copies.try_send((0, series)).unwrap();
            receiver
        }),
        readiness: Box::new(|| Readiness { ready: true, reasons: Vec::new() }),
        command: Box::new(|_| ()),
        listeners: Box::new(|| {
            vec![BoundListener {
                key: KEY,
                gateway_port: 443,
                address: "127.0.0.1:8443".parse().unwrap(),
            }]
        }),
        reporter: Box::new(|| Reporter::new("istio-system", |_| None)),
        started: UNIX_EPOCH,
        version: "1.2.3",
    }
}

fn start(state: State) -> Admin {
    let free = Some(SocketAddr::from((LOOPBACK, 0)));
    Admin::start(AdminConfig { admin: free, status: free, metrics: free }, state).unwrap()
}

/// Status and body.
fn ask(address: Option<SocketAddr>, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address.unwrap()).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn page(admin: &Admin, path: &str) -> String {
    let (status, body) = ask(admin.addresses().admin, "GET", path);
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn json(admin: &Admin, path: &str) -> Value {
    serde_json::from_str(&page(admin, path)).unwrap()
}

#[test]
fn each_port_has_its_own_pages() {
    let admin = start(state());
    let AdminConfig { admin: all, status, metrics } = admin.addresses();
    for (address, path, expected) in [
        (all, "/", 200),
        (all, "/ready", 200),
        (all, "/healthz/ready", 404),
        (status, "/healthz/ready", 200),
        (status, "/config_dump", 404),
        (status, "/stats/prometheus", 404),
        (metrics, "/stats/prometheus", 200),
        (metrics, "/metrics", 200),
        (metrics, "/healthz/ready", 200),
        (metrics, "/certs", 404),
    ] {
        assert_eq!(ask(address, "GET", path).0, expected, "{path}");
    }
    assert_eq!(ask(all, "POST", "/ready").0, 405);
    assert_eq!(ask(all, "HEAD", "/ready"), (200, String::new()));
}

#[test]
fn commands_are_posted_and_only_to_the_administration() {
    let (given, commands) = std::sync::mpsc::channel();
    let command = move |command| given.send(command).unwrap();
    let admin = start(State { command: Box::new(command), ..state() });
    let AdminConfig { admin: all, status, metrics } = admin.addresses();
    for (path, _) in command::PATHS {
        assert_eq!(ask(all, "GET", path).0, 405, "{path}");
        for other in [status, metrics] {
            assert_eq!(ask(other, "POST", path).0, 404, "{path}");
        }
    }
    assert!(commands.try_recv().is_err());
    assert_eq!(ask(all, "POST", "/logging?level=loud").0, 400);
    for (path, expected) in [
        ("/healthcheck/fail", Command::HealthCheck { fail: true }),
        ("/drain_listeners?graceful", Command::DrainListeners { graceful: true }),
        ("/quitquitquit", Command::Quit),
    ] {
        assert_eq!(ask(all, "POST", path), (200, "OK\n".to_owned()));
        assert_eq!(commands.recv_timeout(Duration::from_secs(10)), Ok(expected));
    }
}

#[test]
fn the_index_names_only_pages_that_there_are() {
    let admin = start(state());
    let index = page(&admin, "/");
    let paths: Vec<_> = index.split("href=\"").skip(1).map(|rest| rest.split('"').next()).collect();
    assert!(paths.len() > 5, "{index}");
    for path in paths {
        page(&admin, path.unwrap());
    }
}

#[test]
fn the_configuration_is_shown_from_listener_to_endpoint() {
    let admin = start(state());
    let dump = json(&admin, "/config_dump");
    assert_eq!(dump["generation"], 7);
    let listener = &dump["listeners"][0];
    assert_eq!(listener["name"], "127.0.0.1_443");
    let server = &listener["serves"]["servers"]["httpbin.example.com"];
    assert_eq!(server["certificate"], "missing");
    let route = &server["hosts"]["httpbin.example.com"]["routes"][0];
    assert_eq!(route["path"], json!({ "prefix": "/status" }));
    let cluster = &dump["clusters"][0];
    assert_eq!(route["action"]["forward"][0]["cluster"], cluster["name"]);
    assert_eq!(cluster["endpoints"], json!(["127.0.0.1:8000"]));
    assert_eq!(dump["rejections"][0]["severity"], "warning");
    let line = "outbound|8000||httpbin.default.svc.cluster.local::127.0.0.1:8000\n";
    assert_eq!(page(&admin, "/clusters"), line);
    assert_eq!(json(&admin, "/certs"), json!({ "certificates": [], "missing": [] }));
}

#[test]
fn listeners_are_text_or_json() {
    let admin = start(state());
    assert_eq!(page(&admin, "/listeners"), "127.0.0.1_443::127.0.0.1:8443\n");
    let status = &json(&admin, "/listeners?format=json")["listener_statuses"][0];
    assert_eq!(status["local_address"], "127.0.0.1:8443");
}

#[test]
fn who_is_not_ready_says_why() {
    let readiness = || Readiness { ready: false, reasons: vec!["worker 1 is late".into()] };
    let admin = start(State { readiness: Box::new(readiness), ..state() });
    for (address, path) in
        [(admin.addresses().admin, "/ready"), (admin.addresses().status, "/healthz/ready")]
    {
        let (status, body) = ask(address, "GET", path);
        assert_eq!(status, 503);
        assert!(body.contains("worker 1 is late"), "{body}");
    }
    assert_eq!(json(&admin, "/server_info")["state"], "PRE_INITIALIZING");
}

#[test]
fn a_worker_without_a_sign_of_life_is_not_ready() {
    let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let now = SystemTime::now();
    let state = state();
    let heartbeats = state.workers.clone();
    let admin = start(state);
    let ready = || ask(admin.addresses().status, "GET", "/healthz/ready");
    assert_eq!(ready().0, 200, "they are starting");
    heartbeats.iter().for_each(|worker| worker.heartbeat.set(seconds(now)));
    assert_eq!(ready().0, 200);
    heartbeats[1].heartbeat.set(seconds(now - Duration::from_secs(60)));
    let (status, body) = ready();
    assert_eq!(status, 503);
    assert!(body.contains("worker 1 has shown no sign of life for 6"), "{body}");
    assert!(page(&admin, "/stats").contains("envoy_server_live: 0\n"));
}

#[test]
fn metrics_tell_of_all_threads_and_who_is_late() {
    let state = state();
    state.workers[0].requests.add(2);
    state.workers[1].requests.add(3);
    let admin = start(state);
    let text = page(&admin, "/stats");
    for line in [
        "envoy_http_downstream_rq_total: 5",
        "ringgate_scrape_workers_late: 1",
        "ringgate_generation: 7",
        "ringgate_workers{driver=\"epoll\",denied=\"EPERM\"}: 1",
        "ringgate_workers{driver=\"io_uring\",denied=\"\"}: 1",
        "pilot_total_rejected_configs{severity=\"warning\"}: 1",
        "istio_build{component=\"proxy\",tag=\"1.2.3\"}: 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(!text.contains('#'));
    assert!(page(&admin, "/stats/prometheus").contains("# TYPE istio_requests_total counter"));
}

#[test]
fn a_stuck_worker_does_not_hang_a_scrape_nor_make_counters_fall() {
    let (stuck, receiver) = mpsc::channel(1);
    let first_scrape = std::cell::Cell::new(true);
    let kept = std::cell::RefCell::new(Some(receiver));
    let answering = state().scrape;
    let scrape = move || {
        if first_scrape.replace(false) {
            return answering();
        }
        kept.take().expect("scraped twice")
    };
    let admin = start(State { scrape: Box::new(scrape), ..state() });
    let requests = |text: &str| {
        text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap().to_owned()
    };
    let before = page(&admin, "/stats");
    let after = page(&admin, "/stats");
    assert_eq!(requests(&before), requests(&after));
    assert!(after.contains("ringgate_scrape_workers_late: 2"), "{after}");
    drop(stuck);
}

#[test]
fn scrapes_wait_for_each_other() {
    let scrapes = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&scrapes);
    let unanswered = std::cell::RefCell::new(Vec::new());
    let scrape = move || {
        scrapes.fetch_add(1, Relaxed);
        let (copies, receiver) = mpsc::channel(1);
        unanswered.borrow_mut().push(copies);
        receiver
    };
    let admin = start(State { scrape: Box::new(scrape), ..state() });
    let begun = std::time::Instant::now();
    let ask = || {
        let mut client = TcpStream::connect(admin.addresses().metrics.unwrap()).unwrap();
        client.write_all(b"GET /stats/prometheus HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
        client
    };
    let mut clients: Vec<_> = (0..10).map(|_| ask()).collect();
    clients[0].read_exact(&mut [0; 12]).unwrap();
    // Each takes a second, as no worker answers.
    let scrapes = counted.load(Relaxed);
    let most = u32::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((1..=most).contains(&scrapes), "{scrapes} in {:?}", begun.elapsed());
}

#[test]
fn a_port_in_use_names_address_and_key() {
    let admin = start(state());
    let taken = admin.addresses().status.unwrap();
    let config = AdminConfig { status: Some(taken), ..AdminConfig::default() };
    let error = Admin::start(config, state()).unwrap_err().to_string();
    assert!(error.contains(&taken.to_string()) && error.contains("`status.address`"), "{error}");
}

#[test]
fn who_connects_and_keeps_silent_keeps_nobody_out() {
    let admin = start(state());
    let AdminConfig { admin: all, status, metrics } = admin.addresses();
    for (port, address, path) in [
        (serve::Port::Status, status, "/healthz/ready"),
        (serve::Port::Metrics, metrics, "/stats/prometheus"),
        (serve::Port::Admin, all, "/ready"),
    ] {
        let connect = || TcpStream::connect(address.unwrap()).unwrap();
        let mut silent: Vec<_> = (0..port.connections_max()).map(|_| connect()).collect();
        assert_eq!(ask(address, "GET", path).0, 200, "{path}");
        assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest gave way");
        silent[1].write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
        assert_eq!(silent[1].read(&mut [0]).unwrap(), 1, "and no other");
    }
}

#[test]
fn the_end_closes_what_is_open() {
    let admin = start(state());
    let mut open = TcpStream::connect(admin.addresses().admin.unwrap()).unwrap();
    open.write_all(b"GET /ready HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    open.read_exact(&mut [0; 12]).unwrap();
    drop(admin);
    // The end or a reset: both are fine, waiting is not.
    let _ = open.read_to_end(&mut Vec::new());
}
