//! `/certs`: every certificate that a Gateway or a DestinationRule names, those that vouch for
//! clients and backends among them, in Envoy's shape; and what is missing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::snapshot::{Certificate, CertificateInfo, CertificateState};
use crate::telemetry::rfc3339;

const SECONDS_PER_DAY: u64 = 86_400;

/// Envoy's `certificates` and, beside it, `missing` with the reasons. Numbers are strings, as
/// protobuf's JSON has 64-bit ones.
pub(super) fn dump(all: &[Arc<Certificate>], now: SystemTime) -> Value {
    let ready: Vec<_> = all.iter().filter_map(|certificate| ready(certificate, now)).collect();
    let missing: Vec<_> = all.iter().filter_map(|certificate| missing(certificate)).collect();
    json!({ "certificates": ready, "missing": missing })
}

/// Whole days from `now` until `end`; none once it has passed.
pub(super) fn days_until(end: SystemTime, now: SystemTime) -> u64 {
    end.duration_since(now).unwrap_or_default().as_secs() / SECONDS_PER_DAY
}

fn ready(certificate: &Certificate, now: SystemTime) -> Option<Value> {
    let chain = match &*certificate.state {
        CertificateState::Ready(info) => vec![details(&certificate.source, info, now)],
        CertificateState::Unneeded => Vec::new(),
        CertificateState::Missing { .. } => return None,
    };
    let authorities: Vec<_> =
        certificate.client_ca.iter().map(|ca| details(&ca.source, &ca.info, now)).collect();
    Some(json!({ "ca_cert": authorities, "cert_chain": chain }))
}

fn details(path: &str, info: &CertificateInfo, now: SystemTime) -> Value {
    let names: Vec<_> = info.subject_alt_names.iter().map(|name| alt_name(name)).collect();
    json!({
        "path": path,
        "serial_number": info.serial,
        "subject_alt_names": names,
        "days_until_expiration": days_until(info.expires, now).to_string(),
        "valid_from": rfc3339(info.valid_from),
        "expiration_time": rfc3339(info.expires),
    })
}

fn missing(certificate: &Certificate) -> Option<Value> {
    let CertificateState::Missing { reason } = &*certificate.state else {
        return None;
    };
    let origin = certificate.origin.to_string();
    Some(json!({ "path": &*certificate.source, "origin": origin, "reason": reason }))
}

fn alt_name(name: &str) -> Value {
    match name.parse::<IpAddr>() {
        Ok(_) => json!({ "ip_address": name }),
        Err(_) => json!({ "dns": name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{ClientCa, Origin};
    use std::time::{Duration, UNIX_EPOCH};

    fn certificate(state: CertificateState) -> Arc<Certificate> {
        let origin = Origin::Object { namespace: "default".into(), name: "mygateway".into() };
        let source = "/etc/certs/tls.crt".into();
        Arc::new(Certificate { source, origin, state: state.into(), client_ca: Vec::new() })
    }

    #[test]
    fn the_shape_is_envoys() {
        let now = UNIX_EPOCH + Duration::from_secs(1_706_702_400);
        let info = CertificateInfo {
            serial: "100212".into(),
            subject_alt_names: vec!["httpbin.example.com".into(), "192.0.2.1".into()],
            valid_from: now - Duration::from_secs(3_600),
            expires: now + Duration::from_secs(365 * SECONDS_PER_DAY - 1),
        };
        let ca = CertificateInfo { subject_alt_names: Vec::new(), ..info.clone() };
        let mut ready = Arc::unwrap_or_clone(certificate(CertificateState::Ready(info)));
        ready.client_ca = vec![ClientCa { source: "/etc/ca/ca.pem".into(), info: ca }];
        let ready = Arc::new(ready);
        let missing = certificate(CertificateState::Missing { reason: "no such file".into() });
        let expected = json!({
            "certificates": [{
                "ca_cert": [{
                    "path": "/etc/ca/ca.pem",
                    "serial_number": "100212",
                    "subject_alt_names": [],
                    "days_until_expiration": "364",
                    "valid_from": "2024-01-31T11:00:00Z",
                    "expiration_time": "2025-01-30T11:59:59Z",
                }],
                "cert_chain": [{
                    "path": "/etc/certs/tls.crt",
                    "serial_number": "100212",
                    "subject_alt_names": [
                        { "dns": "httpbin.example.com" }, { "ip_address": "192.0.2.1" },
                    ],
                    "days_until_expiration": "364",
                    "valid_from": "2024-01-31T11:00:00Z",
                    "expiration_time": "2025-01-30T11:59:59Z",
                }],
            }],
            "missing": [{
                "path": "/etc/certs/tls.crt",
                "origin": "default/mygateway",
                "reason": "no such file",
            }],
        });
        assert_eq!(dump(&[ready, missing], now), expected);
    }

    #[test]
    fn an_expired_certificate_has_no_days_left() {
        assert_eq!(days_until(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1)), 0);
    }
}
