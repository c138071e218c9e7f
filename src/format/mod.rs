//! Number formats: one table, and correctly rounded conversion for all of them.
//!
//! Nothing else in the crate knows bit counts. Every conversion rounds to nearest, ties to even
//! (IEEE 754-2019 §4.3.1). The two fp8 formats follow *FP8 Formats for Deep Learning*
//! (Micikevicius et al., 2022): `f8e4m3` has no infinity and one NaN code per sign, `f8e5m2` is
//! a small IEEE format.

mod memory;
mod spread;

pub use memory::{Register, narrow, widen};
pub use spread::{Fate, Spread};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A format a tensor can have in memory, or a product can multiply in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// f32 in memory, 10 mantissa bits inside a tensor core.
    Tf32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 4 exponent bits, 3 mantissa bits, no infinity.
    F8E4M3,
    /// 5 exponent bits, 2 mantissa bits.
    F8E5M2,
    /// Two's complement, 8 bits.
    I8,
    /// Two's complement, 16 bits.
    I16,
    /// Two's complement, 32 bits.
    I32,
    /// Two's complement, 64 bits.
    I64,
    /// 8 bits without a sign.
    U8,
    /// 16 bits without a sign.
    U16,
    /// 32 bits without a sign.
    U32,
    /// 64 bits without a sign.
    U64,
    /// A truth value, a byte in memory.
    Bool,
}

/// What a value above the largest finite number becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The largest finite number of the same sign.
    Saturate,
    /// Infinity, or NaN in a format without infinity (ONNX `Cast` with `saturate=0`).
    Ieee,
}

/// A set of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Formats(u32);

/// A format more than the set has bits does not compile.
const _: () = assert!(Format::ALL.len() <= u32::BITS as usize);

impl Formats {
    /// No format.
    pub const NONE: Formats = Formats(0);
    /// Every format.
    pub const ALL: Formats = Formats(u32::MAX);

    /// Is the format in the set?
    pub fn contains(self, format: Format) -> bool {
        self.0 & (1 << format as u32) != 0
    }

    /// The formats in both sets.
    #[must_use]
    pub fn and(self, other: Formats) -> Formats {
        Formats(self.0 & other.0)
    }

    /// The formats in either set.
    #[must_use]
    pub fn or(self, other: Formats) -> Formats {
        Formats(self.0 | other.0)
    }

    /// The formats of the set, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Format> {
        Format::ALL.into_iter().filter(move |&f| self.contains(f))
    }
}

impl FromIterator<Format> for Formats {
    fn from_iter<I: IntoIterator<Item = Format>>(formats: I) -> Formats {
        Formats(formats.into_iter().fold(0, |bits, f| bits | 1 << f as u32))
    }
}

/// The parameters of a binary floating-point format.
#[derive(Clone, Copy, Debug)]
pub struct FloatSpec {
    /// Bits of the exponent.
    pub exponent_bits: u32,
    /// Bits of the fraction that are stored.
    pub mantissa_bits: u32,
    /// What is subtracted from the stored exponent.
    pub bias: i32,
    /// Largest finite magnitude.
    pub max: f64,
    /// `f8e4m3` spends the all-ones exponent on numbers and keeps only one NaN code per sign.
    pub has_infinity: bool,
}

impl FloatSpec {
    /// Smallest positive normal number, 2^(1 − bias).
    pub fn min_normal(&self) -> f64 {
        2f64.powi(1 - self.bias)
    }
    /// Smallest positive number, 2^(1 − bias − mantissa bits).
    pub fn min_subnormal(&self) -> f64 {
        2f64.powi(1 - self.bias - self.mantissa_bits as i32)
    }
    /// Unit roundoff: the largest relative error of rounding a normal number, 2^−(mantissa bits + 1).
    pub fn unit_roundoff(&self) -> f64 {
        2f64.powi(-(self.mantissa_bits as i32) - 1)
    }
}

use Format::*;

/// What is known of a format. How a library calls it stands with what calls the library.
struct Row {
    format: Format,
    name: &'static str,
    bytes: usize,
    float: Option<FloatSpec>,
    overflow: Overflow,
    c_type: &'static str,
}

/// A format of whole numbers, which wrap around.
const fn whole(format: Format, name: &'static str, bytes: usize, c_type: &'static str) -> Row {
    Row { format, name, bytes, float: None, overflow: Overflow::Ieee, c_type }
}

