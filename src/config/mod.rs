//! From resources on disk to a compiled snapshot, on the control thread.

#![forbid(unsafe_code)]

pub(crate) mod check;
pub(crate) mod compile;
mod model;
pub(crate) mod resolve;
pub(crate) mod source;
