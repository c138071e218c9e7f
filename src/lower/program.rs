//! A planned graph lowered to a list of kernels over named buffers.

use super::emit::{copy, emit};
use super::expand::expand;
use super::kernel::{Address, Kernel};
use super::merge::regions;
use super::region::underlying;
use super::scan;
use crate::error::{Error, Result};
use crate::ir::{NodeId, Op, Role, Type, Verified};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    /// The loop that each kernel is part of.
    pub loops: Vec<Option<InLoop>>,
    /// Outputs and metrics by name, and where they lie after a run.
    pub results: Vec<(String, Role, BufferId)>,
}

/// What a kernel of a loop's body belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InLoop {
    /// The body's name.
    pub body: String,
    /// How often the kernel runs: in an [`outline`], the steps of the loop.
    pub times: usize,
}

impl Program {
    /// How often a kernel runs.
    pub fn times(&self, kernel: usize) -> usize {
        self.loops[kernel].as_ref().map_or(1, |l| l.times)
    }

    pub(super) fn push(&mut self, kernel: Kernel, computes: Vec<String>) {
        self.kernels.push(kernel);
        self.computes.push(computes);
        self.loops.push(None);
    }

    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|b| b.name == name)
    }

    pub fn result(&self, name: &str) -> Option<BufferId> {
        self.results.iter().find(|(n, role, _)| n == name && *role != Role::Update).map(|r| r.2)
    }
}

/// Lowers a planned graph: one whose outputs are all buffers. Loops become their steps.
pub fn lower(plan: Verified) -> Result<Program> {
    program(plan, Extent::Steps)
}

/// What [`lower`] makes but for the first step of each loop alone: to be read and costed, not run.
pub fn outline(plan: Verified) -> Result<Program> {
    program(plan, Extent::Outline)
}

/// What [`lower`] makes, with every stored value in memory even where nobody reads it from there: to be looked at.
pub fn lower_visibly(plan: Verified) -> Result<Program> {
    program(plan, Extent::Visible)
}

/// How much of a plan is spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Steps,
    Outline,
    Visible,
}

pub(super) fn program(plan: Verified, extent: Extent) -> Result<Program> {
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
        if matches!(graph.op(id), Op::Alias { .. }) {
            place.insert(id, place[&underlying(&graph, id)]);
            continue;
        }
        place.entry(id).or_insert_with(|| {
            program.buffers.push(BufferInfo {
                name: graph.name_of(id).to_owned(),
                ty: graph.ty(id).clone(),
                source: None,
            });
            program.buffers.len() - 1
        });
    }
    // A root that nobody else reads stays in its kernel's registers.
    let mut needed: BTreeSet<NodeId> = graph.outputs().iter().map(|o| underlying(&graph, o.node)).collect();
    cut.regions.iter().for_each(|r| needed.extend(r.reads.iter().filter(|b| !r.roots.contains(b))));
    for region in &cut.regions {
        if region.is_loop {
            scan::steps(&mut program, &graph, region, &place, extent)?;
            continue;
        }
        let computes = region.roots.iter().map(|&r| graph.name_of(r).to_owned()).collect();
        program
            .push(emit(&graph, region, &place, |root| extent == Extent::Visible || needed.contains(&root)), computes);
    }
    for (from, to) in copies {
        let at = |id| (Address::of(place[&id]), graph.ty(id).format);
        program.push(copy(&graph.ty(to).dims(), at(from), at(to)), vec![graph.name_of(to).to_owned()]);
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
    // For every buffer, the earliest launches (the highest group numbers) that read and write it so far.
    let mut read_in: Vec<Option<usize>> = vec![None; program.buffers.len()];
    let mut written_in = read_in.clone();
    let mut alike: HashMap<u64, Vec<usize>> = HashMap::new();
    for i in (0..program.kernels.len()).rev() {
        let kernel = &program.kernels[i];
        let (reads, writes): (Vec<BufferId>, Vec<BufferId>) = (kernel.reads(), kernel.writes().collect());
        let after_writes = writes.iter().flat_map(|&b| [read_in[b], written_in[b]]);
        let conflicts = after_writes.chain(reads.iter().map(|&b| written_in[b])).flatten();
        let soonest = conflicts.map(|g| g + 1).max().unwrap_or(0);
        let candidates = kernel.code_hash().map_or(&[][..], |h| alike.get(&h).map_or(&[][..], |v| &v[..]));
        let fits = |&&g: &&usize| {
            let first = groups[g][0];
            program.times(i) == program.times(first) && kernel.same_code(&program.kernels[first])
        };
        // Candidates ascend.
        let late = candidates.partition_point(|&g| g < soonest);
        let at = candidates[late..].iter().find(fits).copied().unwrap_or(groups.len());
        if at == groups.len() {
            groups.push(Vec::new());
            if let Some(h) = kernel.code_hash() {
                alike.entry(h).or_default().push(at);
            }
        }
        groups[at].push(i);
        let later = |slot: &mut Option<usize>| *slot = Some(slot.map_or(at, |g| g.max(at)));
        reads.iter().for_each(|&b| later(&mut read_in[b]));
        writes.iter().for_each(|&b| later(&mut written_in[b]));
    }
    let order: Vec<usize> = groups.iter().rev().flat_map(|g| g.iter().rev()).copied().collect();
    program.kernels = order.iter().map(|&i| program.kernels[i].clone()).collect();
    program.computes = order.iter().map(|&i| program.computes[i].clone()).collect();
    program.loops = order.iter().map(|&i| program.loops[i].clone()).collect();
    let mut start = 0;
    for g in groups.iter().rev() {
        program.launches.push(start..start + g.len());
        start += g.len();
    }
}
