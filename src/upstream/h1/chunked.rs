//! Takes the chunked framing apart, one byte at a time, strictly.
//!
//! ```text
//!   Size -> (Extension) -> SizeEnd -> Data -> DataEnd -> Size ...
//!                             \-> Trailers -> Ended            (size 0)
//! ```
//!
//! - Every line ends in CR LF; a lone LF, a sign, `0x` or an empty size is an error.
//! - Extensions are skipped, trailers collected, up to a limit: those of each chunk, and the
//!   trailers with those of the last. Servers that pad sizes do so for as long as a body lasts.

use ::http::HeaderMap;
use bytes::Bytes;

use super::head;

/// Hexadecimal digits of a size: 2^60, more than anyone sends.
const SIZE_DIGITS_MAX: u32 = 15;

/// Where a chunked body is.
pub(super) struct Decoder {
    state: State,
    /// Bytes of extensions and trailers that may come with a chunk.
    bytes_max: usize,
    /// How many of these are left.
    spare: usize,
    trailers: Vec<u8>,
    fields_max: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size {
        size: u64,
        digits: u32,
    },
    Extension {
        size: u64,
    },
    SizeEnd {
        size: u64,
    },
    /// Bytes left of this chunk.
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
    Ended,
}

impl Decoder {
    /// At the start of a body; extensions and trailers have `bytes_max` bytes for each chunk.
    pub(super) fn new(bytes_max: usize, fields_max: usize) -> Self {
        let state = State::Size { size: 0, digits: 0 };
        Self { state, bytes_max, spare: bytes_max, trailers: Vec::new(), fields_max }
    }

    /// Bytes of data that come next; 0 when framing comes next.
    pub(super) fn data(&self) -> u64 {
        if let State::Data(left) = self.state { left } else { 0 }
    }

    /// `n` bytes of data were taken.
    pub(super) fn took(&mut self, n: u64) {
        let left = self.data() - n;
        self.state = if left == 0 { State::DataCr } else { State::Data(left) };
        self.spare = self.bytes_max;
    }

    /// The body is complete.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Reads framing from the start of `bytes` up to data or the end; returns how much it took.
    pub(super) fn skip(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        for (index, &byte) in bytes.iter().enumerate() {
            if matches!(self.state, State::Data(_) | State::Ended) {
                return Ok(index);
            }
            self.state = self.next(byte)?;
        }
        Ok(bytes.len())
    }

    /// The trailers of a body that has ended, without fields that speak about framing or routing.
    pub(super) fn trailers(&mut self) -> Result<Option<HeaderMap>, &'static str> {
        let block = Bytes::from(std::mem::take(&mut self.trailers));
        if block.len() <= 2 {
            return Ok(None);
        }
        head::parse_trailers(&block, self.fields_max).map(Some)
    }

    fn next(&mut self, byte: u8) -> Result<State, &'static str> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) => return after_size(size, digits, byte),
            (State::Extension { size }, b'\r') => State::SizeEnd { size },
            (State::Extension { .. }, b'\n') => return Err("bare LF in a chunk extension"),
            (State::Extension { .. }, _) => self.spend(self.state)?,
            (State::SizeEnd { size: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { size }, b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::Trailers, _) => return self.after_trailer(byte),
            (State::SizeEnd { .. } | State::DataCr | State::DataLf, _) => {
                return Err("chunk without CR LF");
            }
            (State::Data(_) | State::Ended, _) => unreachable!("`skip` stops there"),
        })
    }

    fn after_trailer(&mut self, byte: u8) -> Result<State, &'static str> {
        self.spend(State::Trailers)?;
        if (byte == b'\n') != (self.trailers.last() == Some(&b'\r')) {
            return Err("trailer without CR LF");
        }
        self.trailers.push(byte);
        let ended = self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n");
        Ok(if ended { State::Ended } else { State::Trailers })
    }

    /// Pays for one byte of extension or trailer.
    fn spend(&mut self, state: State) -> Result<State, &'static str> {
        self.spare = self.spare.checked_sub(1).ok_or("chunk extensions or trailers too large")?;
        Ok(state)
    }
}

