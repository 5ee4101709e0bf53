//! What browsers may ask from pages of other origins.

use ::http::header::HeaderValue;

use super::TextMatch;

/// A policy for cross-origin requests.
#[derive(Debug, Clone)]
pub struct Cors {
    /// Any of them.
    pub origins: Vec<TextMatch>,
    /// The answer to a preflight; `*` repeats what was asked for. `None` says nothing.
    pub methods: Option<HeaderValue>,
    /// As above.
    pub headers: Option<HeaderValue>,
    /// Headers of responses that pages may read.
    pub exposed: Option<HeaderValue>,
    /// Seconds that a browser may remember a preflight.
    pub max_age: Option<HeaderValue>,
    /// Pages may send cookies.
    pub credentials: bool,
    /// A preflight of another origin is answered without a permission, not forwarded.
    pub ignores_unmatched: bool,
}

impl Cors {
    /// Whether pages of `origin` may ask.
    #[must_use]
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        let mut origins = self.origins.iter();
        origins.any(|allowed| allowed.matches(b"*") || allowed.matches(origin.as_bytes()))
    }
}
