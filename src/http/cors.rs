//! Cross-origin requests: what a browser is told. Pure.

use ::http::Method;
use ::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    HeaderValue, ORIGIN,
};
use ::http::request::Parts;

use crate::snapshot::Cors;

/// The origin that a request names, if pages of it may ask.
pub(crate) fn allowed_origin(cors: &Cors, head: &Parts) -> Option<HeaderValue> {
    origin(head).filter(|origin| cors.allows(origin)).cloned()
}

/// The headers of the answer to a preflight; `None` for requests that are to be forwarded.
pub(crate) fn preflight(cors: &Cors, head: &Parts) -> Option<HeaderMap> {
    let asked = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|name| !name.is_empty());
    let is_preflight = head.method == Method::OPTIONS && origin(head).is_some();
    let asked = asked.filter(|_| is_preflight)?;
    let origin = allowed_origin(cors, head);
    if origin.is_none() && !cors.ignores_unmatched {
        return None;
    }
    let mut headers = HeaderMap::new();
    allow(cors, origin.as_ref(), &mut headers);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let asked_headers = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    permit(ACCESS_CONTROL_ALLOW_METHODS, cors.methods.as_ref(), Some(asked), &mut headers);
    permit(ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.as_ref(), asked_headers, &mut headers);
    if let Some(age) = &cors.max_age {
        headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
    }
    Some(headers)
}

/// Lets pages of `origin` read a response with these headers.
pub(crate) fn allow(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let Some(origin) = origin else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(exposed) = &cors.exposed {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
    }
}

fn origin(head: &Parts) -> Option<&HeaderValue> {
    head.headers.get(ORIGIN).filter(|origin| !origin.is_empty())
}

/// `*` permits whatever was asked for.
fn permit(
    name: HeaderName,
    allowed: Option<&HeaderValue>,
    asked: Option<&HeaderValue>,
    headers: &mut HeaderMap,
) {
    let value = allowed.and_then(|allowed| if allowed == "*" { asked } else { Some(allowed) });
    if let Some(value) = value {
        headers.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TextMatch;
    use ::http::Request;

    fn policy() -> Cors {
        Cors {
            origins: vec![TextMatch::Exact("https://a.test".to_owned())],
            methods: Some(HeaderValue::from_static("GET,PUT")),
            headers: Some(HeaderValue::from_static("*")),
            exposed: Some(HeaderValue::from_static("x-c")),
            max_age: None,
            credentials: false,
            ignores_unmatched: false,
        }
    }

    fn asks(method: &str, fields: &[(&str, &str)]) -> Parts {
        let request =
            fields.iter().fold(Request::builder().method(method), |request, (name, value)| {
                request.header(*name, *value)
            });
        request.body(()).unwrap().into_parts().0
    }

    const FROM_A: (&str, &str) = ("origin", "https://a.test");
    const METHOD: (&str, &str) = ("access-control-request-method", "PUT");

    #[test]
    fn only_a_preflight_is_answered() {
        let forwarded = [
            asks("GET", &[FROM_A, METHOD]),
            asks("OPTIONS", &[METHOD]),
            asks("OPTIONS", &[FROM_A]),
            asks("OPTIONS", &[("origin", ""), METHOD]),
            asks("OPTIONS", &[("origin", "https://b.test"), METHOD]),
        ];
        for head in forwarded {
            assert!(preflight(&policy(), &head).is_none(), "{head:?}");
        }
        let asked = [FROM_A, METHOD, ("access-control-request-headers", "x-d")];
        let headers = preflight(&policy(), &asks("OPTIONS", &asked)).unwrap();
        assert_eq!(headers["access-control-allow-methods"], "GET,PUT");
        assert_eq!(headers["access-control-allow-headers"], "x-d", "`*` repeats what was asked");
        assert!(!headers.contains_key("access-control-allow-credentials"));
    }

    #[test]
    fn an_ignored_preflight_permits_nothing() {
        let policy = Cors { ignores_unmatched: true, ..policy() };
        let head = asks("OPTIONS", &[("origin", "https://b.test"), METHOD]);
        let headers = preflight(&policy, &head).unwrap();
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
}
