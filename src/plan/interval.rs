//! What a value lies between whatever the data are: softmax between 0 and 1, what is standardised within √n, and what
//! follows from these. Parameters move and inputs are anything, so most values have no bounds; those that have need no
//! data to be stored in a format that holds them (interval arithmetic, Moore 1966).

use crate::format::Format;
use crate::ir::{Binary, Dim, Graph, NodeId, Op, ReduceKind, Unary};

/// Smallest and largest.
pub(super) type Interval = (f64, f64);

/// Bounds of every node that has some.
pub(super) fn bounds(graph: &Graph) -> Vec<Option<Interval>> {
    let mut out: Vec<Option<Interval>> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let x: Vec<Option<Interval>> = graph.inputs(id).iter().map(|i| out[i.index()]).collect();
        // What overflows on the way is no bound.
        let found = bound(graph, id, &x).filter(|b| b.0.is_finite() && b.1.is_finite() && b.0 <= b.1);
        out.push(found);
    }
    out
}

/// Values known to hold finite numbers that a format does not: constants, what is computed from constants alone, and what
/// they are added to or picked for. A mask of the least f32 is one.
pub fn beyond(graph: &Graph, format: Format) -> Vec<bool> {
    let most = format.float().map_or(f64::INFINITY, |s| s.max);
    let known = bounds(graph);
    let mut out: Vec<bool> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let op = graph.op(id);
        let keeps = matches!(op, Op::Select | Op::Binary(Binary::Add | Binary::Sub)) || op.is_arrangement();
        let large = known[id.index()].is_some_and(|(lo, hi)| lo < -most || hi > most);
        // Through masks and the like, not through arithmetic that could bring it back.
        out.push(large || (keeps && known[id.index()].is_none() && graph.inputs(id).iter().any(|i| out[i.index()])));
    }
    out
}

fn bound(graph: &Graph, id: NodeId, x: &[Option<Interval>]) -> Option<Interval> {
    let extent = |axes: &[usize]| -> f64 {
        let dims = graph.ty(graph.inputs(id)[0]).dims();
        axes.iter().map(|&a| dims[a] as f64).product()
    };
    let widest = |(lo, hi): Interval| lo.abs().max(hi.abs());
    match graph.op(id) {
        Op::Const(c) => Some((c.get(), c.get())),
        Op::Random { .. } | Op::Softmax { .. } => Some((0.0, 1.0)),
        Op::Iota { dims, axis } => match dims.0.get(*axis)? {
            Dim::Fixed(n) => Some((0.0, n.saturating_sub(1) as f64)),
            Dim::Named(_) => None,
        },
        // Of n numbers with mean square 1, one can be √n.
        Op::Normalise { axes, .. } => {
            let n = extent(axes).sqrt();
            Some((-n, n))
        }
        Op::Unary(u) => unary(*u, x[0]),
        Op::Binary(b) if b.is_comparison() => Some((0.0, 1.0)),
        Op::Binary(b) => binary(*b, x[0]?, x[1]?),
        Op::Select => union(&x[1..]),
        Op::Reduce { kind, axes, .. } => match (kind, x[0]?) {
            (ReduceKind::Sum, (lo, hi)) => Some((lo * extent(axes), hi * extent(axes))),
            (ReduceKind::Prod, _) => None,
            (_, b) => Some(b),
        },
        // Zeros come in between and around; a window's fill comes with it.
        Op::Pad { .. } | Op::Unwindow { .. } => union(&[x[0], Some((0.0, 0.0))]),
        Op::Window { fill, .. } => union(&[x[0], Some((fill.get(), fill.get()))]),
        Op::Gather { .. } | Op::Convert(_) => x[0],
        op if op.is_arrangement() => union(x),
        Op::MatMul { ta, .. } => {
            let dims = graph.ty(graph.inputs(id)[0]).dims();
            let k = dims[dims.len() - if *ta { 2 } else { 1 }] as f64;
            let most = k * widest(x[0]?) * widest(x[1]?);
            Some((-most, most))
        }
        _ => None,
    }
}

