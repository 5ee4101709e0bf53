//! A DNS server on loopback, over UDP and TCP, that says what a test wants it to say.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;

/// In the second byte of a header's flags there is the code of the answer; in the first, this says
/// that there is more than what fits.
const TRUNCATED: u8 = 2;

/// How long a thread waits before it looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);

/// What is said about a name; about every other name, that it does not exist.
#[derive(Debug, Clone)]
pub enum Say {
    /// These addresses, good for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The same, but by UDP only that the answer is too long for that.
    ByTcp(Vec<IpAddr>, u32),
    /// That it stands for another name for so many seconds, and what is to be said of that.
    Alias(&'static str, u32),
    /// That it stands for another name, and not a word about that.
    BareAlias(&'static str, u32),
    /// That the server has failed.
    Failure,
}

pub struct Dns {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Say>>,
    /// The names that were asked for.
    asked: Mutex<Vec<String>>,
    asked_by_tcp: AtomicUsize,
    ends: AtomicBool,
}

impl Dns {
    pub fn start() -> Self {
        let (udp, tcp) = sockets();
        let (address, shared) = (udp.local_addr().unwrap(), Arc::<Shared>::default());
        let by_udp = Arc::clone(&shared);
        let by_tcp = Arc::clone(&shared);
        let threads = vec![
            std::thread::spawn(move || by_udp.serve_udp(&udp)),
            std::thread::spawn(move || by_tcp.serve_tcp(&tcp)),
        ];
        Self { address, shared, threads }
    }

    /// A line for the settings of a gateway that asks this server.
    pub fn setting(&self) -> String {
        format!("dns: {{ servers: [ \"{}\" ] }}\n", self.address)
    }

    pub fn says(&self, name: &str, say: Say) {
        self.shared.names.lock().unwrap().insert(name.to_owned(), say);
    }

    /// The name does not exist from now on.
    pub fn forgets(&self, name: &str) {
        self.shared.names.lock().unwrap().remove(name);
    }

    /// How many questions there were about `name`.
    pub fn asked(&self, name: &str) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }

    /// How many questions came by TCP.
    pub fn asked_by_tcp(&self) -> usize {
        self.shared.asked_by_tcp.load(Ordering::Relaxed)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Both on the same free port.
fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            tcp.set_nonblocking(true).unwrap();
            udp.set_read_timeout(Some(TICK)).unwrap();
            return (udp, tcp);
        }
    }
}

impl Shared {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 512];
        while !self.ends.load(Ordering::Relaxed) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let answer = self.answer(&buffer[..length], false);
            socket.send_to(&answer, client).unwrap();
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        std::thread::scope(|clients| {
            while !self.ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who goes in the middle of a question has none.
                    Ok((client, _)) => drop(clients.spawn(|| self.serve_client(client))),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(TICK);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }

    /// RFC 1035, section 4.2.2: each message has its length before it.
    fn serve_client(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(Duration::from_secs(1)))?;
        while !self.ends.load(Ordering::Relaxed) {
            let mut length = [0; 2];
            client.read_exact(&mut length)?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            client.read_exact(&mut query)?;
            self.asked_by_tcp.fetch_add(1, Ordering::Relaxed);
            let answer = self.answer(&query, true);
            client.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes())?;
            client.write_all(&answer)?;
        }
        Ok(())
    }

    /// RFC 1035, section 4.1: header, the question as it was asked, answers.
    fn answer(&self, query: &[u8], is_tcp: bool) -> Vec<u8> {
        let (name, end) = question(query);
        let kind = u16::from_be_bytes([query[end], query[end + 1]]);
        self.asked.lock().unwrap().push(name.clone());
        let (flags, code, records) = self.records(name, kind, is_tcp);
        let count = u8::try_from(records.len()).unwrap();
        // The same id; a response, with recursion.
        let mut answer =
            vec![query[0], query[1], 0x81 | flags, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
        answer.extend_from_slice(&query[12..end + 4]);
        answer.extend(records.concat());
        answer
    }

    /// Flags, code and records of the answer about `name`, along its aliases.
    fn records(&self, mut name: String, kind: u16, is_tcp: bool) -> (u8, u8, Vec<Vec<u8>>) {
        let names = self.names.lock().unwrap();
        let mut records = Vec::new();
        loop {
            let (is_bare, (to, ttl)) = match names.get(&name) {
                Some(Say::Addresses(addresses, ttl)) => {
                    records.extend(of_kind(&name, addresses, kind, *ttl));
                    return (0, 0, records);
                }
                Some(Say::ByTcp(..)) if !is_tcp => return (TRUNCATED, 0, records),
                Some(Say::ByTcp(addresses, ttl)) => {
                    records.extend(of_kind(&name, addresses, kind, *ttl));
                    return (0, 0, records);
                }
                Some(Say::Alias(to, ttl)) => (false, (*to, *ttl)),
                Some(Say::BareAlias(to, ttl)) => (true, (*to, *ttl)),
                Some(Say::Failure) => return (0, 2, records),
                None => return (0, 3, records),
            };
            records.push(record(&name, TYPE_CNAME, ttl, &labels(to)));
            if is_bare {
                return (0, 0, records);
            }
            name = to.to_owned();
        }
    }
}

/// The name that a message asks for, and where it ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 1)
}

/// The records of `addresses` of the kind that was asked for.
fn of_kind(name: &str, addresses: &[IpAddr], kind: u16, ttl: u32) -> Vec<Vec<u8>> {
    let records = addresses.iter().filter_map(|address| {
        let (own, bytes) = match address {
            IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
            IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
        };
        (own == kind).then(|| record(name, own, ttl, &bytes))
    });
    records.collect()
}

fn record(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = labels(name);
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

/// `name` as it stands in a message.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
