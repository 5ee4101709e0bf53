//! Shutdown and drain: one latch.

#![forbid(unsafe_code)]
