//! What a thread counts, read by scrapes while it goes on counting.
//!
//! - One [`Counters`] per counting thread; only that thread writes it, so a count is a plain load
//!   and store, never a locked instruction, and no cache line is shared with another writer.
//! - A scrape reads each number on its own: numbers of one scrape may be some requests apart.
//! - Names on the wire are Envoy's where Envoy has one, else `ringgate_*`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;

/// The counters of one thread, shared with the scrapes.
pub type SharedCounters = Arc<CachePadded<Counters>>;

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// One less; what was never incremented stays at zero.
    pub fn decrement(&self) {
        self.0.store(self.value().saturating_sub(1), Relaxed);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.store(self.value().wrapping_add(n), Relaxed);
    }

    /// From now on this value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value, as some moment of the recent past had it.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How a number behaves, and whether the workers' are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the sum over all threads is shown.
    Counter,
    /// Goes up and down; the sum over all threads is shown.
    Gauge,
    /// Only grows; each worker's is shown, labelled with the worker.
    WorkerCounter,
    /// Goes up and down; each worker's is shown, labelled with the worker.
    WorkerGauge,
}

/// How a number is called outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// The metric's name.
    pub name: &'static str,
    /// `label="value"`, or empty. Numbers of one name stand next to each other.
    pub label: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! counters {
    (
        $($field:ident: $kind:ident $name:literal [$label:literal] $help:literal;)*
        @again $($again:ident: $again_kind:ident $again_name:literal $again_help:literal;)*
    ) => {
        /// Every number that a thread counts.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $field: Count,)*
        }

        impl Counters {
            /// Every number with its description, always in the same order.
            pub fn each(&self) -> impl Iterator<Item = (Description, u64)> {
                [$((
                    Description { name: $name, label: $label, kind: Kind::$kind, help: $help },
                    self.$field.value(),
                ),)*
                $((
                    Description {
                        name: $again_name,
                        label: "",
                        kind: Kind::$again_kind,
                        help: $again_help,
                    },
                    self.$again.value(),
                ),)*]
                .into_iter()
            }
        }
    };
}

