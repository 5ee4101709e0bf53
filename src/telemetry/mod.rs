//! What each worker counts and logs.

#![forbid(unsafe_code)]
