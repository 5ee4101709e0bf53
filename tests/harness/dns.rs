//! A DNS server on loopback, over UDP, that says what a test wants it to say.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// What is said about a name; about every other name, that it does not exist.
#[derive(Debug, Clone)]
pub enum Say {
    /// These addresses, good for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// That the server has failed.
    Failure,
}

pub struct Dns {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Say>>,
    /// The names that were asked for.
    asked: Mutex<Vec<String>>,
    ends: AtomicBool,
}

impl Dns {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (address, shared) = (socket.local_addr().unwrap(), Arc::<Shared>::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve(&socket)
        });
        Self { address, shared, thread: Some(thread) }
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
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Shared {
    fn serve(&self, socket: &UdpSocket) {
        let mut buffer = [0; 512];
        while !self.ends.load(Ordering::Relaxed) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let answer = self.answer(&buffer[..length]);
            socket.send_to(&answer, client).unwrap();
        }
    }

    /// RFC 1035, section 4.1: header, the question as it was asked, answers.
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let (name, end) = question(query);
        let kind = u16::from_be_bytes([query[end], query[end + 1]]);
        self.asked.lock().unwrap().push(name.clone());
        let said = self.names.lock().unwrap().get(&name).cloned();
        let (code, addresses, ttl) = match said {
            Some(Say::Addresses(addresses, ttl)) => (0, addresses, ttl),
            Some(Say::Failure) => (2, Vec::new(), 0),
            None => (3, Vec::new(), 0),
        };
        let records: Vec<_> =
            addresses.into_iter().filter_map(|address| record(address, kind, ttl)).collect();
        let count = u8::try_from(records.len()).unwrap();
        // The same id; a response, with recursion.
        let mut answer = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
        answer.extend_from_slice(&query[12..end + 4]);
        answer.extend(records.concat());
        answer
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

/// The record of `address`, if it is of the kind that was asked for.
fn record(address: IpAddr, kind: u16, ttl: u32) -> Option<Vec<u8>> {
    let (own, bytes) = match address {
        IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
        IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
    };
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    // The name is that of the question.
    let mut record = vec![0xc0, 12, 0, u8::try_from(own).unwrap(), 0, 1];
    record.extend(ttl.to_be_bytes());
    record.extend(length);
    record.extend(bytes);
    (own == kind).then_some(record)
}
