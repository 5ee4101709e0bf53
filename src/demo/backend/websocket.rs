//! A WebSocket (RFC 6455) that sends back what it gets. Small frames only, no extensions.

use ::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::body::Body;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Of one frame.
const PAYLOAD_BYTES_MAX: usize = 65_535;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The key of a client that asks for a WebSocket.
pub(super) fn key(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    upgrade.eq_ignore_ascii_case("websocket").then(|| key.clone())
}

/// Answers 101; the echo begins when the connection is ours.
pub(super) fn accept(key: &HeaderValue, upgrade: OnUpgrade) -> Response<Body> {
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // A client that breaks off or sends nonsense is left alone.
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept_value(key.as_bytes()));
    response
}

fn accept_value(key: &[u8]) -> HeaderValue {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(GUID);
    let text = base64(digest.finish().as_ref());
    HeaderValue::from_str(&text).expect("base64 is visible ASCII")
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0, |group: u32, byte| group << 8 | u32::from(*byte));
        let group = group << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = group >> (18 - 6 * index) & 63;
            let shown = index <= chunk.len();
            text.push(if shown { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    text
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let (head, payload) = read_frame(&mut stream).await?;
        match head & 0x0F {
            PING => write_frame(&mut stream, FINAL | PONG, &payload).await?,
            PONG => {}
            CLOSE => {
                write_frame(&mut stream, head, &payload).await?;
                return stream.shutdown().await;
            }
            _ => write_frame(&mut stream, head, &payload).await?,
        }
    }
}

/// The first byte of a frame and its payload, unmasked.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let head = stream.read_u8().await?;
    let length = stream.read_u8().await?;
    let length = match length.checked_sub(MASKED) {
        Some(126) => stream.read_u16().await?.into(),
        Some(short @ 0..126) => usize::from(short),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Ok((head, payload))
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    head: u8,
    payload: &[u8],
) -> io::Result<()> {
    let mut frame = vec![head];
    match u8::try_from(payload.len()) {
        Ok(short @ 0..126) => frame.push(short),
        _ => {
            let length = u16::try_from(payload.len().min(PAYLOAD_BYTES_MAX));
            frame.push(126);
            frame.extend(length.expect("the longest frame was cut off").to_be_bytes());
        }
    }
    frame.extend(payload);
    stream.write_all(&frame).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foo"), "Zm9v");
    }
}
