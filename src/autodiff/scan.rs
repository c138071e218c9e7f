//! The gradient of a loop: a loop over the same positions the other way round.
//!
//! Its body is the derivative of the body. What the derivative reads of the forward run is read from there if it took a
//! contraction or a reduction to compute, and computed again if not: the forward loop is asked for these values, and the
//! states before every step are those after the step before. The gradient of an operand that all steps share is a sum
//! over the steps. Where the summand is a matrix product or a sum over rows, the loop only hands out what is multiplied
//! or added, and one product or one sum over all steps follows the loop: the same arithmetic, in one large kernel rather
//! than in many small ones that each add to a matrix in memory.

use crate::error::{Error, Result};
use crate::ir::{Binary, Body, Dim, Graph, Init, NodeId, Op, ReduceKind, Role, Scan, Shape, Stage, Take, Type};
use std::collections::BTreeMap;

/// Gradients with respect to a loop's operands, those that are `needed`. `first` is its first node, `taken` the gradients
/// of what was taken out of it.
pub(super) fn vjp(
    graph: &mut Graph,
    first: NodeId,
    scan: &Scan,
    taken: &BTreeMap<Take, NodeId>,
    needed: &[bool],
) -> Result<Vec<Option<NodeId>>> {
    let Dim::Fixed(steps) = scan.steps else {
        return Err(Error::Graph(format!("the loop `{}` has no number of steps yet", graph.name_of(first))));
    };
    let derivative = Derivative::new(scan, taken, needed)?;
    let operands = graph.inputs(first).to_vec();
    Transposed { graph, scan, steps, taken, operands, derivative, back: None }.append(needed)
}

/// The body with its derivative appended.
struct Derivative {
    body: Graph,
    /// Nodes below this are the body's own.
    forward: usize,
    /// The body's sources, in order.
    sources: Vec<NodeId>,
    /// By source, the gradient one step adds.
    gradients: BTreeMap<NodeId, NodeId>,
    /// Sources of the derivative: gradients of values by position, and of states after the step.
    by_position: BTreeMap<NodeId, Take>,
    by_state: BTreeMap<NodeId, NodeId>,
}

impl Derivative {
    fn new(scan: &Scan, taken: &BTreeMap<Take, NodeId>, needed: &[bool]) -> Result<Derivative> {
        let mut body = scan.body.graph().clone();
        let (forward, sources) = (body.len(), body.sources().collect::<Vec<_>>());
        body.stage = Stage::Backward;
        let (mut given, mut by_position, mut by_state) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for take in taken.keys() {
            let Take::Stack(name) = take else { continue };
            let value = scan.body.value(name).expect("checked by the type rule");
            let ty = Type::new(body.shape(value).clone(), body.ty(value).format.once_read());
            let dy = declare(&mut body, &format!("up.{name}"), |ty| Op::Input { label: false, ty, copy_of: None }, ty)?;
            given.push((value, dy));
            by_position.insert(dy, take.clone());
        }
        let mut wrt = Vec::new();
        for (i, &source) in sources.iter().enumerate().filter(|s| scan.body.graph().ty(*s.1).format.is_float()) {
            let is_state = matches!(body.op(source), Op::State { .. });
            if is_state {
                let name = body.name_of(source).to_owned();
                let ty = body.ty(source).clone();
                let dy = declare(&mut body, &format!("back.{name}"), |ty| Op::State { init: Init::Data, ty }, ty)?;
                given.push((scan.body.update(&name).expect("checked by the type rule"), dy));
                by_state.insert(source, dy);
            }
            if is_state || needed[i] {
                wrt.push(source);
            }
        }
        let gradients = super::pull(&mut body, &given, &wrt, &[])?;
        Ok(Derivative { body, forward, sources, gradients, by_position, by_state })
    }

    fn is_forward(&self, id: NodeId) -> bool {
        id.index() < self.forward
    }

    /// Is this value of the forward run read, rather than computed again?
    fn is_read(&self, id: NodeId) -> bool {
        let op = self.body.op(id);
        self.is_forward(id) && !(op.is_elementwise() || op.is_view())
    }

