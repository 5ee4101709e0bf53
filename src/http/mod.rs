//! HTTP downstream: serves requests, forwards them, answers for the gateway itself.

#![forbid(unsafe_code)]
