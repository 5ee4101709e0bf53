//! Prometheus' text format, version 0.0.4.
//!
//! Deliberately not here: the numbers that are no worker's; whoever renders adds them with
//! [`Page::gauge`].

use std::fmt::{Display, Write};

use super::connections::TcpSample;
use super::counters::{Counters, Kind, SharedCounters};
use super::request::Flags;
use super::series::{BOUNDS, Histogram, Outcome, Sample, Series};

/// The value of `content-type` for a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics under way. Each name may be added only once.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

/// Who reports the requests, in Istio's labels `source_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reporter {
    /// The workload's name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its label `app`.
    pub app: String,
    /// Its label `version`.
    pub version: String,
}

impl Reporter {
    /// A workload in `namespace`, by what its labels say.
    pub fn new<'a>(namespace: &str, label: impl Fn(&str) -> Option<&'a str>) -> Self {
        let app = label("app").map(str::to_owned);
        let app = app.or_else(|| label("istio").map(|istio| format!("istio-{istio}")));
        let app = app.unwrap_or_else(|| UNKNOWN.to_owned());
        let version = label("version").unwrap_or(UNKNOWN).to_owned();
        Self { workload: app.clone(), namespace: namespace.to_owned(), app, version }
    }

    fn labels(&self) -> String {
        let revision = if self.version == UNKNOWN { "latest" } else { &self.version };
        joined([
            // A gateway reports as the source, and a source does not know how the connection was
            // secured.
            ("reporter", "source"),
            ("connection_security_policy", UNKNOWN),
            ("source_workload", &self.workload),
            ("source_workload_namespace", &self.namespace),
            ("source_principal", UNKNOWN),
            ("source_app", &self.app),
            ("source_version", &self.version),
            ("source_canonical_service", &self.app),
            ("source_canonical_revision", revision),
            ("source_cluster", "Kubernetes"),
        ])
    }
}

/// What Istio says of what is not known.
const UNKNOWN: &str = "unknown";

/// All that the workers tell. `others` are counters of threads that are no workers, such as the
/// writer of the access log.
#[must_use]
pub fn render(
    workers: &[SharedCounters],
    others: &[SharedCounters],
    series: &Series,
    reporter: &Reporter,
) -> Page {
    let mut page = Page::default();
    page.counters(workers, others);
    page.series(series, reporter);
    page.tcp(series, reporter);
    page
}

impl Page {
    /// Adds a gauge; `samples` are label sets, as [`label`] makes them, and values.
    pub fn gauge<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        self.head(name, "gauge", help);
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    /// The page as it is sent.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    fn counters(&mut self, workers: &[SharedCounters], others: &[SharedCounters]) {
        let mut last = "";
        let columns: Vec<Vec<u64>> = workers.iter().chain(others).map(|c| values(c)).collect();
        for (row, (number, _)) in Counters::default().each().enumerate() {
            let values = columns.iter().map(|column| column[row]);
            if number.name != last {
                self.head(number.name, type_name(number.kind), number.help);
                last = number.name;
            }
            match number.kind {
                Kind::Counter | Kind::Gauge => {
                    self.sample(number.name, number.label, values.sum::<u64>());
                }
                Kind::WorkerCounter | Kind::WorkerGauge => {
                    for (worker, value) in values.take(workers.len()).enumerate() {
                        self.sample(number.name, &format!("worker=\"{worker}\""), value);
                    }
                }
            }
        }
    }

    fn series(&mut self, series: &Series, reporter: &Reporter) {
        let rows = rows(series, &reporter.labels());
        for (name, help, count) in COUNTS {
            self.head(name, "counter", help);
            for row in rows.iter().filter(|row| row.is_grpc || !name.contains("_messages_")) {
                self.sample(name, &row.labels, count(row.sample));
            }
        }
        for (name, help, histogram) in HISTOGRAMS {
            self.head(name, "histogram", help);
            for row in &rows {
                self.histogram(name, &row.labels, histogram(row.sample));
            }
        }
    }

    fn tcp(&mut self, series: &Series, reporter: &Reporter) {
        type Column = (&'static str, &'static str, fn(&TcpSample) -> u64);
        const COLUMNS: [Column; 4] = [
            ("istio_tcp_connections_opened_total", "TCP connections opened.", |s| s.opened),
            ("istio_tcp_connections_closed_total", "TCP connections closed.", |s| s.closed),
            ("istio_tcp_received_bytes_total", "Bytes that TCP clients sent.", |s| s.received),
            ("istio_tcp_sent_bytes_total", "Bytes that TCP clients were sent.", |s| s.sent),
        ];
        let reporter = reporter.labels();
        let labels =
            |service: &str, flags: Flags| format!("{reporter},{}", tcp_labels(service, flags));
        let rows = series.tcp.iter();
        let rows: Vec<_> =
            rows.map(|((service, flags), sample)| (labels(service, *flags), sample)).collect();
        for (name, help, value) in COLUMNS {
            self.head(name, "counter", help);
            for (labels, sample) in &rows {
                self.sample(name, labels, value(sample));
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, n) in BOUNDS.iter().zip(histogram.buckets) {
            count += n;
            let bound = decimal(*bound);
            self.sample(&bucket, &format!("{labels},le=\"{bound}\""), count);
        }
        self.sample(&bucket, &format!("{labels},le=\"+Inf\""), histogram.count());
        self.sample(&format!("{name}_sum"), labels, decimal(histogram.sum_thousandths));
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }

    fn head(&mut self, name: &str, type_name: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {type_name}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{labels}}} {value}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a string does not fail");
    }
}

