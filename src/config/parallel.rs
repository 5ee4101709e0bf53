//! The same for many things at once, on the cores that the workers leave idle.
//!
//! Only the control thread asks for it, and only at the start or when a great deal changed at once
//! are there enough things for a second thread.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A second thread is worth its while when there are so many batches.
const BATCHES_MIN: usize = 4;

/// How many of the small things that there are thousands of make a batch.
pub(super) const MANY: usize = 16;

/// More threads than this wait for memory and the kernel, not for one another.
const THREADS_MAX: usize = 8;

/// `each` of `things`, in their order. A thread takes `batch` of them at a time.
pub(super) fn map<T: Sync, R: Send>(
    things: &[T],
    batch: usize,
    each: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let is_worthwhile = things.len() >= BATCHES_MIN * batch;
    let threads = if is_worthwhile { cores.min(THREADS_MAX) } else { 1 };
    if threads == 1 {
        return things.iter().map(each).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let start = next.fetch_add(batch, Ordering::Relaxed);
            let Some(part) = things.get(start..things.len().min(start + batch)) else { break };
            if part.is_empty() {
                break;
            }
            done.push((start, part.iter().map(&each).collect::<Vec<_>>()));
        }
        done
    };
    let mut batches = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut batches = work();
        for other in others {
            batches.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        batches
    });
    batches.sort_unstable_by_key(|(start, _)| *start);
    batches.into_iter().flat_map(|(_, done)| done).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept() {
        for (count, batch) in [(0, 1), (1, 1), (4, 1), (63, 16), (64, 16), (1000, 16), (1001, 7)] {
            let things: Vec<_> = (0..count).collect();
            assert_eq!(
                map(&things, batch, |thing| thing * 2),
                things.iter().map(|t| t * 2).collect::<Vec<_>>()
            );
        }
    }
}
