//! `scan`: a graph run once for every position along its operands' first axis, carrying values from run to run.
//!
//! The graph is the scan's [`Body`]. Its sources stand for the scan's operands, in order: an `input` is the operand's
//! slice at the position, a `param` the whole operand, a `state` starts as the operand and is then what the body's
//! `update` of that name was in the run before. A scan node takes one thing out of the loop: a value of the body, of all
//! positions ([`Take::Stack`]), or a state after the last run ([`Take::Last`]). Nodes that differ in nothing else run as
//! one loop, so a gradient takes what it needs from the loop that is there.

use super::attr::Attrs;
use super::signature::{Family, Signature};
use super::{Attr, Context, Dim, Gradients, Op, Shape, Type};
use crate::ir::eval::evaluate;
use crate::ir::graph::{Graph, NodeId, Role};
use crate::ir::tensor::Tensor;
use crate::ir::text::{print, quoted};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The graph that a scan runs. Bodies are equal if their texts are.
#[derive(Clone)]
pub struct Body(Arc<(Graph, String)>);

impl Body {
    /// A body that runs this graph.
    pub fn new(graph: Graph) -> Body {
        let text = print(&graph);
        Body(Arc::new((graph, text)))
    }

    /// The graph that is run at every position.
    pub fn graph(&self) -> &Graph {
        &self.0.0
    }

    fn text(&self) -> &str {
        &self.0.1
    }

    /// The value of this name: an output's, or any node's.
    pub fn value(&self, name: &str) -> Option<NodeId> {
        self.graph().output(name, Role::Output).or_else(|| self.graph().find(name))
    }

    /// The name a value is taken by: an output's, if it is one.
    pub fn name_of(&self, id: NodeId) -> &str {
        let output = self.graph().outputs().iter().find(|o| o.node == id && o.role == Role::Output);
        output.map_or_else(|| self.graph().name_of(id), |o| &o.name)
    }

    /// The next value of a state.
    pub fn update(&self, state: &str) -> Option<NodeId> {
        self.graph().output(state, Role::Update)
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Body) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.text() == other.text()
    }
}
impl Eq for Body {}
impl PartialOrd for Body {
    fn partial_cmp(&self, other: &Body) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Body {
    fn cmp(&self, other: &Body) -> Ordering {
        self.text().cmp(other.text())
    }
}
impl Hash for Body {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.text().hash(h);
    }
}
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.graph().name)
    }
}

/// What a scan node takes out of its loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Take {
    /// A value of the body at every position: `[steps, …]`.
    Stack(String),
    /// A state after the last run.
    Last(String),
}

/// Loops. They have no row: what applies one names a body, which only text and graphs have.
pub(super) struct Loops;

fn scan_of(op: &Op) -> &Scan {
    let Op::Scan(scan) = op else { unreachable!("another family's") };
    scan
}

impl Family for Loops {
    fn signatures(&self) -> Vec<Signature> {
        Vec::new()
    }

    fn name(&self, _: &Op) -> &'static str {
        super::names::SCAN
    }

    fn attrs(&self, _: &Op) -> Vec<Attr> {
        Vec::new()
    }

    fn build(&self, _: &str, _: &Attrs) -> Result<Op, String> {
        unreachable!("there is no row")
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        scan_of(op).infer(x)
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        scan_of(op).eval(x, ty)
    }

    fn vjp(&self, _: &Op, _: Context) -> Gradients {
        unreachable!("loops are differentiated whole, by autodiff::scan")
    }
}

/// Yields all values of a body, given those of its sources.
pub type EvaluateBody<'a> = dyn FnMut(&Graph, &dyn Fn(NodeId) -> Tensor) -> Vec<Tensor> + 'a;

/// A loop, and what one node takes out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scan {
    /// What runs at every position.
    pub body: Body,
    /// Positions: the first extent of every operand that is an `input` of the body. At least 1.
    pub steps: Dim,
    /// From the last position to the first.
    pub reverse: bool,
    /// What the node yields.
    pub take: Take,
}

impl Scan {
    /// The same loop, something else of it.
    pub fn taking(&self, take: Take) -> Op {
        Op::Scan(Scan { take, ..self.clone() })
    }

    /// Do two scans of the same operands run the same loop?
    pub fn same_loop(&self, other: &Scan) -> bool {
        self.body == other.body && self.steps == other.steps && self.reverse == other.reverse
    }

    pub(super) fn attrs(&self) -> Vec<(&'static str, Attr)> {
        let take = match &self.take {
            Take::Stack(v) => ("stack", Attr::Word(quoted(v))),
            Take::Last(s) => ("last", Attr::Word(quoted(s))),
        };
        vec![
            ("body", Attr::Word(quoted(&self.body.graph().name))),
            ("steps", Attr::Dims(Shape(vec![self.steps.clone()]))),
            ("reverse", Attr::Bool(self.reverse)),
            take,
        ]
    }

