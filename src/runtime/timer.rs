//! A hierarchical timing wheel: when is what due?
//!
//! - Time is counted in ticks (the engine's are milliseconds). A timer fires at its tick or, when
//!   the wheel is advanced late, later; never earlier.
//! - Insert and removal take constant time; advancing takes time for the timers that fire or come
//!   closer, not for the ticks that pass.
//! - Six levels of 64 slots. A slot of level n spans 64^n ticks; a timer sits in the level of the
//!   highest digit (base 64) in which its tick differs from now, and moves down as that digit
//!   arrives.
//!
//! It reads no clock and wakes nobody: it hands out values.

use super::slot::{Key, Slots};

const LEVELS: usize = 6;
const DIGIT_BITS: u32 = 6;
const SLOTS: usize = 1 << DIGIT_BITS;
/// A timer that is further away waits in the last level and is looked at again (2.1 years).
const SPAN: u64 = (SLOTS as u64 - 1) << shift(LEVELS - 1);

/// The wheel.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    /// Invariant: every timer's tick is greater.
    now: u64,
    timers: Slots<Timer<T>>,
    levels: [Level; LEVELS],
}

#[derive(Debug)]
struct Timer<T> {
    tick: u64,
    value: T,
    /// Where it is linked.
    place: Place,
    previous: Option<Key>,
    next: Option<Key>,
}

/// Small, as there is one in every timer.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Less than `LEVELS`.
    level: u8,
    /// Less than `SLOTS`.
    slot: u8,
}

#[derive(Debug, Clone, Copy)]
struct Level {
    /// Invariant: bit n is set exactly when `heads[n]` is `Some`.
    occupied: u64,
    heads: [Option<Key>; SLOTS],
}

impl<T> Wheel<T> {
    pub(super) fn new() -> Self {
        let empty = Level { occupied: 0, heads: [None; SLOTS] };
        Self { now: 0, timers: Slots::new(), levels: [empty; LEVELS] }
    }

    /// Adds a timer that fires when the wheel is advanced to `tick`, or at the next advance when
    /// that has passed.
    pub(super) fn insert(&mut self, tick: u64, value: T) -> Key {
        let tick = tick.max(self.now + 1);
        let place = self.place(tick);
        let key = self.timers.insert(Timer { tick, value, place, previous: None, next: None });
        self.link(key, place);
        key
    }

    /// Removes a timer that has not fired.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.timers.find(key)?;
        self.unlink(key);
        self.timers.remove(key).map(|timer| timer.value)
    }

    /// The value of a timer that has not fired.
    pub(super) fn find_mut(&mut self, key: Key) -> Option<&mut T> {
        self.timers.find_mut(key).map(|timer| &mut timer.value)
    }

    /// The tick at which the wheel should be advanced next: no timer fires before it.
    pub(super) fn next(&self) -> Option<u64> {
        self.next_place().map(|(tick, _)| tick)
    }

    /// Lets time pass up to `now` and appends the values of the timers that fire, in the order of
    /// their ticks.
    pub(super) fn advance(&mut self, now: u64, fired: &mut Vec<T>) {
        while let Some((tick, place)) = self.next_place().filter(|(tick, _)| *tick <= now) {
            self.now = tick;
            self.empty(place, fired);
        }
        self.now = self.now.max(now);
    }

    /// The earliest slot that is not empty, and the tick at which it arrives.
    fn next_place(&self) -> Option<(u64, Place)> {
        (0..LEVELS)
            .filter_map(|level| self.next_of_level(level))
            .min_by_key(|(tick, place)| (*tick, std::cmp::Reverse(place.level)))
    }

    fn next_of_level(&self, level: usize) -> Option<(u64, Place)> {
        let occupied = self.levels[level].occupied;
        if occupied == 0 {
            return None;
        }
        let shift = shift(level);
        let digit = (self.now >> shift) % SLOTS as u64;
        let ahead = u64::from(occupied.rotate_right(digit_index(digit)).trailing_zeros());
        let slot = digit_index((digit + ahead) % SLOTS as u64) as usize;
        // The last level is a ring: what lies behind the hand comes in the next round.
        let arrival = ((self.now >> shift) + ahead) << shift;
        Some((arrival, Place::new(level, slot)))
    }

    /// Fires the timers of a slot that has arrived, or moves them down.
    fn empty(&mut self, place: Place, fired: &mut Vec<T>) {
        let level = &mut self.levels[place.level()];
        level.occupied &= !(1 << place.slot);
        let mut head = level.heads[place.slot()].take();
        while let Some(key) = head {
            let timer = self.timers.find_mut(key).expect("linked timers exist");
            head = timer.next.take();
            timer.previous = None;
            if timer.tick <= self.now {
                fired.extend(self.timers.remove(key).map(|timer| timer.value));
            } else {
                let tick = timer.tick;
                let place = self.place(tick);
                self.link(key, place);
            }
        }
    }

    fn place(&self, tick: u64) -> Place {
        let tick = tick.min(self.now.saturating_add(SPAN));
        let differing = (self.now ^ tick) | 1;
        let level = ((differing.ilog2() / DIGIT_BITS) as usize).min(LEVELS - 1);
        let slot = digit_index((tick >> shift(level)) % SLOTS as u64) as usize;
        Place::new(level, slot)
    }

    fn link(&mut self, key: Key, place: Place) {
        let level = &mut self.levels[place.level()];
        level.occupied |= 1 << place.slot;
        let next = level.heads[place.slot()].replace(key);
        if let Some(timer) = next.and_then(|next| self.timers.find_mut(next)) {
            timer.previous = Some(key);
        }
        let timer = self.timers.find_mut(key).expect("only stored timers are linked");
        (timer.place, timer.next) = (place, next);
    }

    fn unlink(&mut self, key: Key) {
        let timer = self.timers.find_mut(key).expect("only stored timers are unlinked");
        let (place, previous, next) = (timer.place, timer.previous.take(), timer.next.take());
        if let Some(timer) = next.and_then(|next| self.timers.find_mut(next)) {
            timer.previous = previous;
        }
        match previous.and_then(|previous| self.timers.find_mut(previous)) {
            Some(timer) => timer.next = next,
            None => self.set_head(place, next),
        }
    }

    fn set_head(&mut self, place: Place, head: Option<Key>) {
        let level = &mut self.levels[place.level()];
        level.heads[place.slot()] = head;
        if head.is_none() {
            level.occupied &= !(1 << place.slot);
        }
    }
}

