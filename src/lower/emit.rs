//! One region as a kernel: views over its domain, and the tape of what is computed there.

use super::axes::Site;
use super::kernel::{
    Address, Attention, BufferId, Contraction, Conv, Gemm, Inst, Kernel, Load, Loop, Product, Reg, Scatter, Store,
    Strided,
};
use super::region::{Layout, RED_ZONE, Region, STACK, hidden_axis, resolve_view};
use super::view::{Guard, View};
use crate::format::Format;
use crate::ir::{AttentionPart, Binary, ConvSpec, Graph, NodeId, Num, Op, ReduceKind, ScatterKind};
use std::collections::{BTreeMap, HashMap};

/// A copy of the elements from one address on to another, rounded if the formats differ.
pub(super) fn copy(dims: &[usize], from: (Address, Format), to: (Address, Format)) -> Kernel {
    let view = |a: Address| View { offset: a.offset, ..View::contiguous(dims) };
    Kernel::Loop(collapse(Loop {
        outer: dims.to_vec(),
        inner: Vec::new(),
        loads: vec![Load { buffer: from.0.buffer, view: view(from.0), format: from.1 }],
        tape: vec![Inst::Load(0)],
        stores: vec![Store { reg: 0, buffer: to.0.buffer, view: view(to.0), format: to.1 }],
        wide: from.1.is_wide(),
    }))
}

/// The kernel of a region. `place` says which buffer each node lies in; roots that are not `kept` are not stored.
pub(crate) fn emit(
    graph: &Graph,
    region: &Region,
    place: &BTreeMap<NodeId, BufferId>,
    kept: impl Fn(NodeId) -> bool,
) -> Kernel {
    let mut e = Emit { graph, region, place, body: Loop::default(), regs: BTreeMap::new(), known: HashMap::new() };
    let layout = &region.layout;
    (e.body.outer, e.body.inner) = (layout.outer.clone(), layout.inner.clone());
    e.body.wide = region.wide;
    for &root in &region.roots {
        let reg = e.value(root);
        if kept(root) {
            let own = View::contiguous(&graph.ty(root).dims());
            let axes = layout.axes_of(Site::Value(root));
            let rank = if axes.iter().flatten().any(|&a| a >= layout.outer.len()) {
                layout.outer.len() + layout.inner.len()
            } else {
                layout.outer.len()
            };
            let view = e.over_domain(&own, &axes, rank, None);
            e.body.stores.push(Store { reg, buffer: place[&root], view, format: graph.ty(root).format });
        }
    }
    match layout.product {
        None => Kernel::Loop(collapse(e.body)),
        Some(p) => {
            let contraction = match graph.op(p) {
                Op::Conv { .. } => Contraction::Conv(conv(graph, p, place)),
                Op::Attention { .. } => Contraction::Attention(attention(graph, p, place)),
                Op::Scatter { .. } | Op::ScatterAdd { .. } => Contraction::Scatter(scatter(graph, p, place)),
                _ => Contraction::Gemm(gemm(graph, p, place)),
            };
            Kernel::Product(Box::new(Product { contraction, epilogue: e.body }))
        }
    }
}

fn conv(graph: &Graph, p: NodeId, place: &BTreeMap<NodeId, BufferId>) -> Conv {
    let Op::Conv { kind, spec, format } = graph.op(p) else { unreachable!("checked by the caller") };
    let inputs = graph.inputs(p);
    let dims = |id| graph.ty(id).dims();
    let (a, b, result) = (dims(inputs[0]), dims(inputs[1]), dims(p));
    let (x, w, y) = ConvSpec::tensors(kind, &a, &b, &result);
    Conv {
        kind: kind.clone(),
        spec: spec.clone(),
        a: Address::of(place[&inputs[0]]),
        b: Address::of(place[&inputs[1]]),
        x: x.to_vec(),
        w: w.to_vec(),
        y: y.to_vec(),
        format: *format,
    }
}

fn attention(graph: &Graph, p: NodeId, place: &BTreeMap<NodeId, BufferId>) -> Attention {
    let Op::Attention { part, spec, format } = *graph.op(p) else { unreachable!("checked by the caller") };
    let inputs = graph.inputs(p);
    let own = |id: NodeId| {
        let (buffer, view) = resolve_view(graph, id).expect("the region checked it");
        Strided {
            at: Address { buffer: place[&buffer], offset: view.offset },
            dims: view.dims.clone(),
            // What has an extent of 1 stands still.
            strides: view.dims.iter().zip(&view.strides).map(|(&d, &s)| if d == 1 { 0 } else { s }).collect(),
        }
    };
    let (q, k) = (graph.ty(inputs[0]).dims(), graph.ty(inputs[1]).dims());
    Attention {
        part,
        spec,
        operands: inputs.iter().map(|&id| own(id)).collect(),
        batch: q[0],
        heads: q[1],
        groups: k[1],
        queries: q[2],
        keys: k[2],
        width: q[3],
        value_width: if part == AttentionPart::Lse { q[3] } else { graph.ty(inputs[2]).dims()[3] },
        format,
    }
}

