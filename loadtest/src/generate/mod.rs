//! The load generator: HTTP/1.1 over TLS 1.3, one thread, any number of connections.
//!
//! - Closed loop (without a rate): each connection sends its next request when it has the answer.
//! - Open loop (with one): requests are due at fixed times whatever the server does, and latency
//!   counts from the time a request was due. A server that stalls pays for the stall, be it at the
//!   end: the generator waits for the answer to every request that was due.
//! - The open loop also tells how late it was itself: a generator that does not get its CPU measures
//!   that.
//! - A connection may carry one request only, fully handshaken or resumed by a ticket.
//! - TLS_AES_128_GCM_SHA256 only, and one key exchange group.
//! - Anything but a complete answer with status 200 is a failure.
//!
//! - HTTP/2 for idle connections only: one request each.
//!
//! Deliberately not here: load over HTTP/2 (h2load does it), and judging the server's certificate, which
//! would only cost the generator time.

mod connection;
mod http2;
mod tls;

pub(crate) use connection::Refused;
pub(crate) use tls::Group;

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use mio::{Events, Poll, Token};

use crate::statistics::Latency;
use connection::{Connection, Progress, Protocol};
use tls::Client;

/// What is printed when idle connections are made, and when the warm-up begins.
pub(crate) const IDLE: &str = "idle";
pub(crate) const READY: &str = "ready";
/// For how long no connection may be made while more are wanted.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Enough to keep both sides busy while idle connections are made, too few to leave a trace in their
/// memory.
const IDLE_AT_A_TIME: usize = 4;
/// Fewer than any gateway takes for an attack.
const AT_A_TIME: usize = 64;
/// How long after the end the open loop waits for answers.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How often the closed loop looks at the clock.
const TICK: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Address and port of the gateway.
    pub address: SocketAddr,
    /// Name of the server, in TLS and HTTP.
    #[arg(long, default_value = "localhost")]
    pub name: String,
    /// Path of each request; `/N` is answered with N bytes.
    #[arg(long, default_value = "/62")]
    pub path: String,
    /// Connections at a time.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Requests a second over all connections; without it, as many as can be.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Bytes of each request's body; without it, GET is sent.
    #[arg(long)]
    pub upload: Option<usize>,
    /// One request a connection.
    #[arg(long)]
    pub fresh: bool,
    /// With --fresh: resume by a ticket of the connection before.
    #[arg(long, requires = "fresh")]
    pub resume: bool,
    /// The key exchange.
    #[arg(long, value_enum, default_value_t = Group::X25519)]
    pub group: Group,
    /// Seconds of load before latency counts.
    #[arg(long, default_value_t = 0.5)]
    pub warm_up: f64,
    /// Seconds of load that count.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// One request on each connection, then print `idle` and hold them until stdin ends.
    #[arg(long)]
    pub idle: bool,
    /// With --idle: speak HTTP/2.
    #[arg(long, requires = "idle")]
    pub http2: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Answers that count, after the warm-up.
    pub requests: u64,
    /// At any time.
    pub failures: u64,
    /// Handshakes without a ticket, after the warm-up.
    pub full_handshakes: u64,
    pub resumed_handshakes: u64,
    pub latency: Latency,
    /// Open loop: how long after requests were due the generator saw that, the 99th percentile.
    pub late: Duration,
}

/// Loads the server and prints the [`Outcome`] as one line.
///
/// # Errors
/// The system refuses sockets, or the server refuses connections.
pub(crate) fn run(load: &Load) -> io::Result<()> {
    let mut generator = Generator::new(load)?;
    if load.idle {
        generator.hold()?;
    } else {
        generator.load()?;
    }
    println!("{}", generator.outcome().line());
    Ok(())
}

fn say(word: &str) -> io::Result<()> {
    println!("{word}");
    io::stdout().flush()
}

