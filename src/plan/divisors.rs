//! What something is divided by: norms, variances, distances, denominators, and the sums and squares they are made of.
//!
//! An overflow elsewhere is loud: infinity turns into NaN or reaches a gradient, and the step is skipped. Under a division it
//! is quiet: x / ∞ is 0, the loss stays what it was, and the gradient that should have come through is gone. The squares
//! overflow f16 where the numbers squared are 256, long before these do, and they underflow as early. So lists keep such
//! values in f32 whatever their operands are in, and evidence asks for more headroom.

use crate::ir::{Binary, Graph, NodeId, Op, ReduceKind, Unary};

/// For every node: is something divided by it, here or after more arithmetic?
pub(super) fn divisors(graph: &Graph) -> Vec<bool> {
    let mut out = vec![false; graph.len()];
    for id in graph.ids().rev() {
        let x = graph.inputs(id);
        let operands: &[NodeId] = match graph.op(id) {
            Op::Binary(Binary::Div) => &x[1..],
            Op::Unary(Unary::Recip | Unary::Rsqrt) => x,
            // Other powers than constant positive ones divide where the exponent is negative.
            Op::Binary(Binary::Pow) => match graph.op(x[1]) {
                Op::Const(c) if c.get() >= 0.0 => &[],
                _ => &x[..1],
            },
            _ => &[],
        };
        let passed: &[NodeId] = if out[id.index()] { passed_on(graph, id, x) } else { &[] };
        for i in operands.iter().chain(passed) {
            out[i.index()] |= !is_end(graph.op(*i));
        }
    }
    out
}

/// The operands that are about as large as a result may be: where one is in range, the result is. What grows (squares,
/// sums, exponentials) is itself the value whose range counts.
fn passed_on<'a>(graph: &Graph, id: NodeId, x: &'a [NodeId]) -> &'a [NodeId] {
    let is_constant = |i: usize| matches!(graph.op(x[i]), Op::Const(_));
    match graph.op(id) {
        Op::Unary(
            Unary::Neg | Unary::Abs | Unary::Sqrt | Unary::Relu | Unary::Softplus | Unary::Gelu | Unary::GeluTanh,
        ) => x,
        Op::Binary(Binary::Add | Binary::Sub | Binary::Max | Binary::Min) => x,
        Op::Binary(Binary::Mul) if is_constant(0) || is_constant(1) => x,
        Op::Binary(Binary::Div) => &x[..1],
        Op::Select => &x[1..],
        Op::Reduce { kind: ReduceKind::Mean | ReduceKind::Max | ReduceKind::Min | ReduceKind::Sum, .. } => x,
        Op::Gather { .. } => &x[..1],
        Op::Convert(_) => x,
        op if op.is_arrangement() => x,
        _ => &[],
    }
}

/// Results of products, and what comes from outside, are as large as they are: dividing by them is the model's affair.
fn is_end(op: &Op) -> bool {
    op.is_product() || op.is_source()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    #[test]
    fn what_norms_are_made_of_is_divided_by() {
        let g = text::parse(
            "model m { input x: f32[4, 8] param w: f32[8, 8] = ones
               h = x @ w
               p = pow(h, 2) m = mean(p, axes=[1], keep=true) e = m + 0.1 n = h * rsqrt(e)
               q = h * h s = sum(q, axes=[1], keep=true) r = sqrt(s) c = h / max(r, 1e-8)
               a = abs(h) z = sum(a, axes=[1], keep=true) l = h / z
               d = softmax(h) t = tanh(h) + 2 u = h / t
               k = pow(h, -2)
               v = square(h) free = mean(v)
               loss = sum(n + c + l + d + u + k) + free }",
            "m",
        )
        .unwrap();
        let found = divisors(&g);
        let names: Vec<&str> = g
            .ids()
            .filter(|id| found[id.index()] && !g.is_auto_named(*id) && !matches!(g.op(*id), Op::Const(_)))
            .map(|id| g.name_of(id))
            .collect();
        assert_eq!(names, ["p", "m", "e", "q", "s", "r", "a", "z", "t"]);
    }
}
