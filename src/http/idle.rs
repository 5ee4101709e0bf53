//! Connections on which nothing goes on: where there is no room for a new one, the one that has
//! been idle longest gives way.
//!
//! Refusing the new ones instead would let whoever opens connections and keeps silent keep
//! everybody out, and most clients keep theirs open far longer than they use them.
//!
//! - Taking a seat, leaving it and giving way cost the same however many are idle: the seats are a
//!   list from the one that has been taken longest to the newest, linked by their places.
//! - What gives way is woken and ends by itself; until then its seat is empty, but not another's.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// The idle connections of one worker.
#[derive(Default)]
pub(crate) struct Idle {
    seats: RefCell<Seats>,
}

#[derive(Default)]
struct Seats {
    places: Vec<Place>,
    /// Places that nobody has.
    free: Vec<usize>,
    /// The ends of the list.
    oldest: Option<usize>,
    newest: Option<usize>,
    /// How many are to give way and have not gone yet.
    leaving: usize,
}

#[derive(Default)]
struct Place {
    older: Option<usize>,
    newer: Option<usize>,
    /// Whether its connection is to give way; it stands in the list no more then.
    is_over: bool,
    waker: Option<Waker>,
}

/// The seat of a connection, until it is dropped.
#[must_use]
pub(crate) struct Seat<'a> {
    idle: &'a Idle,
    place: usize,
}

impl Idle {
    /// A seat for one that is idle from now on.
    pub(crate) fn sit_down(&self) -> Seat<'_> {
        let mut seats = self.seats.borrow_mut();
        let place = seats.free.pop().unwrap_or(seats.places.len());
        if place == seats.places.len() {
            seats.places.push(Place::default());
        }
        seats.append(place);
        Seat { idle: self, place }
    }

    /// Has the one that has been idle longest give way; says whether there is one.
    pub(crate) fn make_room(&self) -> bool {
        let waker = {
            let mut seats = self.seats.borrow_mut();
            let Some(oldest) = seats.oldest else { return false };
            seats.unlink(oldest);
            seats.leaving += 1;
            seats.places[oldest].is_over = true;
            seats.places[oldest].waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// How many are to give way and have not gone yet.
    pub(crate) fn leaving(&self) -> usize {
        self.seats.borrow().leaving
    }
}

impl Seats {
    fn append(&mut self, place: usize) {
        let older = self.newest.replace(place);
        self.places[place] = Place { older, ..Place::default() };
        match older {
            Some(older) => self.places[older].newer = Some(place),
            None => self.oldest = Some(place),
        }
    }

    fn unlink(&mut self, place: usize) {
        let Place { older, newer, .. } = self.places[place];
        match older {
            Some(older) => self.places[older].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.places[newer].older = older,
            None => self.newest = older,
        }
    }
}

impl Seat<'_> {
    /// Runs `future`, which waits for a client of which nothing is known yet; none when it is to
    /// give way before that is done.
    pub(crate) async fn run<F: Future + Unpin>(self, mut future: F) -> Option<F::Output> {
        poll_fn(|cx| match Pin::new(&mut future).poll(cx) {
            Poll::Pending => self.poll_over(cx).map(|()| None),
            Poll::Ready(output) => Poll::Ready(Some(output)),
        })
        .await
    }

    /// Ready when its connection is to give way.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        let place = &mut self.idle.seats.borrow_mut().places[self.place];
        if place.is_over {
            return Poll::Ready(());
        }
        match &mut place.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => place.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut seats = self.idle.seats.borrow_mut();
        if seats.places[self.place].is_over {
            seats.leaving -= 1;
        } else {
            seats.unlink(self.place);
        }
        seats.free.push(self.place);
        let waker = seats.places[self.place].waker.take();
        // Whatever goes with it finds the seats as they should be.
        drop(seats);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of `seats` are to give way.
    fn over(seats: &[Option<Seat<'_>>]) -> Vec<usize> {
        let cx = Context::from_waker(Waker::noop());
        let taken = seats.iter().enumerate().filter_map(|(n, seat)| Some((n, seat.as_ref()?)));
        taken.filter(|(_, seat)| seat.poll_over(&cx).is_ready()).map(|(n, _)| n).collect()
    }

    #[test]
    fn the_one_that_has_been_idle_longest_gives_way() {
        let idle = Idle::default();
        assert!(!idle.make_room());
        let mut seats: Vec<_> = (0..6).map(|_| Some(idle.sit_down())).collect();
        assert!(over(&seats).is_empty());
        // The first, the last, and one between leave.
        for place in [0, 3, 5] {
            seats[place] = None;
        }
        seats.push(Some(idle.sit_down()));
        for expected in [&[1][..], &[1, 2], &[1, 2, 4], &[1, 2, 4, 6]] {
            assert!(idle.make_room());
            assert_eq!(over(&seats), expected);
            assert_eq!(idle.leaving(), expected.len());
        }
        assert!(!idle.make_room(), "each gives way once");
        drop(seats);
        assert_eq!(idle.leaving(), 0);
        let again = [Some(idle.sit_down())];
        assert!(over(&again).is_empty());
        assert!(idle.make_room());
        assert_eq!(over(&again), [0]);
        assert!(idle.seats.borrow().places.len() <= 6, "places are taken again");
    }
}
