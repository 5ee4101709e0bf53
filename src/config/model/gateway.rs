//! `Gateway`: on which ports, for which hosts and with which certificates the gateway listens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::fields::{Field, Fields, Finding, Located, Problems, did_you_mean, not_supported};
use super::resource::{Key, is_error};
use super::service::optional_string;
use crate::config::compile::TlsVersions;
use crate::snapshot::HostPattern;

/// A Gateway. A server with a part that is not supported is left out of `servers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Labels that a gateway has to have; none means every gateway.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) servers: Vec<Server>,
}

/// One server of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Its place in the Gateway, from 0.
    pub(crate) index: usize,
    pub(crate) line: u64,
    pub(crate) port: u16,
    pub(crate) port_name: String,
    pub(crate) bind: Option<IpAddr>,
    /// At least one.
    pub(crate) hosts: Vec<Located<ServerHost>>,
    pub(crate) protocol: ServerProtocol,
}

/// What a server speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerProtocol {
    Http { https_redirect: bool },
    Https(Tls),
}

/// A host of a server, and the VirtualServices that may bind to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServerHost {
    /// The namespace of the VirtualServices; `None` for every one.
    pub(crate) namespace: Option<String>,
    pub(crate) pattern: HostPattern,
}

/// How a server terminates TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) credential: Credential,
    pub(crate) versions: TlsVersions,
}

/// Where certificate and key come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Files {
        certificate: Located<String>,
        key: Located<String>,
    },
    /// A Secret in the gateway's own namespace.
    Secret(Located<String>),
}

/// What a finding about one server of several does.
const SERVER_ONLY: &str = "only this server is left out";

/// What Istio's `ServerTLSSettings` has beyond what is read here.
const TLS_UNSUPPORTED: [&str; 13] = [
    "caCertificates",
    "caCrl",
    "credentialNames",
    "tlsCertificates",
    "caCertCredentialName",
    "subjectAltNames",
    "verifyCertificateSpki",
    "verifyCertificateHash",
    "cipherSuites",
    "insecureSkipVerify",
    "ecdhCurves",
    "alpnProtocols",
    "caCertCredentialNames",
];

/// Reads a Gateway; the findings in the result leave out only a server each.
pub(super) fn read(
    spec: &Field<'_>,
    key: &Key,
    problems: &mut Problems,
) -> Option<(Gateway, Vec<Finding>)> {
    let mut spec = spec.fields(problems)?;
    let selector = spec.take("selector").map(|field| field.strings(problems));
    let list = spec.require("servers", problems)?;
    spec.finish(problems);
    let items = list.items(problems);
    if items.is_empty() {
        problems.error(&list, "needs at least one server", "");
    }
    let mut partial = Problems::default();
    let mut names = BTreeSet::new();
    let mut reader =
        ServerReader { key, names: &mut names, whole: problems, partial: &mut partial };
    let servers = (0..).zip(&items).filter_map(|(index, item)| reader.read(index, item)).collect();
    Some((Gateway { selector: selector.unwrap_or_default(), servers }, partial.findings))
}

struct ServerReader<'a> {
    key: &'a Key,
    /// The port names seen so far.
    names: &'a mut BTreeSet<String>,
    /// What makes the whole Gateway bad.
    whole: &'a mut Problems,
    /// What leaves out this server.
    partial: &'a mut Problems,
}

struct Port {
    number: u16,
    name: String,
    tls: bool,
}

