//! A slab whose keys carry a generation, so that a key that outlived its value finds nothing.
//!
//! - The kernel hands keys back as 64 bits (`user_data`); a stale one is harmless here.
//! - Insert, look-up and removal take constant time; nothing is allocated once it has grown.
//!
//! Tasks, timers, operations and registrations live in one of these each. It knows none of them.

use std::num::NonZeroU32;

/// Names a value in the [`Slots`] that made it, also after the value is gone. An `Option` of it is
/// not larger: there are several in every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    index: u32,
    generation: NonZeroU32,
}

impl Key {
    /// A key that no slot ever has.
    pub(super) const NONE: Self = Self { index: u32::MAX, generation: NonZeroU32::MAX };

    /// The key as the kernel carries it.
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.index)
    }

    /// The key that [`to_bits`](Self::to_bits) made; `NONE` for any other bits.
    #[allow(clippy::cast_possible_truncation, reason = "each half of the bits is taken")]
    pub(super) fn from_bits(bits: u64) -> Self {
        NonZeroU32::new((bits >> 32) as u32)
            .map_or(Self::NONE, |generation| Self { index: bits as u32, generation })
    }
}

/// The slab.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Entry<T>>,
    /// Invariant: exactly the indices whose value is `None`; the last freed is used first.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    /// One more than the values that this entry has lost.
    generation: NonZeroU32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// Stores `value`.
    ///
    /// # Panics
    /// When it would be the four billionth.
    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return Key { index, generation: entry.generation };
        }
        let index = u32::try_from(self.entries.len()).expect("fewer than 2^32 slots");
        assert_ne!(index, Key::NONE.index, "fewer than 2^32 slots");
        let generation = NonZeroU32::MIN;
        self.entries.push(Entry { generation, value: Some(value) });
        Key { index, generation }
    }

    /// The value of `key`, unless it is gone.
    pub(super) fn find(&self, key: Key) -> Option<&T> {
        self.entries
            .get(key.index as usize)
            .filter(|entry| entry.generation == key.generation)
            .and_then(|entry| entry.value.as_ref())
    }

    /// As [`find`](Self::find), to change it.
    pub(super) fn find_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries
            .get_mut(key.index as usize)
            .filter(|entry| entry.generation == key.generation)
            .and_then(|entry| entry.value.as_mut())
    }

    /// Takes the value of `key` out: from now on `key` finds nothing.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self
            .entries
            .get_mut(key.index as usize)
            .filter(|entry| entry.generation == key.generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push(key.index);
        Some(value)
    }

    /// How many values are stored.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The keys of all values. Takes as long as there ever were values at once.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(index, entry)| Key { index, generation: entry.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slots = Slots::new();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(old.index, new.index, "the slot is used again");
        assert_eq!(slots.find(old), None);
        assert_eq!(slots.find_mut(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.find(new), Some(&"new"));
    }

    #[test]
    fn the_reserved_key_finds_nothing() {
        let mut slots = Slots::new();
        slots.insert(());
        assert_eq!(slots.remove(Key::NONE), None);
        assert_eq!(Key::from_bits(u64::MAX), Key::NONE);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(
            steps in prop::collection::vec((any::<bool>(), 0..64usize), 0..300),
        ) {
            let mut slots = Slots::new();
            let mut map = HashMap::new();
            let mut issued = Vec::new();
            for (step, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || issued.is_empty() {
                    let key = slots.insert(step);
                    prop_assert_eq!(map.insert(key, step), None, "keys are not used twice");
                    issued.push(key);
                } else {
                    let key: Key = issued[pick % issued.len()];
                    prop_assert_eq!(Key::from_bits(key.to_bits()), key);
                    prop_assert_eq!(slots.find(key), map.get(&key));
                    prop_assert_eq!(slots.remove(key), map.remove(&key));
                }
                prop_assert_eq!(slots.len(), map.len());
                prop_assert!(slots.keys().all(|key| map.contains_key(&key)));
            }
        }
    }
}
