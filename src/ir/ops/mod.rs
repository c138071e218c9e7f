//! The operations. Each family file holds, for its operations, everything there is to know about them: type rule,
//! gradient, reference evaluation and attributes (which are also their text form and their e-graph form).

mod attr;
mod conv;
mod elementwise;
mod index;
mod matmul;
mod memory;
mod named;
mod nn;
pub mod random;
mod reduce;
mod scan;
mod shape;
mod source;

pub use attr::{Attr, Attrs, Num};
pub use conv::{ConvKind, ConvSpec};
pub use elementwise::{Binary, Unary};
pub(crate) use elementwise::{GELU_CUBIC, GELU_SCALE};
pub use index::ScatterKind;
pub(crate) use index::resolve;
pub use nn::Loss;
pub(crate) use nn::{at_label, standardise};
pub use reduce::ReduceKind;
pub use scan::{Body, Scan, Take};
pub use source::Init;

use super::graph::{Graph, NodeId};
use super::tensor::Tensor;
use super::types::{Shape, Type};
use crate::error::Result;
use crate::format::Format;
use std::collections::BTreeMap;

/// An operation with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// A tensor of the batch; labels are excluded from differentiation and range checks.
    /// A staged input is another one rounded by the loader.
    Input {
        label: bool,
        ty: Type,
        copy_of: Option<String>,
    },
    /// A trained tensor.
    Param {
        init: Init,
        ty: Type,
    },
    /// A tensor the step carries along: optimizer moments, loss scale, counters.
    State {
        init: Init,
        ty: Type,
    },
    /// A scalar known at compile time.
    Const(Num),
    /// The position along `axis`.
    Iota {
        dims: Shape,
        axis: usize,
    },
    /// `random(seed, step)`: uniform in [0, 1), by position; operations of another `salt` draw other numbers.
    Random {
        dims: Shape,
        salt: u32,
    },
    Unary(Unary),
    Binary(Binary),
    /// `select(c, a, b)`: a where c, else b. The value not chosen may be NaN.
    Select,
    Reduce {
        kind: ReduceKind,
        axes: Vec<usize>,
        keep: bool,
    },
    /// Which elements are the largest (or smallest) along some axes. One operation, so that what is compared is never
    /// rounded apart from what it is compared with: a mask that hits nothing loses the gradient.
    IsExtreme {
        kind: ReduceKind,
        axes: Vec<usize>,
    },
    Broadcast {
        dims: Shape,
    },
    Reshape {
        dims: Shape,
    },
    Transpose {
        perm: Vec<usize>,
    },
    /// Elements `start, start + step, …` below `stop` of one axis.
    Slice {
        axis: usize,
        start: usize,
        stop: usize,
        step: usize,
    },
    /// Zeros around (`lo`, `hi`) and between (`inner`) the elements of one axis: the transpose of `Slice`.
    Pad {
        axis: usize,
        lo: usize,
        hi: usize,
        inner: usize,
    },
    /// Windows of one axis: position o of the axis, and element k of its window, take the axis's place. Reads
    /// x[o·stride + k·dilation − lo], or `fill` outside.
    Window {
        axis: usize,
        size: usize,
        stride: usize,
        dilation: usize,
        lo: usize,
        hi: usize,
        fill: Num,
    },
    /// The transpose of `Window` before its sum over k: element i of an axis of `extent`, as element k of a window,
    /// reads x[(i + lo − k·dilation) / stride, k], or 0 where there is no such window.
    Unwindow {
        axis: usize,
        extent: usize,
        stride: usize,
        dilation: usize,
        lo: usize,
    },
    Concat {
        axis: usize,
    },
    /// `gather(x, i)`: rows of x along `axis` at the integer positions i.
    Gather {
        axis: usize,
    },
    /// `scatter_add(dy, i)`: the transpose of `Gather` into `size` rows; accumulates in f32.
    ScatterAdd {
        axis: usize,
        size: Dim,
    },
    /// `scatter(x, i, u)`: x with rows u written, or combined, at the positions i along `axis`.
    Scatter {
        axis: usize,
        kind: ScatterKind,
    },
    /// A convolution or one of its gradients, multiplied in `format`, accumulated in f32.
    Conv {
        kind: ConvKind,
        spec: ConvSpec,
        format: Format,
    },
    /// Batched product over the last two axes, each side optionally transposed, multiplied in `format`, accumulated in f32.
    MatMul {
        ta: bool,
        tb: bool,
        format: Format,
    },
    Softmax {
        axis: usize,
    },
    LogSoftmax {
        axis: usize,
    },
    /// Standardises over the last axis, then scales and shifts. Statistics in f32.
    LayerNorm {
        eps: Num,
    },
    /// Standardises over the axes (`centred`: subtracts the mean first). Statistics in f32.
    Normalise {
        axes: Vec<usize>,
        eps: Num,
        centred: bool,
    },
    /// Unreduced losses.
    Loss(Loss),
    /// Rounds a value to a format in registers: a cast that is part of the model.
    Convert(Format),
    /// The same memory in another shape.
    Alias {
        dims: Shape,
    },
    /// `after(x, t)`: the same memory as x, read when t has been written: what is computed from it again in the backward
    /// pass is not computed before.
    After,
    /// Rounds a value to a format and writes it to memory.
    Put(Format),
    /// Copies memory to another format.
    Cast(Format),
    /// A loop over positions, and what is taken out of it.
    Scan(Scan),
}

