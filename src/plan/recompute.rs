//! Fitting a step into memory: what the backward pass reads is computed again instead of being kept.
//!
//! The forward pass of a plan is cut into segments where little is handed on (Chen et al., *Training Deep Nets with Sublinear
//! Memory Cost*, 2016). What one segment hands to the next is kept; what else the backward pass reads of a segment is
//! computed again from that once the backward pass gets there: from `after(x, t)`, where x was kept and t is what the
//! backward pass has computed by then. The same operations on the same numbers in the same formats give the same bits, so
//! a plan that computes again rounds no more than it did.

use super::Planned;
use super::assemble::assemble;
use super::units::bytes;
use crate::cost::{Estimate, Target};
use crate::error::{Error, Result};
use crate::ir::{Graph, Named, NodeId, Op, Role, Stage, verify};
use crate::lower::{Memory, Program, lower, outline};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What a plan computes again to keep to a limit of memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Again {
    /// Segments of the forward pass, and how many of them are computed again.
    pub segments: usize,
    /// How many of them, from the first on, are computed again.
    pub again: usize,
    /// What that is predicted to take.
    pub seconds: f64,
    /// Memory that it saves.
    pub bytes: usize,
    /// Buffers of the plan that are computed again, with those they repeat.
    pub repeats: BTreeMap<NodeId, Repeated>,
}

/// A buffer as it was before the plan was made to compute again.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeated {
    /// Its name.
    pub buffer: String,
    /// The value it holds.
    pub value: String,
}

impl Planned {
    /// The fastest way found to run this plan of `step` in so many bytes of memory.
    ///
    /// # Errors
    /// Where there is none: says what it would take.
    pub fn within(self, limit: usize, step: &Graph, target: &Target) -> Result<Planned> {
        let program = outline(verify(&self.graph)?)?;
        let memory = memory_of(&self.graph, &program)?;
        if memory.total() <= limit {
            return Ok(self);
        }
        let forward = step.ids().filter(|&id| step.node(id).stage == Stage::Forward);
        let passes = Passes::new(&self.graph, &program, forward.filter_map(|id| self.places[id.index()]));
        let mut least = memory.total();
        let mut best: Option<Tried> = None;
        for cuts in passes.cuts() {
            let Some(tried) = passes.tried(cuts, target)? else { continue };
            least = least.min(tried.memory);
            if tried.memory <= limit && best.as_ref().is_none_or(|b| tried.estimate.seconds < b.estimate.seconds) {
                best = Some(tried);
            }
        }
        let Some(mut best) = best else {
            return Err(Error::Request(format!(
                "the step takes at least {} of memory ({} of that parameters, optimizer state and inputs), computing again what it can; the limit is {}: allow more with --memory-limit, or make the --batch smaller",
                bytes(least),
                bytes(memory.resident),
                bytes(limit)
            )));
        };
        // No more than is needed.
        let (mut low, mut high) = (0, best.cuts.again);
        while low + 1 < high {
            let again = low + (high - low) / 2;
            match passes.tried(Cuts { again, ..best.cuts.clone() }, target)? {
                Some(tried) if tried.memory <= limit => (best, high) = (tried, again),
                _ => low = again,
            }
        }
        let again = Again {
            segments: best.cuts.segments(),
            again: best.cuts.again,
            seconds: best.estimate.seconds - self.estimate.seconds,
            bytes: memory.total().saturating_sub(best.memory),
            repeats: best.made.repeats,
        };
        let places = self.places.iter().map(|p| p.and_then(|p| best.made.places[p.index()])).collect();
        Ok(Planned { graph: best.made.graph, places, estimate: best.estimate, again: Some(again), ..self })
    }
}

/// What a plan takes, with all steps of its loops; `outline` is what it is but for these.
fn memory_of(graph: &Graph, outline: &Program) -> Result<Memory> {
    let has_loops = graph.ids().any(|id| matches!(graph.op(id), Op::Scan(_)));
    if has_loops { Ok(lower(verify(graph)?)?.memory()) } else { Ok(outline.memory()) }
}

impl Planned {
    /// Is a value of the step computed again in the backward pass, instead of being kept for it?
    pub fn computes_again(&self, value: &str) -> bool {
        let mut repeated = self.again.iter().flat_map(|a| a.repeats.values());
        repeated.any(|r| r.value == value || r.buffer == value)
    }

