//! Changes on disk while requests run: served soon, in order, and without a failed request.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::backend::Backend;
use crate::harness::certificate::Leaf;
use crate::harness::client::Client;
use crate::harness::gateway::{Builder, Driver, Gateway, QUIET, on_each_driver};
use crate::harness::load::Load;
use crate::harness::{eventually, free_port, outside, yaml};

const HOST: &str = "web.test";

fn route(host: &str) -> String {
    yaml::virtual_service("web", "web", &[HOST], &yaml::all_to(host))
}

fn builder(driver: Driver, a: &Backend, b: &Backend) -> Builder {
    let backends = [yaml::backend("a.test", a.port()), yaml::backend("b.test", b.port())];
    Gateway::builder()
        .driver(driver)
        .certificate("web", &[HOST])
        .resource("gateway.yaml", &yaml::https_gateway("web", &[HOST], "web"))
        .resource("route.yaml", &route("a.test"))
        .resource("backends.yaml", &yaml::documents(&backends))
}

fn name(gateway: &Gateway) -> String {
    gateway.get(HOST, "/name").text()
}

#[test]
fn routes_change_under_load_without_a_failed_request() {
    on_each_driver(|driver| {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let gateway = builder(driver, &a, &b).start();
        let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
        let mut times = Vec::new();
        for turn in 0..10 {
            let target = if turn % 2 == 0 { "b" } else { "a" };
            let start = Instant::now();
            gateway.write_resource("route.yaml", &route(&format!("{target}.test")));
            eventually("the new route is served", || name(&gateway) == target);
            times.push(start.elapsed());
            load.wait_answered(20);
        }
        let answered = load.finish();
        times.sort();
        println!(
            "{driver:?}: from write to served: median {:?}, worst {:?}; {answered} answered",
            times[times.len() / 2],
            times[times.len() - 1]
        );
    });
}

#[test]
fn one_connection_never_goes_back_to_an_older_route() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let mut client = gateway.client(HOST);
    assert_eq!(client.get("/name").text(), "a");
    gateway.write_resource("route.yaml", &route("b.test"));
    eventually("the open connection sees the new route", || client.get("/name").text() == "b");
    for _ in 0..200 {
        assert_eq!(client.get("/name").text(), "b");
    }
}

#[test]
fn certificates_change_under_load_without_a_failed_request() {
    on_each_driver(|driver| {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let gateway = builder(driver, &a, &b).start();
        let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
        let mut old = gateway.client(HOST);
        for _ in 0..5 {
            let leaf = gateway.authority().leaf(&[HOST]);
            gateway.write_certificate("web", &leaf);
            eventually("the new certificate is served", || {
                gateway.client(HOST).certificate() == leaf.der
            });
            load.wait_answered(20);
        }
        assert_eq!(old.get("/name").status, 200, "an open connection keeps its certificate");
        load.finish();
    });
}

#[test]
fn kubernetes_swaps_of_data_are_seen() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let directory = gateway.path("resources");
    gateway.remove_resource("route.yaml");
    eventually("what leads to `a` is what is published", || name(&gateway) != "a");
    let publish = |version: &str, text: &str| {
        fs::create_dir(directory.join(version)).unwrap();
        fs::write(directory.join(version).join("mounted.yaml"), text).unwrap();
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    publish("..2026_1", &route("a.test"));
    symlink("..data/mounted.yaml", directory.join("mounted.yaml")).unwrap();
    eventually("the first version is served", || name(&gateway) == "a");
    let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
    publish("..2026_2", &route("b.test"));
    fs::remove_dir_all(directory.join("..2026_1")).unwrap();
    eventually("the second version is served", || name(&gateway) == "b");
    load.finish();
}

#[test]
fn a_broken_file_keeps_what_was_good() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
    let wrong_field = route("b.test").replace("  http:", "  htpp:");
    for broken in ["kind: [unclosed", &wrong_field, "\0\u{1}binary"] {
        gateway.write_resource("route.yaml", broken);
        eventually("the rejection shows at /config_dump", || {
            gateway.admin_get("/config_dump").text().contains("route.yaml")
        });
        thread::sleep(QUIET);
        assert_eq!(name(&gateway), "a", "{broken}");
    }
    gateway.write_resource("route.yaml", &route("b.test"));
    eventually("the mended file is served", || name(&gateway) == "b");
    load.finish();
}

