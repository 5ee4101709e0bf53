//! The demo's resources and settings as YAML files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Ports;

/// The directory that stands for `/` in the paths of the Gateway.
pub(super) const FILES: &str = "files";
const RESOURCES: &str = "resources";

/// As in "Securing Gateways with HTTPS", with a plain server beside it.
const GATEWAY: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata:
  name: mygateway
spec:
  selector:
    istio: ingressgateway # use istio default ingress gateway
  servers:
  - port:
      number: 443
      name: https
      protocol: HTTPS
    tls:
      mode: SIMPLE
      serverCertificate: /etc/istio/ingressgateway-certs/tls.crt
      privateKey: /etc/istio/ingressgateway-certs/tls.key
    hosts:
    - \"httpbin.example.com\"
  - port:
      number: 80
      name: http
      protocol: HTTP
    hosts:
    - \"httpbin.example.com\"
";

const VIRTUAL_SERVICE: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: httpbin
spec:
  hosts:
  - \"httpbin.example.com\"
  gateways:
  - mygateway
  http:
  - match:
    - uri:
        prefix: /status
    - uri:
        prefix: /delay
    route:
    - destination:
        port:
          number: 8000
        host: httpbin
";

/// What was written.
#[derive(Debug, Clone)]
pub struct Resources {
    /// For `ringgate run --settings`.
    pub settings: PathBuf,
    /// The directory of the resources.
    pub directory: PathBuf,
}

/// Writes the settings to `dir/ringgate.yaml` and the resources below `dir/resources`. The backend
/// listens on 127.0.0.1 at `backend`.
///
/// # Errors
/// A file cannot be written, or the path of `dir` is not UTF-8.
pub fn write_resources(dir: &Path, ports: Ports, backend: u16) -> io::Result<Resources> {
    let directory = dir.join(RESOURCES);
    let settings = dir.join("ringgate.yaml");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("gateway.yaml"), GATEWAY)?;
    fs::write(directory.join("virtual-service.yaml"), VIRTUAL_SERVICE)?;
    fs::write(directory.join("service-entry.yaml"), service_entry(backend))?;
    fs::write(&settings, settings_text(dir, ports)?)?;
    Ok(Resources { settings, directory })
}

fn service_entry(backend: u16) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata:
  name: httpbin
spec:
  hosts:
  - httpbin.default.svc.cluster.local
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - number: 8000
    name: http
    protocol: HTTP
  endpoints:
  - address: 127.0.0.1
    ports:
      http: {backend}
"
    )
}

fn settings_text(dir: &Path, ports: Ports) -> io::Result<String> {
    let (resources, files) = (yaml_path(&dir.join(RESOURCES))?, yaml_path(&dir.join(FILES))?);
    let Ports { https, http, admin } = ports;
    Ok(format!(
        "\
# Gateway port -> port to bind.
listen: {{ address: 127.0.0.1, ports: {{ 80: {http}, 443: {https} }} }}
source: {{ directory: {resources} }}
# Prefix of every path that a Gateway names.
files: {{ root: {files} }}
admin: {{ address: \"127.0.0.1:{admin}\" }}
# The demo needs no fixed ports for these two.
status: {{ address: \"127.0.0.1:0\" }}
metrics: {{ address: \"127.0.0.1:0\" }}
access_log: {{ path: /dev/stdout, format: text }}
"
    ))
}

/// A double-quoted scalar: JSON's strings are YAML's too.
fn yaml_path(path: &Path) -> io::Result<String> {
    let error = || io::Error::new(io::ErrorKind::InvalidInput, "the path must be UTF-8");
    let text = path.to_str().ok_or_else(error)?;
    Ok(serde_json::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn read(path: &Path) -> Value {
        serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_files_say_where_everything_is() {
        let dir = tempfile::Builder::new().prefix("it's \"demo\": ").tempdir().unwrap();
        let ports = Ports { https: 8443, http: 8080, admin: 15000 };
        let written = write_resources(dir.path(), ports, 4321).unwrap();
        let settings = read(&written.settings);
        assert_eq!(settings["source"]["directory"], written.directory.to_str().unwrap());
        assert_eq!(settings["files"]["root"], dir.path().join("files").to_str().unwrap());
        assert_eq!(settings["listen"]["ports"]["443"], 8443);
        assert_eq!(settings["admin"]["address"], "127.0.0.1:15000");
        let entry = read(&written.directory.join("service-entry.yaml"));
        assert_eq!(entry["spec"]["endpoints"][0]["ports"]["http"], 4321);
        let gateway = read(&written.directory.join("gateway.yaml"));
        let tls = &gateway["spec"]["servers"][0]["tls"];
        assert_eq!(tls["serverCertificate"], "/etc/istio/ingressgateway-certs/tls.crt");
        let service = read(&written.directory.join("virtual-service.yaml"));
        assert_eq!(service["spec"]["gateways"][0], gateway["metadata"]["name"]);
    }
}
