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
    /// Buffers that must have been written before each kernel, besides those it reads.
    pub waits: Vec<Vec<BufferId>>,
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

    /// Adds a kernel that runs once, when what it waits for has been written; unless there is nothing for it to store.
    pub(super) fn push(&mut self, kernel: Kernel, computes: Vec<String>, waits: Vec<BufferId>) {
        self.push_in(None, kernel, computes, waits);
    }

    /// [`Program::push`], of a kernel in a loop.
    pub(super) fn push_in(
        &mut self,
        in_loop: Option<InLoop>,
        kernel: Kernel,
        computes: Vec<String>,
        waits: Vec<BufferId>,
    ) {
        if kernel.body().stores.iter().all(|s| s.view.dims.contains(&0)) {
            return;
        }
        self.kernels.push(kernel);
        self.computes.push(computes);
        self.loops.push(in_loop);
        self.waits.push(waits);
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
        if matches!(graph.op(id), Op::Alias { .. } | Op::After) {
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
    cut.regions.iter().for_each(|r| needed.extend(r.reads.union(&r.waits).filter(|b| !r.roots.contains(b))));
    for region in &cut.regions {
        if region.is_loop {
            scan::steps(&mut program, &graph, region, &place, extent)?;
            continue;
        }
        let computes = region.roots.iter().map(|&r| graph.name_of(r).to_owned()).collect();
        let kernel = emit(&graph, region, &place, |root| extent == Extent::Visible || needed.contains(&root));
        program.push(kernel, computes, region.waits.iter().map(|b| place[b]).collect());
    }
    for (from, to) in copies {
        let at = |id| (Address::of(place[&id]), graph.ty(id).format);
        program.push(copy(&graph.ty(to).dims(), at(from), at(to)), vec![graph.name_of(to).to_owned()], Vec::new());
    }
    program.results = graph.outputs().iter().map(|o| (o.name.clone(), o.role, place[&o.node])).collect();
    group_launches(&mut program);
    Ok(program)
}

/// Reorders kernels so that those that can share a launch (the optimizer's update of every parameter, the overflow check
/// of every gradient) stand together: first as late as they can, then as early.
fn group_launches(program: &mut Program) {
    let alone = (0..program.kernels.len()).map(|i| vec![i]);
    let late = joined(program, alone.rev().collect());
    let groups = joined(program, late.into_iter().rev().map(|g| g.into_iter().rev().collect()).collect());
    let order: Vec<usize> = groups.iter().flatten().copied().collect();
    program.kernels = order.iter().map(|&i| program.kernels[i].clone()).collect();
    program.computes = order.iter().map(|&i| program.computes[i].clone()).collect();
    program.loops = order.iter().map(|&i| program.loops[i].clone()).collect();
    program.waits = order.iter().map(|&i| program.waits[i].clone()).collect();
    let mut start = 0;
    for g in groups {
        program.launches.push(start..start + g.len());
        start += g.len();
    }
}

/// Groups of kernels, given in a running order or its reverse, each of which joins the first group of the same code that
/// no kernel it must come after stands behind.
fn joined(program: &Program, groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    // For every buffer, the last groups that read and write it so far.
    let mut read_in: Vec<Option<usize>> = vec![None; program.buffers.len()];
    let mut written_in = read_in.clone();
    let mut alike: HashMap<u64, Vec<usize>> = HashMap::new();
    for group in groups {
        let kernels = || group.iter().map(|&i| &program.kernels[i]);
        let waits = group.iter().flat_map(|&i| &program.waits[i]).copied();
        let reads: Vec<BufferId> = kernels().flat_map(|k| k.reads()).chain(waits).collect();
        let writes: Vec<BufferId> = kernels().flat_map(|k| k.writes()).collect();
        let after_writes = writes.iter().flat_map(|&b| [read_in[b], written_in[b]]);
        let conflicts = after_writes.chain(reads.iter().map(|&b| written_in[b])).flatten();
        let soonest = conflicts.map(|g| g + 1).max().unwrap_or(0);
        let (first, hash) = (group[0], program.kernels[group[0]].code_hash());
        let candidates = hash.map_or(&[][..], |h| alike.get(&h).map_or(&[][..], |v| &v[..]));
        let fits = |&&g: &&usize| {
            let other = out[g][0];
            program.times(first) == program.times(other) && program.kernels[first].same_code(&program.kernels[other])
        };
        // Candidates ascend.
        let behind = candidates.partition_point(|&g| g < soonest);
        let at = candidates[behind..].iter().find(fits).copied().unwrap_or(out.len());
        if at == out.len() {
            out.push(Vec::new());
            if let Some(h) = hash {
                alike.entry(h).or_default().push(at);
            }
        }
        out[at].extend(group);
        let later = |slot: &mut Option<usize>| *slot = Some(slot.map_or(at, |g| g.max(at)));
        reads.iter().for_each(|&b| later(&mut read_in[b]));
        writes.iter().for_each(|&b| later(&mut written_in[b]));
    }
    out
}
