//! Matrix products.

use super::attr::{Attr, Attrs};
use super::signature::{Attribute, Family, Kind, Reads, Signature};
use super::{Context, Format, Gradients, Op, Shape, Type};
use crate::error::Result;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::tensor::Tensor;
use crate::ir::types::Dim;

/// The BLAS spelling of which sides are transposed, the left one's letter first.
const SIDES: [&str; 4] = ["nn", "nt", "tn", "tt"];

/// Matrix products.
pub(super) struct Products;

impl Family for Products {
    fn signatures(&self) -> Vec<Signature> {
        let format = Attribute::new("format", Kind::Format).or(Attr::Format(Format::F32)).samples(&["f32"]);
        let sides = Attribute::new("t", Kind::Choice(&SIDES)).or(Attr::word("nn"));
        vec![Signature::new("matmul", 2).reads(Reads::Memory).with([format, sides])]
    }

    fn name(&self, _: &Op) -> &'static str {
        "matmul"
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        let (ta, tb, format) = parts(op);
        vec![Attr::Format(format), Attr::word(SIDES[2 * usize::from(ta) + usize::from(tb)])]
    }

    fn build(&self, _: &str, a: &Attrs) -> Result<Op, String> {
        let sides = a.word("t")?;
        Ok(Op::MatMul { ta: sides.starts_with('t'), tb: sides.ends_with('t'), format: a.format("format")? })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        let (ta, tb, _) = parts(op);
        infer(ta, tb, x[0], x[1])
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        let (ta, tb, format) = parts(op);
        eval(ta, tb, format, x, ty)
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        let (ta, tb, _) = parts(op);
        vjp(ta, tb, c)
    }
}

/// Which sides of a product are transposed, and the format it multiplies in.
fn parts(op: &Op) -> (bool, bool, Format) {
    let Op::MatMul { ta, tb, format } = op else { unreachable!("another family's") };
    (*ta, *tb, *format)
}

/// `[.., m, k] × [.., k, n]` with equal leading extents, or a two-dimensional right side shared by all of them.
fn infer(ta: bool, tb: bool, a: &Type, b: &Type) -> Result<Type, String> {
    let (ra, rb) = (a.shape.rank(), b.shape.rank());
    if ra < 2 || rb < 2 {
        return Err("takes matrices: operands of rank 2 or more".into());
    }
    if !a.format.is_float() || !b.format.is_float() {
        return Err("takes floating-point matrices".into());
    }
    let pick = |s: &Shape, t: bool, last: bool| s.0[s.rank() - if last != t { 1 } else { 2 }].clone();
    let (m, ka) = (pick(&a.shape, ta, false), pick(&a.shape, ta, true));
    let (kb, n) = (pick(&b.shape, tb, false), pick(&b.shape, tb, true));
    if ka != kb {
        return Err(format!("the inner extents differ: {ka} and {kb}"));
    }
    let batch = &a.shape.0[..ra - 2];
    if rb > 2 && batch != &b.shape.0[..rb - 2] {
        return Err("the leading extents differ".into());
    }
    if rb == 2 && ra > 2 && ta {
        return Err("a batched transposed left side needs a batched right side".into());
    }
    let mut dims = batch.to_vec();
    dims.extend([m, n]);
    Ok(Type::new(
        Shape(dims),
        if a.format == Format::F64 && b.format == Format::F64 { Format::F64 } else { Format::F32 },
    ))
}

fn eval(ta: bool, tb: bool, format: Format, x: &[&Tensor], ty: &Type) -> Tensor {
    let round = |v| multiplied(format, v);
    let (a, b) = (x[0], x[1]);
    let k = a.dims[a.dims.len() - if ta { 2 } else { 1 }];
    Tensor::from_fn(&ty.dims(), |i| {
        let (lead, mn) = i.split_at(i.len() - 2);
        let (mut ia, mut ib) = (lead.to_vec(), if b.dims.len() == 2 { Vec::new() } else { lead.to_vec() });
        ia.extend([mn[0], mn[0]]);
        ib.extend([mn[1], mn[1]]);
        let (ka, kb) = (ia.len() - if ta { 2 } else { 1 }, ib.len() - if tb { 1 } else { 2 });
        (0..k)
            .map(|j| {
                (ia[ka], ib[kb]) = (j, j);
                round(a.at(&ia)) * round(b.at(&ib))
            })
            .sum()
    })
}

/// With C = A·B: dA = dC·Bᵀ, dB = Aᵀ·dC, and the transposes of these where a side was transposed.
fn vjp(ta: bool, tb: bool, c: Context) -> Gradients {
    let (g, a, b, dy) = (c.graph, c.x[0], c.x[1], c.dy);
    let product = |g: &mut Graph, x, y, ta, tb| g.add(Op::MatMul { ta, tb, format: Format::F32 }, &[x, y]);
    let da = if ta { product(g, b, dy, tb, true)? } else { product(g, dy, b, false, !tb)? };
    // A right side shared by a batch sums over it: one product of the flattened left side.
    let (a, dy) = if g.shape(b).rank() == 2 { (flatten(g, a)?, flatten(g, dy)?) } else { (a, dy) };
    let db = if tb { product(g, dy, a, true, ta)? } else { product(g, a, dy, !ta, false)? };
    Ok(vec![Some(da), Some(db)])
}

/// A product's operand as its matrix units take it: numbers of f32 are not rounded.
pub(super) fn multiplied(format: Format, x: f64) -> f64 {
    if matches!(format, Format::F32 | Format::F64) { x } else { format.stored(x) }
}

fn flatten(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let dims = g.ty(x).dims();
    let (last, lead) = dims.split_last().expect("matrices have rank 2 or more");
    g.reshape(x, &Shape(vec![Dim::Fixed(lead.iter().product()), Dim::Fixed(*last)]))
}
