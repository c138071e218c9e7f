//! Plans for the bodies of loops: each distinct one is planned once, before the step around it, as a small step of its
//! own. What the body would rather read in a narrow format becomes an operand in that format, for the step around it to
//! make; what it hands out is stored as narrow as the policy allows.

use super::{Planned, Request, paint, plan};
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Body, Graph, Init, NodeId, Op, Output, Role, Scan, Take, Type};
use crate::rewrite::RuleSet;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A step whose loops have planned bodies.
pub(super) struct Looped<'a> {
    pub graph: Cow<'a, Graph>,
    /// Every distinct body's plan, by the body's name.
    pub bodies: BTreeMap<String, Planned>,
}

/// A planned body, and the operand of the loop that each of its sources stands for.
#[derive(Clone)]
struct Ready {
    body: Body,
    operands: Vec<usize>,
}

/// Plans the bodies of all loops of a step.
pub(super) fn plan_bodies<'a>(step: &'a Graph, request: &Request, rules: &RuleSet) -> Result<Looped<'a>> {
    if !step.ids().any(|id| matches!(step.op(id), Op::Scan(_))) {
        return Ok(Looped { graph: Cow::Borrowed(step), bodies: BTreeMap::new() });
    }
    let mut ready: BTreeMap<(Body, Vec<Take>, Vec<Format>), Ready> = BTreeMap::new();
    let mut of_loop: BTreeMap<NodeId, Ready> = BTreeMap::new();
    let mut bodies = BTreeMap::new();
    let graph = step.rebuild(|id, so_far, inputs| {
        let Op::Scan(scan) = step.op(id) else { return Ok((step.op(id).clone(), inputs.to_vec())) };
        let nodes = step.same_loop(id);
        if nodes[0] == id {
            let mut takes: Vec<Take> = nodes.iter().map(|&n| step.take_of(n).clone()).collect();
            takes.sort();
            // Operands that lie in memory already have the format they have.
            let given = inputs.iter().zip(scan.body.graph().sources()).map(|(&x, source)| {
                let declared = scan.body.graph().ty(source).format;
                if so_far.op(x).is_buffer() && declared.is_float() { so_far.ty(x).format } else { declared }
            });
            let key = (scan.body.clone(), takes, given.collect::<Vec<_>>());
            let known = match ready.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let (made, planned) = plan_body(scan, &key.1, &key.2, request, rules)?;
                    bodies.insert(scan.body.graph().name.clone(), planned);
                    ready.entry(key).or_insert(made).clone()
                }
            };
            of_loop.insert(id, known);
        }
        let known = &of_loop[&nodes[0]];
        let planned = Scan { body: known.body.clone(), ..scan.clone() };
        Ok((Op::Scan(planned), known.operands.iter().map(|&i| inputs[i]).collect()))
    })?;
    Ok(Looped { graph: Cow::Owned(graph), bodies })
}

fn plan_body(
    scan: &Scan,
    takes: &[Take],
    given: &[Format],
    request: &Request,
    rules: &RuleSet,
) -> Result<(Ready, Planned)> {
    // Noise inside loops is not estimated, so the lists decide there; what they decide is measured with the plan.
    let request = &Request { calibration: None, ..request.clone() };
    let body = scan.body.graph();
    let sources: Vec<NodeId> = body.sources().collect();
    let format = |id: NodeId| given[sources.iter().position(|&s| s == id).expect("a source")];
    // Planned as a step: what is carried is a parameter the step updates, all else is what a loader gives it.
    let mut step = body.map_ids(|id, op| match op {
        Op::Input { label, ty, .. } => {
            Op::Input { label: *label, ty: Type { format: format(id), ..ty.clone() }, copy_of: None }
        }
        Op::Param { ty, .. } => {
            Op::Input { label: false, ty: Type { format: format(id), ..ty.clone() }, copy_of: None }
        }
        Op::State { ty, .. } => Op::Param { init: Init::Data, ty: ty.clone() },
        op => op.clone(),
    })?;
    let verdicts = paint(&step, request);
    let updates: Vec<Output> = step.outputs().iter().filter(|o| o.role == Role::Update).cloned().collect();
    step.clear_outputs();
    for take in takes {
        let Take::Stack(name) = take else { continue };
        let value = scan.body.value(name).expect("checked by the type rule");
        let low = verdicts[value.index()].allow.stores.contains(request.low);
        let stored = if low && !step.op(value).is_buffer() { step.add(Op::Put(request.low), &[value])? } else { value };
        step.add_output(name, Role::Output, stored);
    }
    updates.into_iter().for_each(|o| step.add_output(o.name, Role::Update, o.node));
    let planned = plan(&step, request, rules)?;
    Ok((as_body(scan, takes, &planned.graph)?, planned))
}

/// A planned step as a body again: copies that loaders and optimizers would make are operands.
fn as_body(scan: &Scan, takes: &[Take], planned: &Graph) -> Result<Ready> {
    let body = scan.body.graph();
    let sources: Vec<NodeId> = body.sources().collect();
    let (mut operands, mut map) = (Vec::new(), Vec::new());
    let keep = kept(planned, takes);
    let mut out = Graph::new(&body.name);
    for id in planned.ids() {
        if !keep.contains(&id) {
            map.push(id);
            continue;
        }
        let node = planned.node(id);
        let is_own = matches!(node.op, Op::Input { .. } | Op::Param { .. });
        let base = node.op.copy_of().or(is_own.then_some(node.name.as_str()));
        let mut op = node.op.clone();
        if let Some(at) = base.and_then(|name| sources.iter().position(|&s| body.name_of(s) == name)) {
            operands.push(at);
            op = match body.op(sources[at]).clone() {
                Op::Input { label, .. } => Op::Input { label, ty: node.ty.clone(), copy_of: None },
                Op::Param { init, .. } => Op::Param { init, ty: node.ty.clone() },
                _ => Op::State { init: Init::Data, ty: node.ty.clone() },
            };
        }
        let inputs: Vec<NodeId> = planned.inputs(id).iter().map(|i| map[i.index()]).collect();
        map.push(out.transfer(planned, id, op, &inputs, |f| map.get(f.index()).copied())?);
    }
    for o in planned.outputs().iter().filter(|o| keep.contains(&o.node)) {
        if o.role == Role::Output || out.find(&o.name).is_some() {
            out.add_output(&o.name, o.role, map[o.node.index()]);
        }
    }
    Ok(Ready { body: Body::new(out), operands })
}

/// What a body needs: not the states that nothing reads, because only their copies are read.
fn kept(planned: &Graph, takes: &[Take]) -> BTreeSet<NodeId> {
    let mut keep = BTreeSet::new();
    let mut stack: Vec<NodeId> = planned.outputs().iter().filter(|o| o.role == Role::Output).map(|o| o.node).collect();
    for take in takes {
        if let Take::Last(state) = take {
            stack.extend(planned.find(state));
        }
    }
    while let Some(id) = stack.pop() {
        if keep.insert(id) {
            stack.extend(planned.inputs(id));
            stack.extend(planned.output(planned.name_of(id), Role::Update));
        }
    }
    keep
}
