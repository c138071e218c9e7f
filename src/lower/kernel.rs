//! The kernel representation that the CPU executes and CUDA is generated from.
//!
//! A kernel is a tape of scalar instructions over a domain `outer × inner`. Reductions run over the whole of `inner`;
//! their results live at the outer level and may be used at the inner level again (softmax: maximum, sum, quotient).
//! Without reductions `inner` is empty and the kernel is pointwise. A product's kernel is the same tape, as its
//! epilogue, fed by the accumulator.

use super::view::{View, WIDE};
use crate::format::Format;
use crate::ir::{AttentionPart, AttentionSpec, Binary, ConvKind, ConvSpec, Num, ReduceKind, ScatterKind, Unary};

/// A buffer's position in its program.
pub type BufferId = usize;

/// An instruction's position in its tape.
pub type Reg = usize;

/// How many values a register has. Ordered: what is computed has the highest level of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// One value per outer index.
    Outer,
    /// One value per element.
    Inner,
}

/// An instruction of a tape. The result is the register with the instruction's own position.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inst {
    /// The element of the load at this position in [`Loop::loads`].
    Load(usize),
    /// The same number everywhere.
    Const(Num),
    /// The index along a domain axis.
    Position(usize),
    /// A uniform number at the position that the view says: [`crate::ir::Op::Random`].
    Random {
        /// Its address at an index is the position whose number is drawn.
        at: View,
        /// Holds the run's seed.
        seed: Reg,
        /// Holds the number of the step.
        step: Reg,
        /// The operation's own, so that two operations draw different numbers.
        salt: u32,
    },
    /// Of one operand.
    Unary(Unary, Reg),
    /// Of the left and the right operand.
    Binary(Binary, Reg, Reg),
    /// `Select(c, a, b)`: a where c is not 0, else b.
    Select(Reg, Reg, Reg),
    /// Over all of `inner`; `Mean` divides by its size.
    Reduce(ReduceKind, Reg),
    /// Rounds to a format without leaving the registers.
    Round(Format, Reg),
    /// The load's element at the position `index` of an axis with this extent and stride.
    Gather {
        /// Position in [`Loop::loads`]; the view stands at the axis's first element.
        load: usize,
        /// Position along the axis; below 0 counts from the end, what lies outside is clamped to the ends.
        index: Reg,
        /// Elements along the axis.
        extent: usize,
        /// Elements of the buffer from one position to the next.
        stride: usize,
    },
    /// The product's element.
    Accumulator,
}

impl Inst {
    /// Registers that the instruction reads, in order.
    pub fn operands(&self) -> Vec<Reg> {
        match *self {
            Inst::Random { seed, step, .. } => vec![seed, step],
            Inst::Load(_) | Inst::Const(_) | Inst::Position(_) | Inst::Accumulator => Vec::new(),
            Inst::Unary(_, a) | Inst::Reduce(_, a) | Inst::Round(_, a) => vec![a],
            Inst::Binary(_, a, b) => vec![a, b],
            Inst::Select(a, b, c) => vec![a, b, c],
            Inst::Gather { index, .. } => vec![index],
        }
    }
}

/// Where an operand or a result starts: an element of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where the elements are.
    pub buffer: BufferId,
    /// Elements of the buffer before it.
    pub offset: usize,
}

impl Address {
    /// The start of a buffer.
    pub fn of(buffer: BufferId) -> Address {
        Address { buffer, offset: 0 }
    }
}

/// A buffer read through a view over the whole domain (outer axes, then inner axes).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Load {
    /// What is read.
    pub buffer: BufferId,
    /// The element read at each index of the domain.
    pub view: View,
    /// The buffer's; registers hold the element widened.
    pub format: Format,
}

/// A register written to a buffer, through a view over the outer axes, or the whole domain for inner registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Store {
    /// What is written.
    pub reg: Reg,
    /// Where it goes.
    pub buffer: BufferId,
    /// The element written at each index.
    pub view: View,
    /// The buffer's; a register that is not rounded yet is rounded on the way.
    pub format: Format,
}

