//! The head of an endpoint's response.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringgate::fuzz::response_head(bytes);
});
