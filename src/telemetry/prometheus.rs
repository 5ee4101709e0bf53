//! Prometheus' text format, version 0.0.4.
//!
//! Deliberately not here: the numbers that are no worker's; whoever renders adds them with
//! [`Page::gauge`].

use std::fmt::{Display, Write};

use super::counters::{Counters, Kind, SharedCounters};
use super::series::{BOUNDS, Outcome, Sample, Series};

/// The value of `content-type` for a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics under way. Each name may be added only once.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

/// All that the workers tell. `others` are counters of threads that are no workers, such as the
/// writer of the access log.
#[must_use]
pub fn render(workers: &[SharedCounters], others: &[SharedCounters], series: &Series) -> Page {
    let mut page = Page::default();
    page.counters(workers, others);
    page.series(series);
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

    fn series(&mut self, series: &Series) {
        let rows = rows(series);
        let name = "istio_requests_total";
        self.head(name, "counter", "Requests by destination, status and what went wrong.");
        for (labels, sample) in &rows {
            self.sample(name, labels, sample.count());
        }
        let name = "istio_request_duration_milliseconds";
        self.head(name, "histogram", "Time from a request's first byte to its response's last.");
        for (labels, sample) in &rows {
            self.histogram(name, labels, sample);
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, sample: &Sample) {
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, n) in BOUNDS.iter().zip(sample.buckets) {
            count += n;
            let bound = milliseconds(*bound);
            self.sample(&bucket, &format!("{labels},le=\"{bound}\""), count);
        }
        self.sample(&bucket, &format!("{labels},le=\"+Inf\""), sample.count());
        self.sample(&format!("{name}_sum"), labels, milliseconds(sample.sum_microseconds));
        self.sample(&format!("{name}_count"), labels, sample.count());
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

/// Sorted by labels, so that two scrapes can be compared; what found no room stands last.
fn rows(series: &Series) -> Vec<(String, &Sample)> {
    let mut rows: Vec<_> = series
        .services
        .iter()
        .flat_map(|(service, samples)| {
            samples.iter().map(|(outcome, sample)| (labels(service, outcome), sample))
        })
        .collect();
    rows.sort_by(|(left, _), (right, _)| left.cmp(right));
    rows.extend(series.other.as_ref().map(|sample| (joined("other", "other", "other"), sample)));
    rows
}

fn labels(service: &str, outcome: &Outcome) -> String {
    let service = if service.is_empty() { "unknown" } else { service };
    let labels = joined(service, &outcome.status.to_string(), &outcome.flags.to_string());
    let protocol = if outcome.grpc { "grpc" } else { "http" };
    format!("{labels},{}", label("request_protocol", protocol))
}

/// Istio's labels of a request. A gateway reports as the source, and a source does not know how
/// the connection was secured.
fn joined(service: &str, status: &str, flags: &str) -> String {
    let (name, namespace) = name_and_namespace(service);
    [
        label("reporter", "source"),
        label("destination_service", service),
        label("destination_service_name", name),
        label("destination_service_namespace", namespace),
        label("connection_security_policy", "unknown"),
        label("response_code", status),
        label("response_flags", flags),
    ]
    .join(",")
}

/// `httpbin` and `default` of `httpbin.default.svc.cluster.local`; any other host is a name of its
/// own in no known namespace.
fn name_and_namespace(service: &str) -> (&str, &str) {
    let mut parts = service.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name, namespace),
        _ => (service, "unknown"),
    }
}

/// Microseconds as a decimal number of milliseconds.
fn milliseconds(microseconds: u64) -> String {
    let (whole, part) = (microseconds / 1_000, microseconds % 1_000);
    if part == 0 {
        return whole.to_string();
    }
    let text = format!("{whole}.{part:03}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::request::{Flags, Record};
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

    #[test]
    fn workers_are_summed_or_shown_one_by_one() {
        let workers = [Counters::shared(), Counters::shared()];
        let writer = Counters::shared();
        workers[0].requests.add(2);
        workers[1].requests.add(3);
        workers[1].responses_5xx.increment();
        workers[1].generation.set(7);
        writer.log_bytes.add(9);
        let text = render(&workers, &[writer], &Series::default()).into_text();
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
        let text = render(&[], &[], &series).into_text();
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