fn after_size(size: u64, digits: u32, byte: u8) -> Result<State, &'static str> {
    if let Some(digit) = char::from(byte).to_digit(16) {
        if digits == SIZE_DIGITS_MAX {
            return Err("chunk size too large");
        }
        return Ok(State::Size { size: size * 16 + u64::from(digit), digits: digits + 1 });
    }
    match byte {
        _ if digits == 0 => Err("chunk without a size"),
        b'\r' => Ok(State::SizeEnd { size }),
        // Some servers pad the size with blanks.
        b';' | b' ' | b'\t' => Ok(State::Extension { size }),
        _ => Err("chunk size is not hexadecimal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, the trailers and what is left over, or why not; `None` when more has to come.
    fn decode(input: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
        let mut decoder = Decoder::new(64, 4);
        let mut data = Vec::new();
        for chunk in input.chunks(step) {
            let mut chunk = chunk;
            while !chunk.is_empty() && !decoder.ended() {
                let n = usize::try_from(decoder.data()).unwrap().min(chunk.len());
                if n > 0 {
                    data.extend_from_slice(&chunk[..n]);
                    decoder.took(n as u64);
                    chunk = &chunk[n..];
                } else {
                    chunk = &chunk[decoder.skip(chunk)?..];
                }
            }
        }
        if !decoder.ended() {
            return Ok(None);
        }
        let fields = decoder.trailers()?.map_or(0, |trailers| trailers.len());
        Ok(Some((data, fields)))
    }

    #[test]
    fn chunks_decode_at_every_split() {
        let cases: [(&[u8], &[u8], usize); 5] = [
            (b"0\r\n\r\n", b"", 0),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 0),
            (b"3;x=\"y\"\r\nfoo\r\n00A \r\n0123456789\r\n0\r\n\r\n", b"foo0123456789", 0),
            (b"1\r\na\r\n0\r\nx-a: 1\r\nx-b: 2\r\n\r\n", b"a", 2),
            (b"1\r\na\r\n0\r\ncontent-length: 9\r\nx-b: 2\r\n\r\n", b"a", 1),
        ];
        for (input, data, fields) in cases {
            for step in 1..=input.len() {
                assert_eq!(decode(input, step), Ok(Some((data.to_vec(), fields))), "{step}");
            }
        }
    }

    #[test]
    fn sizes_may_be_padded_for_as_long_as_a_body_lasts() {
        let body = "1     \r\na\r\n".repeat(1_000) + "0     \r\n\r\n";
        let (data, _) = decode(body.as_bytes(), 100).unwrap().unwrap();
        assert_eq!(data.len(), 1_000);
    }

    #[test]
    fn hostile_framing_is_an_error() {
        let long = format!("1;{}\r\n", "x".repeat(65));
        let cases: [&[u8]; 17] = [
            b"+5\r\nhello\r\n",
            b"-5\r\n",
            b"0x5\r\nhello\r\n",
            b"\r\n",
            b" 5\r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\r\nhello",
            b"5;a\nb\r\nhello\r\n",
            b"ffffffffffffffff\r\n",
            b"10000000000000005\r\n",
            b"g\r\n",
            b"5_0\r\n",
            b"0\r\nx: y\n\r\n",
            b"0\r\nbad name: y\r\n\r\n",
            long.as_bytes(),
        ];
        for input in cases {
            for step in 1..=input.len() {
                let text = String::from_utf8_lossy(input);
                assert!(decode(input, step).is_err(), "{text:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn an_incomplete_body_does_not_end() {
        let whole = b"5\r\nhello\r\n0\r\nx: y\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(decode(&whole[..end], 3), Ok(None), "{end}");
        }
    }
}