/// One request on a connection of its own: whether the gateway serves.
pub(crate) fn probe(address: SocketAddr, group: Group, patience: Duration) -> io::Result<()> {
    let mut load = Load::once(address);
    load.group = group;
    let mut generator = Generator::new(&load)?;
    generator.each_once(1, patience)?;
    match generator.failure.take() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// The certificate that a client of `name` gets.
pub(crate) fn served_certificate(
    address: SocketAddr,
    name: &str,
    group: Group,
) -> io::Result<Vec<u8>> {
    Client::new(name, group, false, Protocol::Http1)?.certificate(address)
}

impl Load {
    fn once(address: SocketAddr) -> Self {
        Self {
            address,
            name: "localhost".to_owned(),
            path: "/1".to_owned(),
            connections: 1,
            rate: None,
            upload: None,
            fresh: false,
            resume: false,
            group: Group::X25519,
            warm_up: 0.0,
            seconds: 0.0,
            idle: false,
            http2: false,
        }
    }

    fn request(&self) -> Vec<u8> {
        let (path, name) = (&self.path, &self.name);
        if self.http2 {
            return http2::request(name, path);
        }
        let rest = "user-agent: ringgate-loadtest\r\naccept: */*\r\n";
        let Some(bytes) = self.upload else {
            return format!("GET {path} HTTP/1.1\r\nhost: {name}\r\n{rest}\r\n").into_bytes();
        };
        let head = format!("POST {path} HTTP/1.1\r\nhost: {name}\r\n{rest}");
        let mut request = format!("{head}content-length: {bytes}\r\n\r\n").into_bytes();
        request.resize(request.len() + bytes, b'x');
        request
    }
}

impl Outcome {
    fn line(self) -> String {
        let Latency { p50, p99, p999 } = self.latency;
        format!(
            "requests={} failures={} full={} resumed={} p50={} p99={} p999={} late={}",
            self.requests,
            self.failures,
            self.full_handshakes,
            self.resumed_handshakes,
            p50.as_nanos(),
            p99.as_nanos(),
            p999.as_nanos(),
            self.late.as_nanos()
        )
    }

    /// Reads the line; latencies are in nanoseconds.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("requests="))?;
        let mut fields = line.split(' ').map(|field| field.split_once('=')?.1.parse().ok());
        let mut next = || fields.next()?;
        Some(Self {
            requests: next()?,
            failures: next()?,
            full_handshakes: next()?,
            resumed_handshakes: next()?,
            latency: Latency {
                p50: Duration::from_nanos(next()?),
                p99: Duration::from_nanos(next()?),
                p999: Duration::from_nanos(next()?),
            },
            late: Duration::from_nanos(next()?),
        })
    }
}

struct Generator {
    load: Load,
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    request: Rc<[u8]>,
    connections: Vec<Connection>,
    /// Open loop: connections without a request.
    free: VecDeque<usize>,
    /// Open loop: when requests were due that found no free connection.
    waiting: VecDeque<Instant>,
    /// Requests count that are due from then on.
    counting_since: Instant,
    outcome: Outcome,
    samples: Vec<Duration>,
    failure: Option<io::Error>,
}

