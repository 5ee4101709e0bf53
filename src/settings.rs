//! The settings file: what the operator sets, and every default with its reason.

#![forbid(unsafe_code)]
