//! Hands snapshots from the control thread to the workers.
//!
//! - Publishing is one pointer swap; a worker notices at its next request, without a lock.
//! - A worker pays one atomic load per look and one reference count per generation: requests clone
//!   the worker's own [`View`].
//! - The publisher keeps each retired snapshot until it holds the last reference, so nothing large
//!   is freed on a worker.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::Snapshot;

/// A worker's shared handle on one generation. A request holds one from its beginning to its end.
pub type View = Rc<Arc<Snapshot>>;

/// The control thread's end. Publishes generations, in order.
#[derive(Debug, Default)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    /// Replaced, but perhaps still in use by a worker.
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// Makes `snapshot` the one that the next request sees.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.retired.push(self.current.swap(snapshot));
        self.free_retired();
    }

    /// Frees the retired snapshots that no worker uses any more.
    pub fn free_retired(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// Where other threads find the newest snapshot.
    #[must_use]
    pub fn source(&self) -> Source {
        Source { current: Arc::clone(&self.current) }
    }
}

/// Where any thread finds the newest snapshot.
#[derive(Debug, Clone)]
pub struct Source {
    current: Arc<ArcSwap<Snapshot>>,
}

impl Source {
    /// The newest snapshot, for who looks rarely.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A worker's end, for who looks at every request.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let mut cache = Cache::new(Arc::clone(&self.current));
        let view = Rc::new(Arc::clone(cache.load()));
        Subscription { cache, view }
    }
}

/// A worker's end: sees the newest snapshot.
#[derive(Debug)]
pub struct Subscription {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    /// Invariant: wraps what `cache` loaded last.
    view: View,
}

impl Subscription {
    /// The newest snapshot.
    pub fn current(&mut self) -> &View {
        let newest = self.cache.load();
        if !Arc::ptr_eq(newest, &self.view) {
            self.view = Rc::new(Arc::clone(newest));
        }
        &self.view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(generation: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { generation, ..Snapshot::default() })
    }

    #[test]
    fn a_request_keeps_its_snapshot_and_the_next_sees_the_newest() {
        let mut publisher = Publisher::default();
        publisher.publish(generation(1));
        let mut worker = publisher.source().subscribe();
        let request = Rc::clone(worker.current());
        publisher.publish(generation(2));
        assert_eq!(request.generation, 1);
        assert_eq!(worker.current().generation, 2);
    }

    #[test]
    fn a_generation_is_wrapped_once() {
        let mut publisher = Publisher::default();
        publisher.publish(generation(1));
        let mut worker = publisher.source().subscribe();
        let first = Rc::clone(worker.current());
        assert!(Rc::ptr_eq(&first, worker.current()));
    }

    #[test]
    fn a_retired_snapshot_is_freed_by_the_publisher() {
        let mut publisher = Publisher::default();
        let first = generation(1);
        let weak = Arc::downgrade(&first);
        publisher.publish(first);
        let mut worker = publisher.source().subscribe();
        let request = Rc::clone(worker.current());
        publisher.publish(generation(2));
        worker.current();
        drop(request);
        assert!(weak.upgrade().is_some(), "the worker's drop did not free it");
        publisher.free_retired();
        assert!(weak.upgrade().is_none());
    }
}
