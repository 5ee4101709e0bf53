//! `connectionPool` of a policy. A limit of 0 is none, as in Istio.

use std::time::Duration;

use crate::config::model::fields::{Field, Fields, Problems};
use crate::snapshot::{Keepalive, Pings, PoolLimits, ProtocolChoice};

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<PoolLimits> {
    let mut fields = field.fields(problems)?;
    let (tcp, http) = (fields.take("tcp"), fields.take("http"));
    if tcp.is_none() && http.is_none() {
        problems.error(field, "needs `tcp` or `http`", "");
    }
    let mut limits = PoolLimits::default();
    if let Some(tcp) = tcp {
        read_tcp(&tcp, &mut limits, problems);
    }
    if let Some(http) = http {
        read_http(&http, &mut limits, problems);
    }
    fields.finish(problems);
    Some(limits)
}

fn read_tcp(field: &Field<'_>, limits: &mut PoolLimits, problems: &mut Problems) {
    let Some(mut tcp) = field.fields(problems) else { return };
    limits.connections_max = count(&mut tcp, "maxConnections", problems);
    limits.connect_timeout = duration(&mut tcp, "connectTimeout", problems);
    limits.connection_age_max = duration(&mut tcp, "maxConnectionDuration", problems);
    limits.tcp_idle_timeout =
        tcp.take("idleTimeout").and_then(|idle| idle.duration_or_zero(problems));
    let keepalive = tcp.take("tcpKeepalive");
    limits.keepalive = keepalive.and_then(|field| read_keepalive(&field, problems));
    tcp.finish(problems);
}

fn read_keepalive(field: &Field<'_>, problems: &mut Problems) -> Option<Keepalive> {
    let mut fields = field.fields(problems)?;
    let keepalive = Keepalive {
        probes: count(&mut fields, "probes", problems),
        time: duration(&mut fields, "time", problems),
        interval: duration(&mut fields, "interval", problems),
    };
    fields.finish(problems);
    Some(keepalive)
}

fn read_http(field: &Field<'_>, limits: &mut PoolLimits, problems: &mut Problems) {
    let Some(mut http) = field.fields(problems) else { return };
    limits.pending_max = count(&mut http, "http1MaxPendingRequests", problems);
    limits.requests_max = count(&mut http, "http2MaxRequests", problems);
    limits.requests_per_connection_max = count(&mut http, "maxRequestsPerConnection", problems);
    limits.retries_max = count(&mut http, "maxRetries", problems);
    limits.idle_timeout = duration(&mut http, "idleTimeout", problems);
    limits.streams_max = count(&mut http, "maxConcurrentStreams", problems);
    limits.pings = http.take("http2KeepAlive").and_then(|field| read_pings(&field, problems));
    let policies = [("DEFAULT", false), ("DO_NOT_UPGRADE", false), ("UPGRADE", true)];
    let upgrade = http.take("h2UpgradePolicy").and_then(|f| f.one_of(&policies, problems));
    let client = http.take("useClientProtocol");
    let of_client = client.as_ref().and_then(|field| field.boolean(problems));
    limits.protocol = match (upgrade.unwrap_or_default(), of_client.unwrap_or_default()) {
        (false, false) => ProtocolChoice::OfPort,
        (true, false) => ProtocolChoice::Http2,
        (false, true) => ProtocolChoice::OfClient,
        (true, true) => {
            let field = client.as_ref().unwrap_or(field);
            problems.error(field, "must not be true beside `h2UpgradePolicy: UPGRADE`", "");
            ProtocolChoice::OfPort
        }
    };
    http.finish(problems);
}

fn read_pings(field: &Field<'_>, problems: &mut Problems) -> Option<Pings> {
    let mut pings = field.fields(problems)?;
    let mut time = |name| pings.require(name, problems).and_then(|field| field.duration(problems));
    let (interval, timeout) = (time("interval"), time("timeout"));
    pings.finish(problems);
    Some(Pings { interval: interval?, timeout: timeout? })
}

fn count(fields: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<u32> {
    let number = fields.take(name)?.integer(0..=i32::MAX, problems)?;
    u32::try_from(number).ok().filter(|number| *number > 0)
}

fn duration(
    fields: &mut Fields<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Duration> {
    fields.take(name)?.duration(problems)
}
