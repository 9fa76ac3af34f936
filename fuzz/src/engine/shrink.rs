//! Makes an input that breaks something smaller, as long as it still does.

/// Tries of one input at most.
const TRIES_MAX: usize = 2000;

/// The smallest that was found.
pub fn shrink(input: &[u8], breaks: &mut dyn FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut least = input.to_vec();
    let mut tries = 0;
    let mut part = least.len().div_ceil(2);
    while part > 0 && tries < TRIES_MAX {
        let mut at = 0;
        while at < least.len() && tries < TRIES_MAX {
            let mut shorter = least.clone();
            shorter.drain(at..(at + part).min(least.len()));
            tries += 1;
            if breaks(&shorter) {
                least = shorter;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    least
}
