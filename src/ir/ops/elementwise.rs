//! Elementwise arithmetic with NumPy broadcasting.

use super::attr::{Attr, Attrs};
use super::formula::formula;
use super::named::named_enum;
use super::reduce::unbroadcast;
use super::signature::{Family, Signature};
use super::{Context, Format, Gradients, Op, Type};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::ops::Num;
use crate::ir::tensor::Tensor;

named_enum! {
    /// Operations of one operand x, element by element.
    Unary {
        /// −x.
        Neg = "neg",
        /// |x|.
        Abs = "abs",
        /// −1, 0 or 1 by the sign of x; NaN stays NaN.
        Sign = "sign",
        /// x².
        Square = "square",
        /// 1 / x.
        Recip = "recip",
        /// e^x.
        Exp = "exp",
        /// e^x − 1, accurate near 0.
        Expm1 = "expm1",
        /// ln x.
        Log = "log",
        /// ln(1 + x), accurate near 0.
        Log1p = "log1p",
        /// √x.
        Sqrt = "sqrt",
        /// 1 / √x.
        Rsqrt = "rsqrt",
        /// Sine, of radians.
        Sin = "sin",
        /// Cosine, of radians.
        Cos = "cos",
        /// Tangent, of radians.
        Tan = "tan",
        /// Inverse sine, in radians.
        Asin = "asin",
        /// Inverse cosine, in radians.
        Acos = "acos",
        /// Inverse tangent, in radians.
        Atan = "atan",
        /// Hyperbolic sine.
        Sinh = "sinh",
        /// Hyperbolic cosine.
        Cosh = "cosh",
        /// Hyperbolic tangent.
        Tanh = "tanh",
        /// Inverse hyperbolic sine.
        Asinh = "asinh",
        /// Inverse hyperbolic cosine.
        Acosh = "acosh",
        /// Inverse hyperbolic tangent.
        Atanh = "atanh",
        /// The error function, 2/√π · ∫ e^−t² dt from 0 to x.
        Erf = "erf",
        /// The largest whole number not above x.
        Floor = "floor",
        /// The smallest whole number not below x.
        Ceil = "ceil",
        /// The whole part of x, towards 0.
        Trunc = "trunc",
        /// To the nearest whole number, ties to even.
        Round = "round",
        /// sin(πx) / (πx), and 1 at 0.
        Sinc = "sinc",
        /// 1 / (1 + e^−x).
        Sigmoid = "sigmoid",
        /// ln(1 + e^x), computed as max(x, 0) + ln(1 + e^−|x|).
        Softplus = "softplus",
        /// max(x, 0); NaN stays NaN.
        Relu = "relu",
        /// x·Φ(x), Hendrycks & Gimpel 2016.
        Gelu = "gelu",
        /// The tanh approximation of the same paper.
        GeluTanh = "gelu_tanh",
        /// The other truth value.
        Not = "not",
        /// Is x neither infinite nor NaN?
        IsFinite = "is_finite",
        /// Is x NaN?
        IsNan = "is_nan",
        /// Is x ∞ or −∞?
        IsInf = "is_inf",
        /// Every bit of a whole number flipped: −1 − x.
        BitNot = "bit_not",
    }
}

named_enum! {
    /// Operations of two operands a and b, which broadcast, element by element.
    Binary {
        /// a + b.
        Add = "add",
        /// a − b.
        Sub = "sub",
        /// a · b.
        Mul = "mul",
        /// a / b, of whole numbers too: it is rounded where it is stored or converted.
        Div = "div",
        /// a^b.
        Pow = "pow",
        /// The larger one, NaN if either is.
        Max = "max",
        /// The smaller one, NaN if either is.
        Min = "min",
        /// a = b, a truth value.
        Eq = "eq",
        /// a ≠ b, a truth value.
        Ne = "ne",
        /// a < b, a truth value.
        Lt = "lt",
        /// a ≤ b, a truth value.
        Le = "le",
        /// a > b, a truth value.
        Gt = "gt",
        /// a ≥ b, a truth value.
        Ge = "ge",
        /// Are both truth values true?
        And = "and",
        /// Is either truth value true?
        Or = "or",
        /// Is exactly one truth value true?
        Xor = "xor",
        /// The remainder with the divisor's sign (Python's `%`).
        Mod = "mod",
        /// The remainder with the dividend's sign (C's `fmod`).
        Fmod = "fmod",
        /// Bits that both whole numbers have.
        BitAnd = "bit_and",
        /// Bits that either whole number has.
        BitOr = "bit_or",
        /// Bits that exactly one of the whole numbers has.
        BitXor = "bit_xor",
        /// a · 2^b: bits moved up by b places.
        Shl = "shl",
        /// ⌊a / 2^b⌋: bits moved down by b places.
        Shr = "shr",
    }
}

