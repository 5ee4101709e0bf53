//! What the integration tests share: the real binary in a directory of its own, backends, clients,
//! certificates, and the outside programs that some tests need.
//!
//! - Nothing here knows the inside of the gateway: it is driven by its command line, its files and
//!   its sockets, as a user would.
//! - Every wait has a limit ([`PATIENCE`]) that only a hang reaches; no test depends on speed.
//! - All traffic stays on loopback, on ports that the kernel or [`free_port`] chose.

pub mod backend;
pub mod certificate;
pub mod client;
pub mod dns;
pub mod gateway;
pub mod h2;
pub mod kubelet;
pub mod load;
pub mod outside;
pub mod raw;
pub mod relay;
pub mod tls_front;
pub mod yaml;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`PATIENCE`]; the message names `what` was waited for.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, &mut condition), "waited {PATIENCE:?} in vain: {what}");
}

/// Whether `condition` came to hold within `limit`.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody listens on and that the kernel gives to nobody else: below its ephemeral
/// range, for programs that must be told a port.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 16_000).unwrap();
    for _ in 0..1_000 {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 4_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {start} on");
}

/// `bytes` in a number that a corrupted, lost or reordered byte changes (FNV-1a).
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `len` bytes in which a shift by any buffer size shows: a small generator's output.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(len)
    .collect()
}