    /// Is this an operand that all steps see, which has no positions to be joined?
    fn is_shared(&self, id: NodeId) -> bool {
        matches!(self.body.op(id), Op::Param { .. })
    }

    /// The values to hand out for a sum over all steps of `id`, computed outside; none if it must be added up inside.
    fn summands(&self, id: NodeId, out: &mut Vec<NodeId>) -> bool {
        let x = self.body.inputs(id);
        match self.body.op(id) {
            Op::Binary(Binary::Add) if x.iter().all(|&i| self.body.shape(i) == self.body.shape(id)) => {
                x.iter().all(|&i| self.summands(i, out))
            }
            Op::Reshape { .. } => self.summands(x[0], out),
            Op::Reduce { kind: ReduceKind::Sum, .. } if !self.is_shared(x[0]) => {
                out.push(x[0]);
                true
            }
            Op::MatMul { .. } if x.iter().all(|&i| self.body.shape(i).rank() == 2 && !self.is_shared(i)) => {
                out.extend(x);
                true
            }
            _ => false,
        }
    }
}

/// A source of the derivative under a name that is free.
fn declare(body: &mut Graph, name: &str, op: impl Fn(Type) -> Op, ty: Type) -> Result<NodeId> {
    let mut free = name.to_owned();
    while body.find(&free).is_some() {
        free.push('\'');
    }
    body.add_named(free, op(ty), &[])
}

/// The loop that runs the derivative, under construction.
struct Transposed<'a> {
    graph: &'a mut Graph,
    scan: &'a Scan,
    steps: usize,
    taken: &'a BTreeMap<Take, NodeId>,
    operands: Vec<NodeId>,
    derivative: Derivative,
    /// The derivative's body and the operands it is run on.
    back: Option<(Body, Vec<NodeId>)>,
}

