//! One per core: accepts connections and drives each of them from handshake to end.
//!
//! [`Fleet`] is the control thread's end: it starts the workers, gives them their sockets and tells
//! them to drain. A worker's own end is a mailbox; everything else it needs it reads from the
//! newest snapshot.
//!
//! - A worker shares nothing that it writes, takes no lock, never blocks and never touches a file.
//! - It reports up: that its runtime started and on which driver, and that it applied an order.
//! - A listener that did not change is never touched; one that goes hands its last connections out.
//! - A connection is served by one worker from its first byte on; which, `balance` decides.
//!
//! Deliberately not here: what is configured (`snapshot`), how a socket works (`runtime`), HTTP.

#![forbid(unsafe_code)]

mod balance;
mod bind;
mod connection;
mod fleet;
mod handshakes;
mod thread;

pub use crate::runtime::{
    Backend, Config as RuntimeConfig, Running, forbid_huge_pages, give_back_memory, open_files_max,
    raise_open_files,
};
pub use fleet::{Applied, Bound, Config, Fleet, Scraper, StartError};

use std::rc::Rc;

use crate::drain::Drain;
use crate::http::Gateway;
use crate::io::Net;
use crate::runtime::Accepted;
use crate::snapshot::ListenerKey;
use balance::Balance;
use handshakes::Handshakes;

/// What the tasks of one worker share.
struct Worker<N: Net> {
    gateway: Rc<Gateway<N>>,
    /// Every connection holds a watch of it.
    drain: Drain,
    handshakes: Handshakes,
    /// Its part of the files that the process may have open for clients.
    files_max: usize,
    /// None when it is the only worker, or they are not balanced.
    balance: Option<Rc<Balance<Fresh>>>,
}

/// A connection of which nothing was read; any worker may serve it.
#[derive(Debug)]
struct Fresh {
    listener: ListenerKey,
    accepted: Accepted,
}