pub use super::types::Dim;

/// What a family says about its operations.
pub(crate) struct Context<'a> {
    pub graph: &'a mut Graph,
    /// The node being differentiated, its operands, and the gradient of its result.
    pub node: NodeId,
    pub x: &'a [NodeId],
    pub dy: NodeId,
}

type Gradients = Result<Vec<Option<NodeId>>>;

impl Op {
    /// The name in text and in rules.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { label: false, .. } => "input",
            Op::Input { label: true, .. } => "label",
            Op::Param { .. } => "param",
            Op::State { .. } => "state",
            Op::Const(_) => "const",
            Op::Iota { .. } => "iota",
            Op::Random { .. } => "random",
            Op::Unary(u) => u.name(),
            Op::Binary(b) => b.name(),
            Op::Select => "select",
            Op::Reduce { kind, .. } => kind.name(),
            Op::IsExtreme { kind: ReduceKind::Min, .. } => "is_min",
            Op::IsExtreme { .. } => "is_max",
            Op::Broadcast { .. } => "broadcast",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Concat { .. } => "concat",
            Op::Window { .. } => "window",
            Op::Unwindow { .. } => "unwindow",
            Op::Scatter { .. } => "scatter",
            Op::Conv { kind, .. } => kind.name(),
            Op::Normalise { centred: true, .. } => "standardise",
            Op::Normalise { centred: false, .. } => "rms_normalise",
            Op::Convert(_) => "convert",
            Op::Alias { .. } => "alias",
            Op::After => "after",
            Op::Gather { .. } => "gather",
            Op::ScatterAdd { .. } => "scatter_add",
            Op::MatMul { .. } => "matmul",
            Op::Softmax { .. } => "softmax",
            Op::LogSoftmax { .. } => "log_softmax",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Loss(l) => l.name(),
            Op::Put(_) => "put",
            Op::Cast(_) => "cast",
            Op::Scan(_) => "scan",
        }
    }

    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input { .. } | Op::Param { .. } | Op::State { .. })
    }

    /// Yields memory rather than registers.
    pub fn is_buffer(&self) -> bool {
        self.is_source() || matches!(self, Op::Put(_) | Op::Cast(_) | Op::Alias { .. } | Op::After | Op::Scan(_))
    }

    /// One result element from one element of each operand, after broadcasting.
    pub fn is_elementwise(&self) -> bool {
        matches!(
            self,
            Op::Unary(_)
                | Op::Binary(_)
                | Op::Select
                | Op::Const(_)
                | Op::Iota { .. }
                | Op::Random { .. }
                | Op::Convert(_)
        ) || matches!(self, Op::Loss(l) if l.is_elementwise())
    }

    /// Moves elements without computing.
    pub fn is_view(&self) -> bool {
        matches!(
            self,
            Op::Broadcast { .. }
                | Op::Reshape { .. }
                | Op::Transpose { .. }
                | Op::Slice { .. }
                | Op::Pad { .. }
                | Op::Window { .. }
                | Op::Unwindow { .. }
        )
    }

    /// Contracts whole tensors in memory; what follows can only be its epilogue.
    pub fn is_product(&self) -> bool {
        matches!(self, Op::MatMul { .. } | Op::Conv { .. } | Op::Scatter { .. } | Op::ScatterAdd { .. })
    }

    /// The format a contraction multiplies in.
    pub fn multiplies_in(&self) -> Option<Format> {
        match self {
            Op::MatMul { format, .. } | Op::Conv { format, .. } => Some(*format),
            _ => None,
        }
    }

    /// The result type, or what the operands miss.
    pub fn infer(&self, x: &[&Type]) -> Result<Type, String> {
        if let Some(arity) = self.arity()
            && x.len() != arity
        {
            return Err(format!("takes {arity} operand{}, not {}", if arity == 1 { "" } else { "s" }, x.len()));
        }
        match self {
            Op::Input { ty, .. } | Op::Param { ty, .. } | Op::State { ty, .. } => Ok(ty.clone()),
            Op::Const(_) => Ok(Type::new(Shape::scalar(), Format::F32)),
            Op::Iota { dims, axis } => source::infer_iota(dims, *axis),
            Op::Random { dims, .. } => random::infer(dims, x),
            Op::Unary(u) => u.infer(x[0]),
            Op::Binary(b) => b.infer(x[0], x[1]),
            Op::Select => elementwise::infer_select(x),
            Op::Reduce { kind, axes, keep } => reduce::infer(*kind, axes, *keep, x[0]),
            Op::IsExtreme { kind, axes } => reduce::infer_extreme(*kind, axes, x[0]),
            Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Window { .. }
            | Op::Unwindow { .. }
            | Op::Concat { .. } => shape::infer(self, x),
            Op::Gather { axis } => index::infer_gather(*axis, x[0], x[1]),
            Op::ScatterAdd { axis, size } => index::infer_scatter(*axis, size, x[0], x[1]),
            Op::MatMul { ta, tb, .. } => matmul::infer(*ta, *tb, x[0], x[1]),
            Op::Softmax { axis } | Op::LogSoftmax { axis } => nn::infer_softmax(*axis, x[0]),
            Op::LayerNorm { .. } => nn::infer_layer_norm(x),
            Op::Normalise { axes, .. } => nn::infer_normalise(axes, x[0]),
            Op::Scatter { axis, .. } => index::infer_put_rows(*axis, x[0], x[1], x[2]),
            Op::Conv { kind, spec, .. } => conv::infer(kind, spec, x[0], x[1]),
            Op::Convert(f) => Ok(memory::infer_convert(*f, x[0])),
            Op::Alias { dims } => memory::infer_alias(dims, x[0]),
            Op::After => Ok(x[0].clone()),
            Op::Loss(l) => l.infer(x[0], x[1]),
            Op::Put(f) | Op::Cast(f) => memory::infer(self, *f, x[0]),
            Op::Scan(s) => s.infer(x),
        }
    }

    /// Operand count; `None` where any positive number will do.
    pub fn arity(&self) -> Option<usize> {
        match self {
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Const(_) | Op::Iota { .. } => Some(0),
            Op::Select | Op::LayerNorm { .. } | Op::Scatter { .. } => Some(3),
            Op::Binary(_)
            | Op::Random { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::MatMul { .. }
            | Op::Conv { .. }
            | Op::After
            | Op::Loss(_) => Some(2),
            Op::Concat { .. } | Op::Scan(_) => None,
            _ => Some(1),
        }
    }

    /// The value in exact (f64) arithmetic, but for `put` and `cast`, which round.
    pub fn eval(&self, x: &[&Tensor], ty: &Type) -> Tensor {
        match self {
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } => panic!("sources are given, not evaluated"),
            Op::Const(c) => Tensor::scalar(c.get()),
            Op::Iota { axis, .. } => Tensor::from_fn(&ty.dims(), |i| i[*axis] as f64),
            Op::Random { salt, .. } => random::eval(&ty.dims(), *salt, x),
            Op::Unary(u) => x[0].map(|v| u.eval(v)),
            Op::Binary(b) => Tensor::from_fn(&ty.dims(), |i| b.eval(x[0].at_broadcast(i), x[1].at_broadcast(i))),
            Op::Select => {
                Tensor::from_fn(&ty.dims(), |i| x[if x[0].at_broadcast(i) != 0.0 { 1 } else { 2 }].at_broadcast(i))
            }
            Op::Reduce { kind, axes, .. } => reduce::eval(*kind, axes, x[0], ty),
            Op::IsExtreme { kind, axes } => reduce::eval_extreme(*kind, axes, x[0]),
            Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Window { .. }
            | Op::Unwindow { .. }
            | Op::Concat { .. } => shape::eval(self, x, ty),
            Op::Gather { axis } => index::eval_gather(*axis, x, ty),
            Op::ScatterAdd { axis, .. } => index::eval_scatter(*axis, x, ty),
            Op::MatMul { ta, tb, format } => matmul::eval(*ta, *tb, *format, x, ty),
            Op::Softmax { axis } => nn::eval_softmax(*axis, x[0], false),
            Op::LogSoftmax { axis } => nn::eval_softmax(*axis, x[0], true),
            Op::LayerNorm { eps } => nn::eval_layer_norm(eps.get(), x),
            Op::Normalise { axes, eps, centred } => nn::eval_normalise(axes, eps.get(), *centred, x[0]),
            Op::Scatter { axis, kind } => index::eval_put_rows(*axis, *kind, x),
            Op::Conv { kind, spec, format } => conv::eval(kind, spec, *format, x, ty),
            Op::Alias { .. } | Op::After => Tensor::new(&ty.dims(), x[0].data.clone()),
            Op::Loss(l) => l.eval(x[0], x[1], ty),
            Op::Scan(s) => s.eval(x, ty),
            Op::Put(f) | Op::Cast(f) | Op::Convert(f) => x[0].map(|v| f.round(v, memory::overflow(*f))),
        }
    }

    /// Gradients with respect to the operands: `None` where there is none (labels, indices, comparisons).
    pub(crate) fn vjp(&self, c: Context) -> Gradients {
        match self {
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Const(_) | Op::Iota { .. } => Ok(Vec::new()),
            Op::Random { .. } => Ok(vec![None, None]),
            Op::Unary(u) => u.vjp(c),
            Op::Binary(b) => b.vjp(c),
            Op::Select => elementwise::vjp_select(c),
            Op::Reduce { kind, axes, .. } => reduce::vjp(*kind, axes, c),
            Op::IsExtreme { .. } => Ok(vec![None]),
            Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Window { .. }
            | Op::Unwindow { .. }
            | Op::Concat { .. } => shape::vjp(self, c),
            Op::Gather { axis } => index::vjp_gather(*axis, c),
            Op::ScatterAdd { axis, .. } => index::vjp_scatter(*axis, c),
            Op::MatMul { ta, tb, .. } => matmul::vjp(*ta, *tb, c),
            Op::Softmax { axis } => nn::vjp_softmax(*axis, c),
            Op::LogSoftmax { axis } => nn::vjp_log_softmax(*axis, c),
            Op::LayerNorm { eps } => nn::vjp_layer_norm(eps.get(), c),
            Op::Normalise { axes, eps, centred } => nn::vjp_normalise(axes, eps.get(), *centred, c),
            Op::Scatter { axis, kind } => index::vjp_put_rows(*axis, *kind, c),
            Op::Conv { kind, spec, .. } => conv::vjp(kind, spec, c),
            Op::Convert(f) => Ok(vec![f.is_float().then_some(c.dy)]),
            Op::Alias { .. } => {
                let dims = c.graph.shape(c.x[0]).clone();
                Ok(vec![Some(c.graph.reshape(c.dy, &dims)?)])
            }
            Op::After => Ok(vec![Some(c.dy), None]),
            Op::Loss(l) => l.vjp(c),
            Op::Put(_) | Op::Cast(_) => Ok(vec![Some(c.dy)]),
            Op::Scan(_) => unreachable!("loops are differentiated whole, by autodiff::scan"),
        }
    }

    /// Attributes in the order text and rules write them.
    pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let n = |x: &usize| Attr::Int(*x as i64);
        let ints = |v: &[usize]| Attr::Ints(v.iter().map(|&x| x as i64).collect());
        match self {
            Op::Const(c) => vec![("value", Attr::Float(*c))],
            Op::Iota { dims, axis } => vec![("dims", Attr::Dims(dims.clone())), ("axis", n(axis))],
            Op::Random { dims, salt } => {
                vec![("dims", Attr::Dims(dims.clone())), ("salt", Attr::Int(i64::from(*salt)))]
            }
            Op::Reduce { axes, keep, .. } => vec![("axes", ints(axes)), ("keep", Attr::Bool(*keep))],
            Op::IsExtreme { axes, .. } => vec![("axes", ints(axes))],
            Op::Broadcast { dims } | Op::Reshape { dims } | Op::Alias { dims } => {
                vec![("dims", Attr::Dims(dims.clone()))]
            }
            Op::Window { axis, size, stride, dilation, lo, hi, fill } => vec![
                ("axis", n(axis)),
                ("size", n(size)),
                ("stride", n(stride)),
                ("dilation", n(dilation)),
                ("lo", n(lo)),
                ("hi", n(hi)),
                ("fill", Attr::Float(*fill)),
            ],
            Op::Unwindow { axis, extent, stride, dilation, lo } => vec![
                ("axis", n(axis)),
                ("extent", n(extent)),
                ("stride", n(stride)),
                ("dilation", n(dilation)),
                ("lo", n(lo)),
            ],
            Op::Scatter { axis, kind } => vec![("axis", n(axis)), ("kind", Attr::Word(kind.name().into()))],
            Op::Conv { kind, spec, format } => {
                let mut out = vec![
                    ("format", Attr::Format(*format)),
                    ("strides", ints(&spec.stride)),
                    ("dilations", ints(&spec.dilation)),
                    ("lo", ints(&spec.lo)),
                    ("hi", ints(&spec.hi)),
                    ("groups", n(&spec.groups)),
                ];
                match kind {
                    ConvKind::Forward => {}
                    ConvKind::Input(extents) => out.push(("extents", ints(extents))),
                    ConvKind::Weight(kernel) => out.push(("kernel", ints(kernel))),
                }
                out
            }
            Op::Normalise { axes, eps, .. } => vec![("axes", ints(axes)), ("eps", Attr::Float(*eps))],
            Op::Transpose { perm } => vec![("perm", ints(perm))],
            Op::Slice { axis, start, stop, step } => {
                vec![("axis", n(axis)), ("start", n(start)), ("stop", n(stop)), ("step", n(step))]
            }
            Op::Pad { axis, lo, hi, inner } => {
                vec![("axis", n(axis)), ("lo", n(lo)), ("hi", n(hi)), ("inner", n(inner))]
            }
            Op::Concat { axis } | Op::Gather { axis } | Op::Softmax { axis } | Op::LogSoftmax { axis } => {
                vec![("axis", n(axis))]
            }
            Op::ScatterAdd { axis, size } => vec![("axis", n(axis)), ("size", Attr::Dims(Shape(vec![size.clone()])))],
            Op::MatMul { ta, tb, format } => {
                vec![("format", Attr::Format(*format)), ("t", Attr::Word(matmul::side(*ta, *tb).into()))]
            }
            Op::LayerNorm { eps } => vec![("eps", Attr::Float(*eps))],
            Op::Loss(_) => vec![("reduction", Attr::Word("none".into()))],
            Op::Put(f) | Op::Cast(f) | Op::Convert(f) => vec![("format", Attr::Format(*f))],
            Op::Scan(s) => s.attrs(),
            _ => Vec::new(),
        }
    }

    /// The operation of this name with these attributes; the inverse of [`Op::name`] and [`Op::attrs`].
    /// Sources are declared, not applied, and are not built here.
    pub fn build(name: &str, a: &Attrs) -> Result<Op, String> {
        if let Some(u) = Unary::ALL.into_iter().find(|u| u.name() == name) {
            return Ok(Op::Unary(u));
        }
        if let Some(b) = Binary::ALL.into_iter().find(|b| b.name() == name) {
            return Ok(Op::Binary(b));
        }
        if let Some(kind) = ReduceKind::ALL.into_iter().find(|k| k.name() == name) {
            return Ok(Op::Reduce { kind, axes: a.ints("axes")?, keep: a.flag("keep", false)? });
        }
        if let Some(loss) = Loss::ALL.into_iter().find(|l| l.name() == name) {
            return Ok(Op::Loss(loss));
        }
        Ok(match name {
            "const" => Op::Const(a.float("value")?),
            "random" => {
                let salt = a.int_or("salt", 0)?;
                let salt = u32::try_from(salt).map_err(|_| format!("salt={salt} is above {}", u32::MAX))?;
                Op::Random { dims: a.dims("dims")?, salt }
            }
            "iota" => Op::Iota { dims: a.dims("dims")?, axis: a.int("axis")? },
            "select" => Op::Select,
            "broadcast" => Op::Broadcast { dims: a.dims("dims")? },
            "reshape" => Op::Reshape { dims: a.dims("dims")? },
            "transpose" => Op::Transpose { perm: a.ints("perm")? },
            "slice" => Op::Slice {
                axis: a.int("axis")?,
                start: a.int_or("start", 0)?,
                stop: a.int("stop")?,
                step: a.int_or("step", 1)?,
            },
            "pad" => Op::Pad {
                axis: a.int("axis")?,
                lo: a.int_or("lo", 0)?,
                hi: a.int_or("hi", 0)?,
                inner: a.int_or("inner", 0)?,
            },
            "window" => Op::Window {
                axis: a.int("axis")?,
                size: a.int("size")?,
                stride: a.int_or("stride", 1)?,
                dilation: a.int_or("dilation", 1)?,
                lo: a.int_or("lo", 0)?,
                hi: a.int_or("hi", 0)?,
                fill: a.float_or("fill", 0.0)?,
            },
            "unwindow" => Op::Unwindow {
                axis: a.int("axis")?,
                extent: a.int("extent")?,
                stride: a.int_or("stride", 1)?,
                dilation: a.int_or("dilation", 1)?,
                lo: a.int_or("lo", 0)?,
            },
            "scatter" => {
                let word = a.word_or("kind", "set")?;
                let kind = ScatterKind::ALL.into_iter().find(|k| k.name() == word);
                let kind = kind.ok_or_else(|| format!("kind={word} is none of set, add, mul, max, min"))?;
                Op::Scatter { axis: a.int_or("axis", 0)?, kind }
            }
            "conv" | "conv_input" | "conv_weight" => {
                let stride = a.ints("strides")?;
                let n = stride.len();
                let spec = ConvSpec {
                    dilation: a.ints_or("dilations", vec![1; n])?,
                    lo: a.ints_or("lo", vec![0; n])?,
                    hi: a.ints_or("hi", vec![0; n])?,
                    groups: a.int_or("groups", 1)?,
                    stride,
                };
                let kind = match name {
                    "conv" => ConvKind::Forward,
                    "conv_input" => ConvKind::Input(a.ints("extents")?),
                    _ => ConvKind::Weight(a.ints("kernel")?),
                };
                Op::Conv { kind, spec, format: a.format_or("format", Format::F32)? }
            }
            "standardise" | "rms_normalise" => {
                Op::Normalise { axes: a.ints("axes")?, eps: a.float_or("eps", 1e-5)?, centred: name == "standardise" }
            }
            "convert" => Op::Convert(a.format("format")?),
            "alias" => Op::Alias { dims: a.dims("dims")? },
            "after" => Op::After,
            "concat" => Op::Concat { axis: a.int("axis")? },
            "gather" => Op::Gather { axis: a.int_or("axis", 0)? },
            "scatter_add" => Op::ScatterAdd {
                axis: a.int_or("axis", 0)?,
                size: a.dims("size")?.0.pop().ok_or("size takes one extent")?,
            },
            "matmul" => {
                let (ta, tb) = matmul::parse_side(&a.word_or("t", "nn")?)?;
                Op::MatMul { ta, tb, format: a.format_or("format", Format::F32)? }
            }
            "is_max" => Op::IsExtreme { kind: ReduceKind::Max, axes: a.ints("axes")? },
            "is_min" => Op::IsExtreme { kind: ReduceKind::Min, axes: a.ints("axes")? },
            "softmax" => Op::Softmax { axis: a.int("axis")? },
            "log_softmax" => Op::LogSoftmax { axis: a.int("axis")? },
            "layer_norm" => Op::LayerNorm { eps: a.float_or("eps", 1e-5)? },
            "put" => Op::Put(a.format("format")?),
            "cast" => Op::Cast(a.format("format")?),
            _ => return Err(format!("there is no operation `{name}`")),
        })
    }

    /// The operation with named extents replaced by sizes.
    pub fn bind(&self, sizes: &BTreeMap<String, usize>) -> Op {
        let mut op = self.clone();
        match &mut op {
            Op::Input { ty, .. } | Op::Param { ty, .. } | Op::State { ty, .. } => ty.shape = ty.shape.bind(sizes),
            Op::Iota { dims, .. }
            | Op::Random { dims, .. }
            | Op::Broadcast { dims }
            | Op::Reshape { dims }
            | Op::Alias { dims } => *dims = dims.bind(sizes),
            Op::Scan(s) => s.bind(sizes),
            Op::ScatterAdd { size, .. } => {
                if let Some(bound) = Shape(vec![size.clone()]).bind(sizes).0.pop() {
                    *size = bound;
                }
            }
            _ => {}
        }
        op
    }
}
