//! Masks that are known before the step runs.

use crate::ir::{Graph, NodeId, Op, Role, Shape, Tensor, Type};
use crate::model::{Weight, Weights};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Elements of a mask that are looked at, at most; what is larger is taken for any mask.
const MOST: usize = 1 << 24;
/// Added to a score, numbers up to this hide what it is of wherever something else is seen.
const HIDDEN: f64 = -1e30;

/// Stack that a value may need, and how much is added where less is left: constants may be chains of any length.
const RED_ZONE: usize = 64 << 10;
const STACK: usize = 4 << 20;

/// What a mask comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// It hides nothing and adds nothing.
    Nothing,
    /// Each query sees the keys up to its own position.
    Causal {
        /// Is what it hides hidden by −∞? A finite number hides only beside what is seen.
        wholly: bool,
    },
    /// It depends on what is trained.
    Trained,
    /// Some other mask, or one that is not known.
    Other,
}

/// Values of a graph that no input and no parameter has a part in.
pub(super) struct Constants<'a> {
    graph: &'a Graph,
    weights: &'a Weights,
    /// Does a value depend on a parameter?
    trained: Vec<bool>,
    /// Values, with extents of 1 where all along an axis is the same; none where it is not known.
    known: RefCell<BTreeMap<NodeId, Option<Rc<Tensor>>>>,
}

impl<'a> Constants<'a> {
    pub fn new(graph: &'a Graph, weights: &'a Weights) -> Constants<'a> {
        let mut trained = vec![false; graph.len()];
        for id in graph.ids() {
            let inherits = graph.inputs(id).iter().any(|i| trained[i.index()]);
            trained[id.index()] = inherits || matches!(graph.op(id), Op::Param { .. });
        }
        Constants { graph, weights, trained, known: RefCell::default() }
    }

    /// What a mask of scores of these extents comes to. `keeps` says of a condition where scores are kept; none if it is
    /// added.
    pub fn mask(&self, id: NodeId, keeps: Option<bool>, dims: &[usize]) -> Mask {
        if self.trained[id.index()] {
            return Mask::Trained;
        }
        let Some(values) = self.value(id) else { return Mask::Other };
        let (queries, keys) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        let seen = |v: f64| keeps.map_or(v == 0.0, |keeps| (v != 0.0) == keeps);
        let hidden = |v: f64| keeps.map_or(v <= HIDDEN, |keeps| (v != 0.0) != keeps);
        if values.data.iter().all(|&v| seen(v)) {
            return Mask::Nothing;
        }
        let is_causal = |(at, &v): (usize, &f64)| {
            let (i, j) = (at / keys % queries, at % keys);
            if j <= i { seen(v) } else { hidden(v) }
        };
        match values.dims.ends_with(&[queries, keys]) && values.data.iter().enumerate().all(is_causal) {
            true => Mask::Causal { wholly: keeps.is_some() || values.data.iter().all(|v| *v == 0.0 || !v.is_finite()) },
            false => Mask::Other,
        }
    }

    fn value(&self, id: NodeId) -> Option<Rc<Tensor>> {
        if let Some(known) = self.known.borrow().get(&id) {
            return known.clone();
        }
        let found = stacker::maybe_grow(RED_ZONE, STACK, || self.compute(id)).map(Rc::new);
        self.known.borrow_mut().insert(id, found.clone());
        found
    }

    /// The value of a node, whose axes have an extent of 1 where what lies along them is the same.
    fn compute(&self, id: NodeId) -> Option<Tensor> {
        let graph = self.graph;
        let op = graph.op(id);
        let x: Vec<Rc<Tensor>> = match op {
            Op::State { .. } => return self.constant(id),
            Op::Iota { dims, axis } => {
                let mut own = vec![1; dims.rank()];
                own[*axis] = *dims.fixed()?.get(*axis)?;
                return Some(Tensor::from_fn(&own, |i| i[*axis] as f64));
            }
            Op::Const(_) => Vec::new(),
            Op::Broadcast { .. } | Op::Reshape { .. } | Op::Transpose { .. } => {
                vec![self.value(graph.inputs(id)[0])?]
            }
            op if op.is_elementwise() && !matches!(op, Op::Random { .. }) => {
                graph.inputs(id).iter().map(|&i| self.value(i)).collect::<Option<_>>()?
            }
            _ => return None,
        };
        match op {
            Op::Broadcast { dims } => {
                let lead = dims.rank() - x[0].dims.len();
                let own = [&vec![1; lead][..], &x[0].dims].concat();
                Some(Tensor::new(&own, x[0].data.clone()))
            }
            Op::Reshape { .. } => {
                let dims = graph.ty(id).dims();
                match x[0].data.len() {
                    1 => Some(Tensor::new(&vec![1; dims.len()], x[0].data.clone())),
                    n if n == dims.iter().product::<usize>() => Some(Tensor::new(&dims, x[0].data.clone())),
                    _ => None,
                }
            }
            _ => {
                let rank = graph.shape(id).rank();
                let extent = |axis: usize| {
                    let own = x.iter().filter_map(|t| Some(t.dims[(axis + t.dims.len()).checked_sub(rank)?]));
                    own.max().unwrap_or(1)
                };
                let dims: Vec<usize> = match op {
                    Op::Transpose { perm } => perm.iter().map(|&p| x[0].dims[p]).collect(),
                    _ => (0..rank).map(extent).collect(),
                };
                if dims.iter().product::<usize>() > MOST {
                    return None;
                }
                let ty = Type::new(Shape::of(&dims), graph.ty(id).format);
                Some(op.eval(&x.iter().map(Rc::as_ref).collect::<Vec<_>>(), &ty))
            }
        }
    }

    /// A constant of the model's file. Exporters repeat masks for every sample: one of these will do.
    fn constant(&self, id: NodeId) -> Option<Tensor> {
        let name = self.graph.name_of(id);
        if self.graph.output(name, Role::Update).is_some() {
            return None;
        }
        let weight = self.weights.get(name).filter(|w| w.elements() > 0)?;
        let mut dims = weight.dims.clone();
        let bytes = weight.bytes();
        let mut first = bytes.len();
        for extent in &mut dims {
            let part = first / *extent;
            if *extent > 1 && bytes[..first].chunks(part).all(|p| p == &bytes[..part]) {
                *extent = 1;
                first = part;
            } else if *extent != 1 {
                break;
            }
        }
        let elements = first / weight.format.bytes();
        if elements > MOST {
            return None;
        }
        let one = Weight::from_bytes(weight.format, &dims, &bytes[..first]);
        Some(Tensor::new(&dims, one.values::<f64>()))
    }
}