counters! {
    connections_accepted: Counter "envoy_listener_downstream_cx_total" [""]
        "Downstream connections accepted.";
    connections_active: Gauge "envoy_listener_downstream_cx_active" [""]
        "Downstream connections open now.";
    connections_over_limit: Counter "envoy_listener_downstream_cx_overflow" [""]
        "Downstream connections closed at once because of a limit.";
    connections_gave_way: Counter "ringgate_listener_connections_gave_way_total" [""]
        "Idle downstream connections closed to make room for new ones.";
    handshakes_ok: Counter "envoy_listener_ssl_handshake" [""]
        "TLS handshakes completed.";
    handshakes_resumed: Counter "envoy_listener_ssl_session_reused" [""]
        "TLS handshakes completed by resuming a session.";
    handshakes_no_server: Counter "envoy_listener_no_filter_chain_match" [""]
        "Connections closed because no server answers for their SNI.";
    handshakes_not_tls: Counter "ringgate_listener_not_tls_total" [""]
        "Connections to a TLS port whose first bytes were not TLS.";
    proxy_protocol_errors: Counter "ringgate_listener_proxy_protocol_errors_total" [""]
        "Connections closed because they did not begin with a header of the PROXY protocol.";
    handshakes_tls_error: Counter "envoy_listener_ssl_connection_error" [""]
        "TLS handshakes that failed for another reason.";
    clients_without_certificate: Counter "envoy_listener_ssl_fail_verify_no_cert" [""]
        "TLS handshakes that failed because the client showed no certificate.";
    clients_anonymous: Counter "envoy_listener_ssl_no_certificate" [""]
        "TLS handshakes completed without a client's certificate.";
    clients_refused: Counter "envoy_listener_ssl_fail_verify_error" [""]
        "TLS handshakes that failed because of the client's certificate.";
    handshakes_timeout: Counter "envoy_listener_downstream_pre_cx_timeout" [""]
        "Handshakes that took too long.";
    requests: Counter "envoy_http_downstream_rq_total" [""]
        "Requests completed.";
    requests_active: Gauge "envoy_http_downstream_rq_active" [""]
        "Requests under way now.";
    responses_1xx: Counter "envoy_http_downstream_rq_xx" ["envoy_response_code_class=\"1\""]
        "Final responses by the first digit of their status.";
    responses_2xx: Counter "envoy_http_downstream_rq_xx" ["envoy_response_code_class=\"2\""]
        "Final responses by the first digit of their status.";
    responses_3xx: Counter "envoy_http_downstream_rq_xx" ["envoy_response_code_class=\"3\""]
        "Final responses by the first digit of their status.";
    responses_4xx: Counter "envoy_http_downstream_rq_xx" ["envoy_response_code_class=\"4\""]
        "Final responses by the first digit of their status.";
    responses_5xx: Counter "envoy_http_downstream_rq_xx" ["envoy_response_code_class=\"5\""]
        "Final responses by the first digit of their status.";
    upstream_connects: Counter "envoy_cluster_upstream_cx_total" [""]
        "Upstream connections opened.";
    upstream_connect_failures: Counter "envoy_cluster_upstream_cx_connect_fail" [""]
        "Upstream connects that failed or took too long.";
    upstream_reused: Counter "ringgate_upstream_connections_reused_total" [""]
        "Requests sent on an upstream connection that had carried one before.";
    upstream_retries: Counter "envoy_cluster_upstream_rq_retry" [""]
        "Requests sent once more after a failure.";
    upstream_overflows: Counter "envoy_cluster_upstream_rq_pending_overflow" [""]
        "Requests and connections refused because of a limit of their cluster.";
    upstream_retry_overflows: Counter "envoy_cluster_upstream_rq_retry_overflow" [""]
        "Retries that were not made because of a limit of their cluster.";
    outlier_ejections: Counter "envoy_cluster_outlier_detection_ejections_enforced_total" [""]
        "Times that a worker left an endpoint out because it failed.";
    lookups: Counter "envoy_cluster_update_attempt" [""]
        "Lookups of names in DNS begun.";
    lookups_found: Counter "envoy_cluster_update_success" [""]
        "Lookups that found an address.";
    lookups_absent: Counter "envoy_cluster_update_empty" [""]
        "Lookups that ended with the word that the name does not exist or has no address.";
    lookups_failed: Counter "envoy_cluster_update_failure" [""]
        "Lookups that ended without an answer.";
    names: Gauge "ringgate_dns_names" [""]
        "Names that are looked up.";
    names_unresolved: Gauge "ringgate_dns_names_unresolved" [""]
        "Names whose last lookup found no address.";
    mirrors_dropped: Counter "ringgate_mirrors_dropped_total" [""]
        "Mirrored requests that were not sent.";
    series_overflowed: Counter "ringgate_series_overflowed_total" [""]
        "Requests counted as `other` because there are too many series.";
    log_lines_dropped: Counter "ringgate_access_log_lines_dropped_total" [""]
        "Access log lines lost because the writer was behind or could not write.";
    log_bytes: Counter "ringgate_access_log_bytes_total" [""]
        "Bytes of access log written.";
    log_write_errors: Counter "ringgate_access_log_write_errors_total" [""]
        "Writes to the access log that failed.";
    task_panics: Counter "ringgate_task_panics_total" [""]
        "Tasks that ended by a panic, which is a bug.";
    loop_turns: WorkerCounter "ringgate_worker_loop_turns_total" [""]
        "Turns of the worker's event loop.";
    heartbeat: WorkerGauge "ringgate_worker_heartbeat_timestamp_seconds" [""]
        "Wall-clock time of the worker's last sign of life, in seconds since 1970.";
    generation: WorkerGauge "ringgate_worker_generation" [""]
        "Generation of the configuration that the worker has applied.";
    cpu_milliseconds: WorkerCounter "ringgate_worker_cpu_milliseconds_total" [""]
        "CPU time that the worker has used, the kernel's for it included.";
    connections_handed_over: WorkerCounter "ringgate_worker_connections_handed_over_total" [""]
        "Fresh connections that the worker handed to a less loaded one.";

    // What is summed above, of each worker.
    @again
    connections_active: WorkerGauge "ringgate_worker_connections_active"
        "Downstream connections that the worker has open now.";
    requests: WorkerCounter "ringgate_worker_requests_total"
        "Requests that the worker has completed.";
}

impl Counters {
    /// All zero.
    #[must_use]
    pub fn shared() -> SharedCounters {
        SharedCounters::default()
    }

    /// Counts a completed request that was answered with `status`; 0 when it got no response.
    pub(super) fn response(&self, status: u16) {
        self.requests.increment();
        let class = match status / 100 {
            1 => &self.responses_1xx,
            2 => &self.responses_2xx,
            3 => &self.responses_3xx,
            4 => &self.responses_4xx,
            5 => &self.responses_5xx,
            _ => return,
        };
        class.increment();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_goes_up_and_never_below_zero() {
        let count = Count::default();
        count.decrement();
        count.add(2);
        count.decrement();
        assert_eq!(count.value(), 1);
    }

    #[test]
    fn responses_are_counted_by_class() {
        let counters = Counters::default();
        for status in [101, 200, 204, 301, 404, 503, 0] {
            counters.response(status);
        }
        assert_eq!(counters.requests.value(), 7);
        assert_eq!(counters.responses_2xx.value(), 2);
        assert_eq!(counters.responses_5xx.value(), 1);
    }

    #[test]
    fn numbers_of_one_name_stand_together_and_differ_in_label() {
        let counters = Counters::default();
        let all: Vec<_> = counters.each().map(|(number, _)| (number.name, number.label)).collect();
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), all.len());
        let mut names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        names.dedup();
        let runs = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), runs);
    }

    #[test]
    fn the_readme_names_every_number() {
        let readme = include_str!("../../README.md");
        for (number, _) in Counters::default().each() {
            let row = format!("| `{}` |", number.name);
            assert!(readme.contains(&row), "{row}");
        }
    }
}
