//! The first bytes of a client on a TLS port.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringgate::fuzz::hello(bytes);
});