/// `name="value"`, escaped. Several are joined by commas.
#[must_use]
pub fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

fn values(counters: &Counters) -> Vec<u64> {
    counters.each().map(|(_, value)| value).collect()
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter | Kind::WorkerCounter => "counter",
        Kind::Gauge | Kind::WorkerGauge => "gauge",
    }
}

/// Name, help, and what a sample has of it.
type Counted = (&'static str, &'static str, fn(&Sample) -> u64);
type Spread = (&'static str, &'static str, fn(&Sample) -> &Histogram);

/// The counters of a series.
const COUNTS: [Counted; 3] = [
    ("istio_requests_total", "Requests by destination, status and what went wrong.", Sample::count),
    ("istio_request_messages_total", "Messages that gRPC clients have sent.", |sample| {
        sample.request_messages
    }),
    ("istio_response_messages_total", "Messages that gRPC clients have got.", |sample| {
        sample.response_messages
    }),
];

/// Its histograms.
const HISTOGRAMS: [Spread; 3] = [
    (
        "istio_request_duration_milliseconds",
        "Time from a request's first byte to its response's last.",
        |sample| &sample.durations,
    ),
    ("istio_request_bytes", "Bytes of requests' bodies.", |sample| &sample.request_sizes),
    ("istio_response_bytes", "Bytes of responses' bodies.", |sample| &sample.response_sizes),
];

/// A series with its labels.
struct Row<'a> {
    labels: String,
    is_grpc: bool,
    sample: &'a Sample,
}

/// Sorted by labels, so that two scrapes can be compared; what found no room stands last.
fn rows<'a>(series: &'a Series, reporter: &str) -> Vec<Row<'a>> {
    let row = |(service, outcome, sample): (&str, &Outcome, &'a Sample)| Row {
        labels: format!("{reporter},{}", labels(service, outcome)),
        is_grpc: outcome.grpc.is_some(),
        sample,
    };
    let all = series.services.iter().flat_map(|(service, samples)| {
        samples.iter().map(|(outcome, sample)| (&**service, outcome, sample))
    });
    let mut rows: Vec<_> = all.map(row).collect();
    rows.sort_by(|left, right| left.labels.cmp(&right.labels));
    rows.extend(series.other.as_ref().map(|sample| {
        let labels = format!("{reporter},{}", destination("other", "other", "other", "", "other"));
        Row { labels, is_grpc: true, sample }
    }));
    rows
}

fn labels(service: &str, outcome: &Outcome) -> String {
    let service = if service.is_empty() { UNKNOWN } else { service };
    let (status, flags) = (outcome.status.to_string(), outcome.flags.to_string());
    let protocol = if outcome.grpc.is_some() { "grpc" } else { "http" };
    let grpc_status = outcome.grpc.flatten().map(|status| status.to_string()).unwrap_or_default();
    destination(service, &status, &flags, &grpc_status, protocol)
}

/// Istio's labels of where a request went and what became of it.
fn destination(
    service: &str,
    status: &str,
    flags: &str,
    grpc_status: &str,
    protocol: &str,
) -> String {
    let outcome = joined([
        ("request_protocol", protocol),
        ("response_code", status),
        ("grpc_response_status", grpc_status),
        ("response_flags", flags),
    ]);
    format!("{},{outcome}", place(service))
}

/// Istio's labels of where a connection went that is not HTTP, and what became of it.
fn tcp_labels(service: &str, flags: Flags) -> String {
    let service = if service.is_empty() { UNKNOWN } else { service };
    let flags = flags.to_string();
    let outcome = joined([("request_protocol", "tcp"), ("response_flags", &flags)]);
    format!("{},{outcome}", place(service))
}

