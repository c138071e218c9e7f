//! A planned graph lowered to a list of kernels over named buffers.

use super::expand::expand;
use super::kernel::{Gemm, Guard, Inst, Kernel, Load, Loop, Reg, Store};
use super::region::{Layout, Region, Site, hidden_axis, regions, resolve_view};
use super::view::View;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, NodeId, Num, Op, ReduceKind, Role, Type, Verified};
use std::collections::{BTreeMap, HashMap};

pub type BufferId = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferInfo {
    pub name: String,
    pub ty: Type,
    /// The source it is; temporaries have none.
    pub source: Option<Op>,
}

/// Kernels in running order. Running them once is one evaluation of the graph; updates happen in place.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub buffers: Vec<BufferInfo>,
    pub kernels: Vec<Kernel>,
    /// Runs of kernels that are one launch: alike but for buffers and sizes, and independent of each other.
    pub launches: Vec<std::ops::Range<usize>>,
    /// The buffers each kernel computes, as the plan names them: one entry a kernel.
    pub computes: Vec<Vec<String>>,
    /// Outputs and metrics by name, and where they lie after a run.
    pub results: Vec<(String, Role, BufferId)>,
}

impl Program {
    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|b| b.name == name)
    }

    pub fn result(&self, name: &str) -> Option<BufferId> {
        self.results.iter().find(|(n, role, _)| n == name && *role != Role::Update).map(|r| r.2)
    }
}

/// Lowers a planned graph: one whose outputs are all buffers.
pub fn lower(plan: Verified) -> Result<Program> {
    let graph = expand(plan.graph())?;
    let cut = regions(&graph).map_err(|e| Error::Graph(format!("the plan cannot be cut into kernels: {e}")))?;
    let mut program = Program::default();
    let mut place: BTreeMap<NodeId, BufferId> = BTreeMap::new();
    for id in graph.ids().filter(|&id| graph.op(id).is_source()) {
        place.insert(id, program.buffers.len());
        program.buffers.push(BufferInfo {
            name: graph.name_of(id).to_owned(),
            ty: graph.ty(id).clone(),
            source: Some(graph.op(id).clone()),
        });
    }
    // An updated source is where its next value is written, unless something still reads the old one.
    let mut copies = Vec::new();
    for o in graph.outputs().iter().filter(|o| o.role == Role::Update) {
        let target = graph.find(&o.name).expect("verified updates have a source");
        let own = matches!(graph.op(o.node), Op::Put(_) | Op::Cast(_));
        if own && !place.contains_key(&o.node) && !cut.shadowed.contains(&o.name) {
            place.insert(o.node, place[&target]);
        } else if o.node != target {
            copies.push((o.node, target));
        }
    }
    for id in graph.ids().filter(|&id| graph.op(id).is_buffer()) {
        place.entry(id).or_insert_with(|| {
            program.buffers.push(BufferInfo {
                name: graph.name_of(id).to_owned(),
                ty: graph.ty(id).clone(),
                source: None,
            });
            program.buffers.len() - 1
        });
    }
    let outputs: Vec<NodeId> = graph.outputs().iter().map(|o| o.node).collect();
    for region in &cut.regions {
        let kept = |root: NodeId| {
            outputs.contains(&root) || cut.regions.iter().any(|r| !std::ptr::eq(r, region) && r.reads.contains(&root))
        };
        program.kernels.push(emit(&graph, region, &place, kept));
        program.computes.push(region.roots.iter().map(|&r| graph.name_of(r).to_owned()).collect());
    }
    for (from, to) in copies {
        let (view, format) = (View::contiguous(&graph.ty(to).dims()), graph.ty(from).format);
        let load = Load { buffer: place[&from], view: view.clone(), format, guard: None };
        let store = Store { reg: 0, buffer: place[&to], view: view.clone(), format: graph.ty(to).format };
        let copy = Loop {
            outer: view.dims,
            inner: Vec::new(),
            loads: vec![load],
            tape: vec![Inst::Load(0)],
            stores: vec![store],
        };
        program.kernels.push(Kernel::Loop(collapse(copy)));
        program.computes.push(vec![graph.name_of(to).to_owned()]);
    }
    program.results = graph.outputs().iter().map(|o| (o.name.clone(), o.role, place[&o.node])).collect();
    group_launches(&mut program);
    Ok(program)
}