/// One result element from one element of each operand.
pub(super) struct Elementwise;

impl Family for Elementwise {
    fn signatures(&self) -> Vec<Signature> {
        let mut rows: Vec<Signature> = Unary::ALL.iter().map(|u| Signature::new(u.name(), 1)).collect();
        rows.extend(Binary::ALL.iter().map(|b| Signature::new(b.name(), 2)));
        rows.push(Signature::new("select", 3));
        rows
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Unary(u) => u.name(),
            Op::Binary(b) => b.name(),
            _ => "select",
        }
    }

    fn attrs(&self, _: &Op) -> Vec<Attr> {
        Vec::new()
    }

    fn build(&self, name: &str, _: &Attrs) -> Result<Op, String> {
        let unary = Unary::ALL.into_iter().find(|u| u.name() == name).map(Op::Unary);
        let binary = || Binary::ALL.into_iter().find(|b| b.name() == name).map(Op::Binary);
        Ok(unary.or_else(binary).unwrap_or(Op::Select))
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        match op {
            Op::Unary(u) => u.infer(x[0]),
            Op::Binary(b) => b.infer(x[0], x[1]),
            _ => infer_select(x),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Unary(u) => x[0].map(|v| u.eval(v)),
            Op::Binary(b) => Tensor::from_fn(&ty.dims(), |i| b.eval(x[0].at_broadcast(i), x[1].at_broadcast(i))),
            _ => Tensor::from_fn(&ty.dims(), |i| x[if x[0].at_broadcast(i) != 0.0 { 1 } else { 2 }].at_broadcast(i)),
        }
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        let (g, x, y) = (c.graph, c.x, c.node);
        let gradients: Vec<Option<NodeId>> = formula(g, |s| {
            let (y, dy) = (s.value(y), s.value(c.dy));
            match op {
                Op::Unary(u) => vec![u.gradient(s, s.value(x[0]), y, dy).map(|dx| dx.id)],
                Op::Binary(b) => match b.gradients(s, [s.value(x[0]), s.value(x[1])], y, dy) {
                    Some([da, db]) => vec![Some(da.id), Some(db.id)],
                    None => vec![None, None],
                },
                _ => {
                    let (zero, c) = (s.constant(0.0), s.value(x[0]));
                    vec![None, Some(s.select(c, dy, zero).id), Some(s.select(c, zero, dy).id)]
                }
            }
        })?;
        if x.len() == 1 {
            return Ok(gradients);
        }
        gradients.into_iter().zip(x).map(|(d, &x)| d.map(|d| unbroadcast(g, d, x)).transpose()).collect()
    }
}

/// √(2/π), in the tanh form of gelu.
pub(crate) const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
pub(crate) const GELU_CUBIC: f64 = 0.044715;

impl Unary {
    /// Does it yield truth values?
    pub fn is_predicate(self) -> bool {
        matches!(self, Unary::Not | Unary::IsFinite | Unary::IsNan | Unary::IsInf)
    }

    pub(super) fn infer(self, x: &Type) -> Result<Type, String> {
        let keeps_integers = matches!(
            self,
            Unary::Neg
                | Unary::Abs
                | Unary::Sign
                | Unary::Square
                | Unary::Relu
                | Unary::BitNot
                | Unary::Floor
                | Unary::Ceil
                | Unary::Trunc
                | Unary::Round
        );
        let format = match (self, x.format) {
            (Unary::Not, Format::Bool) | (Unary::IsFinite | Unary::IsNan | Unary::IsInf, _) => Format::Bool,
            (Unary::Not, f) => return Err(format!("takes a bool, not {f}")),
            (Unary::BitNot, f) if !f.is_integer() => return Err(format!("takes whole numbers, not {f}")),
            (_, Format::F64) => Format::F64,
            (_, f) if f.is_float() => Format::F32,
            (_, f) if keeps_integers && f != Format::Bool => f,
            (_, f) => return Err(format!("takes floating-point numbers, not {f}")),
        };
        Ok(Type::new(x.shape.clone(), format))
    }

