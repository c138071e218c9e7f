//! Operations that draw numbers: uniform ones by position, the rest made of those. In inference dropout does nothing.

use super::Handler;
use crate::format::Format;
use crate::ir::ops::random;
use crate::ir::{Binary, Init, NodeId, Op, Role, Shape, Type, Unary};
use crate::model::Purpose;
use crate::model::onnx::node::{Import, Node};
use crate::model::onnx::tensor::format_of;

pub const OPS: &[(&str, Handler)] = &[
    ("Bernoulli", bernoulli),
    ("Dropout", dropout),
    ("RandomNormal", normal),
    ("RandomNormalLike", normal),
    ("RandomUniform", between),
    ("RandomUniformLike", between),
];

/// Uniform numbers that no other call of this graph draws. The seed and the step are state, which the step counts.
fn uniform(n: &mut Node, dims: &[usize]) -> Import<NodeId> {
    let (seed, step) = match (n.im.graph.find(random::SEED), n.im.graph.find(random::STEP)) {
        (Some(seed), Some(step)) => (seed, step),
        _ => {
            let ty = || Type::new(Shape::scalar(), Format::F32);
            if n.im.purpose == Purpose::Inference {
                // The same numbers every time: there is no run whose steps could be counted.
                let zero = n.num(0.0)?;
                return draw(n, dims, zero, zero);
            }
            let mut state = |name| n.named(name, Op::State { init: Init::zeros(), ty: ty() });
            let (seed, step) = (state(random::SEED)?, state(random::STEP)?);
            let next = n.with(Binary::Add, step, 1.0)?;
            n.im.graph.add_output(random::STEP, Role::Update, next);
            (seed, step)
        }
    };
    draw(n, dims, seed, step)
}

fn draw(n: &mut Node, dims: &[usize], seed: NodeId, step: NodeId) -> Import<NodeId> {
    let drawn = |id: &NodeId| matches!(n.im.graph.op(*id), Op::Random { .. });
    let salt = n.im.graph.ids().filter(drawn).count() as u32;
    n.add(Op::Random { dims: Shape::of(dims), salt }, &[seed, step])
}

/// The format that a node asks for, or the one it has by default.
fn in_format(n: &mut Node, x: NodeId, default: Format) -> Import<NodeId> {
    let format = match n.int("dtype", 0) {
        0 => default,
        code => format_of(code as i32)?,
    };
    n.convert(x, format)
}

/// The shape and the format of the result: those of an input, where there is one.
fn result(n: &mut Node) -> Import<(Vec<usize>, Format)> {
    Ok(match n.maybe(0)? {
        Some(like) => (n.dims(like), n.format(like)),
        None => (n.sizes("shape")?.unwrap_or_default(), Format::F32),
    })
}

fn between(n: &mut Node) -> Import<Vec<NodeId>> {
    let (dims, format) = result(n)?;
    let (low, high) = (n.float("low", 0.0), n.float("high", 1.0));
    let u = uniform(n, &dims)?;
    let wide = n.with(Binary::Mul, u, high - low)?;
    let y = n.with(Binary::Add, wide, low)?;
    let y = in_format(n, y, format)?;
    n.im.note_uniform(y, low, high);
    Ok(vec![y])
}

/// √(−2 ln(1 − u)) cos 2πv (Box and Muller 1958); 1 − u is above 0.
fn normal(n: &mut Node) -> Import<Vec<NodeId>> {
    let (dims, format) = result(n)?;
    let (mean, scale) = (n.float("mean", 0.0), n.float("scale", 1.0));
    let (u, v) = (uniform(n, &dims)?, uniform(n, &dims)?);
    let negative = n.with(Binary::Mul, u, -1.0)?;
    let log = n.un(Unary::Log1p, negative)?;
    let square = n.with(Binary::Mul, log, -2.0)?;
    let radius = n.un(Unary::Sqrt, square)?;
    let angle = n.with(Binary::Mul, v, 2.0 * std::f64::consts::PI)?;
    let cos = n.un(Unary::Cos, angle)?;
    let z = n.bin(Binary::Mul, radius, cos)?;
    let z = n.with(Binary::Mul, z, scale)?;
    let y = n.with(Binary::Add, z, mean)?;
    Ok(vec![in_format(n, y, format)?])
}

/// 1 with the probability that the input says.
fn bernoulli(n: &mut Node) -> Import<Vec<NodeId>> {
    let p = n.x(0)?;
    let (dims, format) = (n.dims(p), n.format(p));
    let u = uniform(n, &dims)?;
    let hit = n.bin(Binary::Lt, u, p)?;
    Ok(vec![in_format(n, hit, format)?])
}

/// Zeros with probability `ratio`; the rest is scaled up, so that the mean stays (Srivastava et al. 2014).
fn dropout(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let training = n.has(2) && n.ints(2)?.first() == Some(&1);
    let ratio = match n.attr("ratio") {
        Some(a) => f64::from(a.f()),
        None if n.has(1) => n.known(1)?.tensor.data.first().copied().unwrap_or(0.5),
        None => 0.5,
    };
    if !(0.0..1.0).contains(&ratio) {
        return Err(format!("its ratio is {ratio}; it must be at least 0 and below 1"));
    }
    let dims = n.dims(x);
    let drops = n.trains(training, |m| &m.dropout);
    n.im.layers.dropouts.add(drops);
    if drops && ratio > 0.0 {
        let u = uniform(n, &dims)?;
        let edge = n.num(ratio)?;
        let kept = n.bin(Binary::Ge, u, edge)?;
        let scaled = n.with(Binary::Mul, x, 1.0 / (1.0 - ratio))?;
        let zero = n.num(0.0)?;
        return Ok(vec![n.add(Op::Select, &[kept, scaled, zero])?, kept]);
    }
    let mut out = vec![x];
    if n.wants(1) {
        let one = n.num(1.0)?;
        let one = n.convert(one, Format::Bool)?;
        out.push(n.broadcast(one, &dims)?);
    }
    Ok(out)
}