impl ServerReader<'_> {
    fn read(&mut self, index: usize, item: &Field<'_>) -> Option<Server> {
        let before = self.partial.findings.len();
        let mut server = item.fields(self.whole)?;
        let port = server.require("port", self.whole).and_then(|field| self.read_port(&field));
        let bind = server.take("bind").map(|field| self.read_bind(&field));
        let hosts = server.require("hosts", self.whole).map(|field| self.read_hosts(&field));
        let tls = server.take("tls");
        let protocol = port.as_ref().and_then(|port| self.read_protocol(port, item, tls));
        self.read_ignored(&mut server);
        server.finish(self.whole);
        let good = !self.partial.findings[before..].iter().any(is_error);
        let (port, protocol) = (port.filter(|_| good)?, protocol?);
        Some(Server {
            index,
            line: item.line,
            port: port.number,
            port_name: port.name,
            bind: bind.unwrap_or(Some(None))?,
            hosts: hosts?,
            protocol,
        })
    }

    fn read_ignored(&mut self, server: &mut Fields<'_>) {
        optional_string(server, "name", self.whole);
        if let Some(field) = server.take("defaultEndpoint") {
            self.whole.warn(&field, "`defaultEndpoint` is ignored, as by Istio", "");
        }
    }

    fn read_port(&mut self, field: &Field<'_>) -> Option<Port> {
        let mut port = field.fields(self.whole)?;
        let number = port.require("number", self.whole).and_then(|f| f.port(self.whole));
        let name = port.require("name", self.whole);
        let protocol = port.require("protocol", self.whole);
        if let Some(field) = port.take("targetPort") {
            let cause = "the port that is bound is set in the settings, `listen.ports`";
            self.whole.error(&field, "`targetPort` of a Gateway is refused, as by Istio", cause);
        }
        port.finish(self.whole);
        let name = self.read_name(&name?)?;
        let tls = self.read_kind(&protocol?)?;
        Some(Port { number: number?, name, tls })
    }

    fn read_name(&mut self, field: &Field<'_>) -> Option<String> {
        let name = field.string(self.whole)?;
        if !self.names.insert(name.to_owned()) {
            let what = format!("another server of this Gateway has a port named `{name}`");
            self.whole.error(field, what, "port names are unique within a Gateway");
        }
        Some(name.to_owned())
    }

    /// Whether the protocol is HTTPS; reports all that is neither HTTPS nor HTTP.
    fn read_kind(&mut self, field: &Field<'_>) -> Option<bool> {
        let text = field.string(self.whole)?;
        match text.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => return Some(false),
            "HTTPS" => return Some(true),
            "TLS" | "TCP" | "MONGO" => {
                let what = not_supported(&format!("protocol {text}"));
                self.partial.error(field, what, SERVER_ONLY);
            }
            _ => {
                let what = format!("must be HTTP, HTTP2, GRPC or HTTPS, not `{text}`");
                let names = ["HTTP", "HTTP2", "GRPC", "HTTPS"];
                self.whole.error(field, what, &did_you_mean(text, names.into_iter()));
            }
        }
        None
    }

    fn read_bind(&mut self, field: &Field<'_>) -> Option<Option<IpAddr>> {
        let text = field.string(self.whole)?;
        if text.starts_with("unix://") {
            self.partial.error(field, not_supported("a unix socket in `bind`"), "");
            return None;
        }
        field.address(self.whole).map(Some)
    }

    fn read_hosts(&mut self, field: &Field<'_>) -> Vec<Located<ServerHost>> {
        let items = field.items(self.whole);
        if items.is_empty() {
            self.whole.error(field, "needs at least one host", "`*` stands for every host");
        }
        items.iter().filter_map(|item| self.read_host(item)).collect()
    }

    fn read_host(&mut self, item: &Field<'_>) -> Option<Located<ServerHost>> {
        let text = item.string(self.whole)?;
        let (namespace, name) = match text.split_once('/') {
            None | Some(("*", _)) => (None, text.trim_start_matches("*/")),
            Some((".", name)) => (Some(self.key.namespace.clone()), name),
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
        };
        match name.parse::<HostPattern>() {
            Ok(pattern) => {
                Some(Located { line: item.line, value: ServerHost { namespace, pattern } })
            }
            Err(error) => {
                let cause = "no scheme, port or path; `namespace/` may stand before it";
                self.whole.error(item, format!("`{text}`: {error}"), cause);
                None
            }
        }
    }

    fn read_protocol(
        &mut self,
        port: &Port,
        server: &Field<'_>,
        tls: Option<Field<'_>>,
    ) -> Option<ServerProtocol> {
        match (port.tls, tls) {
            (false, None) => Some(ServerProtocol::Http { https_redirect: false }),
            (false, Some(tls)) => self.read_plain(&tls),
            (true, Some(tls)) => self.read_tls(&tls).map(ServerProtocol::Https),
            (true, None) => {
                let cause = "a server with protocol HTTPS needs `mode: SIMPLE` and a certificate";
                self.whole.error(server, "`tls` is missing", cause);
                None
            }
        }
    }

    fn read_plain(&mut self, field: &Field<'_>) -> Option<ServerProtocol> {
        let mut tls = field.fields(self.whole)?;
        let redirect = tls.take("httpsRedirect").map(|field| field.boolean(self.whole));
        if let Some(mode) = tls.take("mode")
            && mode.string(self.whole)? != "PASSTHROUGH"
        {
            let cause = "set `protocol: HTTPS`, or leave only `httpsRedirect` in `tls`";
            self.whole.error(&mode, "a server with protocol HTTP has no TLS", cause);
        }
        for name in ["serverCertificate", "privateKey", "caCertificates"] {
            if let Some(field) = tls.take(name) {
                let cause = "set `protocol: HTTPS`";
                self.whole.error(&field, "a server with protocol HTTP has no certificate", cause);
            }
        }
        if let Some(field) = tls.take("credentialName") {
            self.whole.warn(&field, "ignored: a server with protocol HTTP has no certificate", "");
        }
        tls.refuse_with(&TLS_UNSUPPORTED, SERVER_ONLY, self.partial);
        tls.finish(self.whole);
        Some(ServerProtocol::Http { https_redirect: redirect.unwrap_or(Some(false))? })
    }

    fn read_tls(&mut self, field: &Field<'_>) -> Option<Tls> {
        let mut tls = field.fields(self.whole)?;
        let mode = tls.take("mode");
        let simple = self.read_mode(field, mode.as_ref());
        if let Some(field) = tls.take("httpsRedirect")
            && field.boolean(self.whole)?
        {
            let cause = "it belongs on the server with protocol HTTP";
            self.whole.warn(&field, "`httpsRedirect` of an HTTPS server is ignored", cause);
        }
        let credential = self.read_credential(field, &mut tls, simple);
        let versions = self.read_versions(&mut tls);
        let mut unused = Problems::default();
        tls.refuse_with(
            &TLS_UNSUPPORTED,
            SERVER_ONLY,
            if simple { self.partial } else { &mut unused },
        );
        tls.finish(self.whole);
        Some(Tls { credential: credential?, versions: versions? })
    }

    /// Whether the mode is SIMPLE; reports every other.
    fn read_mode(&mut self, tls: &Field<'_>, mode: Option<&Field<'_>>) -> bool {
        let Some(field) = mode else {
            let what = "`mode` is missing, which means PASSTHROUGH in Istio: ".to_owned()
                + &not_supported("it");
            self.partial.error(tls, what, "write `mode: SIMPLE` to terminate TLS here");
            return false;
        };
        let Some(text) = field.string(self.whole) else { return false };
        match text {
            "SIMPLE" => return true,
            "MUTUAL" | "OPTIONAL_MUTUAL" | "PASSTHROUGH" | "AUTO_PASSTHROUGH" | "ISTIO_MUTUAL" => {
                self.partial.error(field, not_supported(&format!("mode {text}")), SERVER_ONLY);
            }
            _ => {
                let names = ["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "PASSTHROUGH"].into_iter();
                let cause = did_you_mean(text, names);
                self.whole.error(field, format!("there is no mode `{text}`"), &cause);
            }
        }
        false
    }

    fn read_credential(
        &mut self,
        parent: &Field<'_>,
        tls: &mut Fields<'_>,
        wanted: bool,
    ) -> Option<Credential> {
        let (certificate, key) = (tls.take("serverCertificate"), tls.take("privateKey"));
        let name = tls.take("credentialName");
        if !wanted {
            return None;
        }
        match (certificate, key, name) {
            (None, None, Some(name)) => self.read_secret_name(&name).map(Credential::Secret),
            (Some(certificate), Some(key), None) => Some(Credential::Files {
                certificate: certificate.located(self.whole)?,
                key: key.located(self.whole)?,
            }),
            (_, _, Some(name)) => {
                let what = "there may be `credentialName` or files, not both";
                self.whole.error(&name, what, "");
                None
            }
            (_, _, None) => {
                let what = "needs `serverCertificate` and `privateKey`, or `credentialName`";
                self.whole.error(parent, what, "");
                None
            }
        }
    }

    fn read_secret_name(&mut self, field: &Field<'_>) -> Option<Located<String>> {
        let name = field.located(self.whole)?;
        if name.value.contains('/') || name.value.is_empty() {
            let cause = "the Secret is always looked up in the gateway's own namespace";
            self.whole.error(field, "must be the name of a Secret, without namespace", cause);
            return None;
        }
        Some(name)
    }

    fn read_versions(&mut self, tls: &mut Fields<'_>) -> Option<TlsVersions> {
        let low = tls.take("minProtocolVersion");
        let high = tls.take("maxProtocolVersion");
        let min = low.map_or(Some(12), |field| self.read_version(&field, 12))?;
        let max = high.as_ref().map_or(Some(13), |field| self.read_version(field, 13))?;
        match (min, max) {
            (12, 13) => Some(TlsVersions::Both),
            (12, _) => Some(TlsVersions::Only12),
            (_, 13) => Some(TlsVersions::Only13),
            _ => {
                let what = "`maxProtocolVersion` is below `minProtocolVersion`";
                self.whole.error(&high?, what, "");
                None
            }
        }
    }

    fn read_version(&mut self, field: &Field<'_>, auto: u8) -> Option<u8> {
        match field.string(self.whole)? {
            "TLS_AUTO" => return Some(auto),
            "TLSV1_2" => return Some(12),
            "TLSV1_3" => return Some(13),
            old @ ("TLSV1_0" | "TLSV1_1") => {
                let cause = "it needs ciphers that are no longer safe; the lowest is TLSV1_2";
                self.partial.error(field, not_supported(old), cause);
            }
            text => {
                let what = format!("must be TLS_AUTO, TLSV1_2 or TLSV1_3, not `{text}`");
                self.whole.error(field, what, "");
            }
        }
        None
    }
}