    /// The function in f64. Truth values are 0 and 1.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Sign => {
                if x == 0.0 || x.is_nan() {
                    x
                } else {
                    x.signum()
                }
            }
            Unary::Square => x * x,
            Unary::Recip => 1.0 / x,
            Unary::Exp => x.exp(),
            Unary::Expm1 => x.exp_m1(),
            Unary::Log => x.ln(),
            Unary::Log1p => x.ln_1p(),
            Unary::Sqrt => x.sqrt(),
            Unary::Rsqrt => 1.0 / x.sqrt(),
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tan => x.tan(),
            Unary::Asin => x.asin(),
            Unary::Acos => x.acos(),
            Unary::Atan => x.atan(),
            Unary::Sinh => x.sinh(),
            Unary::Cosh => x.cosh(),
            Unary::Tanh => x.tanh(),
            Unary::Asinh => x.asinh(),
            Unary::Acosh => x.acosh(),
            Unary::Atanh => x.atanh(),
            Unary::Erf => erf(x),
            Unary::Floor => x.floor(),
            Unary::Ceil => x.ceil(),
            Unary::Trunc => x.trunc(),
            Unary::Round => x.round_ties_even(),
            Unary::Sinc if x == 0.0 => 1.0,
            Unary::Sinc => (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Relu => {
                if x.is_nan() {
                    x
                } else {
                    x.max(0.0)
                }
            }
            Unary::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Unary::GeluTanh => 0.5 * x * (1.0 + (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh()),
            Unary::Not => (x == 0.0) as u8 as f64,
            Unary::IsFinite => x.is_finite() as u8 as f64,
            Unary::IsNan => x.is_nan() as u8 as f64,
            Unary::IsInf => x.is_infinite() as u8 as f64,
            Unary::BitNot => -1.0 - x,
        }
    }
}

impl Binary {
    /// Does it compare two operands, and so yield truth values?
    pub fn is_comparison(self) -> bool {
        matches!(self, Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge)
    }

    /// Does it combine truth values?
    pub fn is_logic(self) -> bool {
        matches!(self, Binary::And | Binary::Or | Binary::Xor)
    }

    /// Acts on the bits of whole numbers.
    pub fn is_bitwise(self) -> bool {
        matches!(self, Binary::BitAnd | Binary::BitOr | Binary::BitXor | Binary::Shl | Binary::Shr)
    }

    pub(super) fn infer(self, a: &Type, b: &Type) -> Result<Type, String> {
        let shape =
            a.shape.broadcast(&b.shape).ok_or_else(|| format!("{} and {} do not broadcast", a.shape, b.shape))?;
        let format = match (a.format, b.format) {
            (Format::Bool, Format::Bool) if self.is_logic() => Format::Bool,
            (f, g) if self.is_logic() => return Err(format!("takes bools, not {f} and {g}")),
            (Format::Bool, _) | (_, Format::Bool) if !self.is_comparison() => {
                return Err("takes numbers, not bools".into());
            }
            _ if self.is_comparison() => Format::Bool,
            (f, g) if self.is_bitwise() && !(f.is_integer() && g.is_integer()) => {
                return Err(format!("takes whole numbers, not {f} and {g}"));
            }
            (f, g) => promote(f, g),
        };
        Ok(Type::new(shape, format))
    }

