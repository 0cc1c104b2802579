//! Draws numbers at the edges, noise, and damaged forms of a given input.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::wire::{self, Field, Value};

/// Most changes of one input.
const CHANGES_MAX: u32 = 4;
/// Longest piece that is inserted or repeated.
const PIECE_BYTES_MAX: usize = 64;
/// How deep into messages within messages a change goes.
const DEPTH_MAX: u32 = 8;

/// A source of mutations; equal seeds give equal ones.
#[derive(Clone, Debug)]
pub struct Mutator {
    rng: ChaCha8Rng,
}

impl Mutator {
    /// The mutations of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Mutator {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The generator, for what a test draws itself.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// True in one of `of` cases.
    ///
    /// # Panics
    /// If `of` is 0.
    pub fn one_in(&mut self, of: u32) -> bool {
        self.rng.random_range(0..of) == 0
    }

    /// One of several things.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.rng.random_range(0..of.len())]
    }

    /// A number, most often one at which something ends: 0, powers of two, the largest of
    /// each width, each with its neighbours.
    pub fn number(&mut self) -> u64 {
        let offset = self.rng.random_range(0..3u64).wrapping_sub(1);
        match self.rng.random_range(0..6) {
            0 => self.rng.random_range(0..16),
            1 => (1u64 << self.rng.random_range(0..64)).wrapping_add(offset),
            2 => u64::MAX - self.rng.random_range(0..3),
            3 => self.rng.random(),
            _ => {
                let edges = [0, 0x7f, 0xff, 0xffff, u64::from(u32::MAX), i64::MAX as u64];
                self.pick(&edges).wrapping_add(offset)
            }
        }
    }

    /// A number that lies close to `value`, now and then one from anywhere.
    pub fn near(&mut self, value: u64) -> u64 {
        if self.one_in(8) {
            return self.number();
        }
        value
            .wrapping_add(self.rng.random_range(0..7))
            .wrapping_sub(3)
    }

    /// Up to `bytes_max` random bytes.
    pub fn noise(&mut self, bytes_max: usize) -> Vec<u8> {
        let length = self.rng.random_range(0..=bytes_max);
        (0..length).map(|_| self.rng.random()).collect()
    }

    /// Random text that is made of `words`, of what stands between words, and of letters from
    /// anywhere.
    pub fn text(&mut self, words: &[&str]) -> String {
        const BETWEEN: [&str; 16] = [
            "", " ", "=", ",", ":", ".", "-", "\n", "\t", "\"", "[", "]", "{", "}", "\\", "0",
        ];
        let pieces = self.rng.random_range(0..12);
        let mut text = String::new();
        for _ in 0..pieces {
            match self.rng.random_range(0..8) {
                0 => text.push(self.rng.random()),
                1 => text.push_str(&self.number().to_string()),
                2..5 if !words.is_empty() => text.push_str(self.pick::<&str>(words)),
                _ => text.push_str(self.pick::<&str>(&BETWEEN)),
            }
        }
        text
    }

    /// A damaged form of bytes: one to a few changes, at least one where there is a byte.
    pub fn bytes(&mut self, input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.rng.random_range(1..=CHANGES_MAX) {
            self.change(&mut bytes);
        }
        bytes
    }

    /// As [`Mutator::bytes`], as text: what is not UTF-8 any more becomes a replacement
    /// character.
    pub fn damaged_text(&mut self, input: &str) -> String {
        String::from_utf8_lossy(&self.bytes(input.as_bytes())).into_owned()
    }

    /// Flips one bit.
    ///
    /// # Panics
    /// If there is none.
    pub fn flip(&mut self, input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        let bit = self.rng.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }

    /// The beginning of one input with the end of another.
    pub fn splice(&mut self, one: &[u8], other: &[u8]) -> Vec<u8> {
        let (head, tail) = (self.place(one.len()), self.place(other.len()));
        [&one[..head], &other[tail..]].concat()
    }

    fn place(&mut self, length: usize) -> usize {
        self.rng.random_range(0..=length)
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            *bytes = self.noise(PIECE_BYTES_MAX);
            return;
        }
        let at = self.rng.random_range(0..bytes.len());
        let end = (at + self.rng.random_range(1..=PIECE_BYTES_MAX)).min(bytes.len());
        match self.rng.random_range(0..9) {
            0 => bytes[at] ^= 1 << self.rng.random_range(0..8),
            1 => bytes[at] = self.rng.random(),
            2 => bytes[at] = *self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = self.place(bytes.len());
                bytes.splice(to..to, piece);
            }
            6 => {
                let piece = self.noise(PIECE_BYTES_MAX);
                bytes.splice(at..at, piece);
            }
            7 => bytes[at..end].fill(0),
            _ => {
                // A number in place of four or eight bytes, in either order.
                let number = self.number().to_be_bytes();
                let width = *self.pick(&[2, 4, 8]);
                let mut number = number[8 - width..].to_vec();
                if self.rng.random() {
                    number.reverse();
                }
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number);
            }
        }
    }

    /// A damaged form of an encoded message: most often still well-formed, with another value,
    /// number or place of a field, at any depth; else as [`Mutator::bytes`].
    pub fn message(&mut self, encoded: &[u8]) -> Vec<u8> {
        if self.one_in(8) {
            return self.bytes(encoded);
        }
        let mut bytes = encoded.to_vec();
        for _ in 0..self.rng.random_range(1..=CHANGES_MAX) {
            bytes = self.change_message(&bytes, DEPTH_MAX);
        }
        bytes
    }

    fn change_message(&mut self, encoded: &[u8], depth: u32) -> Vec<u8> {
        let Some(mut fields) = wire::parse(encoded).filter(|_| depth > 0) else {
            return self.bytes(encoded);
        };
        if fields.is_empty() || self.one_in(12) {
            let at = self.place(fields.len());
            let field = self.field();
            fields.insert(at, field);
            return wire::write(&fields);
        }
        let at = self.rng.random_range(0..fields.len());
        match self.rng.random_range(0..12) {
            0 => drop(fields.remove(at)),
            1 => {
                let copy = fields[at].clone();
                fields.push(copy);
            }
            2 => {
                let other = self.rng.random_range(0..fields.len());
                fields.swap(at, other);
            }
            3 => fields[at].number = self.field_number(),
            _ => {
                let value = self.change_value(&fields[at].value, depth);
                fields[at].value = value;
            }
        }
        wire::write(&fields)
    }

    fn change_value(&mut self, value: &Value, depth: u32) -> Value {
        match value {
            Value::Varint(old) => Value::Varint(self.near(*old)),
            Value::Fixed64(old) => Value::Fixed64(self.near(*old)),
            Value::Fixed32(old) => Value::Fixed32(self.near(u64::from(*old)) as u32),
            Value::Bytes(old) if wire::looks_like_message(old) => {
                Value::Bytes(self.change_message(old, depth - 1))
            }
            Value::Bytes(old) => Value::Bytes(self.bytes(old)),
        }
    }

    fn field(&mut self) -> Field {
        let value = match self.rng.random_range(0..4) {
            0 => Value::Bytes(self.noise(PIECE_BYTES_MAX)),
            1 => Value::Fixed64(self.number()),
            2 => Value::Fixed32(self.number() as u32),
            _ => Value::Varint(self.number()),
        };
        Field {
            number: self.field_number(),
            value,
        }
    }

    fn field_number(&mut self) -> u32 {
        if self.one_in(8) {
            return self.rng.random_range(1..=wire::FIELD_NUMBER_MAX);
        }
        self.rng.random_range(1..=24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_mutations() {
        let drawn = |seed| {
            let mut mutator = Mutator::new(seed);
            (
                mutator.bytes(b"abc"),
                mutator.message(b"\x08\x05"),
                mutator.number(),
            )
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    /// Every kind of change happens, and messages stay well-formed more often than not.
    #[test]
    fn mutations_change_their_input_and_messages_stay_messages() {
        let inner = wire::write(&[Field {
            number: 2,
            value: Value::Varint(300),
        }]);
        let message = wire::write(&[
            Field {
                number: 1,
                value: Value::Varint(7),
            },
            Field {
                number: 3,
                value: Value::Bytes(inner),
            },
        ]);
        let mut mutator = Mutator::new(1);
        let (mut changed, mut formed, mut shorter, mut longer) = (0, 0, 0, 0);
        for _ in 0..1_000 {
            let mutated = mutator.message(&message);
            changed += u32::from(mutated != message);
            formed += u32::from(wire::parse(&mutated).is_some());
            shorter += u32::from(mutated.len() < message.len());
            longer += u32::from(mutated.len() > message.len());
        }
        assert!(changed > 850, "{changed} of 1000 differ");
        assert!(formed > 600, "{formed} of 1000 are well-formed");
        assert!(shorter > 100 && longer > 100, "{shorter} {longer}");
    }

    #[test]
    fn numbers_reach_the_ends_of_their_range() {
        let mut mutator = Mutator::new(2);
        let drawn: Vec<u64> = (0..2_000).map(|_| mutator.number()).collect();
        for edge in [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, u64::from(u32::MAX)] {
            assert!(drawn.contains(&edge), "{edge} was not drawn");
        }
    }
}