impl Transposed<'_> {
    fn append(mut self, needed: &[bool]) -> Result<Vec<Option<NodeId>>> {
        // What the loop must hand out or carry, by source.
        let mut stacked: Vec<NodeId> = Vec::new();
        let mut carried: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut totals: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let sources = self.derivative.sources.clone();
        for (i, source) in sources.iter().enumerate() {
            let gradient = self.derivative.gradients.get(source).copied();
            if let Some(&dy) = self.derivative.by_state.get(source) {
                let next = match gradient {
                    Some(g) => g,
                    None => self.zeros(*source, true)?,
                };
                carried.insert(dy, next);
                continue;
            }
            let Some(g) = gradient.filter(|_| needed[i]) else { continue };
            let mut leaves = Vec::new();
            if matches!(self.derivative.body.op(*source), Op::Input { .. }) {
                stacked.push(g);
            } else if self.derivative.summands(g, &mut leaves) {
                stacked.extend(leaves);
            } else {
                let body = &mut self.derivative.body;
                let (name, ty) = (body.name_of(*source).to_owned(), body.ty(*source).clone());
                let total = declare(body, &format!("sum.{name}"), |ty| Op::State { init: Init::zeros(), ty }, ty)?;
                let next = body.binary(Binary::Add, total, g)?;
                carried.insert(total, next);
                totals.insert(*source, total);
            }
        }
        // Values of the forward run are taken from there.
        stacked.retain(|&v| !self.derivative.is_forward(v) && !self.derivative.by_position.contains_key(&v));
        self.back = Some(self.body(&stacked, &carried)?);
        let mut out = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let d = &self.derivative;
            let name = |id: NodeId| d.body.name_of(id).to_owned();
            let carried = d.by_state.get(source).or_else(|| totals.get(source)).map(|&id| Take::Last(name(id)));
            let gradient = d.gradients.get(source).copied().filter(|_| needed[i]);
            let is_input = matches!(d.body.op(*source), Op::Input { .. });
            out.push(match (carried.filter(|_| needed[i]), gradient) {
                (Some(last), _) => Some(self.take(last)?),
                (None, Some(g)) => Some(if is_input { self.stack(g)? } else { self.total(g)? }),
                (None, None) => None,
            });
        }
        Ok(out)
    }

    /// Takes something out of the loop backwards.
    fn take(&mut self, take: Take) -> Result<NodeId> {
        let (body, operands) = self.back.as_ref().expect("the loop is built before it is asked");
        let scan = Scan { body: body.clone(), steps: Dim::Fixed(self.steps), reverse: !self.scan.reverse, take };
        self.graph.add(Op::Scan(scan), operands)
    }

    /// A value of the derivative at all positions.
    fn stack(&mut self, id: NodeId) -> Result<NodeId> {
        match self.outside(id)? {
            Some(known) => Ok(known),
            None => self.take(Take::Stack(self.derivative.body.name_of(id).to_owned())),
        }
    }

    /// The derivative's body, and what its sources stand for.
    fn body(&mut self, stacked: &[NodeId], carried: &BTreeMap<NodeId, NodeId>) -> Result<(Body, Vec<NodeId>)> {
        let mut live = vec![false; self.derivative.body.len()];
        for &id in stacked.iter().chain(carried.keys()).chain(carried.values()) {
            live[id.index()] = true;
        }
        for id in self.derivative.body.ids().rev().filter(|&id| !self.derivative.is_read(id)) {
            if live[id.index()] {
                self.derivative.body.inputs(id).iter().copied().for_each(|i| live[i.index()] = true);
            }
        }
        let mut out = Graph::new(format!("{}.back", self.scan.body.graph().name));
        let (mut map, mut operands): (Vec<Option<NodeId>>, _) = (vec![None; live.len()], Vec::new());
        let ids: Vec<NodeId> = self.derivative.body.ids().filter(|id| live[id.index()]).collect();
        for id in ids {
            let node = self.derivative.body.node(id).clone();
            let is_source = node.op.is_source();
            let mut op = node.op.clone();
            if self.derivative.is_read(id) || is_source {
                operands.push(match self.outside(id)? {
                    Some(operand) => operand,
                    None => self.start(id)?,
                });
                let by_position = self.derivative.is_forward(id) && !matches!(op, Op::Param { .. });
                if by_position && !matches!(op, Op::Input { .. }) {
                    let ty = Type::new(node.ty.shape.clone(), node.ty.format.once_read());
                    op = Op::Input { label: false, ty, copy_of: None };
                }
            }
            let inputs: Vec<NodeId> = match op.is_source() {
                true => Vec::new(),
                false => self.derivative.body.inputs(id).iter().filter_map(|i| map[i.index()]).collect(),
            };
            let body = &self.derivative.body;
            map[id.index()] = Some(out.transfer(body, id, op, &inputs, |f| map[f.index()])?);
        }
        for (state, next) in carried {
            let next = map[next.index()].expect("live");
            out.add_output(self.derivative.body.name_of(*state), Role::Update, next);
        }
        Ok((Body::new(out), operands))
    }

    /// A value of the derivative at every position, where that is known outside the loop: the loop's own operands, what
    /// the forward loop can be asked for, and the gradients that come in.
    fn outside(&mut self, id: NodeId) -> Result<Option<NodeId>> {
        if let Some(take) = self.derivative.by_position.get(&id) {
            return Ok(Some(self.taken[take]));
        }
        if !self.derivative.is_forward(id) {
            return Ok(None);
        }
        if let Some(at) = self.derivative.sources.iter().position(|&s| s == id) {
            return match self.derivative.body.op(id) {
                Op::State { .. } => self.before(id, self.operands[at]).map(Some),
                _ => Ok(Some(self.operands[at])),
            };
        }
        // Under the name it has in the loop's body: in the derivative it may have got another.
        let name = self.scan.body.name_of(id).to_owned();
        self.forward(Take::Stack(name)).map(Some)
    }

    fn forward(&mut self, take: Take) -> Result<NodeId> {
        let stage = std::mem::replace(&mut self.graph.stage, Stage::Forward);
        let node = self.graph.add(self.scan.taking(take), &self.operands);
        self.graph.stage = stage;
        node
    }

    /// A state before every step: the first value, then what the steps but the last made of it.
    fn before(&mut self, state: NodeId, initial: NodeId) -> Result<NodeId> {
        let name = self.derivative.body.name_of(state);
        let next = self.scan.body.update(name).expect("checked by the type rule");
        let next = Take::Stack(self.scan.body.name_of(next).to_owned());
        let mut dims = self.graph.shape(initial).clone();
        dims.0.insert(0, Dim::Fixed(1));
        let first = self.graph.reshape(initial, &dims)?;
        if self.steps == 1 {
            return Ok(first);
        }
        let after = self.forward(next)?;
        let (start, stop) = if self.scan.reverse { (1, self.steps) } else { (0, self.steps - 1) };
        let rest = self.graph.add(Op::Slice { axis: 0, start, stop, step: 1 }, &[after])?;
        let parts = if self.scan.reverse { [rest, first] } else { [first, rest] };
        self.graph.add(Op::Concat { axis: 0 }, &parts)
    }

    /// What a state of the derivative starts from: the gradient of the loop's last state, or zeros.
    fn start(&mut self, id: NodeId) -> Result<NodeId> {
        let of = self.derivative.by_state.iter().find(|(_, dy)| **dy == id).map(|(s, _)| *s);
        let name = of.map(|s| self.derivative.body.name_of(s).to_owned());
        if let Some(&dy) = name.and_then(|n| self.taken.get(&Take::Last(n))) {
            return Ok(dy);
        }
        self.zeros(id, false)
    }

    /// Zeros like a value of the body, in the body or outside.
    fn zeros(&mut self, like: NodeId, inside: bool) -> Result<NodeId> {
        let (shape, format) =
            (self.derivative.body.shape(like).clone(), self.derivative.body.ty(like).format.once_read());
        let g = if inside { &mut self.derivative.body } else { &mut *self.graph };
        let mut zero = g.constant(0.0)?;
        if g.ty(zero).format != format {
            zero = g.add(Op::Convert(format), &[zero])?;
        }
        g.broadcast_to(zero, &shape)
    }

    /// The sum over all steps of what [`Derivative::summands`] accepted.
    fn total(&mut self, id: NodeId) -> Result<NodeId> {
        let (op, x) = (self.derivative.body.op(id).clone(), self.derivative.body.inputs(id).to_vec());
        let shape = self.derivative.body.shape(id).clone();
        match op {
            Op::Binary(Binary::Add) => {
                let (a, b) = (self.total(x[0])?, self.total(x[1])?);
                self.graph.binary(Binary::Add, a, b)
            }
            Op::Reshape { .. } => {
                let whole = self.total(x[0])?;
                self.graph.reshape(whole, &shape)
            }
            Op::Reduce { axes, .. } => {
                let all = self.stack(x[0])?;
                let axes: Vec<usize> = std::iter::once(0).chain(axes.iter().map(|a| a + 1)).collect();
                let sum = self.graph.reduce(ReduceKind::Sum, all, &axes, false)?;
                self.graph.reshape(sum, &shape)
            }
            Op::MatMul { ta, tb, format } => {
                let (a, b) = (self.stack(x[0])?, self.stack(x[1])?);
                let a = self.contracted(a, if ta { 1 } else { 2 })?;
                let b = self.contracted(b, if tb { 2 } else { 1 })?;
                self.graph.add(Op::MatMul { ta, tb, format }, &[a, b])
            }
            op => unreachable!("{} is added up inside the loop", op.name()),
        }
    }

    /// `[steps, r, c]` with the steps joined to axis 1 or 2.
    fn contracted(&mut self, x: NodeId, axis: usize) -> Result<NodeId> {
        let [steps, rows, columns] = self.graph.ty(x).dims()[..] else { unreachable!("a matrix at every position") };
        if axis == 1 {
            return self.graph.reshape(x, &Shape::of(&[steps * rows, columns]));
        }
        let turned = self.graph.add(Op::Transpose { perm: vec![1, 0, 2] }, &[x])?;
        self.graph.reshape(turned, &Shape::of(&[rows, steps * columns]))
    }
}
