//! Turns a scenario's generator into a command, and what that prints into an [`Outcome`].

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::generate::{Group, Outcome};
use crate::hosts;
use crate::process::on_cpu;
use crate::scenario::{Generator, Rate, Scenario, Setup};
use crate::statistics::Latency;

/// wrk prints no 99.9th percentile of its own accord; latencies are in microseconds.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("wrk requests=%d failures=%d p50=%d p99=%d p999=%d\n",
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;
/// Each request is of another one of so many users.
const WRK_USERS: &str = r#"
local requests, last = {}, 0
init = function()
  for user = 1, 256 do
    wrk.headers["x-user"] = "user-" .. user
    requests[user] = wrk.format()
  end
end
request = function()
  last = last % 256 + 1
  return requests[last]
end
"#;
/// wrk has no options for it, but its OpenSSL reads this.
const OPENSSL_CONF: &str = "\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
";

/// When a generator sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Load before anything counts.
    pub warm_up: Duration,
    pub seconds: Duration,
}

impl Timing {
    /// wrk and h2load take whole seconds and must not end before the last sample is taken.
    fn whole_seconds(self) -> u64 {
        (self.warm_up + self.seconds + Duration::from_millis(200)).as_secs() + 1
    }
}

/// The generators of one run.
#[derive(Debug)]
pub(crate) struct Tools {
    /// This program.
    own: PathBuf,
    dir: PathBuf,
    cpu: usize,
}

impl Tools {
    /// Writes what the tools need below `dir`, which is on tmpfs.
    pub(crate) fn new(own: PathBuf, dir: &Path, cpu: usize) -> io::Result<Self> {
        let tools = Self { own, dir: dir.to_owned(), cpu };
        fs::write(tools.script(false), WRK_SCRIPT)?;
        fs::write(tools.script(true), [WRK_SCRIPT, WRK_USERS].concat())?;
        fs::write(tools.openssl(), OPENSSL_CONF)?;
        Ok(tools)
    }

    /// Loads the gateway at `at` as `scenario` says; wrk does it without TLS for a gateway that has
    /// none.
    pub(crate) fn command(
        &self,
        scenario: &Scenario,
        at: SocketAddr,
        tls: bool,
        timing: Timing,
    ) -> Command {
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}{}", at.port(), scenario.path);
        let seconds = timing.whole_seconds();
        match scenario.generator {
            Generator::Wrk { connections } => {
                let mut command = on_cpu(self.cpu, "wrk");
                command.env("OPENSSL_CONF", self.openssl()).arg("-s");
                command.arg(self.script(scenario.setup == Setup::Hashed));
                command.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}"), &url]);
                command
            }
            Generator::H2load { clients, streams } => {
                // Its log is appended to.
                fs::remove_file(self.h2load_log()).ok();
                let mut command = on_cpu(self.cpu, "h2load");
                command.args(["-t1", &format!("-c{clients}"), &format!("-m{streams}")]);
                command.arg(format!("-D{seconds}"));
                command.args(["--groups=X25519", "--tls13-ciphers=TLS_AES_128_GCM_SHA256"]);
                command.arg(format!("--log-file={}", self.h2load_log().display())).arg(url);
                command
            }
            Generator::Own { .. }
            | Generator::Upload { .. }
            | Generator::Handshake { .. }
            | Generator::Rate { .. }
            | Generator::Idle { .. } => self.own_command(scenario, at, timing),
        }
    }

    /// What a command of [`Tools::command`] has printed.
    pub(crate) fn outcome(&self, scenario: &Scenario, printed: &str) -> Option<Outcome> {
        match scenario.generator {
            Generator::Wrk { .. } => wrk_outcome(printed),
            Generator::H2load { .. } => {
                h2load_outcome(printed, &fs::read_to_string(self.h2load_log()).ok()?)
            }
            Generator::Own { .. }
            | Generator::Upload { .. }
            | Generator::Handshake { .. }
            | Generator::Rate { .. }
            | Generator::Idle { .. } => Outcome::parse(printed),
        }
    }

    fn own_command(&self, scenario: &Scenario, address: SocketAddr, timing: Timing) -> Command {
        let mut command = on_cpu(self.cpu, &self.own);
        command.args(["generate", &address.to_string(), "--path", scenario.path]);
        command.arg(format!("--name={}", hosts::asked_for(scenario.hosts)));
        command.arg(format!("--warm-up={}", timing.warm_up.as_secs_f64()));
        command.arg(format!("--seconds={}", timing.seconds.as_secs_f64()));
        if scenario.group == Group::X25519MlKem768 {
            command.arg("--group=x25519mlkem768");
        }
        match scenario.generator {
            Generator::Upload { bytes, .. } => {
                command.arg(format!("--upload={bytes}"));
            }
            Generator::Handshake { resume, .. } => {
                command.arg("--fresh").args(resume.then_some("--resume"));
            }
            Generator::Rate { rate: Rate::Fixed(per_second), .. } => {
                command.arg(format!("--rate={per_second}"));
            }
            Generator::Idle { http2, .. } => {
                command.arg("--idle").args(http2.then_some("--http2"));
            }
            Generator::Rate { .. }
            | Generator::Own { .. }
            | Generator::Wrk { .. }
            | Generator::H2load { .. } => {}
        }
        command.arg(format!("--connections={}", scenario.generator.connections()));
        command
    }

    fn script(&self, users: bool) -> PathBuf {
        self.dir.join(if users { "wrk-users.lua" } else { "wrk.lua" })
    }

    fn openssl(&self) -> PathBuf {
        self.dir.join("openssl.cnf")
    }

    fn h2load_log(&self) -> PathBuf {
        self.dir.join("h2load.log")
    }
}

