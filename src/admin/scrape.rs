//! Collects the metrics of all workers, and adds what the administration itself knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use super::{State, certs};
use crate::snapshot::{Certificate, CertificateState, Severity, Snapshot};
use crate::telemetry::prometheus::{self, Page, Reporter, label};
use crate::telemetry::{Series, SharedCounters};

/// How long the workers may take to send their copies. A worker that is alive needs a loop turn.
const PATIENCE: Duration = Duration::from_secs(1);

/// Certificates that are named one by one: there may be tens of thousands.
const CERTIFICATES_NAMED_MAX: usize = 100;

/// Remembers what each worker sent last: a worker that is late must not make counters fall.
pub(super) struct Scraper {
    last: RefCell<Vec<Arc<Series>>>,
}

/// All that a page is made of.
pub(super) struct Scraped {
    workers: Vec<SharedCounters>,
    drivers: BTreeMap<(&'static str, &'static str), usize>,
    others: Vec<SharedCounters>,
    /// One for each worker.
    series: Vec<Arc<Series>>,
    late: usize,
    reporter: Reporter,
    snapshot: Arc<Snapshot>,
    version: &'static str,
    is_live: bool,
    started: SystemTime,
    now: SystemTime,
}

impl Scraper {
    pub(super) fn new(workers: usize) -> Self {
        Self { last: RefCell::new(vec![Arc::default(); workers]) }
    }

    /// Asks the workers.
    pub(super) async fn scrape(&self, state: &State) -> Scraped {
        let came = self.collect((state.scrape)()).await;
        let now = SystemTime::now();
        Scraped {
            workers: state.workers.clone(),
            drivers: state.drivers.clone(),
            others: state.others.clone(),
            series: self.last.borrow().clone(),
            late: state.workers.len().saturating_sub(came),
            reporter: (state.reporter)(),
            snapshot: (state.snapshot)(),
            version: state.version,
            is_live: state.ready(now).ready,
            started: state.started,
            now,
        }
    }

    /// Takes copies until the channel closes or patience ends; tells how many came.
    async fn collect(&self, mut copies: mpsc::Receiver<(usize, Series)>) -> usize {
        let mut came = 0;
        let receiving = async {
            while let Some((worker, series)) = copies.recv().await {
                if let Some(last) = self.last.borrow_mut().get_mut(worker) {
                    *last = Arc::new(series);
                    came += 1;
                }
            }
        };
        // Late or not, what came is used.
        let _ = tokio::time::timeout(PATIENCE, receiving).await;
        came
    }
}

impl Scraped {
    /// The page for Prometheus. Takes long where there are many series.
    pub(super) fn render(&self) -> String {
        let mut merged = Series::default();
        for series in &self.series {
            merged.merge(Series::clone(series));
        }
        let mut page = prometheus::render(&self.workers, &self.others, &merged, &self.reporter);
        let help = "Workers whose copy did not come in time; their last one was used.";
        page.gauge("ringgate_scrape_workers_late", help, [(String::new(), self.late)]);
        let help = "Workers by their driver, and what denied them io_uring.";
        let drivers = self.drivers.iter().map(|((driver, denied), workers)| {
            ([label("driver", driver), label("denied", denied)].join(","), *workers)
        });
        page.gauge("ringgate_workers", help, drivers);
        self.add_state(&mut page);
        add_snapshot(&mut page, &self.snapshot, self.now);
        page.into_text()
    }

    fn add_state(&self, page: &mut Page) {
        let build = [label("component", "proxy"), label("tag", self.version)].join(",");
        page.gauge("istio_build", "Always 1; the version is in the label.", [(build, 1)]);
        let live = u8::from(self.is_live);
        page.gauge("envoy_server_live", "1 when traffic can come.", [(String::new(), live)]);
        let uptime = self.now.duration_since(self.started).unwrap_or_default().as_secs();
        page.gauge("envoy_server_uptime", "Seconds since the start.", [(String::new(), uptime)]);
    }
}

fn add_snapshot(page: &mut Page, snapshot: &Snapshot, now: SystemTime) {
    let help = "Generation of the newest configuration.";
    page.gauge("ringgate_generation", help, [(String::new(), snapshot.generation)]);
    let rejected = |severity| {
        let count = snapshot.rejections.iter().filter(|found| found.severity == severity).count();
        (label("severity", &format!("{severity}")), count)
    };
    let help = "Findings about the resources of the newest configuration.";
    let samples = [Severity::Error, Severity::Warning].map(rejected);
    page.gauge("pilot_total_rejected_configs", help, samples);
    let (missing, first) = certificates(snapshot);
    let help = "Certificates that a Gateway or a DestinationRule names and that cannot be used.";
    page.gauge("ringgate_certificates_missing", help, [(String::new(), missing)]);
    let help = "Whole days until the first certificate expires.";
    let days = first.map(|first| (String::new(), certs::days_until(first, now)));
    page.gauge("envoy_server_days_until_first_cert_expiring", help, days);
    name_certificates(page, snapshot);
}

/// Says which certificates are missing and why, and when the first of the others expire.
fn name_certificates(page: &mut Page, snapshot: &Snapshot) {
    let (mut missing, mut served) = (BTreeSet::new(), BTreeSet::new());
    for certificate in &snapshot.certificates {
        let source = label("source", &certificate.source);
        match &*certificate.state {
            CertificateState::Missing { reason } => {
                missing.insert([source, label("reason", reason)].join(","));
            }
            CertificateState::Ready(info) => {
                let expires = info.expires.duration_since(SystemTime::UNIX_EPOCH);
                let labels = [source, label("serial", &info.serial)].join(",");
                served.insert((expires.unwrap_or_default().as_secs(), labels));
            }
            CertificateState::Unneeded => {}
        }
    }
    let help = "Always 1; a certificate that cannot be served, and why. The first 100.";
    let samples = missing.into_iter().take(CERTIFICATES_NAMED_MAX).map(|labels| (labels, 1));
    page.gauge("ringgate_certificate_missing_info", help, samples);
    let help = "When a certificate expires, in seconds since 1970. The 100 that expire first.";
    let samples = served.into_iter().take(CERTIFICATES_NAMED_MAX);
    let samples = samples.map(|(expires, labels)| (labels, expires));
    page.gauge("ringgate_certificate_expiration_timestamp_seconds", help, samples);
}

/// How many are missing, and when the first of the others expires; those that vouch for clients
/// count, too.
fn certificates(snapshot: &Snapshot) -> (usize, Option<SystemTime>) {
    let all = || snapshot.certificates.iter();
    let served = all().filter_map(|certificate| match &*certificate.state {
        CertificateState::Ready(info) => Some(info.expires),
        CertificateState::Missing { .. } | CertificateState::Unneeded => None,
    });
    let is_missing = |certificate: &&Arc<Certificate>| {
        matches!(&*certificate.state, CertificateState::Missing { .. })
    };
    let missing = all().filter(is_missing).count();
    let authorities =
        all().flat_map(|certificate| &certificate.client_ca).map(|ca| ca.info.expires);
    (missing, served.chain(authorities).min())
}
