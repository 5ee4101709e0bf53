//! Header values with Envoy's `%...%` substitutions.

use std::sync::LazyLock;

use ::http::header::{HeaderName, HeaderValue};

use crate::snapshot::{AddressPart, FieldValue, Piece, RequestPart, Template};

/// Reads a value.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Template, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        push_text(&mut pieces, before);
        rest = match after.strip_prefix('%') {
            Some(after) => {
                push_text(&mut pieces, "%");
                after
            }
            None => parse_command(after, &mut pieces)?,
        };
    }
    push_text(&mut pieces, rest);
    match pieces.as_slice() {
        [] => Ok(Template::Fixed(HeaderValue::from_static(""))),
        [Piece::Text(text)] => HeaderValue::from_str(text)
            .map(Template::Fixed)
            .map_err(|_| "holds a character that no header may hold".to_owned()),
        _ if pieces.iter().all(is_sendable) => Ok(Template::Made(pieces)),
        _ => Err("holds a character that no header may hold".to_owned()),
    }
}

fn is_sendable(piece: &Piece) -> bool {
    if let Piece::Text(text) = piece { HeaderValue::from_str(text).is_ok() } else { true }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(before)) => before.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// Reads what follows a `%` up to the next one, and returns what follows that.
fn parse_command<'a>(text: &'a str, pieces: &mut Vec<Piece>) -> Result<&'a str, String> {
    let end = text.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    if name.is_empty() {
        return Err("holds a single `%`; write `%%` for one".to_owned());
    }
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(rest) => {
            let unclosed = || format!("`%{name}(` is not closed");
            let (argument, rest) = rest.split_once(')').ok_or_else(unclosed)?;
            (Some(argument), rest)
        }
        None => (None, rest),
    };
    let (modifier, rest) =
        rest.split_once('%').ok_or_else(|| format!("`%{name}` lacks its closing `%`"))?;
    let bytes_max = match modifier.strip_prefix(':').map(str::parse) {
        Some(Ok(length)) => Some(length),
        None if modifier.is_empty() => None,
        Some(Err(_)) | None => return Err(format!("`{modifier}` after `%{name}` is no length")),
    };
    let piece = command(name, argument, bytes_max)?;
    if let Piece::Text(text) = &piece {
        push_text(pieces, text);
    } else {
        pieces.push(piece);
    }
    Ok(rest)
}

fn command(name: &str, argument: Option<&str>, bytes_max: Option<usize>) -> Result<Piece, String> {
    let piece = match (name, argument) {
        ("REQ", Some(argument)) => {
            return field(argument, bytes_max, request_part).map(Piece::Request);
        }
        ("RESP", Some(argument)) => {
            return field(argument, bytes_max, header_name).map(Piece::Response);
        }
        ("REQ" | "RESP", None) => {
            return Err(format!("`%{name}%` lacks the name of a header in parentheses"));
        }
        (_, Some(_)) if plain_command(name).is_some() => {
            return Err(format!("`%{name}(...)%` is not supported, only `%{name}%`"));
        }
        (_, None) => plain_command(name),
        (_, Some(_)) => None,
    };
    let piece = piece.ok_or_else(|| format!("`%{name}%` is not supported"))?;
    if bytes_max.is_some() {
        return Err(format!("`%{name}%` cannot be cut to a length"));
    }
    Ok(piece)
}

fn plain_command(name: &str) -> Option<Piece> {
    use AddressPart::{Host, Port, Whole};
    Some(match name {
        "DOWNSTREAM_REMOTE_ADDRESS" => Piece::Remote(Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Piece::Remote(Host),
        "DOWNSTREAM_REMOTE_PORT" => Piece::Remote(Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Piece::Peer(Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Piece::Peer(Host),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Piece::Peer(Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Piece::Local(Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Piece::Local(Host),
        "DOWNSTREAM_LOCAL_PORT" => Piece::Local(Port),
        "HOSTNAME" => Piece::Text(HOST_NAME.clone()),
        "PROTOCOL" => Piece::Protocol,
        "REQUESTED_SERVER_NAME" => Piece::ServerName,
        "RESPONSE_CODE" => Piece::Status,
        "ROUTE_NAME" => Piece::RouteName,
        "START_TIME" => Piece::StartTime,
        "UPSTREAM_CLUSTER" => Piece::Cluster,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Piece::Endpoint(Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Piece::Endpoint(Host),
        "UPSTREAM_REMOTE_PORT" => Piece::Endpoint(Port),
        _ => return None,
    })
}

/// The name of this machine, or `-`; it does not change while the process lives.
static HOST_NAME: LazyLock<String> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "-".to_owned() } else { name.to_owned() }
});

/// `NAME` or `NAME?ALTERNATIVE`.
fn field<T>(
    argument: &str,
    bytes_max: Option<usize>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<FieldValue<T>, String> {
    let (name, alternative) = match argument.split_once('?') {
        Some((name, alternative)) => (name, Some(read(alternative)?)),
        None => (argument, None),
    };
    Ok(FieldValue { name: read(name)?, alternative, bytes_max: bytes_max.unwrap_or(usize::MAX) })
}

fn request_part(name: &str) -> Result<RequestPart, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => RequestPart::Method,
        ":path" => RequestPart::Path,
        ":authority" | "host" => RequestPart::Authority,
        ":scheme" => RequestPart::Scheme,
        other => RequestPart::Header(header_name(other)?),
    })
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is no header name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_without_substitutions_is_made_once() {
        for (text, value) in [("plain", "plain"), ("", ""), ("100%%", "100%"), ("%%%%", "%%")] {
            let Ok(Template::Fixed(fixed)) = parse(text) else { panic!("{text}") };
            assert_eq!(fixed, value, "{text}");
        }
        let Ok(Template::Fixed(host)) = parse("%HOSTNAME%") else { panic!() };
        assert_eq!(host, HOST_NAME.as_str());
    }

    #[test]
    fn substitutions_stand_between_text() {
        let template = parse("a%PROTOCOL%b%%%REQ(X-A?:PATH):3%%RESP(server)%").unwrap();
        let request = FieldValue {
            name: RequestPart::Header(HeaderName::from_static("x-a")),
            alternative: Some(RequestPart::Path),
            bytes_max: 3,
        };
        let Template::Made(pieces) = template else { panic!() };
        let [
            Piece::Text(first),
            Piece::Protocol,
            Piece::Text(second),
            Piece::Request(found),
            Piece::Response(response),
        ] = pieces.as_slice()
        else {
            panic!("{pieces:?}")
        };
        assert_eq!((first.as_str(), second.as_str(), found), ("a", "b%", &request));
        assert_eq!((response.name.as_str(), response.bytes_max), ("server", usize::MAX));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("100%", "write `%%`"),
            ("% x%", "write `%%`"),
            ("%PROTOCOL", "closing `%`"),
            ("%REQ(a%", "is not closed"),
            ("%REQ%", "name of a header"),
            ("%REQ(a b)%", "no header name"),
            ("%REQ(a):x%", "no length"),
            ("%START_TIME(%s)%", "only `%START_TIME%`"),
            ("%DYNAMIC_METADATA(a)%", "not supported"),
            ("%PROTOCOL:3%", "cannot be cut"),
            ("a\nb", "no header may hold"),
            ("%PROTOCOL%\n", "no header may hold"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
