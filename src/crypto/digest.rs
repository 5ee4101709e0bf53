//! What stands for bytes that are not kept: equal digests mean equal bytes.

use ring::digest::{SHA256, digest};

/// The first half of a SHA-256: whoever could make two texts with the same one (2^64 steps) may
/// write the files anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest([u8; 16]);

impl Digest {
    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let whole = digest(&SHA256, bytes);
        let (half, _) = whole.as_ref().split_first_chunk().expect("a SHA-256 has 32 bytes");
        Self(*half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_alone_have_equal_digests() {
        assert_eq!(Digest::of(b"a"), Digest::of(b"a"));
        assert_ne!(Digest::of(b"a"), Digest::of(b"b"));
    }
}
