//! Pieces of a body that are kept for later.
//!
//! - Data is shared with what was sent, not copied; only small pieces are, into one: what they lie
//!   in is larger than they are, so that many would take far more memory than the limit allows
//!   data.

use std::collections::VecDeque;

use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body::Frame;

/// Pieces that are smaller than this together become one. Each takes about a hundred bytes beside
/// its data, and keeps a buffer of 8 KiB or more that it was read into.
const JOINED_BYTES_MAX: usize = 4 * 1024;

/// Pieces in the order of coming, and the room for more.
pub(super) struct Pieces {
    list: VecDeque<Piece>,
    bytes_left: usize,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Pieces {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { list: VecDeque::new(), bytes_left: bytes_max }
    }

    /// Keeps `frame`.
    ///
    /// # Errors
    /// [`Full`]; it is not kept then.
    pub(super) fn push(&mut self, frame: &Frame<Bytes>) -> Result<(), Full> {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let bytes = bytes + frame.trailers_ref().map_or(0, trailer_bytes);
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(Full)?;
        if let Some(data) = frame.data_ref() {
            self.push_data(data);
        }
        self.list.extend(frame.trailers_ref().cloned().map(Piece::Trailers));
        Ok(())
    }

    /// Adds `data` to the last piece if both are small.
    fn push_data(&mut self, data: &Bytes) {
        match self.list.back_mut() {
            _ if data.is_empty() => {}
            Some(Piece::Data(last)) if last.len() + data.len() <= JOINED_BYTES_MAX => {
                // Its own already, unless it is the first or was sent meanwhile.
                let own = std::mem::take(last).try_into_mut();
                let mut joined = own.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                joined.extend_from_slice(data);
                *last = joined.freeze();
            }
            Some(_) | None => self.list.push_back(Piece::Data(data.clone())),
        }
    }

    /// Takes the first one, which makes room.
    pub(super) fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.list.pop_front()?.into_frame();
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.bytes_left += bytes + frame.trailers_ref().map_or(0, trailer_bytes);
        Some(frame)
    }

    /// The one at `place`, once more.
    pub(super) fn get(&self, place: usize) -> Option<Frame<Bytes>> {
        Some(match self.list.get(place)? {
            Piece::Data(data) => Frame::data(data.clone()),
            Piece::Trailers(trailers) => Frame::trailers(trailers.clone()),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes of data from `place` on.
    pub(super) fn data_bytes(&self, place: usize) -> u64 {
        let bytes = |piece: &Piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Trailers(_) => 0,
        };
        self.list.iter().skip(place).map(bytes).sum()
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.list = VecDeque::new();
    }
}

impl Piece {
    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

fn trailer_bytes(trailers: &HeaderMap) -> usize {
    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &[u8]) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn pieces_are_few_however_small_the_frames() {
        let all: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
        for size in [1, 7, 511, 513, 1024, 16 * 1024] {
            let mut pieces = Pieces::new(all.len());
            for chunk in all.chunks(size) {
                pieces.push(&data(chunk)).unwrap();
                pieces.push(&data(b"")).unwrap();
            }
            assert!(pieces.len() <= 2 * 64 + 1, "{size}: {}", pieces.len());
            assert_eq!(pieces.push(&data(b"x")), Err(Full));
            let mut again = Vec::new();
            while let Some(frame) = pieces.pop() {
                again.extend_from_slice(frame.data_ref().unwrap());
            }
            assert_eq!(again, all, "{size}");
            assert_eq!(pieces.push(&data(&all)), Ok(()), "there is room again");
        }
    }

    #[test]
    fn what_is_kept_holds_few_buffers_however_frames_lie_in_them() {
        const BUFFER_BYTES: usize = 8 * 1024;
        const LIMIT: usize = 64 * 1024;
        for sizes in [[1025, 1025], [1, 1025], [4096, 4096], [1, 4096], [4097, 1], [500, 600]] {
            let mut pieces = Pieces::new(LIMIT);
            // As each frame of a slow client lies in a buffer of its own.
            let buffers: Vec<_> = (0..200).map(|_| Bytes::from(vec![0; BUFFER_BYTES])).collect();
            let frames = buffers.iter().zip(sizes.into_iter().cycle());
            for (buffer, size) in frames {
                if pieces.push(&Frame::data(buffer.slice(..size))).is_err() {
                    break;
                }
            }
            let held = buffers.iter().filter(|buffer| !buffer.is_unique()).count();
            assert!(held * BUFFER_BYTES <= 4 * LIMIT, "{sizes:?}: {held} buffers");
        }
    }

    #[test]
    fn what_was_sent_does_not_change() {
        let mut pieces = Pieces::new(100);
        pieces.push(&data(b"ab")).unwrap();
        pieces.push(&data(b"cd")).unwrap();
        let sent = pieces.get(0).unwrap().into_data().unwrap();
        pieces.push(&data(b"ef")).unwrap();
        assert_eq!((&sent[..], pieces.len()), (&b"abcd"[..], 1));
        assert_eq!(pieces.get(0).unwrap().into_data().unwrap(), "abcdef");
    }

    #[test]
    fn trailers_take_room() {
        let mut pieces = Pieces::new(5);
        let trailers = |value: &'static str| {
            let value = ::http::HeaderValue::from_static(value);
            Frame::trailers(HeaderMap::from_iter([(::http::header::TE, value)]))
        };
        assert_eq!(pieces.push(&trailers("four")), Err(Full));
        assert_eq!(pieces.push(&trailers("two")), Ok(()));
        assert!(pieces.pop().unwrap().is_trailers());
    }
}
