//! Convolutions over any number of spatial axes, and their two gradients, which are operations too.
//!
//! With x `[N, C, spatial…]`, w `[M, C / groups, kernel…]` and y `[N, M, places…]`:
//! y[n, m, o] = Σ x[n, c, o·stride + k·dilation − lo] w[m, c, k] over the channels of m's group and all k. Transposed
//! convolution is the gradient with respect to x.

use super::attr::{Attr, Attrs};
use super::shape::within;
use super::signature::{Attribute, Default, Family, Kind, Reads, Signature};
use super::{Context, Format, Gradients, Op, Shape, Type};
use crate::ir::tensor::{Tensor, for_each_index};

/// Strides, dilations and zero padding, one entry a spatial axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConvSpec {
    /// Elements of x from one place of the kernel to the next.
    pub stride: Vec<usize>,
    /// Elements of x from one element of the kernel to the next.
    pub dilation: Vec<usize>,
    /// Zeros before each axis of x.
    pub lo: Vec<usize>,
    /// Zeros behind each axis of x.
    pub hi: Vec<usize>,
    /// Groups of channels: a channel of y reads those of its own group in x. Both tensors' channels divide into them.
    pub groups: usize,
}

/// Which of the three tensors of a convolution is computed from the other two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConvKind {
    /// y from (x, w).
    Forward,
    /// x from (y, w); the spatial extents of x, which y does not determine.
    Input(Vec<usize>),
    /// w from (x, y); the kernel's extents.
    Weight(Vec<usize>),
}

impl ConvKind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            ConvKind::Forward => "conv",
            ConvKind::Input(_) => "conv_input",
            ConvKind::Weight(_) => "conv_weight",
        }
    }
}

/// Convolutions and their gradients.
pub(super) struct Convolutions;

impl Family for Convolutions {
    fn signatures(&self) -> Vec<Signature> {
        let ints = |key, samples| Attribute::new(key, Kind::Ints).samples(samples);
        let each = |key, x, samples| ints(key, samples).default(Default::Each("strides", x));
        let row = |name, last: &[Attribute]| {
            let mut attributes = vec![
                Attribute::new("format", Kind::Format).or(Attr::Format(Format::F32)).samples(&["f32"]),
                ints("strides", &["[1]", "[2]"]),
                each("dilations", 1, &["[1]", "[2]"]),
                each("lo", 0, &["[0]", "[1]"]),
                each("hi", 0, &["[0]", "[1]"]),
                Attribute::new("groups", Kind::Int).or(Attr::int(1)).samples(&["1", "2"]),
            ];
            attributes.extend_from_slice(last);
            Signature::new(name, 2).reads(Reads::Memory).with(attributes)
        };
        vec![
            row("conv", &[]),
            row("conv_input", &[ints("extents", &["[2]", "[3]"])]),
            row("conv_weight", &[ints("kernel", &["[1]", "[2]"])]),
        ]
    }

    fn name(&self, op: &Op) -> &'static str {
        parts(op).0.name()
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        let (kind, s, format) = parts(op);
        let mut out = vec![Attr::Format(format)];
        out.extend([&s.stride, &s.dilation, &s.lo, &s.hi].map(|v| Attr::ints(v)));
        out.push(Attr::int(s.groups));
        match kind {
            ConvKind::Forward => {}
            ConvKind::Input(extents) => out.push(Attr::ints(extents)),
            ConvKind::Weight(kernel) => out.push(Attr::ints(kernel)),
        }
        out
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        let spec = ConvSpec {
            stride: a.ints("strides")?,
            dilation: a.ints("dilations")?,
            lo: a.ints("lo")?,
            hi: a.ints("hi")?,
            groups: a.int("groups")?,
        };
        let kind = match name {
            "conv" => ConvKind::Forward,
            "conv_input" => ConvKind::Input(a.ints("extents")?),
            _ => ConvKind::Weight(a.ints("kernel")?),
        };
        Ok(Op::Conv { kind, spec, format: a.format("format")? })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        let (kind, spec, _) = parts(op);
        infer(kind, spec, x[0], x[1])
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        let (kind, spec, format) = parts(op);
        eval(kind, spec, format, x, ty)
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        let (kind, spec, _) = parts(op);
        vjp(kind, spec, c)
    }
}

