//! Where resources come from: files, found, read and watched.

mod burst;
mod cache;
pub(crate) mod directory;
pub(crate) mod document;
mod link;
pub(crate) mod named;
pub(crate) mod watch;