impl Generator {
    fn new(load: &Load) -> io::Result<Self> {
        // Each connection has its own tickets, so that none takes another's.
        let protocol = if load.http2 { Protocol::Http2 } else { Protocol::Http1 };
        let clients = (0..if load.resume { load.connections } else { 1 })
            .map(|_| Client::new(&load.name, load.group, load.resume, protocol))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            load: load.clone(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            clients,
            request: load.request().into(),
            connections: Vec::with_capacity(load.connections),
            free: VecDeque::new(),
            waiting: VecDeque::new(),
            counting_since: Instant::now(),
            outcome: Outcome::default(),
            samples: Vec::new(),
            failure: None,
        })
    }

    fn outcome(&mut self) -> Outcome {
        self.outcome.latency = Latency::of(&mut self.samples).unwrap_or_default();
        self.outcome
    }

    fn hold(&mut self) -> io::Result<()> {
        self.each_once(IDLE_AT_A_TIME, CONNECT_PATIENCE)?;
        say(IDLE)?;
        // Ends when the other side closes it.
        io::stdin().lock().read_line(&mut String::new()).map(drop)
    }

    /// Makes all connections, so many at a time, and waits until each is done: has the answer to its
    /// first request, or in the open loop, which sends none yet, is handshaken and free.
    fn each_once(&mut self, at_a_time: usize, patience: Duration) -> io::Result<()> {
        let (mut done, mut last) = (0, Instant::now());
        while done < self.load.connections {
            let wanted = self.load.connections.min(done + at_a_time);
            for index in self.connections.len()..wanted {
                self.connect(index)?;
            }
            for (index, progress) in self.turn(Some(TICK))? {
                self.count(index, progress);
                if progress == Progress::Ready {
                    self.free.push_back(index);
                }
                if progress != Progress::Waiting {
                    (done, last) = (done + 1, Instant::now());
                }
            }
            if last.elapsed() > patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    fn load(&mut self) -> io::Result<()> {
        if self.load.rate.is_some() {
            self.each_once(AT_A_TIME, CONNECT_PATIENCE)?;
        } else {
            (0..self.load.connections).try_for_each(|index| self.connect(index))?;
        }
        say(READY)?;
        let start = Instant::now();
        self.counting_since = start + Duration::from_secs_f64(self.load.warm_up);
        let end = self.counting_since + Duration::from_secs_f64(self.load.seconds);
        match self.load.rate {
            Some(rate) => self.open_loop(Schedule::new(start, end, rate), end + END_PATIENCE),
            None => self.closed_loop(end),
        }
    }

    fn closed_loop(&mut self, end: Instant) -> io::Result<()> {
        while Instant::now() < end {
            for (index, progress) in self.turn(Some(TICK))? {
                self.count(index, progress);
                match progress {
                    Progress::Failed => self.connect(index)?,
                    Progress::Answered { .. } if self.load.fresh => self.connect(index)?,
                    Progress::Answered { .. } => {
                        self.connections[index].send(&self.request, Instant::now());
                    }
                    Progress::Ready | Progress::Waiting => {}
                }
            }
        }
        Ok(())
    }

    /// It has the CPU for itself and spins, to be on time.
    fn open_loop(&mut self, mut schedule: Schedule, patience: Instant) -> io::Result<()> {
        while !(schedule.is_over() && self.unanswered() == 0) {
            for (index, progress) in self.turn(Some(Duration::ZERO))? {
                self.count(index, progress);
                match progress {
                    Progress::Failed => self.connect(index)?,
                    Progress::Answered { .. } | Progress::Ready => self.free.push_back(index),
                    Progress::Waiting => {}
                }
            }
            let now = Instant::now();
            schedule.due(now, &mut self.waiting);
            self.send_waiting();
            if now > patience {
                self.outcome.failures += self.unanswered() as u64;
                break;
            }
        }
        self.outcome.late = schedule.late_since(self.counting_since);
        Ok(())
    }

    fn unanswered(&self) -> usize {
        self.waiting.len() + self.connections.iter().filter(|one| one.is_asked()).count()
    }

    /// What became of connections in one turn of the loop.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(usize, Progress)>> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut reached = Vec::new();
        for event in &self.events {
            let Token(index) = event.token();
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let progress = connection.drive().unwrap_or_else(|error| {
                self.failure = Some(error);
                Progress::Failed
            });
            reached.push((index, progress));
        }
        Ok(reached)
    }

    fn count(&mut self, index: usize, progress: Progress) {
        match progress {
            Progress::Answered { due, .. } if due < self.counting_since => {}
            Progress::Answered { latency, .. } => {
                self.outcome.requests += 1;
                self.samples.push(latency);
                if self.load.fresh {
                    let resumed = self.connections[index].resumed();
                    self.outcome.resumed_handshakes += u64::from(resumed);
                    self.outcome.full_handshakes += u64::from(!resumed);
                }
            }
            Progress::Failed => self.outcome.failures += 1,
            Progress::Ready | Progress::Waiting => {}
        }
    }

    fn send_waiting(&mut self) {
        while let (Some(&due), Some(&index)) = (self.waiting.front(), self.free.front()) {
            self.waiting.pop_front();
            self.free.pop_front();
            self.connections[index].send(&self.request, due);
        }
    }

    /// Makes connection `index`, anew if it was there. In the closed loop it carries its first
    /// request at once.
    fn connect(&mut self, index: usize) -> io::Result<()> {
        let open = self.load.rate.is_some();
        let mut connection = self.clients[index % self.clients.len()].connect(self.load.address)?;
        connection.register(self.poll.registry(), Token(index))?;
        if !open {
            connection.send(&self.request, Instant::now());
        }
        match self.connections.get_mut(index) {
            Some(old) => {
                old.close();
                *old = connection;
            }
            None => self.connections.push(connection),
        }
        Ok(())
    }
}

