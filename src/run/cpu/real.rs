//! Scalar arithmetic of the executor, in f32 and in f64.

use crate::format::Register;
use crate::ir::ops::{GELU_CUBIC, GELU_SCALE};
use crate::ir::{Binary, ReduceKind, Unary};

/// A register's element.
pub trait Real: Register + PartialOrd + Default {
    fn of(x: f64) -> Self;
    fn get(self) -> f64;
    fn is_true(self) -> bool;
    /// Computes a block of lanes.
    fn unary(u: Unary, x: &[Self], out: &mut [Self]);
    fn binary(b: Binary, x: &[Self], y: &[Self], out: &mut [Self]);
    fn combine(kind: ReduceKind, a: Self, v: Self) -> Self;
    fn divide(self, n: usize) -> Self;
}

fn map<T: Copy>(x: &[T], out: &mut [T], f: impl Fn(T) -> T) {
    out.iter_mut().zip(x).for_each(|(o, &v)| *o = f(v));
}

fn zip<T: Copy>(x: &[T], y: &[T], out: &mut [T], f: impl Fn(T, T) -> T) {
    out.iter_mut().zip(x.iter().zip(y)).for_each(|(o, (&p, &q))| *o = f(p, q));
}

/// Propagates NaN, as PyTorch's and ONNX's maximum do.
#[expect(clippy::eq_op, reason = "NaN alone differs from itself")]
fn maximum<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a != a || a > b { a } else { b }
}

macro_rules! real {
    ($t:ident, $erf:path) => {
        impl Real for $t {
            fn of(x: f64) -> $t {
                x as $t
            }

            fn get(self) -> f64 {
                self as f64
            }

            fn is_true(self) -> bool {
                self != 0.0
            }

            fn unary(u: Unary, x: &[$t], out: &mut [$t]) {
                let truth = |c: bool| <$t>::from(u8::from(c));
                match u {
                    Unary::Neg => map(x, out, |v| -v),
                    Unary::Abs => map(x, out, $t::abs),
                    Unary::Sign => map(x, out, |v| if v == 0.0 || v.is_nan() { v } else { v.signum() }),
                    Unary::Square => map(x, out, |v| v * v),
                    Unary::Recip => map(x, out, |v| 1.0 / v),
                    Unary::Exp => map(x, out, $t::exp),
                    Unary::Expm1 => map(x, out, $t::exp_m1),
                    Unary::Log => map(x, out, $t::ln),
                    Unary::Log1p => map(x, out, $t::ln_1p),
                    Unary::Sqrt => map(x, out, $t::sqrt),
                    Unary::Rsqrt => map(x, out, |v| 1.0 / v.sqrt()),
                    Unary::Sin => map(x, out, $t::sin),
                    Unary::Cos => map(x, out, $t::cos),
                    Unary::Tan => map(x, out, $t::tan),
                    Unary::Asin => map(x, out, $t::asin),
                    Unary::Acos => map(x, out, $t::acos),
                    Unary::Atan => map(x, out, $t::atan),
                    Unary::Sinh => map(x, out, $t::sinh),
                    Unary::Cosh => map(x, out, $t::cosh),
                    Unary::Tanh => map(x, out, $t::tanh),
                    Unary::Asinh => map(x, out, $t::asinh),
                    Unary::Acosh => map(x, out, $t::acosh),
                    Unary::Atanh => map(x, out, $t::atanh),
                    Unary::Erf => map(x, out, $erf),
                    Unary::Floor => map(x, out, $t::floor),
                    Unary::Ceil => map(x, out, $t::ceil),
                    Unary::Trunc => map(x, out, $t::trunc),
                    Unary::Round => map(x, out, $t::round_ties_even),
                    Unary::Sinc => {
                        let pi = std::$t::consts::PI;
                        map(x, out, |v| if v == 0.0 { 1.0 } else { (pi * v).sin() / (pi * v) })
                    }
                    Unary::Sigmoid => map(x, out, |v| 1.0 / (1.0 + (-v).exp())),
                    Unary::Softplus => map(x, out, |v| v.max(0.0) + (-v.abs()).exp().ln_1p()),
                    Unary::Relu => map(x, out, |v| maximum(v, 0.0)),
                    Unary::Gelu => map(x, out, |v| 0.5 * v * (1.0 + $erf(v * std::$t::consts::FRAC_1_SQRT_2))),
                    Unary::GeluTanh => {
                        let (s, c) = (GELU_SCALE as $t, GELU_CUBIC as $t);
                        map(x, out, |v| 0.5 * v * (1.0 + (s * (v + c * v * v * v)).tanh()))
                    }
                    Unary::Not => map(x, out, |v| truth(v == 0.0)),
                    Unary::IsFinite => map(x, out, |v| truth(v.is_finite())),
                    Unary::IsNan => map(x, out, |v| truth(v.is_nan())),
                    Unary::IsInf => map(x, out, |v| truth(v.is_infinite())),
                    Unary::BitNot => map(x, out, |v| -1.0 - v),
                }
            }

            fn binary(b: Binary, x: &[$t], y: &[$t], out: &mut [$t]) {
                let truth = |c: bool| <$t>::from(u8::from(c));
                match b {
                    Binary::Add => zip(x, y, out, |p, q| p + q),
                    Binary::Sub => zip(x, y, out, |p, q| p - q),
                    Binary::Mul => zip(x, y, out, |p, q| p * q),
                    Binary::Div => zip(x, y, out, |p, q| p / q),
                    Binary::Pow => zip(x, y, out, $t::powf),
                    Binary::Max => zip(x, y, out, maximum),
                    Binary::Min => zip(x, y, out, |p, q| -maximum(-p, -q)),
                    Binary::Eq => zip(x, y, out, |p, q| truth(p == q)),
                    Binary::Ne => zip(x, y, out, |p, q| truth(p != q)),
                    Binary::Lt => zip(x, y, out, |p, q| truth(p < q)),
                    Binary::Le => zip(x, y, out, |p, q| truth(p <= q)),
                    Binary::Gt => zip(x, y, out, |p, q| truth(p > q)),
                    Binary::Ge => zip(x, y, out, |p, q| truth(p >= q)),
                    Binary::And => zip(x, y, out, |p, q| truth(p != 0.0 && q != 0.0)),
                    Binary::Or => zip(x, y, out, |p, q| truth(p != 0.0 || q != 0.0)),
                    Binary::Xor => zip(x, y, out, |p, q| truth((p != 0.0) != (q != 0.0))),
                    Binary::Fmod => zip(x, y, out, |p, q| p % q),
                    Binary::Mod | Binary::BitAnd | Binary::BitOr | Binary::BitXor | Binary::Shl | Binary::Shr => {
                        zip(x, y, out, |p, q| b.eval(p as f64, q as f64) as $t)
                    }
                }
            }

            fn combine(kind: ReduceKind, a: $t, v: $t) -> $t {
                match kind {
                    ReduceKind::Sum | ReduceKind::Mean => a + v,
                    ReduceKind::Max => maximum(a, v),
                    ReduceKind::Min => -maximum(-a, -v),
                    ReduceKind::Any => <$t>::from((a != 0.0 || v != 0.0) as u8),
                    ReduceKind::Prod => a * v,
                }
            }

            fn divide(self, n: usize) -> $t {
                self / n as $t
            }
        }
    };
}

real!(f32, libm::erff);
real!(f64, libm::erf);
