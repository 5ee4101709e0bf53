//! `DestinationRule`: not supported yet, and nothing of it may be ignored silently.

use super::fields::{Field, Problems, not_supported};

/// Says so.
pub(super) fn refuse(document: &Field<'_>, problems: &mut Problems) {
    let cause = "backends get the defaults: least request, 10 s to connect, no TLS";
    problems.error(document, not_supported("DestinationRule"), cause);
}
