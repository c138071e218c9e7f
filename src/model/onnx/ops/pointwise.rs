//! Elementwise arithmetic, comparisons, logic, activations and casts.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, Unary};
use crate::model::onnx::node::{Import, Node};
use crate::model::onnx::tensor::format_of;

macro_rules! unary {
    ($u:ident) => {
        |n: &mut Node| {
            let x = n.x(0)?;
            n.one(Op::Unary(Unary::$u), &[x])
        }
    };
}

macro_rules! binary {
    ($b:ident) => {
        |n: &mut Node| {
            let (x, y) = (n.x(0)?, n.x(1)?);
            n.one(Op::Binary(Binary::$b), &[x, y])
        }
    };
}

pub const OPS: &[(&str, Handler)] = &[
    ("Abs", unary!(Abs)),
    ("Acos", unary!(Acos)),
    ("Acosh", unary!(Acosh)),
    ("Asin", unary!(Asin)),
    ("Asinh", unary!(Asinh)),
    ("Atan", unary!(Atan)),
    ("Atanh", unary!(Atanh)),
    ("BitwiseNot", unary!(BitNot)),
    ("Ceil", unary!(Ceil)),
    ("Cos", unary!(Cos)),
    ("Cosh", unary!(Cosh)),
    ("Erf", unary!(Erf)),
    ("Exp", unary!(Exp)),
    ("Floor", unary!(Floor)),
    ("IsNaN", unary!(IsNan)),
    ("Log", unary!(Log)),
    ("Neg", unary!(Neg)),
    ("Not", unary!(Not)),
    ("Reciprocal", unary!(Recip)),
    ("Relu", unary!(Relu)),
    ("Round", unary!(Round)),
    ("Sigmoid", unary!(Sigmoid)),
    ("Sign", unary!(Sign)),
    ("Sin", unary!(Sin)),
    ("Sinh", unary!(Sinh)),
    ("Softplus", unary!(Softplus)),
    ("Sqrt", super::norm::square_root),
    ("Tan", unary!(Tan)),
    ("Tanh", unary!(Tanh)),
    ("Add", binary!(Add)),
    ("Sub", binary!(Sub)),
    ("Mul", binary!(Mul)),
    ("And", binary!(And)),
    ("Or", binary!(Or)),
    ("Xor", binary!(Xor)),
    ("Equal", binary!(Eq)),
    ("Less", binary!(Lt)),
    ("LessOrEqual", binary!(Le)),
    ("Greater", binary!(Gt)),
    ("GreaterOrEqual", binary!(Ge)),
    ("BitwiseAnd", binary!(BitAnd)),
    ("BitwiseOr", binary!(BitOr)),
    ("BitwiseXor", binary!(BitXor)),
    ("Div", div),
    ("Pow", pow),
    ("Mod", modulo),
    ("BitShift", bit_shift),
    ("Max", |n| many(n, Binary::Max)),
    ("Min", |n| many(n, Binary::Min)),
    ("Sum", |n| many(n, Binary::Add)),
    ("Mean", mean),
    ("Where", |n| {
        let (c, a, b) = (n.x(0)?, n.x(1)?, n.x(2)?);
        n.one(Op::Select, &[c, a, b])
    }),
    ("Cast", |n| {
        let (x, to) = (n.x(0)?, format_of(n.int("to", 0) as i32)?);
        cast(n, x, to)
    }),
    ("CastLike", |n| {
        let (x, like) = (n.x(0)?, n.x(1)?);
        let to = n.format(like);
        cast(n, x, to)
    }),
    ("IsInf", is_inf),
    ("Clip", clip),
    ("Elu", |n| {
        let (x, a) = (n.x(0)?, n.float("alpha", 1.0));
        let e = elu(n, x, a)?;
        Ok(vec![e])
    }),
    ("Selu", |n| {
        let (x, a) = (n.x(0)?, n.float("alpha", 1.673_263_2));
        let e = elu(n, x, a)?;
        let gamma = n.float("gamma", 1.050_701);
        Ok(vec![n.with(Binary::Mul, e, gamma)?])
    }),
    ("Celu", celu),
    ("LeakyRelu", |n| {
        let (x, a) = (n.x(0)?, n.float("alpha", 0.01));
        let low = n.with(Binary::Mul, x, a)?;
        leak(n, x, low)
    }),
    ("PRelu", |n| {
        let (x, slope) = (n.x(0)?, n.x(1)?);
        let low = n.bin(Binary::Mul, x, slope)?;
        leak(n, x, low)
    }),
    ("ThresholdedRelu", |n| {
        let (x, a) = (n.x(0)?, n.float("alpha", 1.0));
        let on = n.with(Binary::Gt, x, a)?;
        let zero = n.num_like(x, 0.0)?;
        Ok(vec![n.select(on, x, zero)?])
    }),
    ("HardSigmoid", |n| {
        let (x, a, b) = (n.x(0)?, n.float("alpha", 0.2), n.float("beta", 0.5));
        Ok(vec![hard_sigmoid(n, x, a, b)?])
    }),
    ("HardSwish", |n| {
        let x = n.x(0)?;
        let gate = hard_sigmoid(n, x, 1.0 / 6.0, 0.5)?;
        Ok(vec![n.bin(Binary::Mul, x, gate)?])
    }),
    ("Mish", |n| {
        let x = n.x(0)?;
        let s = n.un(Unary::Softplus, x)?;
        let t = n.un(Unary::Tanh, s)?;
        Ok(vec![n.bin(Binary::Mul, x, t)?])
    }),
    ("Softsign", |n| {
        let x = n.x(0)?;
        let a = n.un(Unary::Abs, x)?;
        let d = n.with(Binary::Add, a, 1.0)?;
        Ok(vec![n.bin(Binary::Div, x, d)?])
    }),
    ("Swish", |n| {
        let (x, alpha) = (n.x(0)?, n.float("alpha", 1.0));
        let scaled = if alpha == 1.0 { x } else { n.with(Binary::Mul, x, alpha)? };
        let gate = n.un(Unary::Sigmoid, scaled)?;
        Ok(vec![n.bin(Binary::Mul, x, gate)?])
    }),
    ("Shrink", shrink),
    ("Gelu", |n| {
        let x = n.x(0)?;
        let u = if n.word("approximate", "none") == "tanh" { Unary::GeluTanh } else { Unary::Gelu };
        n.one(Op::Unary(u), &[x])
    }),
];