fn scatter(graph: &Graph, p: NodeId, place: &BTreeMap<NodeId, BufferId>) -> Scatter {
    let inputs = graph.inputs(p);
    let (axis, kind, base, rest) = match graph.op(p) {
        Op::Scatter { axis, kind } => (*axis, *kind, Some(Address::of(place[&inputs[0]])), &inputs[1..]),
        Op::ScatterAdd { axis, .. } => (*axis, ScatterKind::Add, None, &[inputs[1], inputs[0]][..]),
        _ => unreachable!("checked by the caller"),
    };
    let dims = graph.ty(p).dims();
    Scatter {
        kind,
        base,
        index: Address::of(place[&rest[0]]),
        updates: Address::of(place[&rest[1]]),
        lead: dims[..axis].iter().product(),
        rows: dims[axis],
        positions: graph.ty(rest[0]).elements(),
        tail: dims[axis + 1..].iter().product(),
    }
}

fn gemm(graph: &Graph, p: NodeId, place: &BTreeMap<NodeId, BufferId>) -> Gemm {
    let Op::MatMul { ta, tb, format } = *graph.op(p) else { unreachable!("checked by the caller") };
    let x = graph.inputs(p);
    let (a, b, y) = (graph.ty(x[0]).dims(), graph.ty(x[1]).dims(), graph.ty(p).dims());
    let (ra, rb, r) = (a.len(), b.len(), y.len());
    let k = a[ra - if ta { 2 } else { 1 }];
    // One matrix shared by the whole batch: the batch is more rows.
    let shared = rb == 2 && ra > 2;
    let batch: usize = if shared { 1 } else { y[..r - 2].iter().product() };
    let m = if shared { y[..r - 1].iter().product() } else { y[r - 2] };
    let n = y[r - 1];
    Gemm {
        a: Address::of(place[&x[0]]),
        b: Address::of(place[&x[1]]),
        ta,
        tb,
        batch,
        m,
        n,
        k,
        stride_a: m * k,
        stride_b: if rb == 2 { 0 } else { k * n },
        format,
    }
}

/// Where an operand of a concatenation starts, along how many elements in all, and the domain axes of the axis it is joined
/// along.
#[derive(Clone)]
struct Part {
    axes: Vec<usize>,
    start: usize,
    total: usize,
}

struct Emit<'a> {
    graph: &'a Graph,
    region: &'a Region,
    place: &'a BTreeMap<NodeId, BufferId>,
    body: Loop,
    regs: BTreeMap<NodeId, Reg>,
    known: HashMap<Inst, Reg>,
}

