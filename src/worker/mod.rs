//! One per core: accepts connections and drives each of them from handshake to end.

#![forbid(unsafe_code)]