impl Place {
    #[allow(clippy::cast_possible_truncation, reason = "both are small, see the fields")]
    fn new(level: usize, slot: usize) -> Self {
        Self { level: level as u8, slot: slot as u8 }
    }

    fn level(self) -> usize {
        self.level.into()
    }

    fn slot(self) -> usize {
        self.slot.into()
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a level is less than LEVELS")]
const fn shift(level: usize) -> u32 {
    level as u32 * DIGIT_BITS
}

#[allow(clippy::cast_possible_truncation, reason = "a digit is less than SLOTS")]
fn digit_index(digit: u64) -> u32 {
    digit as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn fired(wheel: &mut Wheel<u64>, now: u64) -> Vec<u64> {
        let mut fired = Vec::new();
        wheel.advance(now, &mut fired);
        fired
    }

    #[test]
    fn timers_fire_in_order_and_never_early() {
        let mut wheel = Wheel::new();
        for tick in [70_000, 5, 64, 4_096, 63] {
            wheel.insert(tick, tick);
        }
        assert_eq!(wheel.next(), Some(5));
        assert!(fired(&mut wheel, 4).is_empty());
        assert_eq!(fired(&mut wheel, 63), [5, 63]);
        assert_eq!(fired(&mut wheel, 69_999), [64, 4_096]);
        assert_eq!(fired(&mut wheel, 70_000), [70_000]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_passed_tick_fires_at_the_next_advance() {
        let mut wheel = Wheel::new();
        wheel.advance(100, &mut Vec::new());
        wheel.insert(50, 50);
        assert!(fired(&mut wheel, 100).is_empty());
        assert_eq!(fired(&mut wheel, 101), [50]);
    }

    #[test]
    fn a_timer_beyond_the_last_level_is_not_early() {
        let mut wheel = Wheel::new();
        let far = 3 * SPAN + 17;
        wheel.insert(far, far);
        wheel.insert(u64::MAX, u64::MAX);
        assert!(fired(&mut wheel, far - 1).is_empty());
        assert_eq!(fired(&mut wheel, far), [far]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let distance = prop_oneof![0..200u64, 0..300_000u64, 0..1u64 << 40];
        prop_oneof![
            4 => distance.clone().prop_map(Step::Insert),
            2 => (0..100usize).prop_map(Step::Remove),
            2 => distance.prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_map(steps in prop::collection::vec(step(), 0..200)) {
            let mut wheel = Wheel::new();
            let mut sorted = BTreeMap::new();
            let mut keys: Vec<(Key, (u64, u64))> = Vec::new();
            let mut now = 0;
            for (id, step) in (0..).zip(steps) {
                match step {
                    Step::Insert(distance) => {
                        let due = ((now + distance).max(now + 1), id);
                        keys.push((wheel.insert(now + distance, due), due));
                        sorted.insert(due, ());
                    }
                    Step::Remove(pick) => if let Some((key, due)) = keys.get(pick) {
                        prop_assert_eq!(wheel.remove(*key).is_some(), sorted.remove(due).is_some());
                    },
                    Step::Advance(distance) => {
                        now += distance;
                        let mut fired = Vec::new();
                        wheel.advance(now, &mut fired);
                        prop_assert!(fired.is_sorted_by_key(|(tick, _)| *tick), "in order");
                        fired.sort_unstable();
                        let rest = sorted.split_off(&(now + 1, 0));
                        let due = std::mem::replace(&mut sorted, rest);
                        let due: Vec<_> = due.into_keys().collect();
                        prop_assert_eq!(fired, due);
                    }
                }
                let first = sorted.keys().next().map(|(tick, _)| *tick);
                prop_assert_eq!(wheel.next().is_some(), first.is_some());
                prop_assert!(wheel.next() <= first && wheel.next().is_none_or(|tick| tick > now));
            }
        }
    }
}