fn wrk_outcome(printed: &str) -> Option<Outcome> {
    let line = printed.lines().find_map(|line| line.strip_prefix("wrk "))?;
    let mut fields = line.split(' ').map(|field| field.split_once('=')?.1.parse::<u64>().ok());
    let mut next = || fields.next()?;
    let (requests, failures) = (next()?, next()?);
    let mut micros = || next().map(Duration::from_micros);
    let latency = Latency { p50: micros()?, p99: micros()?, p999: micros()? };
    Some(Outcome { requests, failures, latency, ..Outcome::default() })
}

/// The log has a line for each request: start, status, microseconds.
fn h2load_outcome(printed: &str, log: &str) -> Option<Outcome> {
    let totals = printed.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let total = |name: &str| {
        let count = totals.split(", ").find_map(|part| part.strip_suffix(name))?;
        count.trim().parse::<u64>().ok()
    };
    let failed = total("failed")? + total("errored")? + total("timeout")?;
    let (mut samples, mut refused) = (Vec::new(), 0);
    for line in log.lines() {
        let mut columns = line.split('\t').skip(1);
        refused += u64::from(columns.next() != Some("200"));
        samples.push(Duration::from_micros(columns.next()?.parse().ok()?));
    }
    Some(Outcome {
        requests: samples.len() as u64,
        failures: failed.max(refused),
        latency: Latency::of(&mut samples)?,
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_read() {
        let printed = "Running 1s test\nwrk requests=10 failures=2 p50=100 p99=200 p999=300\n";
        let outcome = wrk_outcome(printed).unwrap();
        assert_eq!((outcome.requests, outcome.failures), (10, 2));
        assert_eq!(outcome.latency.p999, Duration::from_micros(300));
        assert_eq!(wrk_outcome("unable to connect to localhost"), None);
    }

    #[test]
    fn h2load_is_read() {
        let printed = "\
finished in 1.00s, 3.00 req/s, 2KB/s
requests: 3 total, 3 started, 3 done, 2 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 2 2xx, 0 3xx, 0 4xx, 1 5xx
";
        let log = "1\t200\t100\n2\t200\t300\n3\t503\t200\n";
        let outcome = h2load_outcome(printed, log).unwrap();
        assert_eq!((outcome.requests, outcome.failures), (3, 1));
        assert_eq!(outcome.latency.p50, Duration::from_micros(200));
        assert_eq!(h2load_outcome(printed, ""), None);
    }

    #[test]
    fn tools_outlast_the_samples() {
        let timing =
            Timing { warm_up: Duration::from_millis(500), seconds: Duration::from_secs(3) };
        assert_eq!(timing.whole_seconds(), 4);
        let seconds = Duration::from_millis(3_400);
        assert_eq!(Timing { seconds, ..timing }.whole_seconds(), 5);
    }
}