/// Reorders kernels so that those that can share a launch (the optimizer's update of every parameter, the overflow check
/// of every gradient) stand together, at the last one's place.
fn group_launches(program: &mut Program) {
    // Groups from the last launch to the first.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of = vec![0; program.kernels.len()];
    let access: Vec<(Vec<BufferId>, Vec<BufferId>)> =
        program.kernels.iter().map(|k| (k.reads(), k.writes().collect())).collect();
    for i in (0..program.kernels.len()).rev() {
        let (reads, writes) = &access[i];
        let conflicts = |j: &usize| {
            let (r, w) = &access[*j];
            w.iter().any(|b| reads.contains(b) || writes.contains(b)) || r.iter().any(|b| writes.contains(b))
        };
        let soonest = (i + 1..program.kernels.len()).filter(conflicts).map(|j| group_of[j] + 1).max().unwrap_or(0);
        let fits = |g: &usize| groups[*g].iter().all(|&j| program.kernels[i].same_code(&program.kernels[j]));
        let at = (soonest..groups.len()).find(fits).unwrap_or(groups.len());
        if at == groups.len() {
            groups.push(Vec::new());
        }
        groups[at].push(i);
        group_of[i] = at;
    }
    let order: Vec<usize> = groups.iter().rev().flat_map(|g| g.iter().rev()).copied().collect();
    program.kernels = order.iter().map(|&i| program.kernels[i].clone()).collect();
    program.computes = order.iter().map(|&i| program.computes[i].clone()).collect();
    let mut start = 0;
    for g in groups.iter().rev() {
        program.launches.push(start..start + g.len());
        start += g.len();
    }
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
    for &root in &region.roots {
        let reg = e.value(root);
        if kept(root) {
            let own = View::contiguous(&graph.ty(root).dims());
            let axes = &layout.axes[&Site::Value(root)];
            let rank = if axes.iter().flatten().any(|&a| a >= layout.outer.len()) {
                layout.outer.len() + layout.inner.len()
            } else {
                layout.outer.len()
            };
            let view = e.over_domain(&own, axes, rank, None);
            e.body.stores.push(Store { reg, buffer: place[&root], view, format: graph.ty(root).format });
        }
    }
    match layout.product {
        None => Kernel::Loop(collapse(e.body)),
        Some(p) => Kernel::Gemm(gemm(graph, p, place, e.body)),
    }
}