/// A format with infinities: overflow must be seen by loss scaling.
const fn ieee(
    format: Format,
    name: &'static str,
    bytes: usize,
    bits: (u32, u32),
    max: f64,
    c_type: &'static str,
) -> Row {
    let (exponent_bits, mantissa_bits) = bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let spec = FloatSpec { exponent_bits, mantissa_bits, bias, max, has_infinity: true };
    Row { format, name, bytes, float: Some(spec), overflow: Overflow::Ieee, c_type }
}

/// The same format without infinity, which saturates as the hardware's conversions do.
const fn finite(row: Row) -> Row {
    let Some(spec) = row.float else { return row };
    Row { float: Some(FloatSpec { has_infinity: false, ..spec }), overflow: Overflow::Saturate, ..row }
}

const ROWS: [Row; 16] = [
    ieee(F64, "f64", 8, (11, 52), f64::MAX, "double"),
    ieee(F32, "f32", 4, (8, 23), f32::MAX as f64, "float"),
    ieee(Tf32, "tf32", 4, (8, 10), 3.401162134214653e38, "float"),
    ieee(F16, "f16", 2, (5, 10), 65504.0, "f16"),
    ieee(Bf16, "bf16", 2, (8, 7), 3.3895313892515355e38, "bf16"),
    finite(ieee(F8E4M3, "f8e4m3", 1, (4, 3), 448.0, "u8")),
    ieee(F8E5M2, "f8e5m2", 1, (5, 2), 57344.0, "u8"),
    whole(I8, "i8", 1, "signed char"),
    whole(I16, "i16", 2, "short"),
    whole(I32, "i32", 4, "int"),
    whole(I64, "i64", 8, "i64"),
    whole(U8, "u8", 1, "u8"),
    whole(U16, "u16", 2, "unsigned short"),
    whole(U32, "u32", 4, "u32"),
    whole(U64, "u64", 8, "u64"),
    whole(Bool, "bool", 1, "boolean"),
];

/// Rows stand at their formats' positions.
const _: () = {
    let mut at = 0;
    while at < ROWS.len() {
        assert!(ROWS[at].format as usize == at);
        at += 1;
    }
};

impl Format {
    /// The narrow formats that plans store values in.
    pub const STORED: [Format; 2] = [Format::F16, Format::Bf16];
    /// The formats narrower than f32 that plans multiply in.
    pub const MULTIPLIED: [Format; 3] = [Format::F16, Format::Bf16, Format::Tf32];

    /// The formats that plans store values in with a scale, so that the largest magnitude is the format's largest number.
    pub const SCALED: [Format; 1] = [Format::F8E4M3];

    /// The formats that registers hold numbers of, in the order that rules store them.
    pub const COMPUTED: [Format; 11] = [F32, Bool, F64, I64, I32, I16, I8, U64, U32, U16, U8];

    /// All formats, in the order of the table.
    pub const ALL: [Format; 16] =
        [F64, F32, Tf32, F16, Bf16, F8E4M3, F8E5M2, I8, I16, I32, I64, U8, U16, U32, U64, Bool];

    /// The row of the table.
    const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The name in text, in rules and on the command line.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Bytes one element takes in memory.
    pub fn bytes(self) -> usize {
        self.row().bytes
    }

    /// The floating-point parameters, or `None` for integers and booleans.
    pub fn float(self) -> Option<FloatSpec> {
        self.row().float
    }

    /// What storing, casting or multiplying makes of a number above the largest.
    pub fn overflow(self) -> Overflow {
        self.row().overflow
    }

