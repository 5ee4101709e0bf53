//! One HTTP/2 request, as much of the protocol as that takes.
//!
//! - The request's fields are sent literally. The answer's status must be 200, which every server
//!   sends as one byte, so that nothing has to be decompressed.
//! - SETTINGS and PING are acknowledged, what else is not about the answer is passed over.
//! - The answer must fit the windows that a connection begins with, 65,535 bytes.

use std::io;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const STREAM: u32 = 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// `:status: 200` in HPACK's static table.
const STATUS_200: u8 = 0x88;
/// A change of the dynamic table's size begins with these bits: 001.
const SIZE_UPDATE: u8 = 0x20;
const FIVE_BITS: u8 = 0x1f;

/// What a client says first.
pub(super) fn request(name: &str, path: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    // Indices of the static table: `:method: GET`, `:scheme: https`.
    fields.extend_from_slice(&[0x82, 0x87]);
    // Literals without indexing: `:authority` is 1, `:path` is 4.
    for (index, value) in [(1, name), (4, path)] {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX).min(126);
        fields.extend_from_slice(&[index, length]);
        fields.extend_from_slice(&value.as_bytes()[..usize::from(length)]);
    }
    let settings = frame(SETTINGS, 0, 0, &[]);
    let headers = frame(HEADERS, END_STREAM | END_HEADERS, STREAM, &fields);
    [PREFACE, &settings, &headers].concat()
}

/// An answer that is arriving.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The beginning of a frame.
    rest: Vec<u8>,
}

impl Answer {
    /// Whether the answer is complete, and what to say to what has arrived.
    ///
    /// # Errors
    /// The server refuses the request, or answers with anything but 200.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<(bool, Vec<u8>)> {
        self.rest.extend_from_slice(bytes);
        let (mut complete, mut reply) = (false, Vec::new());
        while let Some(size) = frame_bytes(&self.rest) {
            let (kind, flags) = (self.rest[3], self.rest[4]);
            let payload = &self.rest[HEAD_BYTES..size];
            match kind {
                HEADERS => check_status(flags, payload)?,
                SETTINGS if flags & ACK == 0 => reply.extend(frame(SETTINGS, ACK, 0, &[])),
                PING if flags & ACK == 0 => reply.extend(frame(PING, ACK, 0, payload)),
                RST_STREAM | GOAWAY => return Err(io::Error::other("the request was refused")),
                _ => {}
            }
            complete |= matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
            self.rest.drain(..size);
        }
        Ok((complete, reply))
    }
}

/// The size of the frame that `bytes` begins with, if it is complete.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..HEAD_BYTES)?;
    let size = HEAD_BYTES + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    (bytes.len() >= size).then_some(size)
}

fn check_status(flags: u8, payload: &[u8]) -> io::Result<()> {
    let padding = usize::from(flags & PADDED != 0) + 5 * usize::from(flags & PRIORITY != 0);
    let mut fields = payload.iter().skip(padding).copied();
    loop {
        match fields.next() {
            Some(STATUS_200) => return Ok(()),
            // A number that does not fit its five bits goes on until a byte without the first bit.
            Some(byte) if byte & !FIVE_BITS == SIZE_UPDATE => {
                let goes_on = byte & FIVE_BITS == FIVE_BITS;
                while goes_on && fields.next().is_some_and(|byte| byte & 0x80 != 0) {}
            }
            other => {
                return Err(io::Error::other(format!("an answer that begins with {other:x?}")));
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_arrive_in_any_pieces() {
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let headers = frame(HEADERS, END_HEADERS, 1, &[0x20, 0x3f, 0xe1, 0x1f, STATUS_200, 1, 2]);
        let data = frame(DATA, END_STREAM, 1, b"hello");
        let all = [settings, headers, data].concat();
        let mut answer = Answer::default();
        let mut replies = Vec::new();
        for (index, byte) in all.iter().enumerate() {
            let (complete, reply) = answer.take(&[*byte]).unwrap();
            assert_eq!(complete, index == all.len() - 1);
            replies.extend(reply);
        }
        assert_eq!(replies, frame(SETTINGS, ACK, 0, &[]));
        assert_eq!(Answer::default().take(&all).unwrap(), (true, replies));
    }

    #[test]
    fn anything_but_200_is_an_error() {
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x8d]);
        assert!(Answer::default().take(&headers).is_err());
        assert!(Answer::default().take(&frame(RST_STREAM, 0, 1, &[0; 4])).is_err());
    }

    #[test]
    fn the_request_is_what_the_format_says() {
        let request = request("a", "/62");
        let fields = &request[PREFACE.len() + 2 * HEAD_BYTES..];
        assert_eq!(fields, b"\x82\x87\x01\x01a\x04\x03/62");
    }
}
