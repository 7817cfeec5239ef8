//! Connections by number. A number is a slot and a generation: when a slot is used again, its generation is another
//! one, so a wake-up or an answer that comes late for an earlier connection finds nothing.

/// Values, each in a slot.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A slot and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The slot.
    pub slot: u32,
    /// How often it had been used before.
    pub generation: u32,
}

impl<T> Slab<T> {
    /// Without any value.
    pub fn new() -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The key that the next value will have.
    pub fn next_key(&self) -> Key {
        match self.free.last() {
            Some(&slot) => Key {
                slot,
                generation: self.slots[slot as usize].generation,
            },
            None => Key {
                slot: self.slots.len() as u32,
                generation: 0,
            },
        }
    }

    /// Adds a value under [`Slab::next_key`].
    pub fn add(&mut self, value: T) -> Key {
        let key = self.next_key();
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize].value = Some(value),
            None => self.slots.push(Slot {
                generation: 0,
                value: Some(value),
            }),
        }
        key
    }

    /// The value with this key, if it is still there.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        { slot.value.as_mut() }.filter(|_| slot.generation == key.generation)
    }

    /// Takes out the value with this key.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(slot, of)| {
            let generation = of.generation;
            Some((Key { slot, generation }, of.value.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_earlier_value_finds_nothing() {
        let mut slab = Slab::new();
        let (first, other) = (slab.add('a'), slab.add('b'));
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.add('c');
        assert_eq!(first.slot, second.slot);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'c'));
        assert_eq!(
            slab.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            [second, other]
        );
    }
}