/// When requests are due.
struct Schedule {
    next: Instant,
    end: Instant,
    interval: Duration,
    /// When each was due, and how long after that it was seen.
    late: Vec<(Instant, Duration)>,
}

impl Schedule {
    fn new(start: Instant, end: Instant, rate: f64) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate);
        Self { next: start, end, interval, late: Vec::new() }
    }

    fn due(&mut self, now: Instant, waiting: &mut VecDeque<Instant>) {
        while self.next <= now && !self.is_over() {
            waiting.push_back(self.next);
            self.late.push((self.next, now - self.next));
            self.next += self.interval;
        }
    }

    /// The 99th percentile for what was due since then.
    fn late_since(self, since: Instant) -> Duration {
        let counting = self.late.into_iter().filter(|(due, _)| *due >= since);
        let mut late: Vec<_> = counting.map(|(_, late)| late).collect();
        Latency::of(&mut late).unwrap_or_default().p99
    }

    fn is_over(&self) -> bool {
        self.next >= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_line_is_read_back() {
        let latency = Latency { p50: TICK, p99: TICK * 2, p999: TICK * 3 };
        let outcome = Outcome {
            requests: 5,
            failures: 1,
            full_handshakes: 2,
            resumed_handshakes: 3,
            latency,
            late: TICK,
        };
        let text = format!("idle\n{}\n", outcome.line());
        assert_eq!(Outcome::parse(&text), Some(outcome));
        assert_eq!(Outcome::parse("requests=5 failures=x"), None);
    }

    #[test]
    fn requests_are_due_whether_or_not_the_clock_was_looked_at() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut schedule = Schedule::new(start, after(55), 100.0);
        let mut waiting = VecDeque::new();
        schedule.due(after(35), &mut waiting);
        assert_eq!(waiting.len(), 4);
        assert_eq!(waiting[3], after(30));
        assert_eq!(schedule.late[1], (after(10), Duration::from_millis(25)));
        schedule.due(after(500), &mut waiting);
        assert_eq!((waiting.len(), schedule.is_over()), (6, true));
    }

    /// Answers requests of one byte over TLS, and after `stall_after` of them only `stall` later.
    fn stalling_server(stall_after: usize, stall: Duration) -> SocketAddr {
        let dir = tempfile::tempdir().unwrap();
        let files = crate::certificate::Authority::create(dir.path()).unwrap();
        let tls = crate::tls::server_config(&files.certificate, &files.key, &["http/1.1"]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let server = rustls::ServerConnection::new(tls).unwrap();
            let mut stream = rustls::StreamOwned::new(server, stream);
            for answered in 0.. {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    // The client has gone.
                    let Ok(1) = stream.read(&mut byte) else { return };
                    head.push(byte[0]);
                }
                if answered == stall_after {
                    std::thread::sleep(stall);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx").unwrap();
            }
        });
        address
    }

    #[test]
    fn a_stall_at_the_end_counts_for_each_request_that_was_due() {
        let stall = Duration::from_millis(600);
        let mut load = Load::once(stalling_server(10, stall));
        (load.rate, load.seconds) = (Some(100.0), 0.3);
        let mut generator = Generator::new(&load).unwrap();
        generator.load().unwrap();
        let outcome = generator.outcome();
        assert_eq!((outcome.requests, outcome.failures), (30, 0));
        // The eleventh was due 200 ms before the end, the last one 10 ms before it.
        assert!(outcome.latency.p99 >= stall, "{outcome:?}");
        assert!(outcome.latency.p50 >= stall / 2, "{outcome:?}");
    }
}