    /// The function in f64. Truth values are 0 and 1.
    pub fn eval(self, a: f64, b: f64) -> f64 {
        let bit = |c: bool| c as u8 as f64;
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Pow => a.powf(b),
            Binary::Max => {
                if a.is_nan() || b.is_nan() {
                    f64::NAN
                } else {
                    a.max(b)
                }
            }
            Binary::Min => {
                if a.is_nan() || b.is_nan() {
                    f64::NAN
                } else {
                    a.min(b)
                }
            }
            Binary::Eq => bit(a == b),
            Binary::Ne => bit(a != b),
            Binary::Lt => bit(a < b),
            Binary::Le => bit(a <= b),
            Binary::Gt => bit(a > b),
            Binary::Ge => bit(a >= b),
            Binary::And => bit(a != 0.0 && b != 0.0),
            Binary::Or => bit(a != 0.0 || b != 0.0),
            Binary::Xor => bit((a != 0.0) != (b != 0.0)),
            Binary::Mod => {
                let r = a % b;
                if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
            }
            Binary::Fmod => a % b,
            Binary::BitAnd => (a as i128 & b as i128) as f64,
            Binary::BitOr => (a as i128 | b as i128) as f64,
            Binary::BitXor => (a as i128 ^ b as i128) as f64,
            Binary::Shl => a * 2f64.powi(b as i32),
            Binary::Shr => (a / 2f64.powi(b as i32)).floor(),
        }
    }
}

/// The register format of arithmetic on two formats: f64 if either is, f32 for other floats, the wider integer.
fn promote(a: Format, b: Format) -> Format {
    match (a.is_float(), b.is_float()) {
        _ if a == Format::F64 || b == Format::F64 => Format::F64,
        (false, false) => {
            if a.bytes() >= b.bytes() {
                a
            } else {
                b
            }
        }
        _ => Format::F32,
    }
}

fn infer_select(x: &[&Type]) -> Result<Type, String> {
    if x[0].format != Format::Bool {
        return Err(format!("the condition is {}, not bool", x[0].format));
    }
    let shape = x[1]
        .shape
        .broadcast(&x[2].shape)
        .and_then(|s| s.broadcast(&x[0].shape))
        .ok_or("the operands do not broadcast")?;
    let format = if x[1].format == Format::Bool && x[2].format == Format::Bool {
        Format::Bool
    } else {
        promote(x[1].format, x[2].format)
    };
    Ok(Type::new(shape, format))
}

impl Graph {
    /// The function of every element of x.
    ///
    /// # Errors
    /// A format that the function does not take.
    pub fn unary(&mut self, u: Unary, x: NodeId) -> crate::error::Result<NodeId> {
        self.add(Op::Unary(u), &[x])
    }
    /// The function of every two elements of x and y, which broadcast.
    ///
    /// # Errors
    /// Shapes that do not broadcast, and formats that the function does not take.
    pub fn binary(&mut self, b: Binary, x: NodeId, y: NodeId) -> crate::error::Result<NodeId> {
        self.add(Op::Binary(b), &[x, y])
    }
    /// A scalar of f32, known at compile time.
    ///
    /// # Errors
    /// None: there are no operands to refuse.
    pub fn constant(&mut self, x: f64) -> crate::error::Result<NodeId> {
        self.add(Op::Const(Num::new(x)), &[])
    }
    /// x · c
    ///
    /// # Errors
    /// Booleans, which are no numbers.
    pub fn scale(&mut self, x: NodeId, c: f64) -> crate::error::Result<NodeId> {
        let k = self.constant(c)?;
        self.binary(Binary::Mul, x, k)
    }
    /// x + c
    ///
    /// # Errors
    /// Booleans, which are no numbers.
    pub fn shift(&mut self, x: NodeId, c: f64) -> crate::error::Result<NodeId> {
        let k = self.constant(c)?;
        self.binary(Binary::Add, x, k)
    }
}

/// The error function to f64 accuracy: the Maclaurin series below 2.5, the continued fraction of erfc above
/// (Abramowitz & Stegun 7.1.5, 7.1.14).
pub fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z.is_nan() {
        return x;
    }
    let y = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..80 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else if z < 6.5 {
        let tail = (1..=60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        1.0 - (-z * z).exp() / (tail * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    y.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::{Unary, erf};
    use std::f64::consts::PI;

    /// The sinc of half-integers is known: sin(π/2) is 1, and that of whole numbers 0.
    #[test]
    fn sinc_known_values() {
        for (x, y) in [(0.0, 1.0), (0.5, 2.0 / PI), (-1.5, -2.0 / (3.0 * PI)), (3.0, 0.0)] {
            assert!((Unary::Sinc.eval(x) - y).abs() < 1e-15, "{x}: {}", Unary::Sinc.eval(x));
        }
    }

    /// Values from the Digital Library of Mathematical Functions' definition, to 16 digits.
    #[test]
    fn erf_known_values() {
        for (x, y) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf(x) - y).abs() < 2e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
