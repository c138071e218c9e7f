//! A planned graph lowered: cut into kernels, each emitted, loops spelled out, and what can be one launch brought together.

use super::emit::{copy, emit};
use super::expand::expand;
use super::kernel::{Address, BufferId};
use super::launches::group;
use super::long_rows::store_long_sums;
use super::lying::read_where_it_lies;
use super::merge::regions;
use super::program::{BufferInfo, Call, Program};
use super::region::underlying;
use super::scan::{self, Extent};
use crate::error::{Error, Result};
use crate::ir::{Graph, NodeId, Op, Role, Verified, verify};
use std::collections::{BTreeMap, BTreeSet};

/// Lowers a planned graph: one whose outputs are all buffers. Loops become their steps.
///
/// # Errors
/// A plan that cannot be cut into kernels, naming the value that is in the way.
pub fn lower(plan: Verified) -> Result<Program> {
    program_of(plan, Extent::Steps)
}

/// What [`lower`] makes but for the first step of each loop alone: to be read and costed, not run.
///
/// # Errors
/// As of [`lower`].
pub fn outline(plan: Verified) -> Result<Program> {
    program_of(plan, Extent::Outline)
}

/// What [`lower`] makes, with every stored value in memory even where nobody reads it from there: to be looked at.
///
/// # Errors
/// As of [`lower`].
pub fn lower_visibly(plan: Verified) -> Result<Program> {
    program_of(plan, Extent::Visible)
}

fn program_of(plan: Verified, extent: Extent) -> Result<Program> {
    let graph = store_long_sums(read_where_it_lies(expand(plan.graph())?)?)?;
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
            let body = |graph: &Graph| program_of(verify(graph)?, extent);
            scan::steps(&mut program, &graph, region, &place, extent, &body)?;
            continue;
        }
        let computes = region.roots.iter().map(|&r| graph.name_of(r).to_owned()).collect();
        let kernel = emit(&graph, region, &place, |root| extent == Extent::Visible || needed.contains(&root));
        let waits = region.waits.iter().map(|b| place[b]).collect();
        program.push(Call { kernel, computes, in_loop: None, waits });
    }
    for (from, to) in copies {
        let at = |id| (Address::of(place[&id]), graph.ty(id).format);
        let kernel = copy(&graph.ty(to).dims(), at(from), at(to));
        let computes = vec![graph.name_of(to).to_owned()];
        program.push(Call { kernel, computes, in_loop: None, waits: Vec::new() });
    }
    program.results = graph.outputs().iter().map(|o| (o.name.clone(), o.role, place[&o.node])).collect();
    group(&mut program);
    Ok(program)
}
