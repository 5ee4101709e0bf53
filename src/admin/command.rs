//! What a POST to the administration asks for.
//!
//! - A command that ends the process is carried out when its answer has been sent, every other
//!   before.
//! - A browser that shows a foreign page may not give commands: what names an origin other than the
//!   administration itself is refused.

use std::net::IpAddr;

use ::http::uri::Authority;
use ::http::{HeaderMap, Uri, header};
use tracing::level_filters::LevelFilter;

/// Each path with a word on it.
pub(super) const PATHS: [(&str, &str); 5] = [
    ("/drain_listeners", "close the listeners; ?graceful: after limits.drain_timeout"),
    ("/healthcheck/fail", "be not ready, and go on serving"),
    ("/healthcheck/ok", "take that back"),
    ("/logging", "?level=error, warning, info or off: what the process logs"),
    ("/quitquitquit", "end as after SIGTERM"),
];

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Close the listeners and let connections end.
    DrainListeners {
        /// Not at once: first only stop being ready.
        graceful: bool,
    },
    /// Stop or start being ready.
    HealthCheck {
        /// Be not ready.
        fail: bool,
    },
    /// Log this much.
    Log(LevelFilter),
    /// End as after SIGTERM.
    Quit,
}

/// Whether `path` takes commands.
pub(super) fn is_known(path: &str) -> bool {
    PATHS.iter().any(|(known, _)| *known == path)
}

/// The command, or what is wrong with it.
pub(super) fn parse(uri: &Uri) -> Result<Command, String> {
    let query = uri.query().unwrap_or_default();
    match uri.path() {
        "/drain_listeners" => {
            let graceful = query.split('&').any(|parameter| parameter == "graceful");
            Ok(Command::DrainListeners { graceful })
        }
        "/healthcheck/fail" => Ok(Command::HealthCheck { fail: true }),
        "/healthcheck/ok" => Ok(Command::HealthCheck { fail: false }),
        "/logging" => level(query).map(Command::Log),
        "/quitquitquit" => Ok(Command::Quit),
        path => Err(format!("{path} takes no commands\n")),
    }
}

fn level(query: &str) -> Result<LevelFilter, String> {
    let name = query.split('&').find_map(|parameter| parameter.strip_prefix("level="));
    match name {
        Some("off") => Ok(LevelFilter::OFF),
        Some("error" | "critical") => Ok(LevelFilter::ERROR),
        Some("warning" | "warn") => Ok(LevelFilter::WARN),
        Some("info" | "debug" | "trace") => Ok(LevelFilter::INFO),
        Some(other) => Err(format!("there is no level {other}; there are {LEVELS}\n")),
        None => Err(format!("name a level: /logging?level=LEVEL; there are {LEVELS}\n")),
    }
}

const LEVELS: &str = "off, error, warning, info";

/// Whether the request comes from where it goes to, or from no page at all. Of pages only those
/// count that are named by an address: any other name may have been made to lead here, by whoever
/// made the page.
pub(super) fn is_own(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
    origin.is_some_and(is_address) && origin == host
}

/// Whether `authority` is an address or `localhost`, with or without a port.
fn is_address(authority: &str) -> bool {
    let host = authority.parse::<Authority>().map(|authority| authority.host().to_owned());
    host.is_ok_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<IpAddr>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    fn parsed(uri: &'static str) -> Result<Command, String> {
        parse(&Uri::from_static(uri))
    }

    #[test]
    fn every_path_is_a_command() {
        for (path, _) in PATHS {
            let known = parse(&path.parse().unwrap());
            assert_eq!(known.is_ok(), path != "/logging", "{path}");
        }
        assert!(parsed("/certs").is_err());
    }

    #[test]
    fn parameters_are_read() {
        let graceful = Command::DrainListeners { graceful: true };
        assert_eq!(parsed("/drain_listeners?graceful"), Ok(graceful));
        assert_eq!(parsed("/drain_listeners?skip_exit&graceful"), Ok(graceful));
        assert_eq!(parsed("/logging?level=warning"), Ok(Command::Log(LevelFilter::WARN)));
        assert!(parsed("/logging?level=loud").unwrap_err().contains("off, error"));
        assert!(parsed("/logging").unwrap_err().contains("?level="));
    }

    #[test]
    fn a_foreign_page_gives_no_commands() {
        let from = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:15000"));
            headers.extend(origin.map(|o| (header::ORIGIN, HeaderValue::from_static(o))));
            is_own(&headers)
        };
        assert!(from(None), "curl");
        assert!(from(Some("http://127.0.0.1:15000")));
        for foreign in ["http://evil.test", "https://127.0.0.1:15000", "null"] {
            assert!(!from(Some(foreign)), "{foreign}");
        }
    }

    #[test]
    fn a_page_whose_name_leads_here_meanwhile_gives_no_commands() {
        let at = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            let origin = HeaderValue::try_from(format!("http://{host}")).unwrap();
            headers.insert(header::ORIGIN, origin);
            is_own(&headers)
        };
        for own in ["127.0.0.1:15000", "[::1]:15000", "10.0.0.7", "localhost:15000", "localhost"] {
            assert!(at(own), "{own}");
        }
        for foreign in ["evil.test:15000", "evil.test", "127.0.0.1.evil.test:15000"] {
            assert!(!at(foreign), "{foreign}");
        }
    }
}
