//! Compares the host with the advice in `tuning/`.
//!
//! - Reads `/proc` and `/sys`, changes nothing, needs no privilege.
//! - Each [`Knob`](knob::Knob) is explained in `tuning/NAME.md`. Its advice and its commands stand
//!   there word for word, and what a command sets satisfies the check: `tests.rs` holds both.
//! - What a container hides is reported as such, with the file that is missing.
//!
//! Deliberately not here: the gateway's settings, so advice is for the whole host; and measuring
//! anything, which takes a load.

#![forbid(unsafe_code)]

mod cpu;
mod host;
mod knob;
mod network;
mod process;
mod report;
mod sysctl;
#[cfg(test)]
mod tests;

pub use host::Host;
pub use report::{Report, compare};