    /// The buffer that one computed again repeats.
    pub(super) fn repeated(&self, buffer: NodeId) -> Option<&Repeated> {
        self.again.as_ref()?.repeats.get(&buffer)
    }
}

/// A plan that computes some segments again, and where the nodes of the plan it was made of went.
struct Recomputed {
    graph: Graph,
    places: Vec<Option<NodeId>>,
    /// Buffers computed again, with those they repeat.
    repeats: BTreeMap<NodeId, Repeated>,
}

/// The same, with what it takes.
struct Tried {
    cuts: Cuts,
    made: Recomputed,
    memory: usize,
    estimate: Estimate,
}

/// What is known of the buffers that the forward pass writes, by node.
struct Written {
    at: usize,
    /// The last kernel of the forward pass that reads it.
    read: usize,
    bytes: usize,
    /// Read by the backward pass.
    is_late: bool,
}

/// A plan's forward pass as a row of kernels, ready to be cut.
struct Passes<'a> {
    graph: &'a Graph,
    /// Nodes of the forward pass.
    forward: Vec<bool>,
    /// The nearest buffers that each value of the forward pass is computed from, sources aside.
    under: Vec<Vec<NodeId>>,
    /// Values that follow from no source.
    constant: Vec<bool>,
    written: HashMap<NodeId, Written>,
    /// The kernel that computes each buffer, in running order.
    kernels: HashMap<NodeId, usize>,
    /// Kernels of the forward pass.
    end: usize,
}

/// Where the forward pass is cut: behind these kernels, ascending. The first segments are computed again.
#[derive(Clone, Debug, PartialEq)]
struct Cuts {
    behind: Vec<usize>,
    /// How many segments are computed again: at most as many as there are cuts, for the last is needed at once.
    again: usize,
}

impl Cuts {
    fn segments(&self) -> usize {
        self.behind.len() + 1
    }

    fn segment(&self, kernel: usize) -> usize {
        self.behind.partition_point(|&c| c < kernel)
    }
}

/// Parts of what the backward pass reads of the forward pass that segments are tried to hold.
const PARTS: [usize; 10] = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48];