    /// The type of an element in generated kernels.
    pub fn c_type(self) -> &'static str {
        self.row().c_type
    }

    /// The smallest and the largest whole number of an integer format.
    pub fn range(self) -> Option<(f64, f64)> {
        let bits = 8 * self.bytes() as i32;
        match self {
            I8 | I16 | I32 | I64 => Some((-(2f64.powi(bits - 1)), 2f64.powi(bits - 1) - 1.0)),
            U8 | U16 | U32 | U64 => Some((0.0, 2f64.powi(bits) - 1.0)),
            _ => None,
        }
    }

    /// The largest number.
    pub fn largest(self) -> f64 {
        self.float().map(|s| s.max).or(self.range().map(|r| r.1)).unwrap_or(1.0)
    }

    /// A floating-point format?
    pub fn is_float(self) -> bool {
        self.float().is_some()
    }

    /// A whole number of any width; booleans are not.
    pub fn is_integer(self) -> bool {
        !self.is_float() && self != Bool
    }

    /// Narrower than f32 in memory: the formats a precision plan saves bytes with.
    pub fn is_low(self) -> bool {
        self.is_float() && self.bytes() < 4
    }

    /// Does it hold numbers that f32 registers do not?
    pub fn is_wide(self) -> bool {
        self.bytes() >= 4 && !matches!(self, F32 | Tf32)
    }

    /// The format in memory of what is multiplied in this one: tf32 exists in matrix units alone.
    pub fn in_memory(self) -> Format {
        if self == Tf32 { F32 } else { self }
    }

    /// The format of the register that a number of this format is read into: narrow ones are widened to f32.
    pub fn once_read(self) -> Format {
        if self.is_low() || self == Format::Tf32 { Format::F32 } else { self }
    }

    /// What storing `x` keeps of it: [`Format::round`], with the format's own overflow.
    pub fn stored(self, x: f64) -> f64 {
        self.round(x, self.overflow())
    }

    /// Rounds `x` to the nearest number of this format, ties to even. Integers truncate towards zero
    /// and wrap around; booleans are `x != 0`.
    pub fn round(self, x: f64, overflow: Overflow) -> f64 {
        match self {
            F64 => x,
            F32 => x as f32 as f64,
            I8 => x as i64 as i8 as f64,
            I16 => x as i64 as i16 as f64,
            I32 => x as i64 as i32 as f64,
            I64 => x as i64 as f64,
            U8 => x as i64 as u8 as f64,
            U16 => x as i64 as u16 as f64,
            U32 => x as i64 as u32 as f64,
            U64 => x as i128 as u64 as f64,
            Bool => (x != 0.0) as u8 as f64,
            Tf32 | F16 | Bf16 | F8E4M3 | F8E5M2 => self.float().map_or(x, |s| round_float(s, x, overflow)),
        }
    }

    /// The bit pattern of `x` rounded to this format, in the low bits. Floating-point formats of at most 16 bits.
    pub fn encode(self, x: f64, overflow: Overflow) -> u16 {
        let spec = self.float().expect("encode takes a floating-point format");
        assert!(self.bytes() <= 2, "encode takes a format of at most 16 bits");
        let sign = (x.is_sign_negative() as u16) << (spec.exponent_bits + spec.mantissa_bits);
        let (m, e_ones) = (spec.mantissa_bits, (1u16 << spec.exponent_bits) - 1);
        let y = round_float(spec, x, overflow).abs();
        let bits = if y.is_nan() {
            // The quiet NaN: top mantissa bit set, or all ones where only that code is a NaN.
            if spec.has_infinity { (e_ones << m) | 1 << (m - 1) } else { (e_ones << m) | ((1 << m) - 1) }
        } else if y.is_infinite() {
            e_ones << m
        } else if y < spec.min_normal() {
            (y / spec.min_subnormal()) as u16
        } else {
            let e = exponent(y);
            let fraction = y / 2f64.powi(e) - 1.0;
            (((e + spec.bias) as u16) << m) | (fraction * f64::from(1u32 << m)) as u16
        };
        sign | bits
    }

    /// The number a bit pattern stands for. Floating-point formats of at most 16 bits.
    pub fn decode(self, bits: u16) -> f64 {
        let spec = self.float().expect("decode takes a floating-point format");
        let m = spec.mantissa_bits;
        let e_ones = (1u16 << spec.exponent_bits) - 1;
        let sign = if bits >> (spec.exponent_bits + m) & 1 == 1 { -1.0 } else { 1.0 };
        let (e, fraction) = ((bits >> m) & e_ones, bits & ((1 << m) - 1));
        let special = e == e_ones && (spec.has_infinity || fraction == (1 << m) - 1);
        sign * match (special, e) {
            (true, _) if spec.has_infinity && fraction == 0 => f64::INFINITY,
            (true, _) => f64::NAN,
            (false, 0) => f64::from(fraction) * spec.min_subnormal(),
            (false, _) => (1.0 + f64::from(fraction) / f64::from(1u32 << m)) * 2f64.powi(e as i32 - spec.bias),
        }
    }
}

/// Floor of log2 of a positive finite number, exact (`log2` rounds up just below powers of two).
fn exponent(x: f64) -> i32 {
    let biased = (x.to_bits() >> 52 & 0x7ff) as i32;
    if biased == 0 { (x * 2f64.powi(64)).to_bits().wrapping_shr(52) as i32 - 1023 - 64 } else { biased - 1023 }
}

