//! From resources on disk to a compiled snapshot, on the control thread.
//!
//! ```text
//! source (files, watched) -> model (parsed) -> compile -> Snapshot
//!                       resolve (names) ------^
//! ```
//!
//! [`Control`] is the loop around it: whoever runs the gateway asks it for the next snapshot.
//!
//! Deliberately not here: what is done with a snapshot, and anything that a worker runs.

#![forbid(unsafe_code)]

mod check;
pub(crate) mod compile;
mod control;
mod identities;
mod model;
mod parallel;
pub(crate) mod resolve;
pub(crate) mod source;
mod system_ca;

#[cfg(feature = "bench")]
pub(crate) use check::check_bytes;
pub use check::check_paths;
pub use control::{Control, StartError};
