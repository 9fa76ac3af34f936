//! Changes of an input.

use super::Random;

/// Numbers at which code turns: limits, signs, sizes of blocks and regions.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    511,
    512,
    0x7fff,
    0xffff,
    0x1000,
    1 << 20,
    1 << 22,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// What has a meaning in texts.
const WORDS: [&str; 28] = [
    "0",
    "-1",
    "1e999",
    "18446744073709551615",
    "18446744073709551616",
    "4294967295",
    "9223372036854775808",
    "0.5",
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "[[",
    "{\"",
    "\"\"",
    "\\ud800",
    "\\u0000",
    "\u{fffd}",
    ",",
    ":",
    "\"",
    "\n",
    "version",
    "ffffffffffffffffffffffffffffffff",
    "P",
    "::",
    "=",
];

/// Changes an input in one way. `other` is another one, of which parts are taken.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let looks_like_text = input.iter().take(64).all(|byte| (b' '..0x7f).contains(byte) || *byte == b'\n');
    let ways = if looks_like_text || random.below(4) == 0 { 13 } else { 11 };
    match random.below(ways) {
        0 | 1 => change(input, random, |byte, random| byte ^ 1 << random.below(8)),
        2 => change(input, random, |_, random| random.draw() as u8),
        3 => change(input, random, |byte, random| byte.wrapping_add(random.below(35) as u8).wrapping_sub(17)),
        4 | 5 => number(input, random),
        6 => remove(input, random),
        7 => repeat(input, random),
        8 => splice(input, other, random),
        9 => copy_over(input, other, random),
        10 => truncate_or_extend(input, random),
        11 => word(input, random),
        _ => digits(input, random),
    }
}

fn change(input: &mut [u8], random: &mut Random, how: impl Fn(u8, &mut Random) -> u8) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = how(*byte, random);
    }
}

/// A number of any width and order of bytes, or the one that is there, a little larger or smaller.
fn number(input: &mut [u8], random: &mut Random) {
    let width = 1 << random.below(4);
    let at = random.below(input.len());
    let Some(field) = input.get_mut(at..at + width) else { return };
    let is_little = random.below(2) == 0;
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(field);
    let there = if is_little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) >> (64 - 8 * width) };
    let value = match random.below(3) {
        0 => there.wrapping_add(random.below(9) as u64).wrapping_sub(4),
        1 => there << random.below(64),
        _ => NUMBERS[random.below(NUMBERS.len())].wrapping_add(random.below(3) as u64).wrapping_sub(1),
    };
    let bytes = value.to_le_bytes();
    field.copy_from_slice(&bytes[..width]);
    if !is_little {
        field.reverse();
    }
}

/// A range of the input, mostly a short one.
fn range(length: usize, random: &mut Random) -> std::ops::Range<usize> {
    let at = random.below(length);
    let most = if random.below(4) == 0 { length } else { 16 };
    let many = 1 + random.below(most);
    at..(at + many).min(length)
}

fn remove(input: &mut Vec<u8>, random: &mut Random) {
    let range = range(input.len(), random);
    input.drain(range);
}

/// Once more, behind itself or elsewhere.
fn repeat(input: &mut Vec<u8>, random: &mut Random) {
    let range = range(input.len(), random);
    let part = input[range.clone()].to_vec();
    let at = if random.below(2) == 0 { range.end } else { random.below(input.len()) };
    input.splice(at..at, part);
}

/// A part of another input is put in.
fn splice(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let part = &other[range(other.len(), random)];
    let at = random.below(input.len() + 1);
    input.splice(at..at, part.iter().copied());
}

/// A part of another input takes the place of what is there, at the same place or elsewhere.
fn copy_over(input: &mut [u8], other: &[u8], random: &mut Random) {
    let range = range(other.len(), random);
    let at = if random.below(2) == 0 { range.start } else { random.below(input.len()) };
    let part = &other[range];
    if let Some(place) = input.get_mut(at..at + part.len()) {
        place.copy_from_slice(part);
    }
}

fn truncate_or_extend(input: &mut Vec<u8>, random: &mut Random) {
    if random.below(2) == 0 {
        let length = random.below(input.len() + 1);
        input.truncate(length);
    } else {
        let byte = if random.below(2) == 0 { 0 } else { random.draw() as u8 };
        let length = input.len() + 1 + random.below(64);
        input.resize(length, byte);
    }
}

/// A word takes the place of a few bytes.
fn word(input: &mut Vec<u8>, random: &mut Random) {
    let word = random.one_of(&WORDS);
    let at = random.below(input.len() + 1);
    let end = (at + random.below(8)).min(input.len());
    input.splice(at..end, word.bytes());
}

/// A number in digits takes the place of another one.
fn digits(input: &mut Vec<u8>, random: &mut Random) {
    let begin = random.below(input.len());
    let Some(first) = input[begin..].iter().position(u8::is_ascii_digit).map(|at| begin + at) else { return };
    let many = input[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = NUMBERS[random.below(NUMBERS.len())].wrapping_add(random.below(3) as u64).wrapping_sub(1);
    input.splice(first..first + many, value.to_string().bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_can_be_changed_and_the_seed_repeats_it() {
        for length in [0, 1, 2, 7, 300] {
            let (mut random, mut again) = (Random::new(5), Random::new(5));
            let start = vec![b'7'; length];
            let (mut one, mut two) = (start.clone(), start.clone());
            let mut was_changed = false;
            for _ in 0..2000 {
                mutate(&mut one, b"other", &mut random);
                mutate(&mut two, b"other", &mut again);
                assert_eq!(one, two);
                was_changed |= one != start;
                one.truncate(2 * length + 4);
                two.truncate(2 * length + 4);
            }
            assert!(was_changed);
        }
    }
}
