//! The operations. Each family file holds, for its operations, everything there is to know about them: their rows in the
//! table of operations ([`Signature`]: name, operands, attributes, which are also their text form and their e-graph form),
//! type rule, reference evaluation and gradient. [`Op`] is flat, because most readers match across families.

mod attention;
mod attr;
mod conv;
mod derivatives;
mod elementwise;
mod formula;
mod index;
mod matmul;
mod memory;
mod named;
mod nn;
pub mod random;
mod reduce;
mod scan;
mod shape;
mod signature;
mod source;

pub use attention::{AttentionPart, AttentionSpec};
pub use attr::{Attr, Attrs, Num};
pub use conv::{ConvKind, ConvSpec};
pub use elementwise::{Binary, Unary};
pub(crate) use elementwise::{GELU_CUBIC, GELU_SCALE};
pub use index::ScatterKind;
pub(crate) use index::resolve;
pub use memory::LEAST_SCALE;
pub use nn::Loss;
pub(crate) use nn::{at_label, standardise};
pub use reduce::ReduceKind;
pub use scan::{Body, Scan, Take};
pub use signature::{Arity, Attribute, Default, Elements, Kind, Reads, Signature};
pub use source::Init;

use signature::Family;

/// Names of operations that the search and the language speak of.
pub(crate) mod names {
    pub const PUT: &str = "put";
    pub const CAST: &str = "cast";
    pub const ALIAS: &str = "alias";
    pub const AFTER: &str = "after";
    pub const CONVERT: &str = "convert";
    pub const SCAN: &str = "scan";
}

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
        /// Is it a label?
        label: bool,
        /// Shape of a batch, and format in memory.
        ty: Type,
        /// The input that a staged one is a copy of; none for an input of the model.
        copy_of: Option<String>,
    },
    /// A trained tensor.
    Param {
        /// Its value before the first step.
        init: Init,
        /// Shape, and format in memory.
        ty: Type,
    },
    /// A tensor the step carries along: optimizer moments, loss scale, counters.
    State {
        /// Its value before the first step.
        init: Init,
        /// Shape, and format in memory.
        ty: Type,
    },
    /// A scalar known at compile time.
    Const(Num),
    /// The position along `axis`.
    Iota {
        /// Shape of the result, which is of i64.
        dims: Shape,
        /// The axis whose positions are counted, from 0.
        axis: usize,
    },
    /// `random(seed, step)`: uniform in [0, 1), by position; operations of another `salt` draw other numbers.
    Random {
        /// Shape of the result, which is of f32.
        dims: Shape,
        /// A word of the generator's key ([`random::philox`]).
        salt: u32,
    },
    /// A function of every element of one operand.
    Unary(Unary),
    /// A function of every two elements of two operands, which broadcast as NumPy's do.
    Binary(Binary),
    /// `select(c, a, b)`: a where c, else b. The value not chosen may be NaN.
    Select,
    /// All elements along some axes made into one. Accumulates in f32, or in f64 where that is too narrow.
    Reduce {
        /// What they are made into.
        kind: ReduceKind,
        /// Axes that are reduced, ascending.
        axes: Vec<usize>,
        /// Do these axes stay, with extent 1? Else they go.
        keep: bool,
    },
    /// Which elements are the largest (or smallest) along some axes. One operation, so that what is compared is never
    /// rounded apart from what it is compared with: a mask that hits nothing loses the gradient.
    IsExtreme {
        /// `Min` asks for the smallest, `Max` for the largest.
        kind: ReduceKind,
        /// Axes along which elements compete, ascending.
        axes: Vec<usize>,
    },
    /// Elements repeated along axes of extent 1 and along new leading axes: NumPy's `broadcast_to`.
    Broadcast {
        /// Shape of the result.
        dims: Shape,
    },
    /// The same elements, row-major, in another shape.
    Reshape {
        /// Shape of the result, of as many elements.
        dims: Shape,
    },
    /// Axes in another order.
    Transpose {
        /// By axis of the result, the operand's axis.
        perm: Vec<usize>,
    },
    /// Elements `start, start + step, …` below `stop` of one axis.
    Slice {
        /// The axis; all of the others is taken.
        axis: usize,
        /// The first position.
        start: usize,
        /// Positions end before this one, which is at most the extent.
        stop: usize,
        /// From one position to the next, at least 1.
        step: usize,
    },
    /// Zeros around (`lo`, `hi`) and between (`inner`) the elements of one axis: the transpose of `Slice`.
    Pad {
        /// The axis that grows.
        axis: usize,
        /// Zeros before the first element.
        lo: usize,
        /// Zeros behind the last element.
        hi: usize,
        /// Zeros between two neighbours.
        inner: usize,
    },
    /// Windows of one axis: position o of the axis, and element k of its window, take the axis's place. Reads
    /// x[o·stride + k·dilation − lo], or `fill` outside.
    Window {
        /// The axis that windows move along. In the result it counts windows, and the next axis their elements.
        axis: usize,
        /// Elements of a window.
        size: usize,
        /// From one window to the next.
        stride: usize,
        /// From one element of a window to the next.
        dilation: usize,
        /// How far windows reach out before the axis.
        lo: usize,
        /// How far windows reach out behind the axis.
        hi: usize,
        /// What is read outside of the axis.
        fill: Num,
    },
    /// The transpose of `Window` before its sum over k: element i of an axis of `extent`, as element k of a window,
    /// reads x[(i + lo − k·dilation) / stride, k], or 0 where there is no such window.
    Unwindow {
        /// The axis that counts windows; the next one counts their elements, and stays.
        axis: usize,
        /// Elements of the axis that the windows are of, which they do not tell.
        extent: usize,
        /// From one window to the next.
        stride: usize,
        /// From one element of a window to the next.
        dilation: usize,
        /// How far windows reach out before the axis.
        lo: usize,
    },
    /// Operands one behind the other along an axis.
    Concat {
        /// The axis; extents of the others are equal.
        axis: usize,
    },
    /// Elements moved on by so many places along an axis, those beyond the end to its start.
    Roll {
        /// The axis that elements move along.
        axis: usize,
        /// Places that they move on, at most the extent.
        by: usize,
    },
    /// `gather(x, i)`: rows of x along `axis` at the integer positions i.
    Gather {
        /// The axis of x that i counts along; the axes of i take its place.
        axis: usize,
    },
    /// `scatter_add(dy, i)`: the transpose of `Gather` into `size` rows; accumulates in f32.
    ScatterAdd {
        /// Where the axes of i begin in dy; the axis of rows takes their place.
        axis: usize,
        /// Rows of the result. Those that i does not name are 0.
        size: Dim,
    },
    /// `scatter(x, i, u)`: x with rows u written, or combined, at the positions i along `axis`.
    Scatter {
        /// The axis of x that i counts along; in u the axes of i stand there.
        axis: usize,
        /// What becomes of the element that is there.
        kind: ScatterKind,
    },
    /// A convolution or one of its gradients, multiplied in `format`, accumulated in f32.
    Conv {
        /// Which tensor of the three is computed.
        kind: ConvKind,
        /// Strides, dilations, padding and groups.
        spec: ConvSpec,
        /// What matrix units round both operands to; f32 and f64 round neither.
        format: Format,
    },
    /// Batched product over the last two axes, each side optionally transposed, multiplied in `format`, accumulated in
    /// f32: `[.., m, k] × [.., k, n]`, or a right side `[k, n]` shared by the whole batch.
    MatMul {
        /// Is the left side `[.., k, m]`?
        ta: bool,
        /// Is the right side `[.., n, k]`?
        tb: bool,
        /// What matrix units round both operands to; f32 and f64 round neither.
        format: Format,
    },
    /// `attention(q, k, v)`, with a mask perhaps: each query's mean of the values, weighed by the softmax of its products with
    /// the keys; or one of its gradients. Operands are multiplied in `format`, sums and softmax are f32.
    Attention {
        /// What of it is computed.
        part: AttentionPart,
        /// Scale of the products, and whether queries see what follows them.
        spec: AttentionSpec,
        /// What matrix units round operands and softmax to; f32 and f64 round neither.
        format: Format,
    },
    /// e^x / Σ e^x along an axis, computed with the largest x subtracted; 0 where all x are −∞.
    Softmax {
        /// The axis of the sum.
        axis: usize,
    },
    /// x − ln Σ e^x along an axis, computed with the largest x subtracted.
    LogSoftmax {
        /// The axis of the sum.
        axis: usize,
    },
    /// `layer_norm(x, scale, shift)`: standardises over the last axis, then scales and shifts. Statistics in f32.
    LayerNorm {
        /// Added to the variance, under the root.
        eps: Num,
    },
    /// Standardises over the axes (`centred`: subtracts the mean first). Statistics in f32.
    Normalise {
        /// Axes of the statistics, ascending, at least one.
        axes: Vec<usize>,
        /// Added to the variance, or to the mean square, under the root.
        eps: Num,
        /// (x − mean) / √(var + eps), rather than x / √(mean x² + eps)?
        centred: bool,
    },
    /// Unreduced losses.
    Loss(Loss),
    /// Rounds a value to a format in registers: a cast that is part of the model.
    Convert(Format),
    /// The same memory in another shape.
    Alias {
        /// Shape of the result, of as many elements.
        dims: Shape,
    },
    /// `after(x, t)`: the same memory as x, read when t has been written: what is computed from it again in the backward
    /// pass is not computed before.
    After,
    /// Rounds a value to a format and writes it to memory.
    Put(Format),
    /// Copies memory to another format; `cast(x, s)` what x is in units of s.
    Cast(Format),
    /// What a tensor in memory is divided by for its largest magnitude to become a format's largest number: a scalar.
    ScaleOf(Format),
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

