//! Tells HTTP/2 with prior knowledge from HTTP/1.1 by the first bytes of a plain connection.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use super::Protocol;
use crate::io::Stream;

/// Enough of the connection preface (RFC 9113, section 3.4) to tell: no HTTP/1.1 method starts so.
const PREFACE: &[u8] = b"PRI ";

/// A stream some of whose bytes were read to look at them; they are lent again first.
pub(crate) struct Peeked<S> {
    /// Invariant: `used <= bytes.len()`.
    bytes: Vec<u8>,
    used: usize,
    stream: S,
}

/// Reads as little of `stream` as tells which protocol it speaks.
///
/// # Errors
/// The connection broke.
pub(crate) async fn detect<S: Stream>(stream: S) -> io::Result<(Peeked<S>, Protocol)> {
    let mut peeked = Peeked::new(stream);
    let protocol = poll_fn(|cx| peeked.poll_protocol(cx)).await?;
    Ok((peeked, protocol))
}

impl<S> Peeked<S> {
    /// `stream`, of which nothing was read yet.
    pub(crate) fn new(stream: S) -> Self {
        Self { bytes: Vec::new(), used: 0, stream }
    }

    /// Lends `bytes`, which were read and not used, once more before all others.
    pub(crate) fn lend_again(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.splice(..0, bytes.iter().copied());
    }
}

impl<S: Stream> Peeked<S> {
    fn poll_protocol(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Protocol>> {
        loop {
            let lent = ready!(self.stream.poll_fill(cx))?;
            let seen = self.bytes.iter().chain(&*lent);
            let shared = seen.zip(PREFACE).take_while(|(seen, preface)| seen == preface).count();
            if shared == PREFACE.len() {
                return Poll::Ready(Ok(Protocol::Http2));
            }
            if lent.is_empty() || shared < self.bytes.len() + lent.len() {
                return Poll::Ready(Ok(Protocol::Http1));
            }
            // All of it is the preface so far, and not enough: keep it and read on.
            let n = lent.len();
            self.bytes.extend_from_slice(lent);
            self.stream.consume(n);
        }
    }
}

impl<S: Stream> Stream for Peeked<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        if self.used < self.bytes.len() {
            return Poll::Ready(Ok(&mut self.bytes[self.used..]));
        }
        self.stream.poll_fill(cx)
    }

    fn consume(&mut self, n: usize) {
        if self.used < self.bytes.len() {
            self.used += n;
            assert!(self.used <= self.bytes.len(), "consumed more than was lent");
            if self.used == self.bytes.len() {
                // Not kept for the rest of the connection's life.
                (self.bytes, self.used) = (Vec::new(), 0);
            }
        } else {
            self.stream.consume(n);
        }
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        self.stream.write(bytes)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn close_write(&mut self) {
        self.stream.close_write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pipe::{self, Chunking};
    use std::task::Waker;

    #[test]
    fn the_first_bytes_tell_and_are_not_lost() {
        let cases: [(&[u8], Protocol); 5] = [
            (b"PRI * HTTP/2.0\r\n", Protocol::Http2),
            (b"GET / HTTP/1.1\r\n", Protocol::Http1),
            (b"PRIVATE / HTTP/1.1\r\n", Protocol::Http1),
            (b"PUT / HTTP/1.1\r\n", Protocol::Http1),
            (b"PR", Protocol::Http1),
        ];
        for chunking in [Chunking::Bytes, Chunking::UpTo(3), Chunking::UpTo(64)] {
            for (bytes, expected) in cases {
                let (mut client, server) = pipe::pair(chunking);
                client.write(&[IoSlice::new(bytes)]).unwrap();
                client.close_write();
                let mut cx = Context::from_waker(Waker::noop());
                let Poll::Ready(Ok((mut stream, protocol))) =
                    std::pin::pin!(detect(server)).poll(&mut cx)
                else {
                    panic!("all bytes are there");
                };
                assert_eq!(protocol, expected, "{chunking:?}");
                assert_eq!(read_all(&mut stream), bytes);
            }
        }
    }

    fn read_all(stream: &mut impl Stream) -> Vec<u8> {
        let mut all = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(bytes)) = stream.poll_fill(&mut cx) {
            let n = bytes.len();
            if n == 0 {
                break;
            }
            all.extend_from_slice(bytes);
            stream.consume(n);
        }
        all
    }
}
