//! A loop as its steps: the body is lowered once, and its kernels repeated for every position, each time over that
//! position's part of what is read and written by position.

use super::emit::copy;
use super::kernel::{Address, BufferId, Kernel, Store};
use super::program::{BufferInfo, Call, InLoop, Program};
use super::region::{Region, underlying};
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, NodeId, Op, Role, Scan, Take};
use std::collections::BTreeMap;

/// How much of a plan is spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Steps,
    Outline,
    Visible,
}

/// Appends the kernels of a loop, whose body `lower` lowers; only the first step's, marked with how often they run, in an outline.
pub(super) fn steps(
    program: &mut Program,
    graph: &Graph,
    region: &Region,
    place: &BTreeMap<NodeId, BufferId>,
    extent: Extent,
    lower: &dyn Fn(&Graph) -> Result<Program>,
) -> Result<()> {
    let first = region.roots[0];
    let Op::Scan(scan) = graph.op(first) else { unreachable!("a loop's roots are scans") };
    let Dim::Fixed(steps) = scan.steps else { unreachable!("a verified graph has no named extents") };
    let takes: Vec<(&Take, BufferId)> = region.roots.iter().map(|&r| (graph.take_of(r), place[&r])).collect();
    let inner = lower(&body_of(scan, &takes))?;
    let operands: Vec<BufferId> = graph.inputs(first).iter().map(|&i| place[&underlying(graph, i)]).collect();
    let mut l = Unroller::new(program, scan, inner, &operands, &takes)?;
    let before = l.program.calls.len();
    for step in 0..if extent == Extent::Outline { 1 } else { steps } {
        let position = if scan.reverse { steps - 1 - step } else { step };
        l.step(step, position, step + 1 == steps);
    }
    let times = if extent == Extent::Outline { steps } else { 1 };
    let body = &scan.body.graph().name;
    for call in &mut l.program.calls[before..] {
        call.in_loop.get_or_insert_with(|| InLoop { body: body.clone(), times: 1 }).times *= times;
    }
    Ok(())
}

/// Names of the results that stand for what is stacked and for the states' next values.
fn stack_name(value: &str) -> String {
    format!("stack {value}")
}
fn next_name(state: &str) -> String {
    format!("next {state}")
}

/// The body as it is lowered. Nothing in it is updated in place: where a state's next value goes is decided step by step.
fn body_of(scan: &Scan, takes: &[(&Take, BufferId)]) -> Graph {
    let mut body = scan.body.graph().clone();
    let updates: Vec<_> = body.outputs().iter().filter(|o| o.role == Role::Update).cloned().collect();
    body.clear_outputs();
    for (take, _) in takes {
        if let Take::Stack(v) = take {
            let id = scan.body.value(v).expect("checked by the type rule");
            body.add_output(stack_name(v), Role::Output, id);
        }
    }
    for o in updates {
        body.add_output(next_name(&o.name), Role::Output, o.node);
    }
    body
}

/// A state of the body on its way from step to step.
struct Carried {
    source: BufferId,
    next: BufferId,
    /// Where the step at hand finds it.
    at: Address,
    /// Written in turn, so that a step never overwrites what it reads.
    places: [BufferId; 2],
    /// Where the last step leaves it.
    last: Option<BufferId>,
}

struct Unroller<'a> {
    program: &'a mut Program,
    inner: Program,
    /// For every buffer of the body, where it lies; sources and results by position move with the step.
    map: Vec<Address>,
    /// Buffers of the body read by position, with the operand.
    slices: Vec<(BufferId, BufferId)>,
    /// Buffers of the body stacked by position.
    stacks: Vec<(BufferId, BufferId)>,
    carried: Vec<Carried>,
}

