//! Choices read from bytes: the same bytes make the same choices, fewer and smaller bytes make simpler ones.

use arbitrary::Unstructured;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Bytes to draw from.
pub fn random_bytes(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let length = rng.random_range(8..160);
    (0..length).map(|_| rng.random()).collect()
}

/// What is left of the bytes. Where they run out, every choice is the first.
pub struct Draw<'a>(Unstructured<'a>);

impl<'a> Draw<'a> {
    pub fn new(bytes: &'a [u8]) -> Draw<'a> {
        Draw(Unstructured::new(bytes))
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        if n < 2 { 0 } else { self.0.int_in_range(0..=n - 1).unwrap_or(0) }
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high + 1 - low)
    }

    /// True once in `n`.
    pub fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// An ascending choice of at least one of `0..n`.
    pub fn some_of(&mut self, n: usize) -> Vec<usize> {
        let all = self.between(1, (1 << n) - 1);
        (0..n).filter(|i| all >> i & 1 == 1).collect()
    }

    /// An order of `0..n`.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..n).collect();
        (0..n).map(|_| left.remove(self.below(left.len()))).collect()
    }
}

/// Makes failing bytes shorter and smaller while they fail: whole stretches go first, then single bytes get smaller.
pub fn shrink(mut bytes: Vec<u8>, tries: usize, fails: &mut dyn FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut left = tries;
    let mut fails = |candidate: &[u8]| {
        left = left.saturating_sub(1);
        left > 0 && fails(candidate)
    };
    loop {
        let before = bytes.clone();
        let mut stretch = bytes.len().next_power_of_two();
        while stretch > 0 {
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + stretch).min(bytes.len());
                let fewer = [&bytes[..at], &bytes[end..]].concat();
                let zeros = [&bytes[..at], &vec![0; end - at], &bytes[end..]].concat();
                if fails(&fewer) {
                    bytes = fewer;
                } else if zeros != bytes && fails(&zeros) {
                    bytes = zeros;
                    at = end;
                } else {
                    at = end;
                }
            }
            stretch /= 2;
        }
        for at in 0..bytes.len() {
            for smaller in [1, bytes[at] / 2, bytes[at].saturating_sub(1)] {
                let mut candidate = bytes.clone();
                candidate[at] = smaller;
                if smaller < bytes[at] && fails(&candidate) {
                    bytes = candidate;
                    break;
                }
            }
        }
        if bytes == before {
            return bytes;
        }
    }
}