/// Where something went. Pods do not tell the gateway to which workload they belong.
fn place(service: &str) -> String {
    let (name, namespace) = name_and_namespace(service);
    joined([
        ("destination_service", service),
        ("destination_service_name", name),
        ("destination_service_namespace", namespace),
        ("destination_workload", UNKNOWN),
        ("destination_workload_namespace", UNKNOWN),
        ("destination_principal", UNKNOWN),
        ("destination_app", UNKNOWN),
        ("destination_version", UNKNOWN),
        ("destination_canonical_service", UNKNOWN),
        ("destination_canonical_revision", UNKNOWN),
        ("destination_cluster", UNKNOWN),
    ])
}

fn joined<const N: usize>(labels: [(&str, &str); N]) -> String {
    labels.map(|(name, value)| label(name, value)).join(",")
}

/// `httpbin` and `default` of `httpbin.default.svc.cluster.local`; any other host is a name of its
/// own in no known namespace.
fn name_and_namespace(service: &str) -> (&str, &str) {
    let mut parts = service.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name, namespace),
        _ => (service, UNKNOWN),
    }
}

/// Thousandths as a decimal number.
fn decimal(thousandths: u64) -> String {
    let (whole, part) = (thousandths / 1_000, thousandths % 1_000);
    if part == 0 {
        return whole.to_string();
    }
    let text = format!("{whole}.{part:03}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::request::{Grpc, Record};
    use std::collections::HashSet;
    use std::time::{Duration, UNIX_EPOCH};

    /// A sample's name, labels and value.
    type Parsed = (String, Vec<(String, String)>, f64);

    /// Every sample; panics where the text is not the format.
    fn parse(text: &str) -> Vec<Parsed> {
        let mut typed = HashSet::new();
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(typed.insert(name.to_owned()), "{name} is typed twice");
            } else if !line.starts_with("# HELP ") {
                samples.push(parse_sample(line));
            }
        }
        for (name, ..) in &samples {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            assert!(typed.contains(name) || typed.contains(family.unwrap()), "{name}");
        }
        samples
    }

    fn parse_sample(line: &str) -> Parsed {
        let end = line.find(['{', ' ']).unwrap();
        let mut rest = line[end..].trim_start_matches('{');
        let mut labels = Vec::new();
        while let Some((name, value)) = rest.split_once("=\"") {
            let close = closing_quote(value);
            labels.push((name.trim_start_matches(',').to_owned(), unescape(&value[..close])));
            rest = &value[close + 1..];
        }
        let value = rest.trim_start_matches('}').trim().parse().unwrap();
        (line[..end].to_owned(), labels, value)
    }

    fn closing_quote(text: &str) -> usize {
        let mut escaped = false;
        text.find(|c| {
            let closing = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closing
        })
        .unwrap()
    }

    fn unescape(text: &str) -> String {
        text.replace("\\n", "\n").replace("\\\"", "\"").replace("\\\\", "\\")
    }

    fn value(text: &str, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let has = |labels: &[(String, String)], (name, value): &(&str, &str)| {
            labels.iter().any(|(n, v)| n == name && v == value)
        };
        let samples = parse(text);
        let mut found = samples
            .iter()
            .filter(|(n, labels, _)| n == name && wanted.iter().all(|label| has(labels, label)));
        let value = found.next().unwrap().2;
        assert!(found.next().is_none(), "{name} {wanted:?} is there twice");
        value
    }

    fn reporter() -> Reporter {
        let label = |name: &str| (name == "istio").then_some("ingressgateway");
        Reporter::new("istio-system", label)
    }

    #[test]
    fn workers_are_summed_or_shown_one_by_one() {
        let workers = [Counters::shared(), Counters::shared()];
        let writer = Counters::shared();
        workers[0].requests.add(2);
        workers[1].requests.add(3);
        workers[1].responses_5xx.increment();
        workers[1].generation.set(7);
        writer.log_bytes.add(9);
        let text = render(&workers, &[writer], &Series::default(), &reporter()).into_text();
        assert_eq!(value(&text, "envoy_http_downstream_rq_total", &[]), 5.0);
        let class = [("envoy_response_code_class", "5")];
        assert_eq!(value(&text, "envoy_http_downstream_rq_xx", &class), 1.0);
        assert_eq!(value(&text, "ringgate_worker_generation", &[("worker", "1")]), 7.0);
        assert_eq!(value(&text, "ringgate_access_log_bytes_total", &[]), 9.0);
        assert!(!text.contains("worker=\"2\""), "the writer is no worker");
    }

    #[test]
    fn requests_by_destination() {
        let mut series = Series::default();
        for (status, flags) in [(418, Flags::NONE), (418, Flags::NONE), (503, Flags::NO_CLUSTER)] {
            series.record(&Record {
                upstream_service: "httpbin.default.svc.cluster.local",
                status,
                flags,
                duration: Duration::from_micros(1_250),
                ..Record::new(UNIX_EPOCH)
            });
        }
        series.record(&Record { status: 404, ..Record::new(UNIX_EPOCH) });
        let text = render(&[], &[], &series, &reporter()).into_text();
        let teapot = [
            ("destination_service_name", "httpbin"),
            ("destination_service_namespace", "default"),
            ("response_code", "418"),
            ("response_flags", "-"),
            ("request_protocol", "http"),
            ("reporter", "source"),
        ];
        assert_eq!(value(&text, "istio_requests_total", &teapot), 2.0);
        let unknown = [("destination_service", "unknown"), ("response_code", "404")];
        assert_eq!(value(&text, "istio_requests_total", &unknown), 1.0);
        let name = "istio_request_duration_milliseconds";
        assert_eq!(value(&text, &format!("{name}_sum"), &teapot), 2.5);
        assert_eq!(value(&text, &format!("{name}_count"), &teapot), 2.0);
        for (bound, count) in [("0.5", 0.0), ("1", 0.0), ("5", 2.0), ("+Inf", 2.0)] {
            let bucket = [&teapot[..], &[("le", bound)]].concat();
            assert_eq!(value(&text, &format!("{name}_bucket"), &bucket), count, "le {bound}");
        }
    }

    #[test]
    fn sizes_and_messages_are_counted() {
        let mut series = Series::default();
        let call = Grpc { status: Some(5), request_messages: 1, response_messages: 7 };
        series.record(&Record {
            bytes_received: 20,
            bytes_sent: 3_000,
            status: 200,
            grpc: Some(call),
            ..Record::new(UNIX_EPOCH)
        });
        series.record(&Record { status: 200, ..Record::new(UNIX_EPOCH) });
        let text = render(&[], &[], &series, &reporter()).into_text();
        let grpc = [("request_protocol", "grpc"), ("grpc_response_status", "5")];
        assert_eq!(value(&text, "istio_request_messages_total", &grpc), 1.0);
        assert_eq!(value(&text, "istio_response_messages_total", &grpc), 7.0);
        assert_eq!(text.matches("istio_request_messages_total{").count(), 1, "of gRPC alone");
        let up_to = |name: &str, bound| value(&text, name, &[&grpc[..], &[("le", bound)]].concat());
        assert_eq!(up_to("istio_request_bytes_bucket", "10"), 0.0);
        assert_eq!(up_to("istio_request_bytes_bucket", "25"), 1.0);
        assert_eq!(up_to("istio_response_bytes_bucket", "2500"), 0.0);
        assert_eq!(up_to("istio_response_bytes_bucket", "5000"), 1.0);
        assert_eq!(value(&text, "istio_response_bytes_sum", &grpc), 3_000.0);
        let http = [("request_protocol", "http"), ("grpc_response_status", "")];
        assert_eq!(value(&text, "istio_response_bytes_sum", &http), 0.0);
    }

    #[test]
    fn the_labels_are_those_of_istio() {
        let mut series = Series::default();
        series.record(&Record { status: 200, ..Record::new(UNIX_EPOCH) });
        let text = render(&[], &[], &series, &reporter()).into_text();
        let samples = parse(&text);
        let (_, labels, _) = samples.iter().find(|(n, ..)| n == "istio_requests_total").unwrap();
        let mut names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let expected = "connection_security_policy destination_app destination_canonical_revision \
            destination_canonical_service destination_cluster destination_principal \
            destination_service destination_service_name destination_service_namespace \
            destination_version destination_workload destination_workload_namespace \
            grpc_response_status reporter request_protocol response_code response_flags source_app \
            source_canonical_revision source_canonical_service source_cluster source_principal \
            source_version source_workload source_workload_namespace";
        assert_eq!(names.join(" "), expected);
        let has = |name: &str, value: &str| labels.iter().any(|(n, v)| n == name && v == value);
        assert!(has("source_workload", "istio-ingressgateway"));
        assert!(has("source_workload_namespace", "istio-system"));
        assert!(has("source_canonical_revision", "latest"));
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        let hostile = "a\"b\nc";
        page.gauge("x", "help\nhelp", [(label("l", hostile), 1)]);
        let text = page.into_text();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(parse(&text), [("x".to_owned(), vec![("l".into(), hostile.into())], 1.0)]);
        assert_eq!(label("l", "\\"), "l=\"\\\\\"");
    }
}