/// Rounds to a grid of spacing 2^(e − mantissa bits): exact scaling, one rounding, exact scaling back.
fn round_float(spec: FloatSpec, x: f64, overflow: Overflow) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    let over = |sign: f64| match overflow {
        Overflow::Saturate => spec.max.copysign(sign),
        Overflow::Ieee if spec.has_infinity => f64::INFINITY.copysign(sign),
        Overflow::Ieee => f64::NAN.copysign(sign),
    };
    if x.is_infinite() {
        return over(x);
    }
    let e = exponent(x.abs()).max(1 - spec.bias);
    let ulp = 2f64.powi(e - spec.mantissa_bits as i32);
    let y = (x / ulp).round_ties_even() * ulp;
    if y.abs() > spec.max { over(x) } else { y }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(s: &str) -> Result<Format, UnknownFormat> {
        Format::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| UnknownFormat(s.to_owned()))
    }
}

/// A word that is no format's name.
#[derive(Debug, thiserror::Error)]
#[error("unknown format `{0}`; formats are f64 f32 tf32 f16 bf16 f8e4m3 f8e5m2 i8 i16 i32 i64 u8 u16 u32 u64 bool")]
pub struct UnknownFormat(pub String);

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn same(a: f64, b: f64) -> bool {
        (a.is_nan() && b.is_nan()) || a.to_bits() == b.to_bits()
    }

    #[test]
    fn every_16_bit_code_decodes_as_half_does() {
        for bits in 0..=u16::MAX {
            assert!(same(F16.decode(bits), f16::from_bits(bits).to_f64()), "f16 {bits:#06x}");
            assert!(same(Bf16.decode(bits), bf16::from_bits(bits).to_f64()), "bf16 {bits:#06x}");
        }
    }

    #[test]
    fn encode_inverts_decode_on_every_code() {
        for format in [F16, Bf16, F8E4M3, F8E5M2] {
            for bits in 0..=(u16::MAX >> (16 - 8 * format.bytes())) {
                let x = format.decode(bits);
                if !x.is_nan() {
                    assert_eq!(format.encode(x, Overflow::Ieee), bits, "{format} {bits:#06x}");
                }
            }
        }
    }

    /// Ties and neighbours of ties: halfway between each pair of adjacent codes, and one f32 ulp to each side.
    #[test]
    fn rounding_between_neighbours_is_to_nearest_even() {
        for format in [F16, Bf16, F8E4M3, F8E5M2] {
            let top = format.encode(format.float().unwrap().max, Overflow::Ieee);
            for bits in 0..top {
                let (lo, hi) = (format.decode(bits), format.decode(bits + 1));
                let tie = (lo + hi) / 2.0;
                let even = if bits % 2 == 0 { lo } else { hi };
                assert_eq!(format.round(tie, Overflow::Ieee), even);
                assert_eq!(format.round(tie.next_up(), Overflow::Ieee), hi);
                assert_eq!(format.round(tie.next_down(), Overflow::Ieee), lo);
                assert_eq!(format.round(-tie, Overflow::Ieee), -even);
            }
        }
    }

    #[test]
    fn half_and_the_generic_rounding_agree() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.is_nan() {
                continue;
            }
            assert!(same(F16.round(x.into(), Overflow::Ieee), f16::from_f32(x).to_f64()), "f16 {x}");
            assert!(same(Bf16.round(x.into(), Overflow::Ieee), bf16::from_f32(x).to_f64()), "bf16 {x}");
        }
    }

    #[test]
    fn overflow_saturates_or_not() {
        assert_eq!(F8E4M3.round(464.0, Overflow::Saturate), 448.0); // ties to even: 464 is halfway to 480
        assert_eq!(F8E4M3.round(1e9, Overflow::Saturate), 448.0);
        assert!(F8E4M3.round(1e9, Overflow::Ieee).is_nan());
        assert_eq!(F8E5M2.round(-1e9, Overflow::Saturate), -57344.0);
        assert_eq!(F8E5M2.round(-1e9, Overflow::Ieee), f64::NEG_INFINITY);
        assert_eq!(F16.round(65519.9, Overflow::Ieee), 65504.0);
        assert_eq!(F16.round(65520.0, Overflow::Ieee), f64::INFINITY);
    }

    #[test]
    fn table_matches_the_codes() {
        for format in [F16, Bf16, F8E4M3, F8E5M2] {
            let s = format.float().unwrap();
            assert_eq!(format.decode(1), s.min_subnormal());
            assert_eq!(format.decode(1 << s.mantissa_bits), s.min_normal());
            assert_eq!(1.0 + 2.0 * s.unit_roundoff(), format.decode(format.encode(1.0, Overflow::Ieee) + 1));
        }
    }
}