/// A tape over a domain of loops.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Loop {
    /// Extents of the axes that are not reduced over.
    pub outer: Vec<usize>,
    /// Extents of the axes that every reduction runs over; empty in a pointwise kernel.
    pub inner: Vec<usize>,
    /// Views that the tape reads through.
    pub loads: Vec<Load>,
    /// Instructions, each behind its operands.
    pub tape: Vec<Inst>,
    /// Registers that leave the kernel.
    pub stores: Vec<Store>,
    /// Registers are f64: the model computes in f64, or with whole numbers that f32 does not hold.
    pub wide: bool,
}

impl Loop {
    /// Bytes of every element reached by a load once, and of every store.
    pub fn bytes(&self) -> usize {
        let mut seen: Vec<(BufferId, &View)> = Vec::new();
        let mut total: usize = self.stores.iter().map(|s| s.view.distinct() * s.format.bytes()).sum();
        for l in &self.loads {
            if !seen.contains(&(l.buffer, &l.view)) {
                seen.push((l.buffer, &l.view));
                total += l.view.distinct() * l.format.bytes();
            }
        }
        total
    }

    /// Elements of the outer domain; 1 without axes.
    pub fn outer_size(&self) -> usize {
        self.outer.iter().product()
    }

    /// Elements that a reduction runs over; 1 without axes.
    pub fn inner_size(&self) -> usize {
        self.inner.iter().product()
    }

    /// The level of every register.
    pub fn levels(&self) -> Vec<Level> {
        let o = self.outer.len();
        let mut out: Vec<Level> = Vec::with_capacity(self.tape.len());
        for inst in &self.tape {
            let level = |v: &View| {
                let moves = v.strides[o..].iter().any(|&s| s != 0) || (o..v.dims.len()).any(|a| v.guarded(a));
                if moves { Level::Inner } else { Level::Outer }
            };
            out.push(match inst {
                Inst::Reduce(..) | Inst::Const(_) => Level::Outer,
                Inst::Load(i) => level(&self.loads[*i].view),
                Inst::Random { at, .. } => level(at),
                Inst::Position(axis) if *axis >= o => Level::Inner,
                Inst::Gather { load, index, .. } => level(&self.loads[*load].view).max(out[*index]),
                Inst::Accumulator => Level::Outer,
                other => other.operands().iter().map(|&r| out[r]).max().unwrap_or(Level::Outer),
            });
        }
        out
    }

    /// For every register: is it a reduction, or computed from one?
    pub(super) fn depend_on_reductions(&self) -> Vec<bool> {
        let mut out: Vec<bool> = Vec::with_capacity(self.tape.len());
        for inst in &self.tape {
            out.push(matches!(inst, Inst::Reduce(..)) || inst.operands().iter().any(|&r| out[r]));
        }
        out
    }

    /// Is a store made at every element, rather than once per outer index? So it is even where all elements of `inner` get
    /// the same value.
    pub fn stores_elements(&self, store: usize) -> bool {
        self.stores[store].view.dims.len() > self.outer.len()
    }

    /// Does the tape reduce over `inner`?
    pub fn has_reduction(&self) -> bool {
        self.tape.iter().any(|i| matches!(i, Inst::Reduce(..)))
    }
}

/// `batch` products of `m × k` by `k × n`. The result is `[batch, m, n]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// The left operand, row-major.
    pub a: Address,
    /// The right operand, row-major.
    pub b: Address,
    /// Is `a` stored as `k × m`?
    pub ta: bool,
    /// Is `b` stored as `n × k`?
    pub tb: bool,
    /// Products of matrices; 1 where there is but one.
    pub batch: usize,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Elements between the batch's matrices; 0 shares one matrix.
    pub stride_a: usize,
    /// The same of `b`.
    pub stride_b: usize,
    /// What the matrix units multiply.
    pub format: Format,
}