fn gemm(graph: &Graph, p: NodeId, place: &BTreeMap<NodeId, BufferId>, epilogue: Loop) -> Gemm {
    let Op::MatMul { ta, tb, format } = *graph.op(p) else { unreachable!("the layout names a product") };
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
        a: place[&x[0]],
        b: place[&x[1]],
        ta,
        tb,
        batch,
        m,
        n,
        k,
        stride_a: m * k,
        stride_b: if rb == 2 { 0 } else { k * n },
        format,
        epilogue,
    }
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
    fn over_domain(&self, view: &View, axes: &[Option<usize>], rank: usize, skip: Option<usize>) -> View {
        let layout = self.layout();
        let dims: Vec<usize> = layout.outer.iter().chain(&layout.inner).copied().take(rank).collect();
        let mut strides = vec![0; rank];
        for (i, axis) in axes.iter().enumerate() {
            if let Some(axis) = axis.filter(|_| Some(i) != skip) {
                strides[axis] += view.strides[i];
            }
        }
        View { offset: view.offset, dims, strides }
    }

    fn load(&mut self, user: NodeId, operand: usize, guard: Option<Guard>, offset: usize) -> usize {
        let input = self.graph.inputs(user)[operand];
        let (buffer, view) = resolve_view(self.graph, input).expect("the region checked it");
        let axes = &self.layout().axes[&Site::Read { user, operand }];
        let rank = self.layout().outer.len() + self.layout().inner.len();
        let mut view = self.over_domain(&view, axes, rank, hidden_axis(self.graph, user, operand));
        view.offset += offset;
        let load = Load { buffer: self.place[&buffer], view, format: self.graph.ty(buffer).format, guard };
        let at = self.body.loads.iter().position(|l| *l == load);
        at.unwrap_or_else(|| {
            self.body.loads.push(load);
            self.body.loads.len() - 1
        })
    }

    fn operand(&mut self, user: NodeId, operand: usize) -> Reg {
        if self.layout().axes.contains_key(&Site::Read { user, operand }) {
            let load = self.load(user, operand, None, 0);
            return self.push(Inst::Load(load));
        }
        self.value(self.graph.inputs(user)[operand])
    }

    fn value(&mut self, id: NodeId) -> Reg {
        if let Some(&reg) = self.regs.get(&id) {
            return reg;
        }
        let reg = self.compute(id);
        self.regs.insert(id, reg);
        reg
    }

    fn compute(&mut self, id: NodeId) -> Reg {
        let op = self.graph.op(id).clone();
        match op {
            Op::Const(c) => self.push(Inst::Const(c)),
            Op::Iota { axis, .. } => match self.layout().axes[&Site::Value(id)][axis] {
                Some(axis) => self.push(Inst::Position(axis)),
                None => self.push(Inst::Const(Num::new(0.0))),
            },
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
            Op::Broadcast { .. } | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => self.operand(id, 0),
            Op::Reduce { kind, axes, .. } => {
                let x = self.operand(id, 0);
                let dims = self.graph.ty(self.graph.inputs(id)[0]).dims();
                self.reduce(kind, x, axes.iter().map(|&a| dims[a]).product())
            }
            Op::Gather { axis } => {
                let index = self.operand(id, 1);
                let load = self.load(id, 0, None, 0);
                let input = self.graph.inputs(id)[0];
                let (_, view) = resolve_view(self.graph, input).expect("the region checked it");
                self.push(Inst::Gather { load, index, extent: view.dims[axis], stride: view.strides[axis] })
            }
            Op::Pad { axis, lo, inner, .. } => {
                let n = self.graph.ty(self.graph.inputs(id)[0]).dims()[axis];
                self.guarded(id, 0, axis, lo, n, inner + 1)
            }
            Op::Concat { axis } => {
                let mut start = 0;
                let mut reg = None;
                for operand in 0..self.graph.inputs(id).len() {
                    let n = self.graph.ty(self.graph.inputs(id)[operand]).dims()[axis];
                    let part = self.guarded(id, operand, axis, start, n, 1);
                    reg = Some(match (reg, self.layout().axes[&Site::Value(id)][axis]) {
                        (Some(before), Some(d)) => {
                            let p = self.push(Inst::Position(d));
                            let edge = self.push(Inst::Const(Num::new(start as f64)));
                            let inside = self.push(Inst::Binary(crate::ir::Binary::Ge, p, edge));
                            self.push(Inst::Select(inside, part, before))
                        }
                        _ => part,
                    });
                    start += n;
                }
                reg.expect("a concatenation has parts")
            }
            Op::MatMul { .. } => self.push(Inst::Accumulator),
            Op::Put(f) | Op::Cast(f) => {
                let x = self.operand(id, 0);
                if f.is_float() && f != Format::F32 { self.push(Inst::Round(f, x)) } else { x }
            }
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } => unreachable!("sources are read, not computed"),
            Op::ScatterAdd { .. } | Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::LayerNorm { .. } | Op::Loss(_) => {
                unreachable!("{} is expanded before lowering", op.name())
            }
        }
    }

    /// A part of a wider axis: 0 outside `lo .. lo + (n − 1)·step + 1`.
    fn guarded(&mut self, id: NodeId, operand: usize, axis: usize, lo: usize, n: usize, step: usize) -> Reg {
        let Some(domain_axis) = self.layout().axes[&Site::Value(id)][axis] else {
            return self.operand(id, operand);
        };
        let input = self.graph.inputs(id)[operand];
        let (_, view) = resolve_view(self.graph, input).expect("the region checked it");
        let hi = if n == 0 { lo } else { lo + (n - 1) * step + 1 };
        let guard = Guard { axis: domain_axis, lo, hi, step, stride: view.strides[axis] };
        let load = self.load(id, operand, Some(guard), 0);
        self.push(Inst::Load(load))
    }

    /// Reductions of what does not vary along the reduced axes are arithmetic.
    fn reduce(&mut self, kind: ReduceKind, x: Reg, count: usize) -> Reg {
        if self.body.inner.is_empty() || count == 1 {
            return x;
        }
        if self.body.levels()[x] == super::kernel::Level::Outer {
            return match kind {
                ReduceKind::Sum => {
                    let n = self.push(Inst::Const(Num::new(count as f64)));
                    self.push(Inst::Binary(crate::ir::Binary::Mul, x, n))
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
        let pinned = |a: usize| {
            k.tape.contains(&Inst::Position(a)) || k.loads.iter().any(|l| l.guard.as_ref().is_some_and(|g| g.axis == a))
        };
        let joined = axis + 1 != o
            && k.loads.iter().all(|l| runs(&l.view))
            && k.stores.iter().all(|s| runs(&s.view))
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
            if let Inst::Position(a) = inst
                && *a > axis
            {
                *a -= 1;
            }
        }
        for load in &mut k.loads {
            if let Some(g) = &mut load.guard
                && g.axis > axis
            {
                g.axis -= 1;
            }
        }
    }
    k
}
