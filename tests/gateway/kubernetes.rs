//! The manifests of `config/kubernetes/` fit together and fit the binary, and what they mount is
//! followed without a restart. There is no cluster here: volumes are written as the kubelet does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ringgate::settings::Settings;
use serde_json::{Value, json};

use crate::harness::backend::Backend;
use crate::harness::certificate::Leaf;
use crate::harness::eventually;
use crate::harness::gateway::{Gateway, run_to_end};
use crate::harness::kubelet::Volume;
use crate::harness::load::Load;
use crate::harness::yaml;

const MANIFEST: &str = include_str!("../../config/kubernetes/ringgate.yaml");
const RESOURCES: &str = include_str!("../../config/kubernetes/resources.yaml");
const DOCKERFILE: &str = include_str!("../../config/kubernetes/Dockerfile");

const HOST: &str = "httpbin.example.com";
const NAMESPACE: &str = "istio-system";

fn documents(text: &str) -> Vec<Value> {
    serde_yaml::from_multiple(text).unwrap()
}

/// The one document of this kind and name.
fn object(kind: &str, name: &str) -> Value {
    let all = documents(MANIFEST).into_iter().chain(documents(RESOURCES));
    let mut found: Vec<_> =
        all.filter(|o| o["kind"] == kind && o["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name}");
    found.remove(0)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn daemon_set() -> Value {
    object("DaemonSet", "istio-ingressgateway")
}

fn pod() -> Value {
    daemon_set()["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    pod()["containers"][0].clone()
}

fn settings_text() -> String {
    text(&object("ConfigMap", "ringgate-settings")["data"], "ringgate.yaml").to_owned()
}

fn settings() -> Settings {
    Settings::parse(Path::new("ringgate.yaml"), settings_text().as_bytes()).unwrap()
}

/// Container ports by their names.
fn container_ports() -> BTreeMap<String, u16> {
    let port = |port: &Value| {
        let number = port["containerPort"].as_u64().unwrap().try_into().unwrap();
        (text(port, "name").to_owned(), number)
    };
    list(&container(), "ports").iter().map(port).collect()
}

/// Where each volume is mounted.
fn mounts() -> BTreeMap<String, String> {
    let mount = |mount: &Value| (text(mount, "name").to_owned(), text(mount, "mountPath").into());
    list(&container(), "volumeMounts").iter().map(mount).collect()
}

#[test]
fn everything_is_in_the_namespace_of_the_page() {
    assert_eq!(object("Namespace", NAMESPACE)["apiVersion"], "v1");
    for object in documents(MANIFEST).into_iter().chain(documents(RESOURCES)) {
        if object["kind"] != "Namespace" {
            assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{object}");
        }
    }
    assert_eq!(settings().gateway.namespace, NAMESPACE);
    let account = text(&pod(), "serviceAccountName").to_owned();
    assert_eq!(object("ServiceAccount", &account)["automountServiceAccountToken"], false);
}

#[test]
fn labels_and_selectors_match() {
    let set = daemon_set();
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["istio"], "ingressgateway");
    assert_eq!(set["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(object("Service", "istio-ingressgateway")["spec"]["selector"], *labels);
    for (name, value) in &settings().gateway.labels {
        assert_eq!(labels[name], json!(value), "what a Gateway selects is the pod");
    }
}

#[test]
fn ports_are_those_of_the_settings() {
    let (ports, settings) = (container_ports(), settings());
    assert_eq!(ports["status-port"], settings.status.address.port());
    assert_eq!(ports["metrics"], settings.metrics.address.port());
    assert!(settings.admin.address.ip().is_loopback());
    assert_eq!(settings.admin.address.port(), 15_000, "the page's");
    let service = object("Service", "istio-ingressgateway");
    let expected = BTreeMap::from([("status-port", 15_021), ("http2", 80), ("https", 443)]);
    let services = list(&service["spec"], "ports");
    let found: BTreeMap<_, _> =
        services.iter().map(|port| (text(port, "name"), port["port"].as_u64().unwrap())).collect();
    assert_eq!(found, expected, "the page's");
    for port in services {
        let bound = ports[text(port, "targetPort")];
        let asked = u16::try_from(port["port"].as_u64().unwrap()).unwrap();
        assert_eq!(*settings.listen.ports.get(&asked).unwrap_or(&asked), bound, "{port}");
        assert!(bound >= 1024, "no capability is needed");
    }
    let annotations = &daemon_set()["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(text(annotations, "prometheus.io/port"), ports["metrics"].to_string());
}

#[test]
fn every_volume_has_its_mount_and_its_object() {
    let (pod, mounts) = (pod(), mounts());
    let volumes = list(&pod, "volumes");
    let names: BTreeSet<_> = volumes.iter().map(|volume| text(volume, "name")).collect();
    assert_eq!(names, mounts.keys().map(String::as_str).collect());
    assert_eq!(list(&container(), "volumeMounts").len(), mounts.len());
    for (volume, secret) in [
        ("ingressgateway-certs", "istio-ingressgateway-certs"),
        ("ingressgateway-ca-certs", "istio-ingressgateway-ca-certs"),
        ("ingressgateway-bookinfo-certs", "istio-ingressgateway-bookinfo-certs"),
    ] {
        let found = volumes.iter().find(|found| found["name"] == volume).unwrap();
        assert_eq!(found["secret"]["secretName"], secret);
        assert_eq!(found["secret"]["optional"], true, "{volume}");
        assert_eq!(mounts[volume], format!("/etc/istio/{volume}"));
    }
    for volume in volumes.iter().filter(|volume| volume["configMap"].is_object()) {
        object("ConfigMap", text(&volume["configMap"], "name"));
    }
    let source = settings().source.directory;
    for volume in ["resources", "credentials"] {
        assert!(Path::new(&mounts[volume]).starts_with(&source), "{volume}");
    }
    let arguments = list(&container(), "args").clone();
    let file = format!("{}/ringgate.yaml", mounts["settings"]);
    assert_eq!(arguments, ["run", "--settings", file.as_str()]);
}

#[test]
fn the_pod_is_told_where_its_node_is() {
    let container = container();
    let variables = list(&container, "env");
    let names: Vec<_> = variables.iter().map(|variable| text(variable, "name")).collect();
    // What a value names stands before it, or it is not replaced.
    assert_eq!(names, ["REGION", "ZONE", "RINGGATE_LOCALITY"]);
    for (variable, part) in variables.iter().zip(["region", "zone"]) {
        let path = text(&variable["valueFrom"]["fieldRef"], "fieldPath");
        assert_eq!(path, format!("metadata.labels['topology.kubernetes.io/{part}']"));
    }
    assert_eq!(text(&variables[2], "value"), "$(REGION)/$(ZONE)");
    assert_eq!(settings().gateway.locality, "", "the settings would go before it");
}

#[test]
fn the_pod_is_confined_and_ends_in_time() {
    let (pod, container) = (pod(), container());
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["securityContext"]["fsGroup"], pod["securityContext"]["runAsGroup"]);
    let pause = &container["lifecycle"]["preStop"]["exec"]["command"];
    let pause: u64 = pause[1].as_str().unwrap().parse().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let drain = settings().limits.drain_timeout.unwrap().as_secs();
    assert!(pause + drain < grace, "{pause} s and {drain} s in {grace} s");
}

#[test]
fn the_image_has_what_the_pod_and_the_page_need() {
    let lines: Vec<_> = DOCKERFILE.lines().collect();
    let last = |instruction: &str| {
        let found = lines.iter().rev().find_map(|line| line.strip_prefix(instruction));
        found.unwrap_or_else(|| panic!("{instruction} in the Dockerfile")).trim()
    };
    let binary = last("COPY --from=build /src/target/release/ringgate");
    assert_eq!(last("ENTRYPOINT"), format!("[\"{binary}\"]"), "without a shell: it gets SIGTERM");
    let arguments: Vec<Value> = serde_json::from_str(last("CMD")).unwrap();
    assert_eq!(arguments, *list(&container(), "args"));
    let context = &pod()["securityContext"];
    assert_eq!(last("USER"), format!("{}:{}", context["runAsUser"], context["runAsGroup"]));
    let (_, image) = DOCKERFILE.rsplit_once("\nFROM ").unwrap();
    assert!(image.starts_with("debian:bookworm-slim\n"), "ls, cat and sleep are in it: {image}");
    assert!(image.contains("--no-install-recommends ca-certificates curl "), "{image}");
    let exposed: BTreeSet<u16> =
        last("EXPOSE").split(' ').map(|port| port.parse().unwrap()).collect();
    assert_eq!(exposed, container_ports().into_values().collect());
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for line in lines.iter().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let mut names: Vec<_> = line.split(' ').skip(1).collect();
        names.pop();
        for name in names {
            assert!(top.join(name).exists(), "{name}");
        }
    }
    let needed = ["Cargo.toml", "Cargo.lock", "benches", "loadtest", "src"];
    assert!(needed.iter().all(|name| DOCKERFILE.contains(&format!("COPY {name}"))
        || DOCKERFILE.contains(&format!(" {name} ./"))));
}

/// The keys of the ConfigMap of resources.
fn resources() -> Vec<(String, String)> {
    let map = object("ConfigMap", "ringgate-resources");
    let data = map["data"].as_object().unwrap();
    data.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
}

#[test]
fn the_resources_pass_the_check() {
    let directory = tempfile::tempdir().unwrap();
    for (key, text) in resources() {
        fs::write(directory.path().join(key), text).unwrap();
    }
    let (code, said) = run_to_end(&["check", directory.path().to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 errors, 1 warning"), "the certificate is missing: {said}");
}

/// A pod: the binary with the settings of the ConfigMap but for their ports, its volumes below
/// `pod/` in its own directory.
struct Pod {
    gateway: Gateway,
    volumes: BTreeMap<String, Volume>,
    _backends: [Backend; 2],
}

impl Pod {
    fn start() -> Self {
        let settings = settings_text()
            .replace("80: 8080, 443: 8443", "80: 0, 443: 0")
            .replace("listen:\n", "listen:\n  address: 127.0.0.1\n")
            .replace(":15000", ":0")
            .replace("0.0.0.0:15021", "127.0.0.1:0")
            .replace("0.0.0.0:15090", "127.0.0.1:0")
            .replace("/etc/ringgate", "DIRECTORY/pod/etc/ringgate");
        let more = "files: { root: DIRECTORY/pod }\naccess_log: { path: DIRECTORY/access.log }\n\
                    workers: { count: 2 }\n";
        let backends = [Backend::start("httpbin"), Backend::start("other")];
        let entries = ["httpbin", "other"].map(|name| format!("{name}.default.svc.cluster.local"));
        let entries: Vec<_> = entries
            .iter()
            .zip(&backends)
            .map(|(host, backend)| yaml::backend(host, backend.port()))
            .map(|entry| entry.replace("number: 80,", "number: 8000,"))
            .collect();
        // In a cluster, DNS knows them.
        let services = "pod/etc/ringgate/resources/services.yaml";
        let gateway = Gateway::builder()
            .only_settings(&(settings + more))
            .file(services, &yaml::documents(&entries))
            .start();
        let mount = |(name, path): (String, String)| {
            (name, Volume::mount(gateway.path(&format!("pod{path}"))))
        };
        let volumes = mounts().into_iter().map(mount).collect();
        Self { gateway, volumes, _backends: backends }
    }

    fn publish(&mut self, volume: &str, keys: &[(&str, &str)]) {
        self.volumes.get_mut(volume).unwrap().publish(keys);
    }

    fn load(&self) -> Load {
        Load::start(&self.gateway.tls(), self.gateway.address(443), HOST, "/status/200")
    }

    #[track_caller]
    fn serves(&self, leaf: &Leaf) {
        eventually("the certificate is served", || {
            self.gateway.try_client(HOST).is_ok_and(|client| client.certificate() == leaf.der)
        });
    }
}

fn pair(leaf: &Leaf) -> [(&str, &str); 2] {
    [("tls.crt", &leaf.chain_pem), ("tls.key", &leaf.key_pem)]
}

#[test]
fn the_probes_answer_before_anything_is_mounted() {
    let pod = Pod::start();
    for probe in ["startupProbe", "readinessProbe"] {
        let get = &container()[probe]["httpGet"];
        assert_eq!(get["port"], "status-port");
        let answer = pod.gateway.try_plain_get(pod.gateway.status(), text(get, "path")).unwrap();
        assert_eq!(answer.status, 200, "{probe}");
    }
    let annotations = &daemon_set()["spec"]["template"]["metadata"]["annotations"];
    let path = text(annotations, "prometheus.io/path");
    assert_eq!(pod.gateway.try_plain_get(pod.gateway.metrics(), path).unwrap().status, 200);
}

#[test]
fn mounted_secrets_and_config_maps_are_followed_without_a_restart() {
    let mut pod = Pod::start();
    let maps = resources();
    let maps: Vec<_> = maps.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
    pod.publish("resources", &maps);
    let [first, second, third] = [(); 3].map(|()| pod.gateway.authority().leaf(&[HOST]));
    pod.publish("ingressgateway-certs", &pair(&first));
    pod.serves(&first);
    let load = pod.load();
    pod.publish("ingressgateway-certs", &pair(&second));
    pod.serves(&second);

    // The ConfigMap: another service, and one more file.
    let (key, text) = maps[0];
    let changed = text.replace("host: httpbin\n", "host: other\n");
    let rule = yaml::uri_to("exact: /name", "other").replace("number: 80 ", "number: 8000 ");
    let more = yaml::virtual_service("more", "mygateway", &[HOST], &rule);
    pod.publish("resources", &[(key, &changed), ("more.yaml", &more)]);
    eventually("both are served", || pod.gateway.get(HOST, "/name").text() == "other");
    pod.publish("resources", &[(key, &changed)]);
    eventually("the file is gone", || pod.gateway.get(HOST, "/name").status == 404);

    // A Secret as a document, for `credentialName`.
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: mine, namespace: {NAMESPACE} }}\n\
         stringData:\n  tls.crt: {:?}\n  tls.key: {:?}\n",
        third.chain_pem, third.key_pem
    );
    pod.publish("credentials", &[("mine.yaml", &secret)]);
    let by_name = changed
        .lines()
        .filter(|line| !line.contains("privateKey:"))
        .map(|line| match line.split_once("serverCertificate:") {
            Some((indent, _)) => format!("{indent}credentialName: mine\n"),
            None => format!("{line}\n"),
        })
        .collect::<String>();
    pod.publish("resources", &[(key, &by_name)]);
    pod.serves(&third);
    load.wait_answered(20);
    load.finish();
}

#[test]
fn a_mounted_authority_for_clients_is_followed() {
    let mut pod = Pod::start();
    let leaf = pod.gateway.authority().leaf(&[HOST]);
    pod.publish("ingressgateway-certs", &pair(&leaf));
    let (key, text) = resources().remove(0);
    let mutual = text.replace(
        "mode: SIMPLE\n",
        "mode: MUTUAL\n      \
         caCertificates: /etc/istio/ingressgateway-ca-certs/ca-chain.cert.pem\n",
    );
    assert_ne!(mutual, text);
    pod.publish("resources", &[(&key, &mutual)]);
    eventually("the port is bound", || pod.gateway.logged("for Gateway port 443"));
    assert!(pod.gateway.try_client(HOST).is_err(), "closed without an authority");
    let ca = fs::read_to_string(pod.gateway.path("ca.pem")).unwrap();
    pod.publish("ingressgateway-ca-certs", &[("ca-chain.cert.pem", &ca)]);
    eventually("clients are asked for a certificate", || {
        let answered =
            pod.gateway.try_client(HOST).and_then(|mut client| client.request("GET", "/", "", b""));
        let log = fs::read_to_string(pod.gateway.path("access.log")).unwrap_or_default();
        answered.is_err() && log.contains("no_client_certificate")
    });
}
