//! Where resources come from: files, found, read and watched.

mod burst;
mod compose;
pub(crate) mod directory;
pub(crate) mod document;
mod link;
mod look;
pub(crate) mod named;
mod walk;
pub(crate) mod watch;