impl Emit<'_> {
    fn layout(&self) -> &Layout {
        &self.region.layout
    }

    fn push(&mut self, inst: Inst) -> Reg {
        if let Some(&reg) = self.known.get(&inst) {
            return reg;
        }
        self.body.tape.push(inst.clone());
        self.known.insert(inst, self.body.tape.len() - 1);
        self.body.tape.len() - 1
    }

    /// A view with an axis for every domain axis below `rank`, from one over the axes of a value.
    fn over_domain(&self, view: &View, axes: &[Vec<usize>], rank: usize, skip: Option<usize>) -> View {
        let layout = self.layout();
        let dims: Vec<usize> = layout.outer.iter().chain(&layout.inner).copied().take(rank).collect();
        let mut strides = vec![0; rank];
        // The domain axes of an axis, and how many of its elements one step along each is.
        let steps = |i: usize| {
            let mut below = 1;
            let inside_out = axes[i].iter().rev().map(|&d| {
                let step = (d, below);
                below *= dims[d];
                step
            });
            inside_out.collect::<Vec<_>>()
        };
        for i in (0..axes.len()).filter(|&i| Some(i) != skip) {
            steps(i).into_iter().for_each(|(d, n)| strides[d] += view.strides[i] * n);
        }
        let guards = view.guards.iter().map(|g| {
            let terms = g.terms.iter().flat_map(|&(i, c)| steps(i).into_iter().map(move |(d, n)| (d, c * n as isize)));
            Guard { terms: terms.collect(), ..g.clone() }
        });
        View { offset: view.offset, guards: guards.collect(), dims, strides }
    }

    fn load(&mut self, user: NodeId, operand: usize, part: Option<Part>) -> usize {
        let input = self.graph.inputs(user)[operand];
        let (buffer, mut view) = resolve_view(self.graph, input).expect("the region checked it");
        let mut axes = self.layout().axes_of(Site::Read { user, operand });
        let rank = self.layout().outer.len() + self.layout().inner.len();
        let hidden = hidden_axis(self.graph, user, operand);
        let over = match (part, hidden) {
            (Some(part), Some(axis)) => {
                view = view.placed(axis, part.start, part.total);
                axes[axis] = part.axes;
                self.over_domain(&view, &axes, rank, None)
            }
            _ => self.over_domain(&view, &axes, rank, hidden),
        };
        let load = Load { buffer: self.place[&buffer], view: over, format: self.graph.ty(buffer).format };
        let at = self.body.loads.iter().position(|l| *l == load);
        at.unwrap_or_else(|| {
            self.body.loads.push(load);
            self.body.loads.len() - 1
        })
    }

    fn operand(&mut self, user: NodeId, operand: usize) -> Reg {
        if self.layout().has(Site::Read { user, operand }) {
            let load = self.load(user, operand, None);
            return self.push(Inst::Load(load));
        }
        self.value(self.graph.inputs(user)[operand])
    }

    fn value(&mut self, id: NodeId) -> Reg {
        if let Some(&reg) = self.regs.get(&id) {
            return reg;
        }
        // A kernel can hold a chain of thousands of operations.
        let reg = stacker::maybe_grow(RED_ZONE, STACK, || self.compute(id));
        self.regs.insert(id, reg);
        reg
    }

    fn compute(&mut self, id: NodeId) -> Reg {
        let op = self.graph.op(id).clone();
        match op {
            Op::Const(c) => self.push(Inst::Const(c)),
            Op::Iota { axis, .. } => {
                let axes = self.layout().axis(Site::Value(id), axis);
                self.position(&axes)
            }
            Op::Random { salt, .. } => {
                let (seed, step) = (self.operand(id, 0), self.operand(id, 1));
                let own = View::contiguous(&self.graph.ty(id).dims());
                let layout = self.layout();
                let rank = layout.outer.len() + layout.inner.len();
                let at = self.over_domain(&own, &layout.axes_of(Site::Value(id)), rank, None);
                self.push(Inst::Random { at, seed, step, salt })
            }
            Op::Unary(u) => {
                let a = self.operand(id, 0);
                self.push(Inst::Unary(u, a))
            }
            Op::Binary(b) => {
                let (x, y) = (self.operand(id, 0), self.operand(id, 1));
                self.push(Inst::Binary(b, x, y))
            }
            Op::Select => {
                let (c, x, y) = (self.operand(id, 0), self.operand(id, 1), self.operand(id, 2));
                self.push(Inst::Select(c, x, y))
            }
            Op::Broadcast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Window { .. }
            | Op::Unwindow { .. }
            | Op::Alias { .. }
            | Op::After => self.operand(id, 0),
            Op::Reduce { kind, axes, .. } => {
                let x = self.operand(id, 0);
                let dims = self.graph.ty(self.graph.inputs(id)[0]).dims();
                self.reduce(kind, x, axes.iter().map(|&a| dims[a]).product())
            }
            Op::Gather { axis } => {
                let index = self.operand(id, 1);
                let load = self.load(id, 0, None);
                let input = self.graph.inputs(id)[0];
                let (_, view) = resolve_view(self.graph, input).expect("the region checked it");
                self.push(Inst::Gather { load, index, extent: view.dims[axis], stride: view.strides[axis] })
            }
            Op::Concat { axis } => self.concat(id, axis),
            Op::MatMul { .. } | Op::Conv { .. } | Op::Attention { .. } | Op::Scatter { .. } | Op::ScatterAdd { .. } => {
                self.push(Inst::Accumulator)
            }
            Op::Put(f) | Op::Cast(f) => {
                let mut x = self.operand(id, 0);
                if self.graph.inputs(id).len() == 2 {
                    let scale = self.operand(id, 1);
                    x = self.push(Inst::Binary(Binary::Div, x, scale));
                }
                if f.is_float() && f != Format::F32 { self.push(Inst::Round(f, x)) } else { x }
            }
            Op::Convert(f) => {
                let x = self.operand(id, 0);
                self.push(Inst::Round(f, x))
            }
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } => unreachable!("sources are read, not computed"),
            Op::IsExtreme { .. }
            | Op::Softmax { .. }
            | Op::LogSoftmax { .. }
            | Op::LayerNorm { .. }
            | Op::Normalise { .. }
            | Op::Loss(_)
            | Op::Roll { .. }
            | Op::ScaleOf(_) => {
                unreachable!("{} is expanded before lowering", op.name())
            }
            Op::Scan(_) => unreachable!("loops are kernels of their own"),
        }
    }

    /// Each part where the position along the axis is in it.
    fn concat(&mut self, id: NodeId, axis: usize) -> Reg {
        let axes = self.layout().axis(Site::Value(id), axis);
        let inputs = self.graph.inputs(id);
        let mut part = Part { axes, start: 0, total: self.graph.ty(id).dims()[axis] };
        let mut reg = None;
        for (operand, &input) in inputs.iter().enumerate() {
            let n = self.graph.ty(input).dims()[axis];
            if n == 0 && inputs.len() > 1 {
                continue;
            }
            let load = self.load(id, operand, Some(part.clone()));
            let load = self.push(Inst::Load(load));
            reg = Some(match reg {
                None => load,
                Some(before) => {
                    let p = self.position(&part.axes);
                    let edge = self.push(Inst::Const(Num::new(part.start as f64)));
                    let inside = self.push(Inst::Binary(Binary::Ge, p, edge));
                    self.push(Inst::Select(inside, load, before))
                }
            });
            part.start += n;
        }
        reg.unwrap_or_else(|| self.push(Inst::Const(Num::new(0.0))))
    }

    /// The index along an axis made of these domain axes.
    fn position(&mut self, axes: &[usize]) -> Reg {
        let mut sum = None;
        for &d in axes {
            let p = self.push(Inst::Position(d));
            sum = Some(match sum {
                None => p,
                Some(outer) => {
                    let layout = self.layout();
                    let extent = layout.outer.iter().chain(&layout.inner).nth(d).map_or(1, |&e| e);
                    let extent = self.push(Inst::Const(Num::new(extent as f64)));
                    let scaled = self.push(Inst::Binary(Binary::Mul, outer, extent));
                    self.push(Inst::Binary(Binary::Add, scaled, p))
                }
            });
        }
        sum.unwrap_or_else(|| self.push(Inst::Const(Num::new(0.0))))
    }

    /// Reductions of what does not vary along the reduced axes are arithmetic.
    fn reduce(&mut self, kind: ReduceKind, x: Reg, count: usize) -> Reg {
        if self.body.inner.is_empty() || count == 1 {
            return x;
        }
        if self.body.levels()[x] == super::kernel::Level::Outer {
            return match kind {
                ReduceKind::Prod => {
                    let n = self.push(Inst::Const(Num::new(count as f64)));
                    self.push(Inst::Binary(Binary::Pow, x, n))
                }
                ReduceKind::Sum => {
                    let n = self.push(Inst::Const(Num::new(count as f64)));
                    self.push(Inst::Binary(Binary::Mul, x, n))
                }
                _ => x,
            };
        }
        self.push(Inst::Reduce(kind, x))
    }
}

