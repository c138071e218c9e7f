//! What numbers look like, and what a format would make of them.

use super::Format;
use serde::{Deserialize, Serialize};

/// Exponents of the smallest and the largest f32.
const LOWEST: i32 = -149;
const HIGHEST: i32 = 127;

/// The magnitudes of a value's elements, counted by power of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Elements seen, of any kind.
    pub count: u64,
    /// Elements equal to 0.
    pub zeros: u64,
    /// Infinities and NaN.
    pub non_finite: u64,
    /// Magnitudes of finite elements other than zero; none seen: infinity and 0.
    pub smallest: f32,
    /// The largest magnitude.
    pub largest: f32,
    /// How many elements have |x| in [2^e, 2^(e+1)), for e from -149 to 127.
    #[serde(rename = "octaves", with = "octaves")]
    exponents: Vec<u64>,
}

impl Default for Spread {
    fn default() -> Spread {
        let exponents = vec![0; Spread::OCTAVES];
        Spread { count: 0, zeros: 0, non_finite: 0, smallest: f32::INFINITY, largest: 0.0, exponents }
    }
}

/// Octaves that hold something, by exponent.
mod octaves {
    use super::{HIGHEST, LOWEST};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(counts: &[u64], s: S) -> Result<S::Ok, S::Error> {
        let held = counts.iter().zip(LOWEST..).filter(|(n, _)| **n > 0);
        held.map(|(&n, e)| (e, n)).collect::<BTreeMap<i32, u64>>().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u64>, D::Error> {
        let held = BTreeMap::<i32, u64>::deserialize(d)?;
        Ok((LOWEST..=HIGHEST).map(|e| held.get(&e).copied().unwrap_or(0)).collect())
    }
}

/// What becomes of a value's elements in a format: fractions of those that are finite and not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Fate {
    /// Beyond the largest finite number.
    pub overflow: f64,
    /// Below the smallest normal number, but not lost: with fewer bits than the format has.
    pub subnormal: f64,
    /// Rounded to zero.
    pub flushed: f64,
}

impl Spread {
    /// Octaves that are told apart, by exponent from the smallest.
    pub const OCTAVES: usize = (HIGHEST - LOWEST + 1) as usize;

    /// What a device counted: magnitudes as bits of an f32 (of none: of infinity and 0), and [`Spread::OCTAVES`] counts.
    pub fn counted(zeros: u64, non_finite: u64, smallest: u32, largest: u32, octaves: &[u64]) -> Spread {
        assert_eq!(octaves.len(), Spread::OCTAVES, "one count for each octave");
        Spread {
            count: zeros + non_finite + octaves.iter().sum::<u64>(),
            zeros,
            non_finite,
            smallest: f32::from_bits(smallest),
            largest: f32::from_bits(largest),
            exponents: octaves.to_vec(),
        }
    }

    /// The spread of some elements.
    pub fn of(values: &[f32]) -> Spread {
        let mut spread = Spread::default();
        spread.add(values);
        spread
    }

    /// Counts in what another has counted.
    pub fn merge(&mut self, other: &Spread) {
        self.count += other.count;
        self.zeros += other.zeros;
        self.non_finite += other.non_finite;
        self.smallest = self.smallest.min(other.smallest);
        self.largest = self.largest.max(other.largest);
        self.exponents.iter_mut().zip(&other.exponents).for_each(|(n, m)| *n += m);
    }

    /// Counts elements in.
    pub fn add(&mut self, values: &[f32]) {
        self.count += values.len() as u64;
        for &v in values {
            let x = v.abs();
            if x == 0.0 {
                self.zeros += 1;
            } else if x.is_finite() {
                self.smallest = self.smallest.min(x);
                self.largest = self.largest.max(x);
                self.exponents[(exponent(x) - LOWEST) as usize] += 1;
            } else {
                self.non_finite += 1;
            }
        }
    }

    /// The spread of all elements times 2^`octaves`.
    pub fn scaled(&self, octaves: i32) -> Spread {
        let by = 2f32.powi(octaves);
        let exponents = (LOWEST..=HIGHEST).map(|e| self.at(e - octaves)).collect();
        Spread { smallest: self.smallest * by, largest: self.largest * by, exponents, ..*self }
    }

    /// Elements with |x| in [2^e, 2^(e+1)).
    pub fn at(&self, e: i32) -> u64 {
        if (LOWEST..=HIGHEST).contains(&e) { self.exponents[(e - LOWEST) as usize] } else { 0 }
    }

    fn between(&self, from: i32, to: i32) -> u64 {
        (from..to).map(|e| self.at(e)).sum()
    }

    /// What a format would make of the elements, to the power of two: numbers in the octave of the format's largest
    /// count as held. Halves of the smallest subnormal and less are flushed (IEEE 754-2019 §4.3.1).
    pub fn fate(&self, format: Format) -> Fate {
        let Some(spec) = format.float() else { return Fate::default() };
        let top = spec.max.log2().floor() as i32;
        let normal = 1 - spec.bias;
        let lost = normal - spec.mantissa_bits as i32 - 1;
        let all = (self.count - self.zeros - self.non_finite).max(1) as f64;
        Fate {
            overflow: self.between(top + 1, HIGHEST + 1) as f64 / all,
            subnormal: self.between(lost, normal) as f64 / all,
            flushed: self.between(LOWEST, lost) as f64 / all,
        }
    }
}

/// e with x in [2^e, 2^(e+1)), of a finite positive number.
fn exponent(x: f32) -> i32 {
    let bits = x.to_bits();
    match bits >> 23 {
        0 => LOWEST + 31 - bits.leading_zeros() as i32,
        e => e as i32 - 127,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Overflow;

    /// Powers of two over the whole of f32, judged by rounding them.
    #[test]
    fn fates_are_what_rounding_does() {
        for format in [Format::F16, Format::Bf16, Format::F8E5M2, Format::F8E4M3] {
            let spec = format.float().unwrap();
            for e in LOWEST..=HIGHEST {
                // Off the power of two, so that no tie decides.
                let x = (2f64.powi(e) * 1.125) as f32;
                let mut s = Spread::default();
                s.add(&[x, -x, 0.0]);
                let rounded = format.round(f64::from(x), Overflow::Ieee);
                let expected = Fate {
                    overflow: f64::from(u8::from(!rounded.is_finite())),
                    subnormal: f64::from(u8::from(rounded != 0.0 && f64::from(x) < spec.min_normal())),
                    flushed: f64::from(u8::from(rounded == 0.0)),
                };
                assert_eq!(s.fate(format), expected, "{x:e} in {format}");
            }
        }
    }
}