/// A cast that the model asks for rounds; one to a wider format changes nothing.
fn cast(n: &mut Node, x: NodeId, to: Format) -> Import<Vec<NodeId>> {
    if n.format(x) == to {
        return Ok(vec![x]);
    }
    if !matches!(to, Format::F8E4M3 | Format::F8E5M2) {
        return n.one(Op::Convert(to), &[x]);
    }
    // The fp8 formats saturate unless told not to; then what is too large is infinite, or NaN where there is no infinity.
    let spec = to.float().ok_or("is no floating-point format")?;
    if n.flag("saturate", true) {
        let low = n.with(Binary::Max, x, -spec.max)?;
        let both = n.with(Binary::Min, low, spec.max)?;
        return n.one(Op::Convert(to), &[both]);
    }
    let y = n.add(Op::Convert(to), &[x])?;
    if spec.has_infinity {
        return Ok(vec![y]);
    }
    let size = n.un(Unary::Abs, x)?;
    // Halfway to the next step of the grid still rounds down, to even.
    let beyond = n.with(Binary::Gt, size, spec.max * (1.0 + 1.0 / 28.0))?;
    let nan = n.num(f64::NAN)?;
    Ok(vec![n.select(beyond, nan, y)?])
}

/// Quotients of whole numbers are whole, truncated towards zero.
fn div(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, y) = (n.x(0)?, n.x(1)?);
    let q = n.bin(Binary::Div, x, y)?;
    Ok(vec![if n.format(q).is_integer() { n.un(Unary::Trunc, q)? } else { q }])
}

/// The result has the base's type, whatever the exponent's is.
fn pow(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, y) = (n.x(0)?, n.x(1)?);
    let p = n.bin(Binary::Pow, x, y)?;
    let to = n.format(x);
    Ok(vec![n.convert(p, to)?])
}

