//! Where resources come from.

pub(crate) mod document;
