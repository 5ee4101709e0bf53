//! The second thread of the administration, which does what takes long: one thing at a time.
//!
//! Whoever waits for a turn has nothing there yet. Clients that come in numbers and go before they
//! are answered leave one thing under way, and nothing that piles up behind it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hands out turns.
pub(super) struct Aside(Arc<Semaphore>);

/// The only one there is.
pub(super) struct Turn(OwnedSemaphorePermit);

impl Aside {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self) -> Turn {
        Turn(Arc::clone(&self.0).acquire_owned().await.expect("nobody closes it"))
    }
}

impl Turn {
    /// What `make` makes. The turn ends with it, also when nobody waits for it any more.
    pub(super) async fn make<T: Send + 'static>(
        self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let making = tokio::task::spawn_blocking(move || {
            let _turn = self.0;
            make()
        });
        making.await.expect("making a page does not panic")
    }
}
