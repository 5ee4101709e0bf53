//! Takes DER apart, as far as is needed where no other parser reads it.

/// A DER value.
pub(super) struct Value<'a> {
    pub(super) contents: &'a [u8],
    /// With its tag and length.
    pub(super) whole: &'a [u8],
}

/// What is in the value that `der` is as a whole.
pub(super) fn contents(mut der: &[u8], tag: u8) -> Option<&[u8]> {
    let value = take(&mut der, tag)?;
    der.is_empty().then_some(value.contents)
}

/// Takes the value that `rest` begins with, if its tag is `tag`.
pub(super) fn take<'a>(rest: &mut &'a [u8], tag: u8) -> Option<Value<'a>> {
    let bytes = *rest;
    let (&found, after) = bytes.split_first()?;
    let (&first, after) = after.split_first()?;
    let (length, after) = match first {
        0..=0x7f => (usize::from(first), after),
        0x81..=0x84 => {
            let (digits, after) = after.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), after)
        }
        // The indefinite form is not DER, and nothing is that long.
        _ => return None,
    };
    let (contents, after) = after.split_at_checked(length)?;
    if found != tag {
        return None;
    }
    *rest = after;
    Some(Value { contents, whole: &bytes[..bytes.len() - after.len()] })
}