fn parts(op: &Op) -> (&ConvKind, &ConvSpec, Format) {
    let Op::Conv { kind, spec, format } = op else { unreachable!("another family's") };
    (kind, spec, *format)
}

impl ConvSpec {
    /// Positions of a kernel of `size` along spatial axis `i` of an input of `extent`.
    pub fn places(&self, i: usize, extent: usize, size: usize) -> usize {
        let reach = self.dilation[i].saturating_mul(size.saturating_sub(1)).saturating_add(1);
        extent
            .saturating_add(self.lo[i])
            .saturating_add(self.hi[i])
            .checked_sub(reach)
            .map_or(0, |room| room / self.stride[i] + 1)
    }

    /// The dims of x, w and y, from the operation's operands and result.
    pub fn tensors<'a>(
        kind: &ConvKind,
        a: &'a [usize],
        b: &'a [usize],
        result: &'a [usize],
    ) -> (&'a [usize], &'a [usize], &'a [usize]) {
        match kind {
            ConvKind::Forward => (a, b, result),
            ConvKind::Input(_) => (result, b, a),
            ConvKind::Weight(_) => (a, result, b),
        }
    }
}

fn infer(kind: &ConvKind, s: &ConvSpec, a: &Type, b: &Type) -> Result<Type, String> {
    if !a.format.is_float() || !b.format.is_float() {
        return Err("takes floating-point tensors".into());
    }
    // The leading extent, which may have a name, does not count below.
    let fixed = |t: &Type| match t.shape.0.split_first() {
        None => Err(format!("{} has no axes", t.shape)),
        Some((_, rest)) => {
            let rest = Shape(rest.to_vec()).fixed().ok_or_else(|| format!("{} has unbound sizes", t.shape))?;
            Ok([&[0], &rest[..]].concat())
        }
    };
    let (da, db) = (fixed(a)?, fixed(b)?);
    let (batch, outputs) = (a.shape.0[0].clone(), b.shape.0[0].clone());
    let n = s.stride.len();
    if n == 0 {
        return Err("takes at least one spatial axis".into());
    }
    if da.len() != n + 2 || db.len() != n + 2 {
        return Err(format!("strides of {n} axes, but operands {} and {}", a.shape, b.shape));
    }
    if [s.dilation.len(), s.lo.len(), s.hi.len()] != [n; 3] || s.stride.contains(&0) || s.dilation.contains(&0) {
        return Err(
            "stride, dilation, lo and hi need an entry for each spatial axis, of stride and dilation above 0".into()
        );
    }
    for (key, list) in [("strides", &s.stride), ("dilations", &s.dilation), ("lo", &s.lo), ("hi", &s.hi)] {
        list.iter().try_for_each(|&n| within([(key, n)]))?;
    }
    if s.groups == 0 {
        return Err("groups must be at least 1".into());
    }
    let whole = |c: usize| {
        if c.is_multiple_of(s.groups) {
            Ok(c / s.groups)
        } else {
            Err(format!("{c} channels do not divide into {} groups", s.groups))
        }
    };
    let own = |what: &crate::ir::types::Dim| match what {
        crate::ir::types::Dim::Fixed(n) => Ok(*n),
        named => Err(format!("weights have the unbound size `{named}`")),
    };
    let mut dims = Shape::of(&match kind {
        ConvKind::Forward => {
            if whole(da[1])? != db[1] {
                return Err(format!("{} channels in {} groups, but weights {}", da[1], s.groups, b.shape));
            }
            whole(own(&outputs)?)?;
            let mut y = vec![0, own(&outputs)?];
            y.extend((0..n).map(|i| s.places(i, da[i + 2], db[i + 2])));
            y
        }
        ConvKind::Input(extents) => {
            if da[1] != own(&outputs)? {
                return Err(format!("{} channels, but weights {}", da[1], b.shape));
            }
            if extents.len() != n || (0..n).any(|i| s.places(i, extents[i], db[i + 2]) != da[i + 2]) {
                return Err(format!("extents {extents:?} do not give {} with weights {}", a.shape, b.shape));
            }
            [&[0, db[1] * s.groups], &extents[..]].concat()
        }
        ConvKind::Weight(kernel) => {
            if batch != outputs {
                return Err(format!("batches {batch} and {outputs} differ"));
            }
            if kernel.len() != n || (0..n).any(|i| s.places(i, da[i + 2], kernel[i]) != db[i + 2]) {
                return Err(format!("a kernel {kernel:?} does not take {} to {}", a.shape, b.shape));
            }
            whole(db[1])?;
            [&[db[1], whole(da[1])?], &kernel[..]].concat()
        }
    });
    if !matches!(kind, ConvKind::Weight(_)) {
        dims.0[0] = batch;
    }
    let format = if a.format == Format::F64 && b.format == Format::F64 { Format::F64 } else { Format::F32 };
    Ok(Type::new(dims, format))
}