impl<'a> Passes<'a> {
    /// `program` is the plan's; `values` are those of the forward pass.
    fn new(graph: &'a Graph, program: &Program, values: impl Iterator<Item = NodeId>) -> Passes<'a> {
        let mut kernels = HashMap::new();
        for (at, call) in program.calls.iter().enumerate() {
            kernels.extend(call.computes.iter().filter_map(|name| Some((graph.find(name)?, at))));
        }
        let (forward, end) = forward_pass(graph, &kernels, values);
        let mut constant = vec![false; graph.len()];
        for id in graph.ids() {
            let inputs = graph.inputs(id).iter().copied().all(|x| constant[x.index()]);
            constant[id.index()] = !graph.op(id).is_source() && inputs;
        }
        let mut under: Vec<Vec<NodeId>> = vec![Vec::new(); graph.len()];
        for id in graph.ids().filter(|id| forward[id.index()]) {
            under[id.index()] = match graph.op(id) {
                op if op.is_source() => Vec::new(),
                op if is_root(op) && kernels.contains_key(&id) => vec![id],
                _ => {
                    let all = graph.inputs(id).iter().copied().flat_map(|x| under[x.index()].clone());
                    all.collect::<BTreeSet<_>>().into_iter().collect()
                }
            };
        }
        let mut passes = Passes { graph, forward, under, constant, written: HashMap::new(), kernels, end };
        passes.written = passes.written(program);
        passes
    }

    /// Does a kernel compute it into memory? A copy that is read where its original lies is not made.
    fn is_root(&self, id: NodeId) -> bool {
        is_root(self.graph.op(id)) && self.kernels.contains_key(&id)
    }

    /// What the forward pass writes, and until when it is read.
    fn written(&self, program: &Program) -> HashMap<NodeId, Written> {
        let g = self.graph;
        // What stays in its kernel's registers takes no memory.
        let stored: HashSet<&str> =
            program.kernels().flat_map(|k| k.writes()).map(|b| program.buffers[b].name.as_str()).collect();
        let mut written: HashMap<NodeId, Written> = HashMap::new();
        for (&id, &at) in self.kernels.iter().filter(|(id, _)| self.forward[id.index()]) {
            let bytes = if stored.contains(g.name_of(id)) { g.ty(id).bytes() } else { 0 };
            written.insert(id, Written { at, read: at, bytes, is_late: false });
        }
        for id in g.ids() {
            let kernel = self.kernels.get(&id).copied();
            let inputs = g.inputs(id).iter().copied().filter(|x| self.forward[x.index()]);
            for b in inputs.flat_map(|x| &self.under[x.index()]) {
                let Some(w) = written.get_mut(b) else { continue };
                if !self.forward[id.index()] {
                    w.is_late = true;
                } else if let Some(at) = kernel {
                    w.read = w.read.max(at);
                }
            }
        }
        written
    }

    /// Ways to cut the forward pass into segments, coarse ones first, all of them computed again.
    fn cuts(&self) -> Vec<Cuts> {
        let (mut late, mut handed_on) = (vec![0; self.end], vec![0; self.end]);
        for w in self.written.values() {
            if w.is_late {
                late[w.at] += w.bytes;
            }
            handed_on[w.at..w.read].iter_mut().for_each(|h| *h += w.bytes);
        }
        let total: usize = late.iter().sum();
        let mut out: Vec<Cuts> = Vec::new();
        for most in PARTS.map(|parts| total / parts) {
            let (mut behind, mut start) = (Vec::new(), 0);
            while start < self.end {
                // Cut where the least is handed on, in the second half of what a segment may hold.
                let mut held = 0;
                let mut best: Option<usize> = None;
                for kernel in start..self.end {
                    held += late[kernel];
                    if 2 * held >= most && best.is_none_or(|b| handed_on[kernel] < handed_on[b]) {
                        best = Some(kernel);
                    }
                    if held > most {
                        break;
                    }
                }
                let Some(cut) = best.filter(|&c| held > most && c + 1 < self.end) else { break };
                behind.push(cut);
                start = cut + 1;
            }
            let cuts = Cuts { again: behind.len(), behind };
            if cuts.again > 0 && out.last() != Some(&cuts) {
                out.push(cuts);
            }
        }
        out
    }

    fn tried(&self, cuts: Cuts, target: &Target) -> Result<Option<Tried>> {
        let Some(made) = self.again(&cuts)? else { return Ok(None) };
        // What waits for something may not be cut into kernels.
        let Ok(program) = outline(verify(&made.graph)?) else { return Ok(None) };
        let (memory, estimate) = (memory_of(&made.graph, &program)?.total(), target.estimate_program(&program));
        Ok(Some(Tried { cuts, made, memory, estimate }))
    }

    /// The plan with the first segments computed again; none if that cannot be ordered.
    fn again(&self, cuts: &Cuts) -> Result<Option<Recomputed>> {
        let Some(tokens) = self.tokens(cuts) else { return Ok(None) };
        Builder { passes: self, cuts, tokens }.build()
    }

    /// Is a buffer computed again?
    fn is_again(&self, cuts: &Cuts, buffer: NodeId) -> bool {
        let Some(w) = self.written.get(&buffer) else { return false };
        let kept = cuts.segment(w.at) != cuts.segment(w.read);
        let is_able = !matches!(self.graph.op(buffer), Op::Scan(_)) && !self.constant[buffer.index()];
        !kept && cuts.segment(w.at) < cuts.again && is_able
    }

    /// For each segment computed again, what the backward pass has computed when it gets there.
    fn tokens(&self, cuts: &Cuts) -> Option<Vec<NodeId>> {
        let g = self.graph;
        // The earliest segment whose buffers a node of the backward pass depends on.
        let mut reached = vec![usize::MAX; g.len()];
        for id in g.ids().filter(|id| !self.forward[id.index()]) {
            let of = |x: NodeId| -> usize {
                if !self.forward[x.index()] {
                    return reached[x.index()];
                }
                let again = self.under[x.index()].iter().filter(|&&b| self.is_again(cuts, b));
                again.map(|b| cuts.segment(self.written[b].at)).min().unwrap_or(usize::MAX)
            };
            reached[id.index()] = g.inputs(id).iter().copied().map(of).min().unwrap_or(usize::MAX);
        }
        let updates: HashSet<NodeId> = g.outputs().iter().filter(|o| o.role == Role::Update).map(|o| o.node).collect();
        // The same of all that is computed in a kernel.
        let mut reached_in: HashMap<usize, usize> = HashMap::new();
        for (id, kernel) in &self.kernels {
            let first = reached_in.entry(*kernel).or_insert(usize::MAX);
            *first = reached[id.index()].min(*first);
        }
        let mut tokens: Vec<Option<NodeId>> = vec![None; cuts.again];
        let mut seen = HashSet::new();
        for id in g.ids().filter(|id| reached[id.index()] < cuts.again) {
            let segment = reached[id.index()];
            // What this node reads of the backward pass of later segments.
            let mut stack: Vec<NodeId> = g.inputs(id).to_vec();
            while let Some(x) = stack.pop() {
                if self.forward[x.index()] || reached[x.index()] <= segment || !seen.insert((segment, x)) {
                    continue;
                }
                let kernel = self.kernels.get(&x);
                let is_tensor = g.shape(x).rank() > 0 && !updates.contains(&x);
                if !is_tensor || kernel.is_none_or(|k| reached_in[k] <= segment) {
                    stack.extend(g.inputs(x));
                    continue;
                }
                let token = &mut tokens[segment];
                if token.is_none_or(|t| self.kernels.get(&t) < kernel) {
                    *token = Some(x);
                }
            }
        }
        // Where nothing but scalars comes from later segments, one that comes from later still will do.
        for s in (0..tokens.len()).rev() {
            if tokens[s].is_none() {
                tokens[s] = *tokens.get(s + 1)?;
            }
        }
        tokens.into_iter().collect()
    }
}

/// What the forward pass computes, given what it is known to, and how many kernels it takes.
fn forward_pass(
    graph: &Graph,
    kernels: &HashMap<NodeId, usize>,
    values: impl Iterator<Item = NodeId>,
) -> (Vec<bool>, usize) {
    let mut forward = vec![false; graph.len()];
    values.for_each(|v| forward[v.index()] = true);
    for id in graph.ids().rev() {
        if forward[id.index()] {
            graph.inputs(id).iter().for_each(|x| forward[x.index()] = true);
        }
    }
    let last = graph.ids().filter(|id| forward[id.index()]).filter_map(|id| kernels.get(&id)).max().copied();
    // What the backward pass needs of the forward pass alone may be computed there, a rectifier's mask for one.
    for id in graph.ids().filter(|&id| !graph.op(id).is_source()) {
        let in_time = !is_root(graph.op(id)) || kernels.get(&id).copied() <= last;
        let known = |x: NodeId| forward[x.index()] || matches!(graph.op(x), Op::Param { .. } | Op::Input { .. });
        forward[id.index()] |= in_time && graph.inputs(id).iter().copied().all(known);
    }
    (forward, last.map_or(0, |l| l + 1))
}

/// Is it a buffer that some kernel writes?
fn is_root(op: &Op) -> bool {
    matches!(op, Op::Put(_) | Op::Cast(_) | Op::Scan(_))
}

/// A node of the new plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// As it was.
    Own(NodeId),
    /// Computed again, in a segment; none: by who reads it in the backward pass.
    Again(NodeId, Option<usize>),
    /// What was kept, read in a segment that is computed again.
    After(NodeId, usize),
}