#[test]
fn a_half_written_certificate_pair_keeps_the_old_one() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let before = gateway.client(HOST).certificate();
    let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
    let leaf = gateway.authority().leaf(&[HOST]);
    fs::write(gateway.path("root/certs/web/tls.crt"), &leaf.chain_pem).unwrap();
    thread::sleep(QUIET);
    assert_eq!(gateway.client(HOST).certificate(), before, "its key has not come yet");
    fs::write(gateway.path("root/certs/web/tls.key"), &leaf.key_pem).unwrap();
    eventually("the whole pair is served", || gateway.client(HOST).certificate() == leaf.der);
    load.finish();
}

#[test]
fn listeners_come_and_go_with_their_gateways() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
    let second = yaml::gateway("second", &yaml::http_server(80, &["*"], true));
    gateway.write_resource("second.yaml", &second);
    let address = gateway.address(80);
    eventually("the new port answers", || gateway.try_plain_get(address, "/").is_ok());
    gateway.remove_resource("second.yaml");
    eventually("the port is closed", || TcpStream::connect(address).is_err());
    load.finish();
}

#[test]
fn a_hangup_reads_everything_again() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut gateway = builder(Driver::Auto, &a, &b).start();
    let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
    for _ in 0..3 {
        gateway.signal(Signal::HUP);
        load.wait_answered(20);
    }
    assert!(gateway.is_running());
    assert_eq!(name(&gateway), "a");
    load.finish();
}

#[test]
fn h2load_sees_no_failure_while_routes_and_certificates_change() {
    let Some(mut h2load) = outside::tool("h2load") else { return };
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    h2load.args(["-n20000", "-c16", "-m8", &format!("--connect-to={}", gateway.address(443))]);
    h2load.arg(format!("https://{HOST}/name")).stdout(Stdio::piped());
    thread::scope(|scope| {
        let running = scope.spawn(|| outside::output(&mut h2load));
        let mut turn = 0;
        while !running.is_finished() {
            turn += 1;
            let target = if turn % 2 == 0 { "a.test" } else { "b.test" };
            gateway.write_resource("route.yaml", &route(target));
            gateway.write_certificate("web", &gateway.authority().leaf(&[HOST]));
            thread::sleep(QUIET);
        }
        let (code, text) = running.join().unwrap();
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    });
}

const EXTRA: &str = "extra.test";

/// Adds, changes and removes each kind of resource around the host `EXTRA`, once.
fn come_change_and_go(gateway: &Gateway, a: &Backend, b: &Backend) {
    let write =
        |kind: &str, text: &str| gateway.write_resource(&format!("extra-{kind}.yaml"), text);
    let served = |name: &str| {
        eventually(&format!("{EXTRA} is served by {name}"), || {
            let client = gateway.try_client(EXTRA);
            let answer = client.and_then(|mut client| client.request("GET", "/name", "", b""));
            answer.is_ok_and(|answer| answer.text() == name)
        });
    };
    let server = |hosts: &str| {
        format!(
            "  - port: {{ number: 443, name: extra, protocol: HTTPS }}\n    \
             tls: {{ mode: SIMPLE, credentialName: extra }}\n    hosts: [ {hosts} ]\n"
        )
    };
    let secret = |leaf: &Leaf| {
        format!(
            "apiVersion: v1\nkind: Secret\n\
             metadata: {{ name: extra, namespace: istio-system }}\n\
             stringData:\n  tls.crt: {:?}\n  tls.key: {:?}\n",
            leaf.chain_pem, leaf.key_pem
        )
    };
    let route = |host: &str| yaml::virtual_service("extra", "extra", &[EXTRA], &yaml::all_to(host));
    let leaves = [(); 2].map(|()| gateway.authority().leaf(&[EXTRA, "more.test"]));
    write("gateway", &yaml::gateway("extra", &server(EXTRA)));
    write("route", &route("extra-backend.test"));
    write("backend", &yaml::backend("extra-backend.test", a.port()));
    write("secret", &secret(&leaves[0]));
    served("a");
    write("secret", &secret(&leaves[1]));
    eventually("the other certificate is served", || {
        gateway.client(EXTRA).certificate() == leaves[1].der
    });
    write("backend", &yaml::backend("extra-backend.test", b.port()));
    served("b");
    write("route", &route("a.test"));
    served("a");
    let plain = yaml::http_server(80, &["*"], true);
    write("gateway", &yaml::gateway("extra", &(server(&format!("{EXTRA}, more.test")) + &plain)));
    eventually("the other host is served", || gateway.try_client("more.test").is_ok());
    for kind in ["secret", "backend", "route", "gateway"] {
        gateway.remove_resource(&format!("extra-{kind}.yaml"));
        thread::sleep(QUIET / 10);
    }
    eventually("the host is gone", || gateway.try_client(EXTRA).is_err());
}

