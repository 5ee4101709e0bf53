//! Certificates, keys, revocation lists and OCSP responses.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ringgate::fuzz::secret(bytes);
});
