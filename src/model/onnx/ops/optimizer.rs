//! The optimizers that ONNX defines as operators (ai.onnx.preview.training), and its gradient operator.

use super::Handler;
use crate::ir::{Binary, NodeId, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("Adam", adam), ("Adagrad", adagrad), ("Momentum", momentum)];

/// A tensor's next value and states, from the tensor, its gradient and its states.
type Update = fn(&mut Node, NodeId, NodeId, &[NodeId]) -> Import<(NodeId, Vec<NodeId>)>;

/// Inputs are the rate, the update count, then all tensors, all gradients and each kind of state. Outputs are the new
/// tensors, then the new states.
fn each(n: &mut Node, states: usize, update: Update) -> Import<Vec<NodeId>> {
    let count = (n.inputs() - 2) / (2 + states);
    let mut columns: Vec<Vec<NodeId>> = vec![Vec::new(); 1 + states];
    for i in 0..count {
        let x = n.x(2 + i)?;
        let g = n.x(2 + count + i)?;
        let s = (0..states).map(|k| n.x(2 + (2 + k) * count + i)).collect::<Import<Vec<_>>>()?;
        let (x, s) = update(n, x, g, &s)?;
        columns[0].push(x);
        s.into_iter().enumerate().for_each(|(k, s)| columns[k + 1].push(s));
    }
    Ok(columns.concat())
}

/// g + c·x
fn regularised(n: &mut Node, x: NodeId, g: NodeId, name: &str) -> Import<NodeId> {
    let pull = n.with(Binary::Mul, x, n.float(name, 0.0))?;
    n.bin(Binary::Add, g, pull)
}

/// r / (1 + t·decay)
fn adagrad(n: &mut Node) -> Import<Vec<NodeId>> {
    each(n, 1, |n, x, g, s| {
        let g = regularised(n, x, g, "norm_coefficient")?;
        let square = n.un(Unary::Square, g)?;
        let h = n.bin(Binary::Add, s[0], square)?;
        let root = n.un(Unary::Sqrt, h)?;
        let d = n.with(Binary::Add, root, n.float("epsilon", 1e-6))?;
        let (rate, t) = (n.x(0)?, n.x(1)?);
        let slowed = n.with(Binary::Mul, t, n.float("decay_factor", 0.0))?;
        let slowed = n.convert(slowed, crate::format::Format::F32)?;
        let slowed = n.with(Binary::Add, slowed, 1.0)?;
        let rate = n.bin(Binary::Div, rate, slowed)?;
        let step = n.bin(Binary::Mul, rate, g)?;
        let step = n.bin(Binary::Div, step, d)?;
        Ok((n.bin(Binary::Sub, x, step)?, vec![h]))
    })
}

fn adam(n: &mut Node) -> Import<Vec<NodeId>> {
    each(n, 2, |n, x, g, s| {
        let (a, b) = (n.float("alpha", 0.9), n.float("beta", 0.999));
        let g = regularised(n, x, g, "norm_coefficient")?;
        let mix = |n: &mut Node, old: NodeId, new: NodeId, c: f64| {
            let (o, w) = (n.with(Binary::Mul, old, c)?, n.with(Binary::Mul, new, 1.0 - c)?);
            n.bin(Binary::Add, o, w)
        };
        let v = mix(n, s[0], g, a)?;
        let square = n.un(Unary::Square, g)?;
        let h = mix(n, s[1], square, b)?;
        let root = n.un(Unary::Sqrt, h)?;
        let d = n.with(Binary::Add, root, n.float("epsilon", 1e-6))?;
        let (rate, t) = (n.x(0)?, n.x(1)?);
        // The rate is corrected for the bias of the averages, but on the first update.
        let t = n.convert(t, crate::format::Format::F32)?;
        let correct = |n: &mut Node, base: f64| {
            let base = n.num(base)?;
            let p = n.bin(Binary::Pow, base, t)?;
            let one = n.num(1.0)?;
            n.bin(Binary::Sub, one, p)
        };
        let (ca, cb) = (correct(n, a)?, correct(n, b)?);
        let cb = n.un(Unary::Sqrt, cb)?;
        let factor = n.bin(Binary::Div, cb, ca)?;
        let corrected = n.bin(Binary::Mul, rate, factor)?;
        let later = n.with(Binary::Gt, t, 0.0)?;
        let rate = n.select(later, corrected, rate)?;
        let step = n.bin(Binary::Mul, rate, v)?;
        let step = n.bin(Binary::Div, step, d)?;
        let x = n.bin(Binary::Sub, x, step)?;
        let post = n.float("norm_coefficient_post", 0.0);
        let x = if post == 0.0 { x } else { n.with(Binary::Mul, x, 1.0 - post)? };
        Ok((x, vec![v, h]))
    })
}

fn momentum(n: &mut Node) -> Import<Vec<NodeId>> {
    each(n, 1, |n, x, g, s| {
        let (a, b) = (n.float("alpha", 0.9), n.float("beta", 1.0));
        let g = regularised(n, x, g, "norm_coefficient")?;
        let (rate, t) = (n.x(0)?, n.x(1)?);
        let first = n.with(Binary::Eq, t, 0.0)?;
        let (one, b) = (n.num(1.0)?, n.num(b)?);
        let b = n.select(first, one, b)?;
        let (kept, new) = (n.with(Binary::Mul, s[0], a)?, n.bin(Binary::Mul, b, g)?);
        let v = n.bin(Binary::Add, kept, new)?;
        let direction = if n.word("mode", "standard") == "nesterov" {
            let ahead = n.with(Binary::Mul, v, a)?;
            n.bin(Binary::Add, g, ahead)?
        } else {
            v
        };
        let step = n.bin(Binary::Mul, rate, direction)?;
        Ok((n.bin(Binary::Sub, x, step)?, vec![v]))
    })
}
