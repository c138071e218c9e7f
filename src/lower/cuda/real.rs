//! Arithmetic as C++, in the type that a kernel's registers have.

use crate::ir::ops::{GELU_CUBIC, GELU_SCALE};
use crate::ir::{Binary, Unary};
use std::fmt;

/// `float`, or `double` where f32 does not hold a kernel's values.
#[derive(Clone, Copy)]
pub(super) struct Real {
    pub wide: bool,
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Real {
    pub fn name(self) -> &'static str {
        if self.wide { "double" } else { "float" }
    }

    /// The function that reads an element of any format into a register.
    pub fn widen(self) -> &'static str {
        if self.wide { "widen64" } else { "widen" }
    }

    /// A number, to the last bit of a register.
    pub fn number(self, x: f64) -> String {
        let finite = if self.wide { x } else { f64::from(x as f32) };
        let infinite =
            |sign: &str| if self.wide { format!("double({sign}INFINITY_F)") } else { format!("{sign}INFINITY_F") };
        match finite {
            x if x.is_nan() && self.wide => "double(NAN_F)".into(),
            x if x.is_nan() => "NAN_F".into(),
            x if x.is_infinite() => infinite(if x > 0.0 { "" } else { "-" }),
            x if self.wide => format!("{x:?}"),
            x => format!("{:?}f", x as f32),
        }
    }

    /// A function of C's mathematical library: `expf` or `exp`.
    fn function(self, name: &str, of: &str) -> String {
        format!("{name}{}({of})", if self.wide { "" } else { "f" })
    }

    pub fn unary(self, u: Unary, x: &str) -> String {
        let (zero, half, one) = (self.number(0.0), self.number(0.5), self.number(1.0));
        let f = |name: &str| self.function(name, x);
        match u {
            Unary::Neg => format!("-{x}"),
            Unary::Abs => f("fabs"),
            Unary::Sign => format!("sign({x})"),
            Unary::Square => format!("{x} * {x}"),
            Unary::Recip => format!("{one} / {x}"),
            Unary::Exp => f("exp"),
            Unary::Expm1 => f("expm1"),
            Unary::Log => f("log"),
            Unary::Log1p => f("log1p"),
            Unary::Sqrt => f("sqrt"),
            Unary::Rsqrt => format!("{one} / {}", f("sqrt")),
            Unary::Sin => f("sin"),
            Unary::Cos => f("cos"),
            Unary::Tan => f("tan"),
            Unary::Asin => f("asin"),
            Unary::Acos => f("acos"),
            Unary::Atan => f("atan"),
            Unary::Sinh => f("sinh"),
            Unary::Cosh => f("cosh"),
            Unary::Asinh => f("asinh"),
            Unary::Acosh => f("acosh"),
            Unary::Atanh => f("atanh"),
            Unary::Ceil => f("ceil"),
            Unary::Trunc => f("trunc"),
            Unary::Round => f("rint"),
            Unary::IsNan => format!("truth({x} != {x})"),
            Unary::IsInf => format!("truth({} == INFINITY_F)", f("fabs")),
            Unary::BitNot => format!("-{one} - {x}"),
            Unary::Tanh => f("tanh"),
            Unary::Erf => f("erf"),
            Unary::Floor => f("floor"),
            Unary::Sinc => {
                let turned = format!("{} * {x}", self.number(std::f64::consts::PI));
                format!("{x} == {zero} ? {one} : {} / ({turned})", self.function("sin", &turned))
            }
            Unary::Sigmoid => format!("sigmoid({x})"),
            Unary::Softplus => format!("softplus({x})"),
            Unary::Relu => format!("maximum({x}, {zero})"),
            Unary::Gelu => {
                let scaled = format!("{x} * {}", self.number(std::f64::consts::FRAC_1_SQRT_2));
                format!("{half} * {x} * ({one} + {})", self.function("erf", &scaled))
            }
            Unary::GeluTanh => {
                let (s, c) = (self.number(GELU_SCALE), self.number(GELU_CUBIC));
                let inner = format!("{s} * ({x} + {c} * {x} * {x} * {x})");
                format!("{half} * {x} * ({one} + {})", self.function("tanh", &inner))
            }
            Unary::Not => format!("truth({x} == {zero})"),
            Unary::IsFinite => {
                let most = self.number(if self.wide { f64::MAX } else { f64::from(f32::MAX) });
                format!("truth({} <= {most})", f("fabs"))
            }
        }
    }

    pub fn binary(self, b: Binary, x: &str, y: &str) -> String {
        let zero = self.number(0.0);
        let infix = |op: &str| format!("{x} {op} {y}");
        let test = |op: &str| format!("truth({x} {op} {y})");
        let bits = |op: &str| format!("{self}(i64({x}) {op} i64({y}))");
        match b {
            Binary::Add => infix("+"),
            Binary::Sub => infix("-"),
            Binary::Mul => infix("*"),
            Binary::Div => infix("/"),
            Binary::Pow => self.function("pow", &format!("{x}, {y}")),
            Binary::Max => format!("maximum({x}, {y})"),
            Binary::Min => format!("minimum({x}, {y})"),
            Binary::Eq => test("=="),
            Binary::Ne => test("!="),
            Binary::Lt => test("<"),
            Binary::Le => test("<="),
            Binary::Gt => test(">"),
            Binary::Ge => test(">="),
            Binary::And => format!("truth({x} != {zero} && {y} != {zero})"),
            Binary::Or => format!("truth({x} != {zero} || {y} != {zero})"),
            Binary::Xor => format!("truth(({x} != {zero}) != ({y} != {zero}))"),
            Binary::Mod => format!("modulo({x}, {y})"),
            Binary::Fmod => self.function("fmod", &format!("{x}, {y}")),
            Binary::BitAnd => bits("&"),
            Binary::BitOr => bits("|"),
            Binary::BitXor => bits("^"),
            Binary::Shl => self.function("ldexp", &format!("{x}, int({y})")),
            Binary::Shr => self.function("floor", &self.function("ldexp", &format!("{x}, -int({y})"))),
        }
    }
}