/// A convolution or one of its gradients, with the dims of x, w and y.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Which of x, w and y is the result.
    pub kind: ConvKind,
    /// Strides, dilations, padding and groups.
    pub spec: ConvSpec,
    /// The first operand: x, or y where x is the result.
    pub a: Address,
    /// The second operand: w, or y where w is the result.
    pub b: Address,
    /// Batch, channels, spatial extents.
    pub x: Vec<usize>,
    /// Output channels, channels of a group, spatial extents.
    pub w: Vec<usize>,
    /// Batch, output channels, spatial extents.
    pub y: Vec<usize>,
    /// What the matrix units multiply.
    pub format: Format,
}

/// A tensor that is read where it lies, whatever its axes' order in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Strided {
    /// The first element.
    pub at: Address,
    /// Extents.
    pub dims: Vec<usize>,
    /// Elements from one index to the next, by axis; 0 repeats.
    pub strides: Vec<usize>,
}

/// Attention or one of its gradients ([`crate::ir::Op::Attention`]), over `batch` × `heads` matrices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// What is computed.
    pub part: AttentionPart,
    /// Scale, and whether queries see what follows them.
    pub spec: AttentionSpec,
    /// In the operation's order, a mask (whose axes may repeat) last.
    pub operands: Vec<Strided>,
    /// Batch elements.
    pub batch: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, each shared by as many query heads.
    pub groups: usize,
    /// Queries of a head.
    pub queries: usize,
    /// Keys of a head.
    pub keys: usize,
    /// Elements of a query and a key.
    pub width: usize,
    /// Elements of a value; of [`AttentionPart::Lse`], which has none, of a query.
    pub value_width: usize,
    /// What the matrix units multiply.
    pub format: Format,
}

impl Strided {
    /// Elements of memory that are read, each counted once.
    pub fn elements(&self) -> usize {
        self.dims.iter().zip(&self.strides).filter(|(_, s)| **s > 0).map(|(d, _)| d).product()
    }
}

impl Attention {
    /// Do kernels on matrix units take rows of these widths, of queries and of values? The sums of wider ones do not stay in
    /// registers.
    pub(crate) fn fits_units(width: usize, value_width: usize) -> bool {
        const WIDEST: usize = 128;
        width == value_width && width.is_multiple_of(WIDE) && width <= WIDEST
    }

    /// The mask, where there is one.
    pub fn mask(&self) -> Option<&Strided> {
        self.operands.get(self.part.operands())
    }

    /// Extents of the result.
    pub fn result(&self) -> Vec<usize> {
        let rows = [self.batch, self.heads, self.queries];
        let keys = [self.batch, self.groups, self.keys];
        match self.part {
            AttentionPart::Output => [&rows[..], &[self.value_width]].concat(),
            AttentionPart::Lse => rows.to_vec(),
            AttentionPart::GradQ => [&rows[..], &[self.width]].concat(),
            AttentionPart::GradK => [&keys[..], &[self.width]].concat(),
            AttentionPart::GradV => [&keys[..], &[self.value_width]].concat(),
        }
    }

    /// Multiply-adds of all its products, where queries see all keys.
    pub fn multiply_adds(&self) -> f64 {
        let widths = match self.part {
            AttentionPart::Lse => self.width,
            AttentionPart::Output | AttentionPart::GradV => self.width + self.value_width,
            AttentionPart::GradQ | AttentionPart::GradK => 2 * self.width + self.value_width,
        };
        (self.batch * self.heads) as f64 * (self.queries * self.keys) as f64 * widths as f64
    }
}

/// Rows of `updates` (`[lead, positions, tail]`) written or combined into `base` (`[lead, rows, tail]`; zeros if none).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scatter {
    /// Whether updates overwrite or how they combine.
    pub kind: ScatterKind,
    /// What updates are written or combined into; none: zeros.
    pub base: Option<Address>,
    /// The row of each position, `[positions]`; below 0 counts from the end.
    pub index: Address,
    /// The rows written.
    pub updates: Address,
    /// Product of the extents before the axis.
    pub lead: usize,
    /// The extent of the axis.
    pub rows: usize,
    /// Updates along the axis.
    pub positions: usize,
    /// Product of the extents behind the axis: elements of a row.
    pub tail: usize,
}