/// One loop over every product of the sum, whichever of the three tensors it is for.
fn eval(kind: &ConvKind, s: &ConvSpec, format: Format, x: &[&Tensor], ty: &Type) -> Tensor {
    let round = |v| super::matmul::multiplied(format, v);
    let result = ty.dims();
    let (dx, dw, dy) = ConvSpec::tensors(kind, &x[0].dims, &x[1].dims, &result);
    let (dx, dw, dy) = (dx.to_vec(), dw.to_vec(), dy.to_vec());
    let mut out = Tensor::full(&result, 0.0);
    let (per_group, channels) = (dw[0] / s.groups, dw[1]);
    for_each_index(&dy, |o| {
        for_each_index(&dw[1..], |k| {
            let mut at_x = vec![o[0], o[1] / per_group.max(1) * channels + k[0]];
            for i in 0..s.stride.len() {
                let p = o[i + 2] * s.stride[i] + k[i + 1] * s.dilation[i];
                match p.checked_sub(s.lo[i]).filter(|&p| p < dx[i + 2]) {
                    Some(p) => at_x.push(p),
                    None => return,
                }
            }
            let at_w: Vec<usize> = std::iter::once(o[1]).chain(k.iter().copied()).collect();
            match kind {
                ConvKind::Forward => *out.at_mut(o) += round(x[0].at(&at_x)) * round(x[1].at(&at_w)),
                ConvKind::Input(_) => *out.at_mut(&at_x) += round(x[0].at(o)) * round(x[1].at(&at_w)),
                ConvKind::Weight(_) => *out.at_mut(&at_w) += round(x[0].at(&at_x)) * round(x[1].at(o)),
            }
        });
    });
    out
}

/// The three are one trilinear form, so each one's gradients are the other two.
fn vjp(kind: &ConvKind, s: &ConvSpec, c: Context) -> Gradients {
    let (g, a, b, d) = (c.graph, c.x[0], c.x[1], c.dy);
    let spatial = |g: &crate::ir::Graph, id| g.ty(id).dims()[2..].to_vec();
    let conv = |kind| Op::Conv { kind, spec: s.clone(), format: Format::F32 };
    let (da, db) = match kind {
        ConvKind::Forward => {
            let (extents, kernel) = (spatial(g, a), spatial(g, b));
            (g.add(conv(ConvKind::Input(extents)), &[d, b])?, g.add(conv(ConvKind::Weight(kernel)), &[a, d])?)
        }
        ConvKind::Input(_) => {
            let kernel = spatial(g, b);
            (g.add(conv(ConvKind::Forward), &[d, b])?, g.add(conv(ConvKind::Weight(kernel)), &[d, a])?)
        }
        ConvKind::Weight(_) => {
            let extents = spatial(g, a);
            (g.add(conv(ConvKind::Input(extents)), &[b, d])?, g.add(conv(ConvKind::Forward), &[a, d])?)
        }
    };
    Ok(vec![Some(da), Some(db)])
}
