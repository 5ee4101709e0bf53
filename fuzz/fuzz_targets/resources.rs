//! A file of resources.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringgate::fuzz::resources(bytes);
});
