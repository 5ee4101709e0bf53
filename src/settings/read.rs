//! From a settings file as written to [`Settings`]: which keys there are, and what each takes.

use super::written::{self, Section};
use super::{
    AccessLog, Admin, Backend, Balancing, Dns, Files, Gateway, Http, Limits, Listen, LogFormat,
    Metrics, Misdirected, Provider, Settings, Source, Status, Tls, Workers, value,
};

/// All keys.
pub(super) fn settings(top: &mut Section<'_>) -> Settings {
    Settings {
        workers: top.section("workers", workers),
        listen: top.section("listen", listen),
        gateway: top.section("gateway", gateway),
        source: top.section("source", |section| Source {
            directory: section.value("directory", Source::default().directory, value::path),
        }),
        files: top.section("files", |section| Files {
            root: section.value("root", Files::default().root, value::path),
        }),
        dns: top.section("dns", |section| Dns {
            // The host's administrator has said it already.
            servers: section.items("servers", Vec::new(), value::dns_server),
        }),
        tls: top.section("tls", |section| Tls {
            provider: section.value("provider", Tls::default().provider, provider),
        }),
        http: top.section("http", http),
        limits: top.section("limits", limits),
        admin: top.section("admin", |section| Admin {
            address: section.value("address", Admin::default().address, value::socket_address),
        }),
        status: top.section("status", |section| Status {
            address: section.value("address", Status::default().address, value::socket_address),
        }),
        metrics: top.section("metrics", |section| Metrics {
            address: section.value("address", Metrics::default().address, value::socket_address),
        }),
        access_log: top.section("access_log", access_log),
    }
}

fn workers(section: &mut Section<'_>) -> Workers {
    let default = Workers::default();
    Workers {
        count: section.value("count", default.count, value::auto_or_count),
        pin: section.value("pin", default.pin, value::auto_or_bool),
        backend: section.value("backend", default.backend, |value| {
            value::one_of(
                value,
                &[
                    ("auto", Backend::Auto),
                    ("io_uring", Backend::IoUring),
                    ("epoll", Backend::Epoll),
                ],
            )
        }),
        balance: section.value("balance", default.balance, |value| {
            value::one_of(value, &[("auto", Balancing::Auto), ("off", Balancing::Off)])
        }),
    }
}

fn listen(section: &mut Section<'_>) -> Listen {
    let default = Listen::default();
    let ports = section.pairs("ports", default.ports, value::port, value::port_or_zero);
    let address = section.value("address", default.address, value::ip_address);
    let proxy_protocol = section.items("proxy_protocol", default.proxy_protocol, value::network);
    Listen { address, ports, proxy_protocol }
}

fn gateway(section: &mut Section<'_>) -> Gateway {
    let default = Gateway::default();
    Gateway {
        namespace: section.value("namespace", default.namespace, value::name),
        labels: section.pairs("labels", default.labels, value::text, value::text),
        locality: section.value("locality", default.locality, value::locality),
    }
}

fn provider(value: &written::Value) -> Result<Provider, String> {
    let names =
        [("auto", Provider::Auto), ("ring", Provider::Ring), ("aws-lc-rs", Provider::AwsLcRs)];
    value::one_of(value, &names)
}

fn http(section: &mut Section<'_>) -> Http {
    let default = Http::default();
    Http {
        misdirected: section.value("misdirected", default.misdirected, |value| {
            let names = [("421", Misdirected::MisdirectedRequest), ("404", Misdirected::NotFound)];
            value::one_of(value, &names)
        }),
        trusted_proxies: section.value("trusted_proxies", default.trusted_proxies, |value| {
            value::number(value, 0..=value::PROXIES_MAX)
        }),
    }
}

fn limits(section: &mut Section<'_>) -> Limits {
    Limits {
        connections_max: section.optional("connections_max", value::amount),
        handshakes_max: section.optional("handshakes_max", value::amount),
        handshake_timeout: section.optional("handshake_timeout", value::duration_above_zero),
        head_timeout: section.optional("head_timeout", value::duration_above_zero),
        idle_timeout: section.optional("idle_timeout", value::duration_above_zero),
        stream_idle_timeout: section.optional("stream_idle_timeout", value::duration_above_zero),
        tcp_idle_timeout: section.optional("tcp_idle_timeout", value::duration_above_zero),
        head_bytes_max: section.optional("head_bytes_max", value::head_bytes),
        header_fields_max: section.optional("header_fields_max", value::header_fields),
        h2_streams_max: section.optional("h2_streams_max", value::h2_streams),
        h2_stream_window_bytes: section.optional("h2_stream_window_bytes", value::h2_window),
        h2_connection_window_bytes: section
            .optional("h2_connection_window_bytes", value::h2_window),
        upstream_idle_max: section.optional("upstream_idle_max", value::amount_or_zero),
        upstream_idle_timeout: section
            .optional("upstream_idle_timeout", value::duration_above_zero),
        retry_body_bytes_max: section.optional("retry_body_bytes_max", value::retry_body_bytes),
        mirrors_max: section.optional("mirrors_max", value::amount_or_zero),
        linger_timeout: section.optional("linger_timeout", value::duration),
        drain_timeout: section.optional("drain_timeout", value::duration),
    }
}

fn access_log(section: &mut Section<'_>) -> AccessLog {
    let default = AccessLog::default();
    AccessLog {
        path: section.value("path", default.path, value::path_or_off),
        format: section.value("format", default.format, |value| {
            value::one_of(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
        }),
    }
}