struct Builder<'a> {
    passes: &'a Passes<'a>,
    cuts: &'a Cuts,
    tokens: Vec<NodeId>,
}

impl Builder<'_> {
    /// What stands for a node of the forward pass where the backward pass, or a segment computed again, reads it.
    fn read(&self, id: NodeId, by: Option<usize>) -> Key {
        let p = self.passes;
        if !p.forward[id.index()] || p.graph.op(id).is_source() {
            return Key::Own(id);
        }
        let again = |b: NodeId| p.is_again(self.cuts, b);
        if p.is_root(id) {
            return match by {
                _ if again(id) => Key::Again(id, Some(self.cuts.segment(p.written[&id].at))),
                Some(segment) if p.written.contains_key(&id) => Key::After(id, segment),
                _ => Key::Own(id),
            };
        }
        let differs = p.under[id.index()].iter().any(|&b| by.is_some() || again(b));
        if differs { Key::Again(id, by) } else { Key::Own(id) }
    }

    fn operands(&self, key: Key) -> Vec<Key> {
        let p = self.passes;
        match key {
            Key::Own(id) if p.forward[id.index()] => p.graph.inputs(id).iter().copied().map(Key::Own).collect(),
            Key::Own(id) => p.graph.inputs(id).iter().copied().map(|x| self.read(x, None)).collect(),
            Key::Again(id, by) => {
                let inputs = p.graph.inputs(id);
                // What is computed from sources alone waits for its time at these.
                let bare = inputs.iter().all(|x| p.under[x.index()].is_empty());
                let read = |x: NodeId| match by {
                    Some(segment) if bare && p.graph.op(x).is_source() => Key::After(x, segment),
                    Some(_) if bare && !p.constant[x.index()] => Key::Again(x, by),
                    _ => self.read(x, by),
                };
                inputs.iter().copied().map(read).collect()
            }
            Key::After(id, segment) => vec![Key::Own(id), Key::Own(self.tokens[segment])],
        }
    }

    /// The nodes in the order they have, what is computed again before it is first read.
    fn build(&self) -> Result<Option<Recomputed>> {
        let old = self.passes.graph;
        let mut graph = Graph::new(&old.name);
        let operands = |key| Some(self.operands(key));
        let made = assemble(self.needed().into_iter().map(Key::Own), operands, |key, inputs| {
            let (id, op) = match key {
                Key::Own(id) | Key::Again(id, _) => (id, old.op(id).clone()),
                Key::After(id, _) => (id, Op::After),
            };
            let node = old.node(id);
            graph.follow(node);
            // What was there keeps its name, so names that are made up for the rest are none that it could have.
            let (name, named) = match key {
                Key::Own(_) => (node.name.clone(), node.named),
                Key::Again(..) if self.passes.is_root(id) => (format!("again.{}", node.name), Named::Given),
                Key::Again(_, Some(segment)) => (format!("again.{segment}.{}", node.name), Named::MadeUp),
                Key::Again(_, None) => (format!("again.late.{}", node.name), Named::MadeUp),
                Key::After(_, segment) => (format!("after.{segment}.{}", node.name), Named::MadeUp),
            };
            // What is equal is one value, whoever reads it.
            if named == Named::MadeUp && !op.is_source() {
                let made = graph.add(op, inputs)?;
                if graph.is_auto_named(made) {
                    graph.rename_as(made, &name, named);
                }
                return Ok(Some(made));
            }
            let made = graph.add_as(name, named, op, inputs);
            made.map(Some)
        })?;
        let Ok(made) = made else { return Ok(None) };
        old.outputs().iter().for_each(|o| graph.add_output(&o.name, o.role, made[&Key::Own(o.node)]));
        let place = |id: NodeId| made.get(&Key::Own(id)).or_else(|| made.get(&self.read(id, None))).copied();
        let places = old.ids().map(place).collect();
        let repeat = |(key, &id): (&Key, &NodeId)| match *key {
            Key::Again(first, _) if self.passes.is_root(first) => {
                let value = old.inputs(first).first().copied().unwrap_or(first);
                Some((id, Repeated { buffer: old.name_of(first).to_owned(), value: old.name_of(value).to_owned() }))
            }
            _ => None,
        };
        let repeats = made.iter().filter_map(repeat).collect();
        Ok(Some(Recomputed { graph, places, repeats }))
    }

    /// What the outputs need of the nodes there were, ascending.
    fn needed(&self) -> BTreeSet<NodeId> {
        let mut seen: HashSet<Key> = HashSet::new();
        let mut stack: Vec<Key> = self.passes.graph.outputs().iter().map(|o| Key::Own(o.node)).collect();
        // What is updated exists, whether it is read or not.
        stack.extend(self.passes.graph.sources().map(Key::Own));
        while let Some(key) = stack.pop() {
            if seen.insert(key) {
                stack.extend(self.operands(key));
            }
        }
        seen.into_iter().filter_map(|k| if let Key::Own(id) = k { Some(id) } else { None }).collect()
    }
}