impl Gemm {
    /// Elements of `a` and of `b`.
    pub fn operand_elements(&self) -> [usize; 2] {
        let matrices = |stride: usize| if stride == 0 { 1 } else { self.batch };
        [matrices(self.stride_a) * self.m * self.k, matrices(self.stride_b) * self.k * self.n]
    }
}

impl Conv {
    /// Elements of `a` and of `b`.
    pub fn operand_elements(&self) -> [usize; 2] {
        let n = |d: &[usize]| d.iter().product();
        match self.kind {
            ConvKind::Forward => [n(&self.x), n(&self.w)],
            ConvKind::Input(_) => [n(&self.y), n(&self.w)],
            ConvKind::Weight(_) => [n(&self.x), n(&self.y)],
        }
    }
}

/// What is computed of whole buffers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Contraction {
    /// A matrix product.
    Gemm(Gemm),
    /// A convolution or one of its gradients.
    Conv(Conv),
    /// Attention or one of its gradients.
    Attention(Attention),
    /// Rows put where an index says.
    Scatter(Scatter),
}

/// A contraction of whole tensors, accumulated in f32, then the epilogue's tape over its result (whose domain is all
/// outer), fed by the accumulator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// What is accumulated.
    pub contraction: Contraction,
    /// What becomes of it; [`Inst::Accumulator`] stands for an element of the result.
    pub epilogue: Loop,
}

impl Contraction {
    /// What is read, in the operation's order; of a scatter base (if any), index and updates.
    pub fn operands(&self) -> Vec<Address> {
        match self {
            Contraction::Gemm(g) => vec![g.a, g.b],
            Contraction::Conv(c) => vec![c.a, c.b],
            Contraction::Attention(a) => a.operands.iter().map(|o| o.at).collect(),
            Contraction::Scatter(s) => s.base.into_iter().chain([s.index, s.updates]).collect(),
        }
    }

    /// The same addresses, to be changed.
    pub fn operands_mut(&mut self) -> Vec<&mut Address> {
        match self {
            Contraction::Gemm(g) => vec![&mut g.a, &mut g.b],
            Contraction::Conv(c) => vec![&mut c.a, &mut c.b],
            Contraction::Attention(a) => a.operands.iter_mut().map(|o| &mut o.at).collect(),
            Contraction::Scatter(s) => s.base.iter_mut().chain([&mut s.index, &mut s.updates]).collect(),
        }
    }

    /// Elements of the result.
    pub fn elements(&self) -> usize {
        match self {
            Contraction::Gemm(g) => g.batch * g.m * g.n,
            Contraction::Conv(c) => match c.kind {
                ConvKind::Forward => c.y.iter().product(),
                ConvKind::Input(_) => c.x.iter().product(),
                ConvKind::Weight(_) => c.w.iter().product(),
            },
            Contraction::Attention(a) => a.result().iter().product(),
            Contraction::Scatter(s) => s.lead * s.rows * s.tail,
        }
    }

    /// What is multiplied, where something is.
    pub fn format(&self) -> Option<Format> {
        match self {
            Contraction::Gemm(Gemm { format, .. })
            | Contraction::Conv(Conv { format, .. })
            | Contraction::Attention(Attention { format, .. }) => Some(*format),
            Contraction::Scatter(_) => None,
        }
    }

    /// Elements of each operand, in the order of [`Contraction::operands`].
    pub fn operand_elements(&self) -> Vec<usize> {
        match self {
            Contraction::Gemm(g) => g.operand_elements().to_vec(),
            Contraction::Conv(c) => c.operand_elements().to_vec(),
            Contraction::Attention(a) => a.operands.iter().map(Strided::elements).collect(),
            Contraction::Scatter(s) => {
                let base = s.base.map(|_| self.elements());
                base.into_iter().chain([s.positions, s.lead * s.positions * s.tail]).collect()
            }
        }
    }
}

/// How a product's result leaves the matrix unit when the library that multiplies can only store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Straight to a buffer of this format: the epilogue only rounds.
    Direct(Address, Format),
    /// To scratch in this format, for another kernel to go on from.
    Scratch(Format),
}