/// Joins neighbouring axes that every access runs over as one.
pub(crate) fn collapse(mut k: Loop) -> Loop {
    let mut axis = 0;
    while axis + 1 < k.outer.len() + k.inner.len() {
        let o = k.outer.len();
        let dim = |k: &Loop, i: usize| if i < o { k.outer[i] } else { k.inner[i - o] };
        let next = dim(&k, axis + 1);
        let runs = |v: &View| v.dims.len() <= axis + 1 || v.strides[axis] == v.strides[axis + 1] * next;
        let pinned = |a: usize| k.tape.contains(&Inst::Position(a)) || k.loads.iter().any(|l| l.view.guarded(a));
        let draws = |i: &Inst| if let Inst::Random { at, .. } = i { runs(at) } else { true };
        let joined = axis + 1 != o
            && k.loads.iter().all(|l| runs(&l.view))
            && k.stores.iter().all(|s| runs(&s.view))
            && k.tape.iter().all(draws)
            && !pinned(axis)
            && !pinned(axis + 1);
        if !joined {
            axis += 1;
            continue;
        }
        let size = dim(&k, axis) * next;
        let side = if axis < o { (&mut k.outer, axis) } else { (&mut k.inner, axis - o) };
        side.0[side.1] = size;
        side.0.remove(side.1 + 1);
        let join = |v: &mut View| {
            if v.dims.len() > axis + 1 {
                v.dims[axis] = size;
                v.dims.remove(axis + 1);
                v.strides.remove(axis);
            }
        };
        k.loads.iter_mut().for_each(|l| join(&mut l.view));
        k.stores.iter_mut().for_each(|s| join(&mut s.view));
        for inst in &mut k.tape {
            match inst {
                Inst::Position(a) if *a > axis => *a -= 1,
                Inst::Random { at, .. } => join(at),
                _ => {}
            }
        }
        for term in k.loads.iter_mut().flat_map(|l| &mut l.view.guards).flat_map(|g| &mut g.terms) {
            if term.0 > axis {
                term.0 -= 1;
            }
        }
    }
    k
}
