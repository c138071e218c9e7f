//! The operations. Each family file holds, for its operations, everything there is to know about them: their rows in the
//! table of operations ([`Signature`]: name, operands, attributes, which are also their text form and their e-graph form),
//! type rule, reference evaluation and gradient. [`Op`] is flat, because most readers match across families.

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
pub mod names {
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
    /// Elements moved on by so many places along an axis, those beyond the end to its start.
    Roll {
        axis: usize,
        by: usize,
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

const FAMILIES: [&dyn Family; 10] = [
    &source::Sources,
    &elementwise::Elementwise,
    &reduce::Reductions,
    &shape::Moves,
    &index::Rows,
    &matmul::Products,
    &conv::Convolutions,
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
