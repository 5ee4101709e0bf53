//! Limits and timeouts of connections and requests, and how HTTP treats its neighbours.
//!
//! Set in the settings file, changed by SIGHUP, read by every data layer from the snapshot. What
//! only a restart can change is in `settings` instead.

use std::time::Duration;

use super::Network;

/// What a client or an upstream may take of the gateway. Every worker holds to them on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Downstream connections of one worker; for one more an idle one gives way, or it is closed at
    /// once and counted.
    pub connections_max: usize,
    /// Handshakes of one worker that may be under way, and connections that have yet to send their
    /// header of the PROXY protocol.
    pub handshakes_max: usize,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request head to its end.
    pub head_timeout: Duration,
    /// Between requests on a downstream connection.
    pub idle_timeout: Duration,
    /// Without progress of an open request or response.
    pub stream_idle_timeout: Duration,
    /// Without a byte in either direction of a connection that is not HTTP.
    pub tcp_idle_timeout: Duration,
    /// Bytes of a request or response head.
    pub head_bytes_max: usize,
    /// Fields of a request or response head.
    pub header_fields_max: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Flow-control window of one HTTP/2 stream.
    pub h2_stream_window_bytes: u32,
    /// Flow-control window of a client's HTTP/2 connection.
    pub h2_connection_window_bytes: u32,
    /// Idle connections that one worker keeps for one endpoint.
    pub upstream_idle_max: usize,
    /// How long an idle upstream connection is kept.
    pub upstream_idle_timeout: Duration,
    /// Bytes of a request body that are kept so that the request can be sent again; one with more
    /// is sent once.
    pub retry_body_bytes_max: usize,
    /// Mirrored requests of one worker that may be under way; more are dropped and counted.
    pub mirrors_max: usize,
    /// How long a closing connection waits for the peer to close too.
    pub linger_timeout: Duration,
    /// From the start of a drain until what is still open is cut.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Far above what one core serves, far below what exhausts memory (28 KB each).
            connections_max: 50_000,
            // A handshake costs about 200 us; more than this in flight only adds waiting.
            handshakes_max: 2_000,
            // Istio's default for gateways.
            handshake_timeout: Duration::from_secs(15),
            // Istio's EDGE profile, as are the next two.
            head_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(3_600),
            stream_idle_timeout: Duration::from_secs(300),
            // Envoy's default, as are the next two.
            tcp_idle_timeout: Duration::from_secs(3_600),
            head_bytes_max: 60 * 1024,
            header_fields_max: 100,
            // Istio's EDGE profile.
            h2_streams_max: 100,
            h2_stream_window_bytes: 64 * 1024,
            h2_connection_window_bytes: 1024 * 1024,
            // The open streams of ten busy HTTP/2 clients; with fewer, each burst of them would
            // open connections anew.
            upstream_idle_max: 1_024,
            // Shorter than the keep-alive of common backends, so that they rarely close under us.
            upstream_idle_timeout: Duration::from_secs(55),
            // What a form or an RPC has. Kept for every request under way, so no more than that.
            retry_body_bytes_max: 64 * 1024,
            // A mirror that is slower than this has fallen behind anyway.
            mirrors_max: 256,
            // Envoy's delayed_close_timeout.
            linger_timeout: Duration::from_secs(1),
            // Istio's terminationDrainDuration.
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// How the proxies in front are treated, and requests that came by the wrong connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The answer to a request whose host belongs to another server than the connection's: 421, or
    /// 404 as Istio gives.
    pub misdirected: ::http::StatusCode,
    /// How many proxies in front append to `x-forwarded-for` and are believed.
    pub trusted_proxies: u32,
    /// Peers whose connections begin with a header of the PROXY protocol. Those of others do not.
    pub proxy_protocol: Vec<Network>,
}

impl Default for Policy {
    fn default() -> Self {
        // Browsers open a new connection after a 421; after a 404 they show it.
        let misdirected = ::http::StatusCode::MISDIRECTED_REQUEST;
        Self { misdirected, trusted_proxies: 0, proxy_protocol: Vec::new() }
    }
}
