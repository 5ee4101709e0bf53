//! A complete set-up to try the gateway with: throwaway CA and certificate, httpbin-like backend,
//! the resources, and the lines to paste.
//!
//! - Everything is written below one directory that the caller names, as files that a user can
//!   read, edit and copy from.
//! - Nothing listens beyond loopback.
//!
//! Deliberately not here: the gateway itself, and removing the directory.

#![forbid(unsafe_code)]

mod backend;
mod certificates;
mod resources;

pub use backend::Backend;
pub use certificates::Certificates;
pub use resources::{Resources, write_resources};

use std::path::Path;

/// The host that the demo serves.
pub const HOST: &str = "httpbin.example.com";

/// Loopback ports of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Of the gateway for HTTPS, port 443 in the Gateway.
    pub https: u16,
    /// Of the gateway for plain HTTP, port 80 in the Gateway.
    pub http: u16,
    /// Of the administration.
    pub admin: u16,
}

/// What to do with a demo that is running. `ca` is the CA's certificate, `dir` holds all files.
#[must_use]
pub fn instructions(ports: Ports, ca: &Path, dir: &Path) -> String {
    let (lines, resources) = (curl_lines(ports, ca), dir.join("resources"));
    let (resources, admin) = (resources.display(), ports.admin);
    format!(
        "
The demo is running. Paste these lines into another terminal:

{lines}
Edit a file in {resources} and ask again: it is served as soon as it is saved.
More about what is loaded is at http://127.0.0.1:{admin}/. Ctrl-C ends the demo.
The access log follows, one line for each request.
"
    )
}

/// Command lines to paste, each with a word on what it shows.
fn curl_lines(ports: Ports, ca: &Path) -> String {
    let Ports { https, http, admin } = ports;
    let ca = quoted(ca);
    let secure = format!("curl --cacert {ca} --resolve {HOST}:{https}:127.0.0.1");
    let url = format!("https://{HOST}:{https}");
    let plain = format!("curl --resolve {HOST}:{http}:127.0.0.1 http://{HOST}:{http}");
    format!(
        "\
# HTTP/2 and a teapot
{secure} -v {url}/status/418
# the same in the clear
{plain}/status/418 -i
# no route: 404
{secure} -i {url}/nowhere
# a backend that takes its time
{secure} {url}/delay/2
# which certificates are loaded
curl http://127.0.0.1:{admin}/certs
# metrics
curl http://127.0.0.1:{admin}/stats/prometheus
"
    )
}

/// `path` as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_ports_and_ca() {
        let ports = Ports { https: 8443, http: 8080, admin: 15000 };
        let lines = curl_lines(ports, Path::new("/tmp/it's/ca.crt"));
        let teapot = r"curl --cacert '/tmp/it'\''s/ca.crt' --resolve httpbin.example.com:8443:127.0.0.1 -v https://httpbin.example.com:8443/status/418";
        assert!(lines.lines().any(|line| line == teapot), "{lines}");
        assert!(lines.lines().any(|line| line == "curl http://127.0.0.1:15000/certs"));
        let plain = "curl --resolve httpbin.example.com:8080:127.0.0.1 \
            http://httpbin.example.com:8080/status/418 -i";
        assert!(lines.lines().any(|line| line == plain), "{lines}");
        let all = instructions(ports, Path::new("/tmp/it's/ca.crt"), Path::new("/tmp/it's"));
        assert!(all.contains(&lines) && all.contains("/tmp/it's/resources"), "{all}");
    }
}
