//! A service that hyper's HTTP/1.1 calls again only after the last call is over.
//!
//! hyper wants the future of a call to be movable. Boxing each would be an allocation per request;
//! here all calls of a connection take turns in one box.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::service::Service;

/// Calls `make` for each request.
pub(crate) struct OneAtATime<M, F> {
    make: M,
    slot: Slot<F>,
}

/// The call under way, if there is one.
type Slot<F> = Rc<RefCell<Pin<Box<Option<F>>>>>;

/// What hyper polls and drops in place of the call.
pub(crate) struct Call<F> {
    slot: Slot<F>,
}

impl<M, F> OneAtATime<M, F> {
    pub(crate) fn new(make: M) -> Self {
        Self { make, slot: Rc::new(RefCell::new(Box::pin(None))) }
    }
}

impl<M, F, R, T, E> Service<R> for OneAtATime<M, F>
where
    M: Fn(R) -> F,
    F: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = E;
    type Future = Call<F>;

    fn call(&self, request: R) -> Call<F> {
        self.slot.borrow_mut().set(Some((self.make)(request)));
        Call { slot: Rc::clone(&self.slot) }
    }
}

impl<F: Future> Future for Call<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut slot = self.slot.borrow_mut();
        let call = slot.as_mut().as_pin_mut().expect("a call is polled until it is ready");
        let output = ready!(call.poll(cx));
        slot.set(None);
        Poll::Ready(output)
    }
}

/// hyper gives a call up when the client goes away.
impl<F> Drop for Call<F> {
    fn drop(&mut self) {
        self.slot.borrow_mut().set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::task::Waker;

    #[test]
    fn calls_take_turns_and_a_dropped_one_is_over() {
        let open = Rc::new(Cell::new(true));
        let service = OneAtATime::new({
            let open = Rc::clone(&open);
            move |n: u32| {
                let open = Rc::clone(&open);
                async move {
                    let gate = |_: &mut Context<'_>| {
                        if open.get() { Poll::Ready(()) } else { Poll::Pending }
                    };
                    poll_fn(gate).await;
                    Ok::<_, Infallible>(n)
                }
            }
        });
        let mut cx = Context::from_waker(Waker::noop());
        for n in 0..3 {
            assert_eq!(Pin::new(&mut service.call(n)).poll(&mut cx), Poll::Ready(Ok(n)));
        }
        open.set(false);
        let mut waiting = service.call(7);
        assert!(Pin::new(&mut waiting).poll(&mut cx).is_pending());
        assert_eq!(Rc::strong_count(&open), 3);
        drop(waiting);
        assert_eq!(Rc::strong_count(&open), 2, "the call itself is gone too");
    }
}