fn unary(u: Unary, x: Option<Interval>) -> Option<Interval> {
    match u {
        Unary::Sigmoid | Unary::Not | Unary::IsFinite | Unary::IsNan | Unary::IsInf => return Some((0.0, 1.0)),
        Unary::Tanh | Unary::Sin | Unary::Cos | Unary::Sinc | Unary::Erf | Unary::Sign => return Some((-1.0, 1.0)),
        _ => {}
    }
    let (lo, hi) = x?;
    let most = lo.abs().max(hi.abs());
    match u {
        Unary::Neg => Some((-hi, -lo)),
        Unary::Abs => Some((0.0, most)),
        Unary::Square => Some((0.0, most * most)),
        Unary::Exp => Some((lo.exp(), hi.exp())),
        Unary::Sqrt if lo >= 0.0 => Some((lo.sqrt(), hi.sqrt())),
        Unary::Relu => Some((lo.max(0.0), hi.max(0.0))),
        // Between −0.17 and x.
        Unary::Gelu => Some((-0.2, hi.max(0.0))),
        Unary::Softplus => Some((0.0, hi.max(0.0) + 1.0)),
        _ => None,
    }
}

fn binary(b: Binary, (a, c): Interval, (d, e): Interval) -> Option<Interval> {
    match b {
        Binary::Add => Some((a + d, c + e)),
        Binary::Sub => Some((a - e, c - d)),
        Binary::Mul => around(&[a * d, a * e, c * d, c * e]),
        Binary::Div if d > 0.0 || e < 0.0 => around(&[a / d, a / e, c / d, c / e]),
        Binary::Max => Some((a.max(d), c.max(e))),
        Binary::Min => Some((a.min(d), c.min(e))),
        _ => None,
    }
}

fn around(ends: &[f64]) -> Option<Interval> {
    let lo = ends.iter().copied().reduce(f64::min)?;
    Some((lo, ends.iter().copied().reduce(f64::max)?))
}

fn union(of: &[Option<Interval>]) -> Option<Interval> {
    let all: Vec<Interval> = of.iter().copied().collect::<Option<_>>()?;
    all.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Tensor, evaluate, text};

    /// Every bound holds on data that try to break it, and what should have one has it.
    #[test]
    fn values_lie_between_their_bounds() {
        let g = text::parse(
            "model m {
               input x: f32[4, 6]  param w: f32[6, 6] = ones
               p = softmax(x @ w, axis=1)
               n = standardise(x, axes=[1], eps=0)
               m = rms_normalise(x, axes=[0, 1], eps=0)
               s = sigmoid(x) * -3 + tanh(x @ w)
               q = p @ transpose(n, perm=[1, 0])
               t = sum(abs(n) - p, axes=[0])
               u = relu(n) / (p + 1)
               v = select(gt(x, 0), square(m), exp(p))
               a = reduce_max(pad(p * 2 + 1, axis=1, lo=1), axes=[1])
               b = min(max(n, -0.5), 2)
               c = gelu(n) + softplus(n)
               free = x * 2
               loss = sum(x)
             }",
            "bounds",
        )
        .unwrap();
        let found = bounds(&g);
        for name in ["p", "n", "m", "s", "q", "t", "u", "v", "a", "b", "c"] {
            assert!(found[g.find(name).unwrap().index()].is_some(), "`{name}` is bounded");
        }
        assert!(found[g.find("free").unwrap().index()].is_none());
        for seed in 0..200 {
            let scale = [1e-3, 1.0, 30.0, 1e4][seed % 4];
            let values = evaluate(&g, |id| {
                let mut n = seed * 131 + id.index() * 17;
                Tensor::from_fn(&g.ty(id).dims(), |_| {
                    n = (n * 1_103_515_245 + 12_345) % 2_147_483_648;
                    // Now and then one number outweighs the others.
                    (n as f64 / 1_073_741_824.0 - 1.0) * scale * if n % 7 == 0 { 100.0 } else { 1.0 }
                })
            });
            for id in g.ids() {
                let Some((lo, hi)) = found[id.index()] else { continue };
                let slack = 1e-9 * (1.0 + lo.abs().max(hi.abs()));
                for &v in &values[id.index()].data {
                    assert!(v >= lo - slack && v <= hi + slack, "`{}`: {v} outside {lo}..{hi}", g.name_of(id));
                }
            }
        }
    }

    #[test]
    fn a_mask_of_the_least_f32_is_beyond_f16() {
        let source = "model m { input s: f32[4, 4] k = le(iota(dims=[4, 4], axis=1), iota(dims=[4, 4], axis=0))
            m = select(k, 0, -3.4028234663852886e38) a = s + m p = softmax(a) i = select(k, s, -inf) output p output i }";
        let g = text::parse(source, "m").unwrap();
        let names = |format| -> Vec<&str> {
            let large = beyond(&g, format);
            g.ids()
                .filter(|id| large[id.index()] && !matches!(g.op(*id), Op::Const(_)))
                .map(|id| g.name_of(id))
                .collect()
        };
        assert_eq!(names(Format::F16), ["m", "a"]);
        assert_eq!(names(Format::F32), Vec::<&str>::new());
    }
}