#[test]
fn no_request_fails_and_no_connection_is_cut_while_other_resources_come_and_go() {
    let (Some(mut h2load), Some(mut wrk)) = (outside::tool("h2load"), outside::tool("wrk")) else {
        return;
    };
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let gateway = builder(Driver::Auto, &a, &b).start();
    let address = gateway.address(443);
    h2load.args(["-n20000", "-c8", "-m8", &format!("--connect-to={address}")]);
    h2load.arg(format!("https://{HOST}/name"));
    // wrk asks for the address, and names the host in its header alone.
    let any = yaml::gateway("any", &yaml::https_server(443, &["*"], "web"));
    gateway.write_resource("any.yaml", &any);
    gateway.write_resource(
        "any-route.yaml",
        &yaml::virtual_service("any", "any", &["*"], &yaml::all_to("a.test")),
    );
    let nameless = gateway.tls().without_sni();
    // The route may come after the Gateway: until then there is a certificate and a 404.
    eventually("any host is served", || {
        Client::tls(&nameless, address, HOST).is_ok_and(|mut client| {
            client.send(b"GET /name HTTP/1.1\r\nhost: any.test\r\n\r\n").unwrap();
            client.response("GET").is_ok_and(|answer| answer.status == 200)
        })
    });
    wrk.args(["-t1", "-c8", "-d3s", "-H", "Host: any.test", &format!("https://{address}/name")]);
    let mut kept = gateway.client(HOST);
    assert_eq!(kept.get("/name").status, 200);
    thread::scope(|scope| {
        let h2load = scope.spawn(|| outside::output(&mut h2load));
        let wrk = scope.spawn(|| outside::output(&mut wrk));
        let mut rounds = 0;
        while rounds == 0 || !(h2load.is_finished() && wrk.is_finished()) {
            come_change_and_go(&gateway, &a, &b);
            rounds += 1;
        }
        let (code, text) = h2load.join().unwrap();
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
        let (code, text) = wrk.join().unwrap();
        assert_eq!(code, Some(0), "{text}");
        for failure in ["Socket errors", "Non-2xx"] {
            assert!(!text.contains(failure), "{text}");
        }
        println!("{rounds} rounds of changes");
    });
    assert_eq!(kept.get("/name").status, 200, "on the connection that was opened first");
}

/// The inodes of the sockets that listen on `port` of this machine, as `/proc/net/tcp` tells.
fn listening(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut inodes: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "0A")
        .map(|fields| fields[9].to_owned())
        .collect();
    inodes.sort();
    inodes
}

#[test]
fn a_listener_that_two_ports_share_stays_when_the_one_that_came_first_goes() {
    // Of two that were created at the same time, the one whose name sorts first is the older.
    let older = |port| yaml::gateway("older", &yaml::https_server(port, &["older.test"], "older"));
    on_each_driver(|driver| {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let (port, mapped) = (free_port(), 443);
        let settings = format!(
            "workers: {{ count: 2, backend: {} }}\n\
             listen: {{ address: 127.0.0.1, ports: {{ 443: {port} }} }}\n\
             source: {{ directory: DIRECTORY/resources }}\n\
             files: {{ root: DIRECTORY/root }}\n\
             admin: {{ address: \"127.0.0.1:0\" }}\n\
             status: {{ address: \"127.0.0.1:0\" }}\n\
             metrics: {{ address: \"127.0.0.1:0\" }}\n",
            if driver == Driver::Epoll { "epoll" } else { "io_uring" }
        );
        let gateway = builder(driver, &a, &b)
            .certificate("older", &["older.test"])
            .only_settings(&settings)
            .resource(
                "gateway.yaml",
                &yaml::gateway("web", &yaml::https_server(port, &[HOST], "web")),
            )
            .resource("older.yaml", &older(mapped))
            .start();
        let address = gateway.address(mapped);
        let sockets = listening(port);
        assert_eq!(sockets.len(), 2, "one for each worker: {sockets:?}");
        let load = Load::start(&gateway.tls(), address, HOST, "/name");
        let mut kept = Client::tls(&gateway.tls(), address, HOST).unwrap();
        assert_eq!(kept.get("/name").text(), "a");
        let served = |host: &str| Client::tls(&gateway.tls(), address, host).is_ok();
        assert!(served("older.test"));
        for _ in 0..3 {
            gateway.remove_resource("older.yaml");
            eventually("its host is gone", || !served("older.test"));
            load.wait_answered(20);
            gateway.write_resource("older.yaml", &older(mapped));
            eventually("its host is back", || served("older.test"));
            load.wait_answered(20);
        }
        gateway.write_resource("older.yaml", &older(port));
        eventually("the older one names the bound port itself", || {
            gateway
                .admin_get("/config_dump")
                .text()
                .contains(&format!("https.{port}.https-{port}-older.older"))
        });
        load.wait_answered(20);
        load.finish();
        assert_eq!(listening(port), sockets, "they are the sockets that were bound at first");
        assert_eq!(kept.get("/name").text(), "a", "on the connection that was opened first");
    });
}

