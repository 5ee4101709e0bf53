//! Sessions with backends, for the next handshake to be shorter.
//!
//! - Each thread keeps its own: rustls's store has a lock that all workers would share.
//! - They belong to one configuration: one with other demands never resumes them.
//! - They end with the certificates by which a server was checked: rustls checks in full handshakes
//!   only, and each resumed one brings tickets for the next.
//! - Of each thread, [`SERVERS_MAX`] servers are remembered, whatever configuration they belong to;
//!   the ones that were met first go first.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{ServerName, UnixTime};

/// Servers that a thread remembers.
const SERVERS_MAX: usize = 256;
/// Tickets of one server; each is used once.
const TICKETS_MAX: usize = 4;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// The sessions of one configuration.
#[derive(Debug)]
pub(super) struct Sessions {
    /// No other configuration of this process has it.
    number: u64,
}

type Key = (u64, ServerName<'static>);

/// What one thread remembers.
#[derive(Default)]
struct Kept {
    servers: HashMap<Key, Server>,
    /// In the order in which they were met.
    order: VecDeque<Key>,
}

#[derive(Default)]
struct Server {
    /// Until when all holds by which it was checked; `None` before it was.
    holds_until: Option<UnixTime>,
    group: Option<NamedGroup>,
    old: Option<Tls12ClientSessionValue>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Server {
    /// Forgets its sessions if what it was checked by does not hold any more.
    fn forget_expired(&mut self) {
        if self.holds_until.is_none_or(|until| until < UnixTime::now()) {
            *self = Self { group: self.group, ..Self::default() };
        }
    }
}

impl Kept {
    fn server(&mut self, key: Key) -> &mut Server {
        if !self.servers.contains_key(&key) {
            if self.order.len() == SERVERS_MAX
                && let Some(first) = self.order.pop_front()
            {
                self.servers.remove(&first);
            }
            self.order.push_back(key.clone());
        }
        self.servers.entry(key).or_default()
    }
}

impl Sessions {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// `name` was checked, by what holds until then. Behind a name there may be several servers:
    /// the first end counts for all of their sessions.
    pub(super) fn checked(&self, name: ServerName<'static>, until: UnixTime) {
        self.keep(name, |server| {
            server.forget_expired();
            server.holds_until = Some(server.holds_until.map_or(until, |other| other.min(until)));
        });
    }

    /// Changes what is kept of `name`.
    fn keep(&self, name: ServerName<'static>, change: impl FnOnce(&mut Server)) {
        KEPT.with_borrow_mut(|kept| change(kept.server((self.number, name))));
    }

    /// Looks at what is kept of `name`.
    fn find<T>(
        &self,
        name: &ServerName<'_>,
        take: impl FnOnce(&mut Server) -> Option<T>,
    ) -> Option<T> {
        let key = (self.number, name.to_owned());
        KEPT.with_borrow_mut(|kept| take(kept.servers.get_mut(&key)?))
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.keep(server_name, |server| server.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.find(server_name, |server| server.group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.keep(server_name, |server| server.old = Some(value));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.find(server_name, |server| {
            server.forget_expired();
            server.old.clone()
        })
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.find(server_name, |server| server.old.take());
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        self.keep(server_name, |server| {
            if server.tickets.len() == TICKETS_MAX {
                server.tickets.pop_front();
            }
            server.tickets.push_back(value);
        });
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        self.find(server_name, |server| {
            server.forget_expired();
            // The newest: it lives longest.
            server.tickets.pop_back()
        })
    }
}