impl Product {
    /// Bytes of scratch that a library needs to run it.
    pub fn scratch_bytes(&self) -> usize {
        match self.exit() {
            Exit::Scratch(format) => self.contraction.elements() * format.bytes(),
            Exit::Direct(..) => 0,
        }
    }

    /// Whether a library can write the result where it belongs, or another kernel goes on from scratch.
    pub fn exit(&self) -> Exit {
        let e = &self.epilogue;
        let accumulator = e.tape.iter().position(|i| *i == Inst::Accumulator);
        let rounds = |i: &Inst| match i {
            Inst::Round(f, r) if Some(*r) == accumulator => Some(*f),
            _ => None,
        };
        let used = e.tape.iter().filter(|i| accumulator.is_some_and(|a| i.operands().contains(&a))).count()
            + e.stores.iter().filter(|s| Some(s.reg) == accumulator).count();
        // Rounded at once and read nowhere else, so scratch can be narrow too.
        let format = match e.tape.iter().find_map(rounds) {
            Some(f) if used == 1 && Some(f) == self.contraction.format() && matches!(f, Format::F16 | Format::Bf16) => {
                f
            }
            _ => Format::F32,
        };
        let steps = if format == Format::F32 { 1 } else { 2 };
        // Attention's kernels write rows wherever these begin, as long as a wide store can.
        let is_placed = |view: &View| matches!(self.contraction, Contraction::Attention(_)) && view.has_wide_rows();
        match &e.stores[..] {
            [s] if s.format == format
                && e.loads.is_empty()
                && e.tape.len() == steps
                && (s.view.is_whole() || is_placed(&s.view)) =>
            {
                Exit::Direct(Address { buffer: s.buffer, offset: s.view.offset }, format)
            }
            _ => Exit::Scratch(format),
        }
    }
}

/// What one call of a program computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// A pointwise kernel or one that reduces.
    Loop(Loop),
    /// A contraction and its epilogue.
    Product(Box<Product>),
}

impl Kernel {
    /// The tape and its domain: the whole kernel, or a product's epilogue.
    pub fn body(&self) -> &Loop {
        match self {
            Kernel::Loop(l) => l,
            Kernel::Product(p) => &p.epilogue,
        }
    }

    /// The same, to be changed.
    pub fn body_mut(&mut self) -> &mut Loop {
        match self {
            Kernel::Loop(l) => l,
            Kernel::Product(p) => &mut p.epilogue,
        }
    }

    /// Buffers read, each as often as a load or a contraction reads it.
    pub fn reads(&self) -> Vec<BufferId> {
        let mut out: Vec<BufferId> = self.body().loads.iter().map(|l| l.buffer).collect();
        if let Kernel::Product(p) = self {
            out.extend(p.contraction.operands().iter().map(|a| a.buffer));
        }
        out
    }

    /// Buffers written, one a store.
    pub fn writes(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.body().stores.iter().map(|s| s.buffer)
    }

    /// Bytes moved at least: every element reached by a load once, every store once, and a product's operands.
    pub fn bytes(&self, format_of: impl Fn(BufferId) -> Format) -> usize {
        let mut total = self.body().bytes();
        if let Kernel::Product(p) = self {
            let operands = p.contraction.operands().into_iter().zip(p.contraction.operand_elements());
            total += operands.map(|(a, n)| n * format_of(a.buffer).bytes()).sum::<usize>();
        }
        total
    }

    /// Every tape instruction once per element of its level.
    pub fn scalar_operations(&self) -> f64 {
        let body = self.body();
        let (o, i) = (body.outer_size() as f64, body.inner_size() as f64);
        let levels = body.levels();
        let scalar = body.tape.iter().zip(&levels).map(|(inst, level)| match (inst, level) {
            (Inst::Load(_) | Inst::Const(_) | Inst::Position(_) | Inst::Accumulator, _) => 0.0,
            // Ten rounds of two multiplications and two additions each.
            (Inst::Random { .. }, level) => 40.0 * o * if *level == Level::Inner { i } else { 1.0 },
            (Inst::Reduce(..), _) | (_, Level::Inner) => o * i,
            (_, Level::Outer) => o,
        });
        scalar.sum()
    }
}
