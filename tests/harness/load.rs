//! Requests without pause while something else happens, and an account of every failure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::client::{Client, Tls};
use super::eventually;

/// A running load: some threads on one connection each, one that connects for every request.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

#[derive(Clone)]
struct Target {
    tls: Tls,
    address: SocketAddr,
    name: String,
    path: String,
}

impl Load {
    /// Starts asking for `path` of `name`; anything but 200 is a failure.
    pub fn start(tls: &Tls, address: SocketAddr, name: &str, path: &str) -> Self {
        let target =
            Target { tls: tls.clone(), address, name: name.to_owned(), path: path.to_owned() };
        let (stop, answered) = (Arc::default(), Arc::default());
        let threads = (0..4)
            .map(|index| {
                let (target, stop) = (target.clone(), Arc::clone(&stop));
                let answered = Arc::clone(&answered);
                thread::spawn(move || target.ask(&stop, &answered, index > 0))
            })
            .collect();
        let load = Self { stop, answered, threads };
        load.wait_answered(20);
        load
    }

    /// Waits for `n` more answers, so that what was changed before has certainly been met.
    #[track_caller]
    pub fn wait_answered(&self, n: usize) {
        let goal = self.answered.load(Ordering::SeqCst) + n;
        eventually(&format!("{n} more answers under load"), || {
            self.answered.load(Ordering::SeqCst) >= goal
                || self.threads.iter().any(JoinHandle::is_finished)
        });
    }

    /// Stops and returns how many were answered.
    ///
    /// # Panics
    /// When any request failed.
    #[track_caller]
    pub fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let failures: Vec<String> =
            self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let answered = self.answered.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{answered} answered, but: {failures:#?}");
        answered
    }
}

impl Target {
    /// Asks until told to stop; returns at the first failure.
    fn ask(&self, stop: &AtomicBool, answered: &AtomicUsize, keep_alive: bool) -> Vec<String> {
        let mut client = None;
        while !stop.load(Ordering::SeqCst) {
            match self.ask_once(client.take()) {
                Ok(used) => client = keep_alive.then_some(used),
                Err(failure) => return vec![failure],
            }
            answered.fetch_add(1, Ordering::SeqCst);
        }
        Vec::new()
    }

    fn ask_once(&self, client: Option<Client>) -> Result<Client, String> {
        let mut client = match client {
            Some(client) => client,
            None => Client::tls(&self.tls, self.address, &self.name)
                .map_err(|error| format!("handshake: {error}"))?,
        };
        let response = client
            .request("GET", &self.path, "", b"")
            .map_err(|error| format!("request: {error}"))?;
        match response.status {
            200 => Ok(client),
            status => Err(format!("status {status}: {}", response.text())),
        }
    }
}
