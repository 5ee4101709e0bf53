//! The resources that most tests begin with, as text that a user could have written.

/// A Gateway `name` with one HTTPS server on port 443 for `hosts`, whose certificate lies in
/// `/certs/CERTIFICATE/` below `files.root`.
pub fn https_gateway(name: &str, hosts: &[&str], certificate: &str) -> String {
    gateway(name, &https_server(443, hosts, certificate))
}

/// A Gateway `name` of the given servers (see [`https_server`], [`http_server`]).
pub fn gateway(name: &str, servers: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: Gateway\n\
         metadata: {{ name: {name} }}\n\
         spec:\n\
         \x20 selector: {{ istio: ingressgateway }}\n\
         \x20 servers:\n{servers}"
    )
}

/// One HTTPS server, an entry for [`gateway`].
pub fn https_server(port: u16, hosts: &[&str], certificate: &str) -> String {
    format!(
        "  - port: {{ number: {port}, name: https-{port}-{certificate}, protocol: HTTPS }}\n    \
           tls:\n      \
             mode: SIMPLE\n      \
             serverCertificate: /certs/{certificate}/tls.crt\n      \
             privateKey: /certs/{certificate}/tls.key\n    \
           hosts: {}\n",
        list(hosts)
    )
}

/// The same in `mode`, with more lines of `tls`, each indented by six.
pub fn mutual_server(hosts: &[&str], certificate: &str, mode: &str, more: &str) -> String {
    let server = https_server(443, hosts, certificate);
    server.replace("mode: SIMPLE\n", &format!("mode: {mode}\n{more}"))
}

/// One plain HTTP server, an entry for [`gateway`].
pub fn http_server(port: u16, hosts: &[&str], redirect: bool) -> String {
    let tls = if redirect { "    tls: { httpsRedirect: true }\n" } else { "" };
    format!(
        "  - port: {{ number: {port}, name: http-{port}, protocol: HTTP }}\n{tls}    \
           hosts: {}\n",
        list(hosts)
    )
}

/// One server with this protocol, an entry for [`gateway`]; `tls` is its field, or empty.
pub fn server(port: u16, protocol: &str, hosts: &[&str], tls: &str) -> String {
    let name = format!("{}-{port}", protocol.to_lowercase());
    let tls = if tls.is_empty() { String::new() } else { format!("    tls: {tls}\n") };
    format!(
        "  - port: {{ number: {port}, name: {name}, protocol: {protocol} }}\n{tls}    \
           hosts: {}\n",
        list(hosts)
    )
}

/// One server that leaves TLS to the endpoint, an entry for [`gateway`].
pub fn passthrough_server(port: u16, hosts: &[&str]) -> String {
    server(port, "TLS", hosts, "{ mode: PASSTHROUGH }")
}

/// A VirtualService `name` on `gateway` for `hosts`; `rules` are the entries of `kind` (`tls` or
/// `tcp`), indented by two.
pub fn l4_service(name: &str, gateway: &str, hosts: &[&str], kind: &str, rules: &str) -> String {
    virtual_service(name, gateway, hosts, rules).replacen(" http:\n", &format!(" {kind}:\n"), 1)
}

/// A `tls` rule that sends connections for `name` to `host`.
pub fn sni_to(name: &str, host: &str) -> String {
    format!(
        "  - match: [ {{ sniHosts: [ \"{name}\" ] }} ]\n    \
             route: [ {{ destination: {{ host: {host}, port: {{ number: 80 }} }} }} ]\n"
    )
}

/// A VirtualService `name` on `gateway` for `hosts`; `rules` are the entries of `http`, indented
/// by two.
pub fn virtual_service(name: &str, gateway: &str, hosts: &[&str], rules: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{ name: {name} }}\n\
         spec:\n\
         \x20 hosts: {}\n\
         \x20 gateways: [ {gateway} ]\n\
         \x20 http:\n{rules}",
        list(hosts)
    )
}

/// A rule without conditions that sends everything to `host`.
pub fn all_to(host: &str) -> String {
    format!("  - route: [ {{ destination: {{ host: {host}, port: {{ number: 80 }} }} }} ]\n")
}

/// A rule that sends what `uri` matches (`prefix: /a`) to `host`.
pub fn uri_to(uri: &str, host: &str) -> String {
    format!(
        "  - match: [ {{ uri: {{ {uri} }} }} ]\n    \
             route: [ {{ destination: {{ host: {host}, port: {{ number: 80 }} }} }} ]\n"
    )
}

/// A ServiceEntry that makes `host` port 80 the process on `port` of this machine.
pub fn backend(host: &str, port: u16) -> String {
    service_entry(host, port, "{ number: 80, name: http, protocol: HTTP }")
}

/// The same for a backend that speaks HTTP/2 without TLS.
pub fn backend_h2c(host: &str, port: u16) -> String {
    service_entry(host, port, "{ number: 80, name: http2, protocol: HTTP2 }")
}

fn service_entry(host: &str, port: u16, entry: &str) -> String {
    let name = host.replace('.', "-");
    let port_name = if entry.contains("http2") { "http2" } else { "http" };
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{ name: {name} }}\n\
         spec:\n\
         \x20 hosts: [ {host} ]\n\
         \x20 ports: [ {entry} ]\n\
         \x20 location: MESH_EXTERNAL\n\
         \x20 resolution: STATIC\n\
         \x20 endpoints: [ {{ address: 127.0.0.1, ports: {{ {port_name}: {port} }} }} ]\n"
    )
}

/// A Secret in the gateway's namespace with these keys and their texts.
pub fn secret(name: &str, keys: &[(&str, &str)]) -> String {
    let data = keys.iter().map(|(key, text)| {
        let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
        format!("  {key}: |\n{lines}")
    });
    format!(
        "apiVersion: v1\n\
         kind: Secret\n\
         metadata: {{ name: {name}, namespace: istio-system }}\n\
         stringData:\n{}",
        data.collect::<String>()
    )
}

/// Several documents as one file.
pub fn documents(parts: &[String]) -> String {
    parts.join("---\n")
}

fn list(items: &[&str]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[ {} ]", quoted.join(", "))
}