const FAMILIES: [&dyn Family; 11] = [
    &source::Sources,
    &elementwise::Elementwise,
    &reduce::Reductions,
    &shape::Moves,
    &index::Rows,
    &matmul::Products,
    &conv::Convolutions,
    &attention::Attentions,
    &nn::Norms,
    &memory::Memory,
    &scan::Loops,
];

impl Op {
    fn family(&self) -> &'static dyn Family {
        match self {
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } => &source::Sources,
            Op::Const(_) | Op::Iota { .. } | Op::Random { .. } => &source::Sources,
            Op::Unary(_) | Op::Binary(_) | Op::Select => &elementwise::Elementwise,
            Op::Reduce { .. } | Op::IsExtreme { .. } => &reduce::Reductions,
            Op::Broadcast { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => &shape::Moves,
            Op::Pad { .. } | Op::Window { .. } | Op::Unwindow { .. } | Op::Concat { .. } | Op::Roll { .. } => {
                &shape::Moves
            }
            Op::Gather { .. } | Op::ScatterAdd { .. } | Op::Scatter { .. } => &index::Rows,
            Op::MatMul { .. } => &matmul::Products,
            Op::Conv { .. } => &conv::Convolutions,
            Op::Attention { .. } => &attention::Attentions,
            Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::LayerNorm { .. } => &nn::Norms,
            Op::Normalise { .. } | Op::Loss(_) => &nn::Norms,
            Op::Convert(_) | Op::Alias { .. } | Op::After | Op::Put(_) | Op::Cast(_) | Op::ScaleOf(_) => {
                &memory::Memory
            }
            Op::Scan(_) => &scan::Loops,
        }
    }

    /// The name in text and in rules.
    pub fn name(&self) -> &'static str {
        self.family().name(self)
    }

    /// The row of the table of operations; none for sources, which are declared, and loops, which name a body.
    pub fn signature(&self) -> Option<&'static Signature> {
        Signature::find(self.name())
    }

    /// Is it a tensor that the step is given, rather than computed?
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input { .. } | Op::Param { .. } | Op::State { .. })
    }

    /// Yields memory rather than registers.
    pub fn is_buffer(&self) -> bool {
        self.is_source()
            || matches!(self, Op::Put(_) | Op::Cast(_) | Op::ScaleOf(_) | Op::Alias { .. } | Op::After | Op::Scan(_))
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

    /// Its elements are its operands', or zeros and fills, wherever they lie: views, and what is joined or turned around.
    pub fn is_arrangement(&self) -> bool {
        self.is_view() || matches!(self, Op::Concat { .. } | Op::Roll { .. })
    }

    /// Contracts whole tensors in memory; what follows can only be its epilogue.
    pub fn is_product(&self) -> bool {
        matches!(
            self,
            Op::MatMul { .. } | Op::Conv { .. } | Op::Attention { .. } | Op::Scatter { .. } | Op::ScatterAdd { .. }
        )
    }

    /// The format a contraction multiplies in.
    pub fn multiplies_in(&self) -> Option<Format> {
        match self {
            Op::MatMul { format, .. } | Op::Conv { format, .. } | Op::Attention { format, .. } => Some(*format),
            _ => None,
        }
    }

    /// The result type.
    ///
    /// # Errors
    /// What the operands miss, in words: their number, formats or shapes.
    pub fn infer(&self, x: &[&Type]) -> Result<Type, String> {
        let arity = self.arity();
        if !arity.contains(x.len()) {
            return Err(format!("takes {arity}, not {}", x.len()));
        }
        self.family().infer(self, x)
    }

    /// How many operands it takes.
    pub fn arity(&self) -> Arity {
        match self {
            Op::Scan(_) => Arity { least: 0, ..Arity::ANY },
            _ => self.signature().map_or(Arity::exactly(0), |row| row.arity),
        }
    }

    /// The value in exact (f64) arithmetic, but for `put` and `cast`, which round.
    ///
    /// # Panics
    /// For sources, which are given.
    pub fn eval(&self, x: &[&Tensor], ty: &Type) -> Tensor {
        self.family().eval(self, x, ty)
    }

    /// Gradients with respect to the operands: `None` where there is none (labels, indices, comparisons).
    pub(crate) fn vjp(&self, c: Context) -> Gradients {
        self.family().vjp(self, c)
    }

    /// Appends the same value made by simpler operations, where the operation stands for several (attention); none if it does
    /// not. Names and outputs are left as they are.
    pub(crate) fn spelled(&self, graph: &mut Graph, x: &[NodeId]) -> Result<Option<NodeId>> {
        self.family().spelled(self, graph, x)
    }

    /// Is it differentiated by its own gradient? Else it is by that of its spelling ([`Op::spelled`]): gradients of attention
    /// are seldom differentiated again.
    pub(crate) fn has_gradient(&self) -> bool {
        !matches!(self, Op::Attention { part, .. } if part.is_gradient())
    }

    /// Attributes in the order text and rules write them.
    pub fn attrs(&self) -> Vec<(&'static str, Attr)> {
        match self {
            Op::Scan(s) => s.attrs(),
            _ => {
                let keys = self.signature().map_or(&[][..], |row| &row.attributes).iter().map(|a| a.key);
                keys.zip(self.family().attrs(self)).collect()
            }
        }
    }

    /// The operation of this name with these attributes; the inverse of [`Op::name`] and [`Op::attrs`].
    /// Sources are declared, not applied, and are not built here.
    ///
    /// # Errors
    /// That there is none, or which attribute is unknown, missing or no such value.
    pub fn build(name: &str, a: &Attrs) -> Result<Op, String> {
        let unknown = || {
            let hint = crate::hint::is_meant(name, Signature::all().iter().map(|row| row.name));
            format!("there is no operation `{name}`{hint}")
        };
        Signature::find(name).ok_or_else(unknown)?.build(a)
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
