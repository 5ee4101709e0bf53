//! Follows the framing of TLS records, to tell an end between two of them from a cut.

/// Where the bytes so far end.
#[derive(Debug, Default)]
pub(super) struct Boundary {
    /// The header of the record at hand. Invariant: only the first `header_len` bytes count.
    header: [u8; Self::HEADER_LEN],
    /// Invariant: `header_len < HEADER_LEN`; a complete header turns into `body_left`.
    header_len: usize,
    /// What is missing of the record's body.
    body_left: usize,
}

impl Boundary {
    /// Content type, version, length.
    const HEADER_LEN: usize = 5;

    /// Goes on over `bytes`.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = if self.body_left > 0 { self.skip(bytes) } else { self.collect(bytes) };
        }
    }

    /// Whether a record is begun and not ended.
    pub(super) fn inside_record(&self) -> bool {
        self.header_len > 0 || self.body_left > 0
    }

    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let n = bytes.len().min(self.body_left);
        self.body_left -= n;
        &bytes[n..]
    }

    fn collect<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let n = bytes.len().min(Self::HEADER_LEN - self.header_len);
        self.header[self.header_len..self.header_len + n].copy_from_slice(&bytes[..n]);
        self.header_len += n;
        if self.header_len == Self::HEADER_LEN {
            self.header_len = 0;
            self.body_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
        &bytes[n..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_found_whatever_the_split() {
        let records = [&[23, 3, 3, 0, 2, 0, 0][..], &[23, 3, 3, 0, 0], &[21, 3, 3, 0, 1, 0]];
        let ends: Vec<_> = records
            .iter()
            .scan(0, |end, record| {
                *end += record.len();
                Some(*end)
            })
            .collect();
        let all = records.concat();
        for first in 0..=all.len() {
            for second in first..=all.len() {
                let mut boundary = Boundary::default();
                boundary.advance(&all[..first]);
                boundary.advance(&all[first..second]);
                let at_end = second == 0 || ends.contains(&second);
                assert_eq!(boundary.inside_record(), !at_end, "{first} {second}");
            }
        }
    }
}
