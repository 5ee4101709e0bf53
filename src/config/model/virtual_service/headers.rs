//! `headers` of a rule or a destination: what is set, added and removed.

use ::http::header::{self, HeaderName, HeaderValue};

use super::super::fields::{Field, Fields, Problems};
use super::template;
use crate::snapshot::{Edit, Template};

/// What is done to the headers of requests and responses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Headers {
    pub(crate) request: Edit,
    pub(crate) response: Edit,
    /// Instead of the request's host.
    pub(crate) authority: Option<HeaderValue>,
}

/// Fields that frame a message or concern one hop; the gateway writes them itself.
const OURS: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Headers> {
    let mut fields = field.fields(problems)?;
    let mut headers = Headers::default();
    if let Some(request) = fields.take("request") {
        let authority = Some(&mut headers.authority);
        headers.request = read_edit(&request, authority, problems)?;
    }
    if let Some(response) = fields.take("response") {
        headers.response = read_edit(&response, None, problems)?;
    }
    fields.finish(problems);
    Some(headers)
}

/// `authority` takes the host that a request is given; there is none in a response.
fn read_edit(
    field: &Field<'_>,
    mut authority: Option<&mut Option<HeaderValue>>,
    problems: &mut Problems,
) -> Option<Edit> {
    let mut fields = field.fields(problems)?;
    let set = fields.take("set").and_then(|field| field.fields(problems));
    let add = fields.take("add").and_then(|field| field.fields(problems));
    let remove = fields.take("remove").map(|field| field.items(problems)).unwrap_or_default();
    fields.finish(problems);
    let mut puts = |fields: Option<Fields<'_>>, problems: &mut Problems| -> Vec<_> {
        let all: Vec<_> = fields.iter().flat_map(Fields::all).collect();
        let put = |(name, value): &(&str, Field<'_>)| match &mut authority {
            Some(authority) if is_host(name) => {
                **authority = read_authority(value, problems);
                None
            }
            Some(_) | None => read_put(name, value, problems),
        };
        all.iter().filter_map(put).collect()
    };
    let (set, add) = (puts(set, problems), puts(add, problems));
    let remove = remove.iter().filter_map(|item| read_name(item.string(problems)?, item, problems));
    Some(Edit { remove: remove.collect(), set, add })
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn read_put(
    name: &str,
    value: &Field<'_>,
    problems: &mut Problems,
) -> Option<(HeaderName, Template)> {
    let name = read_name(name, value, problems);
    match template::parse(value.string(problems)?) {
        Ok(template) => Some((name?, template)),
        Err(what) => {
            problems.error(value, what, "");
            None
        }
    }
}

fn read_name(name: &str, field: &Field<'_>, problems: &mut Problems) -> Option<HeaderName> {
    let what = match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if OURS.contains(&name) => {
            let cause = "it frames the message, or concerns one connection alone";
            problems.error(field, format!("`{name}` cannot be changed"), cause);
            return None;
        }
        Ok(name) if name != header::HOST => return Some(name),
        _ if is_host(name) => "the host can only be set, and only in a request".to_owned(),
        _ if name.starts_with(':') => format!("`{name}` cannot be changed; only `:authority` can"),
        _ => format!("`{name}` is no header name"),
    };
    problems.error(field, what, "");
    None
}

/// Reads what is sent as the host.
pub(super) fn read_authority(field: &Field<'_>, problems: &mut Problems) -> Option<HeaderValue> {
    let text = field.string(problems)?;
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_host_byte) {
        let cause = "a name or an address, with or without a port; substitutions are not possible";
        problems.error(field, format!("`{text}` is no host"), cause);
        return None;
    }
    HeaderValue::from_str(text).ok()
}
