//! Whether a measurement is of what the scenario is about.
//!
//! - What the backend saw has to fit it.
//! - A latency has to be the gateway's, not that of a machine with other things to do.

use std::io;

use crate::backend::Counters;
use crate::certificate::Authority;
use crate::measure::Figures;
use crate::peer::{Gateway, Kind, Peer, Site};
use crate::scenario::{Figure, Scenario, Setup};

/// A share of the requests that is too small to tell how they are spread.
const TOO_FEW: u64 = 1_000;

/// The generator's own part of a latency that is too large.
const LATE: u32 = 4;
/// Share of the gateway's CPU that others have. Up to a half of it are interrupts, and what it takes to
/// wake the CPU, for tens of thousands of requests a second on a machine that does nothing else.
const OTHERS_BUSY: f64 = 0.05;

/// Where the backend's certificate is to be checked, starts the gateway with an authority that did
/// not sign it.
///
/// # Errors
/// The gateway forwards nevertheless, or does not start.
pub(crate) fn refuses_strangers(
    peer: &Peer,
    site: &Site<'_>,
    authority: &Authority,
) -> io::Result<()> {
    let stranger = Site { ca: &authority.stranger, ..*site };
    if site.scenario.setup != Setup::BackendTls || Gateway::refuses(peer, &stranger)? {
        return Ok(());
    }
    Err(io::Error::other("forwards to a backend whose certificate nobody vouches for"))
}

/// What the backend saw that does not fit `scenario`, if anything.
pub(crate) fn mismatch(scenario: &Scenario, kind: Kind, seen: &Counters) -> Option<String> {
    let setup = scenario.setup;
    let is_proxy = !setup.is_relay() && kind != Kind::Relay;
    let expected = |holds: bool| if holds { seen.requests } else { 0 };
    let counts = [
        ("a proxy's header", seen.forwarded, is_proxy),
        ("TLS", seen.tls, matches!(setup, Setup::BackendTls | Setup::Passthrough)),
        ("HTTP/2", seen.http2, setup == Setup::BackendH2),
    ];
    let wrong = counts.into_iter().find(|(_, count, holds)| *count != expected(*holds));
    if let Some((what, count, _)) = wrong {
        return Some(format!("{count} of {} requests came with {what}", seen.requests));
    }
    spread_fault(setup, seen)
}

fn spread_fault(setup: Setup, seen: &Counters) -> Option<String> {
    let (all, ports) = (seen.requests, seen.ports);
    let least = ports.iter().copied().min().unwrap_or(0);
    let even = all / ports.len() as u64;
    let fits = match setup {
        Setup::Plain | Setup::Tcp => ports[0] == all,
        Setup::Routes => ports[ports.len() - 1] == all,
        Setup::BackendTls | Setup::BackendH2 | Setup::Passthrough => ports.iter().sum::<u64>() == 0,
        Setup::Balanced => all < TOO_FEW || least * 2 > even,
        // Consistent hashes are not even, but no endpoint is left out.
        Setup::Hashed => seen.strays == 0 && (all < TOO_FEW || least * 10 > even),
    };
    let strays = seen.strays;
    let fault =
        || format!("the endpoints got {ports:?} requests, {strays} of them at a second one");
    (!fits).then(fault)
}

/// What else than the gateway made the latencies that `scenario` is about, if anything.
pub(crate) fn disturbance(scenario: &Scenario, figures: &Figures) -> Option<String> {
    let Figures { others_busy, generator_late, latency, .. } = figures;
    if scenario.figure != Figure::Tail {
        return None;
    }
    if *generator_late * LATE > latency.p99 {
        let (late, p99) = (generator_late.as_micros(), latency.p99.as_micros());
        return Some(format!("disturbed: {late} of {p99} us are the generator's, which was late"));
    }
    let percent = 100.0 * others_busy;
    (*others_busy > OTHERS_BUSY)
        .then(|| format!("disturbed: others had {percent:.0} % of the gateway's CPU"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;
    use crate::statistics::Latency;
    use std::time::Duration;

    fn fault(name: &str, kind: Kind, change: impl FnOnce(&mut Counters)) -> Option<String> {
        let scenario = scenario::by_name(name).unwrap();
        let mut seen = Counters { requests: 16_000, forwarded: 16_000, ..Counters::default() };
        change(&mut seen);
        mismatch(scenario, kind, &seen)
    }

    #[test]
    fn what_fits_has_no_fault() {
        let even = [1_000; 16];
        let only =
            |port: usize| std::array::from_fn(|index| if index == port { 16_000 } else { 0 });
        for (name, kind, ports, forwarded, tls, http2) in [
            ("small-h1", Kind::Nginx, only(0), 16_000, 0, 0),
            ("small-h1", Kind::Relay, only(0), 0, 0, 0),
            ("backend-tls", Kind::Nginx, [0; 16], 16_000, 16_000, 0),
            ("backend-h2", Kind::Envoy, [0; 16], 16_000, 0, 16_000),
            ("balanced", Kind::Haproxy, even, 16_000, 0, 0),
            ("hashed", Kind::Haproxy, even, 16_000, 0, 0),
            ("routes", Kind::Envoy, only(15), 16_000, 0, 0),
            ("tcp", Kind::Envoy, only(0), 0, 0, 0),
            ("passthrough", Kind::Relay, [0; 16], 0, 16_000, 0),
        ] {
            let set = |seen: &mut Counters| {
                *seen = Counters { ports, forwarded, tls, http2, ..*seen };
            };
            assert_eq!(fault(name, kind, set), None, "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let kind = Kind::Nginx;
        let uneven = |seen: &mut Counters| {
            seen.ports = [1_050; 16];
            seen.ports[3] = 250;
        };
        for (fault, said) in [
            (fault("tcp", kind, |_| {}), "16000 of 16000 requests came with a proxy's header"),
            (fault("small-h1", kind, |seen| seen.forwarded = 5), "5 of 16000 requests came with a"),
            (fault("backend-tls", kind, |seen| seen.tls = 15_999), "15999 of 16000 requests"),
            (fault("backend-h2", kind, |_| {}), "0 of 16000 requests came with HTTP/2"),
            (fault("routes", kind, |seen| seen.ports[0] = 16_000), "got [16000, 0,"),
            (fault("balanced", kind, uneven), "got [1050, 1050, 1050, 250,"),
            (fault("hashed", kind, |seen| seen.ports[1] = 16_000), "got [0, 16000, 0"),
            (
                fault("hashed", kind, |seen| (seen.ports, seen.strays) = ([1_000; 16], 3)),
                "3 of them at a second one",
            ),
        ] {
            assert!(fault.as_ref().is_some_and(|fault| fault.contains(said)), "{fault:?}: {said}");
        }
    }

    #[test]
    fn latencies_that_are_not_the_gateways_are_told() {
        let latency = Latency { p99: Duration::from_micros(400), ..Latency::default() };
        let fault = |name: &str, others_busy: f64, late: u64| {
            let generator_late = Duration::from_micros(late);
            let figures = Figures { latency, others_busy, generator_late, ..Figures::default() };
            disturbance(scenario::by_name(name).unwrap(), &figures)
        };
        assert_eq!(fault("latency", 0.05, 100), None);
        assert_eq!(fault("small-h1", 0.9, 0), None);
        let others = "disturbed: others had 30 % of the gateway's CPU";
        assert_eq!(fault("connections-1", 0.3, 0).as_deref(), Some(others));
        let late = "disturbed: 101 of 400 us are the generator's, which was late";
        assert_eq!(fault("latency", 0.0, 101).as_deref(), Some(late));
    }
}