fn modulo(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, y) = (n.x(0)?, n.x(1)?);
    let b = if n.flag("fmod", false) { Binary::Fmod } else { Binary::Mod };
    n.one(Op::Binary(b), &[x, y])
}

fn bit_shift(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, y) = (n.x(0)?, n.x(1)?);
    match n.word("direction", "").as_str() {
        "LEFT" => n.one(Op::Binary(Binary::Shl), &[x, y]),
        "RIGHT" => n.one(Op::Binary(Binary::Shr), &[x, y]),
        other => Err(format!("direction `{other}` is neither LEFT nor RIGHT")),
    }
}

fn many(n: &mut Node, b: Binary) -> Import<Vec<NodeId>> {
    let parts = n.all()?;
    let mut out = *parts.first().ok_or("needs an input")?;
    for &y in &parts[1..] {
        out = n.bin(b, out, y)?;
    }
    Ok(vec![out])
}

fn mean(n: &mut Node) -> Import<Vec<NodeId>> {
    let (count, sum) = (n.inputs(), many(n, Binary::Add)?[0]);
    Ok(vec![n.with(Binary::Div, sum, count as f64)?])
}

fn is_inf(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let (neg, pos) = (n.flag("detect_negative", true), n.flag("detect_positive", true));
    let inf = n.un(Unary::IsInf, x)?;
    if neg && pos {
        return Ok(vec![inf]);
    }
    let side = n.with(if pos { Binary::Gt } else { Binary::Lt }, x, 0.0)?;
    let mut out = n.bin(Binary::And, inf, side)?;
    if !neg && !pos {
        let not = n.un(Unary::Not, inf)?;
        out = n.bin(Binary::And, out, not)?;
    }
    Ok(vec![out])
}

fn clip(n: &mut Node) -> Import<Vec<NodeId>> {
    let mut x = n.x(0)?;
    for (i, name, b) in [(1, "min", Binary::Max), (2, "max", Binary::Min)] {
        let bound = match n.attr(name).map(|a| f64::from(a.f())) {
            Some(v) => Some(n.num_like(x, v)?),
            None => n.maybe(i)?,
        };
        if let Some(bound) = bound {
            x = n.bin(b, x, bound)?;
        }
    }
    Ok(vec![x])
}

/// x where positive, a (eˣ − 1) elsewhere.
fn elu(n: &mut Node, x: NodeId, a: f64) -> Import<NodeId> {
    let on = n.with(Binary::Gt, x, 0.0)?;
    let e = n.un(Unary::Expm1, x)?;
    let low = n.with(Binary::Mul, e, a)?;
    n.select(on, x, low)
}

/// max(0, x) + min(0, a (e^(x/a) − 1))
fn celu(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, a) = (n.x(0)?, n.float("alpha", 1.0));
    let scaled = n.with(Binary::Div, x, a)?;
    let e = n.un(Unary::Expm1, scaled)?;
    let low = n.with(Binary::Mul, e, a)?;
    leak(n, x, low)
}

/// x where not negative, `low` elsewhere.
fn leak(n: &mut Node, x: NodeId, low: NodeId) -> Import<Vec<NodeId>> {
    let on = n.with(Binary::Ge, x, 0.0)?;
    Ok(vec![n.select(on, x, low)?])
}

pub(super) fn hard_sigmoid(n: &mut Node, x: NodeId, a: f64, b: f64) -> Import<NodeId> {
    let ax = n.with(Binary::Mul, x, a)?;
    let line = n.with(Binary::Add, ax, b)?;
    let up = n.with(Binary::Max, line, 0.0)?;
    n.with(Binary::Min, up, 1.0)
}

/// x + bias below −lambd, x − bias above lambd, 0 between.
fn shrink(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, lambd, bias) = (n.x(0)?, n.float("lambd", 0.5), n.float("bias", 0.0));
    let (below, above) = (n.with(Binary::Lt, x, -lambd)?, n.with(Binary::Gt, x, lambd)?);
    let (up, down) = (n.with(Binary::Add, x, bias)?, n.with(Binary::Sub, x, bias)?);
    let zero = n.num_like(x, 0.0)?;
    let rest = n.select(above, down, zero)?;
    Ok(vec![n.select(below, up, rest)?])
}
