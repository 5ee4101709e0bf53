//! The PROXY header of a load balancer, or of whoever says to be one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringgate::fuzz::proxy_header(bytes);
});
