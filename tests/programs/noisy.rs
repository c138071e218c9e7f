//! The reference evaluator with rounding errors: what a computation in f32, or under a plan, may differ by.
//!
//! Every operation that rounds sees its operands and yields its result a little off, at random (the stochastic arithmetic
//! of La Porte and Vignes, 1974). Results that differ much between two runs are ones that no format of this accuracy pins
//! down, whatever the program; those that do not must come out of every right implementation.

use mantissa::format::{Format, Overflow};
use mantissa::ir::{Binary, Graph, NodeId, Num, Op, ReduceKind, Shape, Tensor, Type, Unary};

/// Errors of f32 arithmetic, four times the roundoff: library functions and sums err more than one rounding.
const ARITHMETIC: f64 = 1.0 / (1 << 22) as f64;

/// Where errors come from.
pub enum Errors {
    /// A stream of numbers between −1 and 1.
    Random(u64),
    /// Rounding to f32 with so many bits fewer: large numbers absorb small ones, and what is near becomes equal.
    Rounding(u32),
}

impl Errors {
    /// All kinds in turn: f32's own, random ones.
    pub fn new(seed: u64) -> Errors {
        if seed == 0 { Errors::Rounding(0) } else { Errors::Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
    }

    fn next(&mut self) -> f64 {
        let Errors::Random(state) = self else { return 0.0 };
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn off(&mut self, x: &Tensor, by: f64) -> Tensor {
        match *self {
            Errors::Rounding(bits) => x.map(|v| {
                // Veltkamp's splitting: what is added and taken away again leaves so many bits fewer.
                let (v, far) = (v as f32, (v as f32) * ((1u32 << bits) - 1) as f32);
                f64::from(if far.is_finite() { (v + far) - far } else { v })
            }),
            Errors::Random(_) => x.map_with(|v| v * (1.0 + by * self.next())),
        }
    }

    /// Numbers that are off as far as those of a size are, however small they are themselves.
    fn aside(&mut self, x: &Tensor, size: &Tensor) -> Tensor {
        let off = size.map_with(|s| if s.is_finite() { s * ARITHMETIC * self.next() } else { 0.0 });
        Tensor::new(&x.dims, x.data.iter().zip(&off.data).map(|(v, o)| v + o).collect())
    }
}

/// Every node's value, with errors drawn anew.
pub fn evaluate(graph: &Graph, source: &dyn Fn(NodeId) -> Tensor, errors: &mut Errors) -> Vec<Tensor> {
    let mut values: Vec<Tensor> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let (op, ty) = (graph.op(id), graph.ty(id));
        if op.is_source() {
            values.push(source(id));
            continue;
        }
        let inputs = graph.inputs(id);
        let x: Vec<&Tensor> = inputs.iter().map(|i| &values[i.index()]).collect();
        let value = match op {
            Op::Put(f) | Op::Cast(f) if f.is_float() => stored(x[0], *f, errors),
            Op::Convert(f) if f.is_low() => stored(x[0], *f, errors),
            op if is_exact(op) || !ty.format.is_float() => op.eval(&x, ty),
            Op::Scan(scan) => scan.eval_by(&x, ty, &mut |body, source| evaluate(body, source, errors)),
            Op::Normalise { axes, eps, centred: true } => centred(x[0], axes, *eps, ty, errors),
            op => {
                let moved: Vec<Tensor> = inputs
                    .iter()
                    .zip(&x)
                    .map(|(&i, x)| if graph.ty(i).format.is_float() { errors.off(x, ARITHMETIC) } else { (*x).clone() })
                    .collect();
                let result = op.eval(&moved.iter().collect::<Vec<_>>(), ty);
                let result = errors.off(&result, ARITHMETIC);
                match op {
                    // The logarithm of a sum that is nearly 1 is nearly 0, and as far off as the sum.
                    Op::LogSoftmax { .. } | Op::Loss(_) => errors.aside(&result, &result.map(|_| 1.0)),
                    // So is a share 1 + tanh that is nearly 0.
                    Op::Unary(Unary::Gelu | Unary::GeluTanh) => errors.aside(&result, x[0]),
                    _ => result,
                }
            }
        };
        values.push(value);
    }
    values
}

/// What is standardised, with an error of its mean, by which all of it is off alike: random errors of its elements hardly
/// show in what sums over them.
fn centred(x: &Tensor, axes: &[usize], eps: Num, ty: &Type, errors: &mut Errors) -> Tensor {
    let x = errors.off(x, ARITHMETIC);
    let dims: Vec<usize> = (0..x.dims.len()).map(|a| if axes.contains(&a) { 1 } else { x.dims[a] }).collect();
    let one = Type::new(Shape::of(&dims), ty.format);
    let mean = Op::Reduce { kind: ReduceKind::Mean, axes: axes.to_vec(), keep: true }.eval(&[&x], &one);
    let from = Op::Binary(Binary::Sub).eval(&[&x, &errors.off(&mean, ARITHMETIC)], ty);
    let result = Op::Normalise { axes: axes.to_vec(), eps, centred: false }.eval(&[&from], ty);
    errors.off(&result, ARITHMETIC)
}

/// Rounded to a format a little off from where it was.
fn stored(x: &Tensor, format: Format, errors: &mut Errors) -> Tensor {
    let Some(spec) = format.float() else { return x.clone() };
    x.map_with(|v| {
        if !v.is_finite() {
            return v;
        }
        let off = v.abs() * spec.unit_roundoff() * errors.next() + 0.5 * spec.min_subnormal() * errors.next();
        format.round(v + off, Overflow::Ieee)
    })
}

trait MapWith {
    fn map_with(&self, f: impl FnMut(f64) -> f64) -> Tensor;
}

impl MapWith for Tensor {
    fn map_with(&self, f: impl FnMut(f64) -> f64) -> Tensor {
        Tensor { dims: self.dims.clone(), data: self.data.iter().copied().map(f).collect() }
    }
}

/// Moves, choices and comparisons, which round nothing.
fn is_exact(op: &Op) -> bool {
    match op {
        Op::Unary(u) => matches!(u, Unary::Neg | Unary::Abs | Unary::Sign | Unary::Relu) || u.is_predicate(),
        Op::Binary(b) => matches!(b, Binary::Max | Binary::Min) || b.is_comparison() || b.is_logic(),
        Op::Reduce { kind, .. } => matches!(kind, ReduceKind::Max | ReduceKind::Min | ReduceKind::Any),
        Op::Select | Op::IsExtreme { .. } | Op::Gather { .. } | Op::Concat { .. } | Op::Const(_) | Op::Iota { .. } => {
            true
        }
        Op::Random { .. } | Op::Alias { .. } | Op::After | Op::Convert(_) => true,
        op => op.is_view(),
    }
}