impl<'a> Unroller<'a> {
    fn new(
        program: &'a mut Program,
        scan: &Scan,
        inner: Program,
        operands: &[BufferId],
        takes: &[(&Take, BufferId)],
    ) -> Result<Unroller<'a>> {
        let body = scan.body.graph();
        let name = &body.name;
        let (mut slices, mut stacks, mut carried) = (Vec::new(), Vec::new(), Vec::new());
        let mut map = vec![Address::of(BufferId::MAX); inner.buffers.len()];
        let result = |of: String| inner.result(&of).expect("declared above");
        let temporary = |program: &mut Program, b: BufferId| {
            let info = &inner.buffers[b];
            let name = format!("{name}: {}", info.name);
            program.buffers.push(BufferInfo { name, ty: info.ty.clone(), source: None });
            program.buffers.len() - 1
        };
        for (source, &operand) in body.sources().zip(operands) {
            let own = inner.find(body.name_of(source)).expect("sources are buffers");
            let (want, given) = (body.ty(source).format, program.buffers[operand].ty.format);
            if want != given {
                let name = body.name_of(source);
                return Err(Error::Graph(format!("`{name}` of a loop's body is {want} and its operand {given}")));
            }
            match body.op(source) {
                Op::Input { .. } => slices.push((own, operand)),
                Op::State { .. } => {
                    let state = body.name_of(source);
                    let last = takes.iter().find(|t| *t.0 == Take::Last(state.to_owned())).map(|t| t.1);
                    let places = [temporary(program, own), temporary(program, own)];
                    let next = result(next_name(state));
                    carried.push(Carried { source: own, next, at: Address::of(operand), places, last });
                }
                _ => map[own] = Address::of(operand),
            }
        }
        for (take, to) in takes {
            if let Take::Stack(v) = take {
                stacks.push((result(stack_name(v)), *to));
            }
        }
        for (b, at) in map.iter_mut().enumerate() {
            let moves = stacks.iter().any(|s| s.0 == b) || carried.iter().any(|c: &Carried| c.next == b);
            if inner.buffers[b].source.is_none() && !moves {
                *at = Address::of(temporary(program, b));
            }
        }
        Ok(Unroller { program, inner, map, slices, stacks, carried })
    }

    /// Appends one step.
    fn step(&mut self, step: usize, position: usize, is_last: bool) {
        let elements = |b: BufferId| self.inner.buffers[b].ty.elements();
        let part = |b: BufferId, whole: BufferId| Address { buffer: whole, offset: position * elements(b) };
        for &(b, operand) in &self.slices {
            self.map[b] = part(b, operand);
        }
        // What is computed once may be wanted in several places.
        let mut wanted: BTreeMap<BufferId, Vec<Address>> = BTreeMap::new();
        for c in &mut self.carried {
            self.map[c.source] = c.at;
            c.at = Address::of(if is_last { c.last.unwrap_or(c.places[step % 2]) } else { c.places[step % 2] });
            wanted.entry(c.next).or_default().push(c.at);
        }
        for &(b, to) in &self.stacks {
            wanted.entry(b).or_default().push(part(b, to));
        }
        let mut copies = Vec::new();
        for (&b, places) in &wanted {
            let info = &self.inner.buffers[b];
            if info.source.is_some() {
                copies.extend(places.iter().map(|&to| (info, self.map[b], to)));
            } else {
                self.map[b] = places[0];
            }
        }
        for call in &self.inner.calls {
            let mut call = Call { waits: Vec::new(), ..call.clone() };
            move_kernel(&mut call.kernel, &self.map, &wanted);
            self.program.push(call);
        }
        for (info, from, to) in copies {
            let kernel = copy(&info.ty.dims(), (from, info.ty.format), (to, info.ty.format));
            let computes = vec![info.name.clone()];
            self.program.push(Call { kernel, computes, in_loop: None, waits: Vec::new() });
        }
    }
}

/// Moves a kernel's accesses to where the buffers lie now, and writes results everywhere they are wanted.
fn move_kernel(kernel: &mut Kernel, map: &[Address], wanted: &BTreeMap<BufferId, Vec<Address>>) {
    if let Kernel::Product(p) = kernel {
        for a in p.contraction.operands_mut() {
            let to = map[a.buffer];
            *a = Address { offset: to.offset + a.offset, ..to };
        }
    }
    let body = kernel.body_mut();
    for l in &mut body.loads {
        let to = map[l.buffer];
        l.view.offset += to.offset;
        l.buffer = to.buffer;
    }
    for s in std::mem::take(&mut body.stores) {
        let one = [map[s.buffer]];
        for to in wanted.get(&s.buffer).map_or(&one[..], |w| &w[..]) {
            let mut view = s.view.clone();
            view.offset += to.offset;
            body.stores.push(Store { buffer: to.buffer, view, ..s });
        }
    }
}