    pub(super) fn infer(&self, x: &[&Type]) -> Result<Type, String> {
        let body = self.body.graph();
        let sources: Vec<NodeId> = body.sources().collect();
        if sources.len() != x.len() {
            return Err(format!("the body has {} sources for {} operands", sources.len(), x.len()));
        }
        if self.steps == Dim::Fixed(0) {
            return Err("takes at least one step".into());
        }
        for (&source, &given) in sources.iter().zip(x) {
            let (name, ty) = (body.name_of(source), body.ty(source));
            let want = match body.op(source) {
                Op::Input { .. } => self.stacked(&ty.shape),
                _ => ty.shape.clone(),
            };
            if want != given.shape || ty.format.once_read() != given.format.once_read() {
                return Err(format!("`{name}` of the body takes {}, not {given}", Type::new(want, ty.format)));
            }
            if matches!(body.op(source), Op::State { .. }) {
                let next = self.body.update(name).ok_or_else(|| format!("the body never updates `{name}`"))?;
                let next = body.ty(next);
                if next.shape != ty.shape || next.format.once_read() != ty.format.once_read() {
                    return Err(format!("`{name}` is {ty} and its update {next}"));
                }
            }
        }
        if let Some(id) = body.ids().find(|&id| matches!(body.op(id), Op::Random { .. })) {
            let name = body.name_of(id);
            return Err(format!("`{name}` would draw the same random numbers at every step; draw them outside"));
        }
        match &self.take {
            Take::Stack(v) => {
                let id = self.body.value(v).ok_or_else(|| format!("the body has no value `{v}`"))?;
                Ok(Type::new(self.stacked(body.shape(id)), body.ty(id).format))
            }
            Take::Last(s) => {
                let state = body.find(s).filter(|&id| matches!(body.op(id), Op::State { .. }));
                Ok(body.ty(state.ok_or_else(|| format!("the body has no state `{s}`"))?).clone())
            }
        }
    }

    fn stacked(&self, shape: &Shape) -> Shape {
        Shape([std::slice::from_ref(&self.steps), &shape.0[..]].concat())
    }

    pub(super) fn eval(&self, x: &[&Tensor], ty: &Type) -> Tensor {
        self.eval_by(x, ty, &mut |body, source| evaluate(body, source))
    }

    /// What the loop takes, where `evaluate` yields all values of its body, given those of the sources: the reference
    /// evaluator, or one that does something else besides.
    pub fn eval_by(&self, x: &[&Tensor], ty: &Type, evaluate: &mut EvaluateBody) -> Tensor {
        let body = self.body.graph();
        let Dim::Fixed(steps) = self.steps else { panic!("a bound graph has no named extents") };
        let sources: Vec<NodeId> = body.sources().collect();
        let mut carried: BTreeMap<&str, Tensor> = BTreeMap::new();
        let mut rows: Vec<Vec<f64>> = vec![Vec::new(); steps];
        let order: Vec<usize> = if self.reverse { (0..steps).rev().collect() } else { (0..steps).collect() };
        for t in order {
            let values = evaluate(body, &|id| {
                let at = sources.iter().position(|&s| s == id).expect("sources are operands");
                let operand = x[at];
                match body.op(id) {
                    Op::Input { .. } => {
                        let dims = &operand.dims[1..];
                        let n: usize = dims.iter().product();
                        Tensor::new(dims, operand.data[t * n..(t + 1) * n].to_vec())
                    }
                    Op::State { .. } => carried.get(body.name_of(id)).unwrap_or(operand).clone(),
                    _ => operand.clone(),
                }
            });
            if let Take::Stack(v) = &self.take {
                let id = self.body.value(v).expect("checked by the type rule");
                rows[t].clone_from(&values[id.index()].data);
            }
            let updates = body.outputs().iter().filter(|o| o.role == Role::Update);
            carried = updates.map(|o| (o.name.as_str(), values[o.node.index()].clone())).collect();
        }
        match &self.take {
            Take::Stack(_) => Tensor::new(&ty.dims(), rows.concat()),
            Take::Last(s) => carried.remove(s.as_str()).expect("checked by the type rule"),
        }
    }

    /// The loop with named extents replaced by sizes. A body that does not fit them is left for the type rule to refuse.
    pub(super) fn bind(&mut self, sizes: &BTreeMap<String, usize>) {
        if let Ok(bound) = self.body.graph().map_ops(|op| op.bind(sizes)) {
            self.body = Body::new(bound);
        }
        if let Some(steps) = Shape(vec![self.steps.clone()]).bind(sizes).0.pop() {
            self.steps = steps;
        }
    }
}

impl Graph {
    /// What a scan takes out of its loop.
    ///
    /// # Panics
    /// If the node is no scan.
    pub fn take_of(&self, id: NodeId) -> &Take {
        let Op::Scan(scan) = self.op(id) else { panic!("`{}` is no scan", self.name_of(id)) };
        &scan.take
    }

    /// The nodes that run the same loop as this scan, ascending.
    pub fn same_loop(&self, id: NodeId) -> Vec<NodeId> {
        let Op::Scan(scan) = self.op(id) else { return Vec::new() };
        let inputs = self.inputs(id);
        let alike = |&u: &NodeId| matches!(self.op(u), Op::Scan(s) if s.same_loop(scan)) && self.inputs(u) == inputs;
        match inputs.first() {
            Some(&x) => self.users(x).into_iter().filter(alike).collect(),
            // A loop that reads nothing, not even its position's slice.
            None => self.ids().filter(alike).collect(),
        }
    }
}