/// What failed of one new connection after the other to `address`, each with a request.
fn connect_until(stop: &AtomicBool, gateway: &Gateway, address: SocketAddr) -> Vec<io::Error> {
    let tls = gateway.tls();
    let mut failures = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let answer = Client::tls(&tls, address, HOST)
            .and_then(|mut client| client.request("GET", "/name", "", b""));
        match answer {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(error) => failures.push(error),
        }
    }
    failures
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_change_of_bind_leaves_the_port_open_and_cuts_nothing() {
    const WORKERS: usize = 2;
    const CHANGES: usize = 6;
    on_each_driver(|driver| {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let port = free_port();
        let bound = |address: &str| {
            let bind = format!("    bind: {address}\n    hosts:");
            let moving = yaml::https_server(port, &[HOST], "web").replace("    hosts:", &bind);
            yaml::gateway("web", &(moving + &yaml::https_server(443, &[HOST], "web")))
        };
        let gateway = builder(driver, &a, &b)
            .workers(WORKERS)
            .resource("gateway.yaml", &bound("0.0.0.0"))
            .start();
        let [own, other] = [1, 2].map(|last| SocketAddr::from(([127, 0, 0, last], port)));
        let load = Load::start(&gateway.tls(), gateway.address(443), HOST, "/name");
        let [mut kept, mut elsewhere] =
            [own, other].map(|address| Client::tls(&gateway.tls(), address, HOST).unwrap());
        let stop = AtomicBool::new(false);
        let kept_answers = |kept: &mut Client| {
            let answer = kept.get("/name");
            assert_eq!((answer.status, &*answer.text()), (200, "a"), "on the first connection");
        };
        let failures = thread::scope(|scope| {
            let connecting = scope.spawn(|| connect_until(&stop, &gateway, own));
            // An assertion that fails must not leave that thread waited for.
            let stopping = StopAtEnd(&stop);
            for turn in 0..CHANGES {
                let is_narrow = turn % 2 == 0;
                let address = if is_narrow { "127.0.0.1" } else { "0.0.0.0" };
                gateway.write_resource("gateway.yaml", &bound(address));
                eventually("it is bound there alone", || {
                    let listeners = gateway.admin_get("/listeners").text();
                    listeners.matches(&format!(":{port}")).count() == 1
                        && listeners.contains(&format!("{address}:{port}"))
                });
                eventually("the other address is as it should be", || {
                    TcpStream::connect(other).is_err() == is_narrow
                });
                kept_answers(&mut kept);
                let expected = if is_narrow { 404 } else { 200 };
                assert_eq!(elsewhere.get("/name").status, expected, "it came to {other}");
                load.wait_answered(20);
            }
            drop(stopping);
            connecting.join().unwrap()
        });
        load.finish();
        // A connection that completes between the last accept and the close is reset by the kernel.
        assert!(failures.len() <= CHANGES * WORKERS, "{failures:?}");
        let refused = failures.iter().any(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        assert!(!refused, "{failures:?}");
        assert!(!gateway.logged("cannot listen on"));
    });
}

#[test]
fn a_port_that_another_process_has_is_named_when_bind_would_include_it() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let port = free_port();
    let bound = |address: &str| {
        let bind = format!("    bind: {address}\n    hosts:");
        let server = yaml::https_server(port, &[HOST], "web").replace("    hosts:", &bind);
        yaml::gateway("web", &server)
    };
    let taken = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).unwrap();
    let gateway =
        builder(Driver::Auto, &a, &b).resource("gateway.yaml", &bound("127.0.0.1")).start();
    assert_eq!(gateway.address(port).port(), port);
    gateway.write_resource("gateway.yaml", &bound("0.0.0.0"));
    let what = format!("cannot listen on 0.0.0.0:{port} for Gateway port {port}: Address already");
    eventually("it is named", || gateway.logged(&what));
    drop(taken);
    gateway.signal(Signal::HUP);
    eventually("it is bound when that has gone", || {
        gateway.logged(&format!("listening on 0.0.0.0:{port} for"))
    });
}
