//! Losses: what a prediction is compared with, and how.
//!
//! A loss is built into the training step as a graph, and scored on the host in f64 when a model is evaluated. Both follow
//! PyTorch's losses of the same names with `reduction="mean"`.

use crate::error::{Error, Result};
use crate::format::Format;
use crate::hint::is_meant;
use crate::ir::ops::at_label;
use crate::ir::{Binary, Dim, Graph, Init, Loss, NodeId, Op, ReduceKind, Shape, Type, Unary};
use crate::model::{Weight, Weights};
use serde::{Deserialize, Serialize};

/// What `--loss` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Class indices against logits.
    CrossEntropy,
    /// Class indices against log-probabilities.
    Nll,
    /// Targets of 0 to 1 against logits, or against the sigmoid of logits, which is taken off.
    Bce,
    /// Squared difference.
    Mse,
    /// Magnitude of the difference.
    L1,
    /// Half the squared difference up to `huber_delta`, a line beyond (Huber 1964).
    Huber,
}

/// Options of a loss, as in the run file's section `[objective]`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// The output that is compared with the label; needed where a model has several. Default: the only one.
    pub prediction: Option<String>,
    /// An input of the model that is the label. Default: a new input.
    pub label: Option<String>,
    /// The axis of the prediction that classes lie on, the batch's counted. Default: the last.
    pub class_axis: Option<usize>,
    /// Positions with this label do not count. Default: all count.
    pub ignore_index: Option<i64>,
    /// A weight for each class. Default: none, all alike.
    pub class_weights: Vec<f64>,
    /// The share of the target that is spread over all classes (Szegedy et al. 2016), from 0 to below 1. Default: 0.
    pub label_smoothing: f64,
    /// Where Huber's loss turns from a square to a line; above 0. Default: 1.
    pub huber_delta: f64,
}

impl Default for Objective {
    fn default() -> Objective {
        Objective {
            prediction: None,
            label: None,
            class_axis: None,
            ignore_index: None,
            class_weights: Vec::new(),
            label_smoothing: 0.0,
            huber_delta: 1.0,
        }
    }
}

impl Objective {
    /// Options that only losses over classes have, where one is set.
    fn class_option(&self) -> Option<&'static str> {
        match self {
            o if o.class_axis.is_some() => Some("class_axis"),
            o if o.ignore_index.is_some() => Some("ignore_index"),
            o if !o.class_weights.is_empty() => Some("class_weights"),
            o if o.label_smoothing != 0.0 => Some("label_smoothing"),
            _ => None,
        }
    }
}

/// A loss with its options.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Criterion {
    /// What is computed of prediction and label.
    pub kind: LossKind,
    /// How.
    pub options: Objective,
}

/// State that holds the weights of classes.
const CLASS_WEIGHTS: &str = "loss.class_weights";

impl LossKind {
    /// As `--loss` and run files write them.
    pub const NAMES: [(&str, LossKind); 6] = [
        ("cross_entropy", LossKind::CrossEntropy),
        ("nll", LossKind::Nll),
        ("bce", LossKind::Bce),
        ("mse", LossKind::Mse),
        ("l1", LossKind::L1),
        ("huber", LossKind::Huber),
    ];

    /// The loss of this name; `bce_with_logits` is another name of `bce`. None of others.
    pub fn named(name: &str) -> Option<LossKind> {
        let name = if name == "bce_with_logits" { "bce" } else { name };
        LossKind::NAMES.iter().find(|n| n.0 == name).map(|n| n.1)
    }

    /// "cross_entropy, nll, …", and the name that may have been meant.
    pub fn choices(name: &str) -> String {
        let names: Vec<&str> = LossKind::NAMES.iter().map(|n| n.0).collect();
        let hint = is_meant(name, names.iter().copied());
        format!("{}{hint}", names.join(", "))
    }

    pub(super) fn takes_classes(self) -> bool {
        matches!(self, LossKind::CrossEntropy | LossKind::Nll)
    }
}

impl From<Loss> for LossKind {
    fn from(loss: Loss) -> LossKind {
        match loss {
            Loss::CrossEntropy => LossKind::CrossEntropy,
            Loss::SquaredError => LossKind::Mse,
            Loss::BceWithLogits => LossKind::Bce,
        }
    }
}

impl Criterion {
    /// The loss without options.
    pub fn plain(kind: LossKind) -> Criterion {
        Criterion { kind, options: Objective::default() }
    }

    /// What the loss is taken of: of a sigmoid, its logits, without the logarithm of a rounded 0.
    pub fn compared(&self, g: &Graph, prediction: NodeId) -> NodeId {
        let sigmoid = *g.op(prediction) == Op::Unary(Unary::Sigmoid);
        if self.kind == LossKind::Bce && sigmoid { g.inputs(prediction)[0] } else { prediction }
    }

    /// The axis that classes lie on, of a prediction of this rank.
    pub fn class_axis(&self, rank: usize) -> usize {
        self.options.class_axis.unwrap_or(rank.saturating_sub(1))
    }

    /// The type of the labels of a prediction.
    pub(super) fn label_type(&self, prediction: &Type) -> Result<Type> {
        let mut dims = prediction.shape.0.clone();
        if self.kind.takes_classes() {
            let axis = self.class_axis(dims.len());
            if axis == 0 && dims.len() > 1 {
                return Err(Error::Request("class_axis 0 is that of the batch; classes lie on another".into()));
            }
            if axis >= dims.len() {
                return Err(Error::Request(format!("the prediction is {prediction}, which has no class axis {axis}")));
            }
            dims.remove(axis);
            return Ok(Type::new(Shape(dims), Format::I64));
        }
        Ok(prediction.clone())
    }

    /// Adds the mean loss of what [`Criterion::compared`] says to a graph. Weights of classes become state with values in `weights`.
    ///
    /// # Errors
    /// Options that the loss does not have or that are out of range, and shapes that do not fit.
    pub fn build(&self, g: &mut Graph, x: NodeId, label: NodeId, weights: &mut Weights) -> Result<NodeId> {
        if let Some(option) = self.options.class_option().filter(|_| !self.kind.takes_classes()) {
            return Err(Error::Request(format!("`{option}` is for losses over classes: cross_entropy and nll")));
        }
        if self.kind.takes_classes() {
            return self.of_classes(g, x, label, weights);
        }
        let rows = match self.kind {
            LossKind::Mse => g.add(Op::Loss(Loss::SquaredError), &[x, label])?,
            LossKind::Bce => g.add(Op::Loss(Loss::BceWithLogits), &[x, label])?,
            LossKind::L1 => {
                let d = g.binary(Binary::Sub, x, label)?;
                g.unary(Unary::Abs, d)?
            }
            LossKind::Huber if !(self.options.huber_delta > 0.0 && self.options.huber_delta.is_finite()) => {
                return Err(Error::Request(format!("huber_delta is {}; it is above 0", self.options.huber_delta)));
            }
            LossKind::Huber => huber(g, x, label, self.options.huber_delta)?,
            LossKind::CrossEntropy | LossKind::Nll => unreachable!("handled above"),
        };
        g.reduce_all(ReduceKind::Mean, rows)
    }

    fn of_classes(&self, g: &mut Graph, x: NodeId, label: NodeId, weights: &mut Weights) -> Result<NodeId> {
        let rank = g.shape(x).rank();
        let axis = self.class_axis(rank);
        let mut perm: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
        perm.push(axis);
        let x = if axis + 1 == rank { x } else { g.add(Op::Transpose { perm }, &[x])? };
        let o = &self.options;
        if !(0.0..=1.0).contains(&o.label_smoothing) {
            return Err(Error::Request(format!("label_smoothing is {}; it takes 0 to 1", o.label_smoothing)));
        }
        let (mut label, mut weight) = (label, None);
        let classes = g.shape(x).0.last().cloned().unwrap_or(Dim::Fixed(1));
        let ignored = match o.ignore_index {
            None => None,
            Some(i) => {
                let (index, zero) = (g.constant(i as f64)?, g.constant(0.0)?);
                let hit = g.binary(Binary::Eq, label, index)?;
                let zero = g.add(Op::Convert(g.ty(label).format), &[zero])?;
                label = g.add(Op::Select, &[hit, zero, label])?;
                Some(hit)
            }
        };
        let mut table = None;
        if !o.class_weights.is_empty() {
            let n = o.class_weights.len();
            if classes != Dim::Fixed(n) {
                return Err(Error::Request(format!("{n} class_weights for {classes} classes")));
            }
            let ty = Type::new(Shape::of(&[n]), Format::F32);
            let node = g.add_named(CLASS_WEIGHTS, Op::State { init: Init::Data, ty }, &[])?;
            weights.insert(CLASS_WEIGHTS.into(), Weight::from_values(Format::F32, &[n], &o.class_weights));
            weight = Some(g.add(Op::Gather { axis: 0 }, &[node, label])?);
            table = Some(node);
        }
        if let Some(hit) = ignored {
            let (zero, one) = (g.constant(0.0)?, g.constant(1.0)?);
            let full = weight.unwrap_or(one);
            weight = Some(g.add(Op::Select, &[hit, zero, full])?);
        }
        let mut rows = match self.kind {
            LossKind::CrossEntropy => g.add(Op::Loss(Loss::CrossEntropy), &[x, label])?,
            _ => likelihood(g, x, label)?,
        };
        if let Some(w) = weight {
            rows = g.binary(Binary::Mul, rows, w)?;
        }
        if o.label_smoothing != 0.0 {
            // (1 − ε) of the loss, and ε of the mean over classes.
            let logp = match self.kind {
                LossKind::CrossEntropy => g.add(Op::LogSoftmax { axis: rank - 1 }, &[x])?,
                _ => x,
            };
            let logp = match table {
                Some(w) => g.binary(Binary::Mul, logp, w)?,
                None => logp,
            };
            let mean = g.reduce(ReduceKind::Mean, logp, &[rank - 1], false)?;
            let mut spread = g.scale(mean, -o.label_smoothing)?;
            if let Some(hit) = ignored {
                let zero = g.constant(0.0)?;
                spread = g.add(Op::Select, &[hit, zero, spread])?;
            }
            rows = g.scale(rows, 1.0 - o.label_smoothing)?;
            rows = g.binary(Binary::Add, rows, spread)?;
        }
        let Some(w) = weight else { return g.reduce_all(ReduceKind::Mean, rows) };
        let (sum, total) = (g.reduce_all(ReduceKind::Sum, rows)?, g.reduce_all(ReduceKind::Sum, w)?);
        g.binary(Binary::Div, sum, total)
    }

    /// One sample's loss in f64 and the positions predicted right. `x` has the extents `dims`; `label` is the label of
    /// each position.
    pub fn score(&self, x: &[f32], dims: &[usize], label: impl Fn(usize) -> f64) -> Score {
        let at = |i: usize| f64::from(x[i]);
        let n = x.len().max(1) as f64;
        let mean = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).sum::<f64>() / n;
        let of = |loss: f64, right: Option<bool>| Score {
            loss,
            weight: 1.0,
            right: usize::from(right == Some(true)),
            counted: usize::from(right.is_some()),
        };
        match self.kind {
            LossKind::Mse => of(mean(&|i| (at(i) - label(i)).powi(2)), None),
            LossKind::L1 => of(mean(&|i| (at(i) - label(i)).abs()), None),
            LossKind::Huber => {
                let delta = self.options.huber_delta;
                let loss = |d: f64| if d <= delta { 0.5 * d * d } else { delta * (d - 0.5 * delta) };
                of(mean(&|i| loss((at(i) - label(i)).abs())), None)
            }
            LossKind::Bce => {
                let loss = mean(&|i| at(i).max(0.0) + (-at(i).abs()).exp().ln_1p() - at(i) * label(i));
                of(loss, Some((0..x.len()).all(|i| (at(i) > 0.0) == (label(i) > 0.5))))
            }
            LossKind::CrossEntropy | LossKind::Nll => self.score_classes(x, dims, label),
        }
    }

    fn score_classes(&self, x: &[f32], dims: &[usize], label: impl Fn(usize) -> f64) -> Score {
        // `dims` lack the batch.
        let axis = self.options.class_axis.map_or(dims.len().saturating_sub(1), |a| a.saturating_sub(1));
        let classes = dims.get(axis).copied().unwrap_or(1);
        let inner: usize = dims.iter().skip(axis + 1).product();
        let mut total = Score::default();
        for p in 0..x.len() / classes.max(1) {
            let wanted = label(p) as i64;
            if Some(wanted) == self.options.ignore_index {
                continue;
            }
            let logit = |c: usize| f64::from(x[(p / inner * classes + c) * inner + p % inner]);
            let weight = |c: usize| self.options.class_weights.get(c).copied().unwrap_or(1.0);
            let max = (0..classes).map(logit).fold(f64::NEG_INFINITY, f64::max);
            let norm = match self.kind {
                LossKind::Nll => 0.0,
                _ => max + (0..classes).map(|c| (logit(c) - max).exp()).sum::<f64>().ln(),
            };
            let smooth = self.options.label_smoothing;
            let y = wanted as usize;
            let mut loss = (1.0 - smooth) * weight(y) * (norm - logit(y));
            if smooth > 0.0 {
                loss += smooth * (0..classes).map(|c| weight(c) * (norm - logit(c))).sum::<f64>() / classes as f64;
            }
            let best = (0..classes).reduce(|a, b| if logit(b) > logit(a) { b } else { a });
            total.loss += loss;
            total.weight += weight(y);
            total.right += usize::from(best == Some(y));
            total.counted += 1;
        }
        total
    }
}

/// −x[label] for every row of the last axis.
fn likelihood(g: &mut Graph, x: NodeId, label: NodeId) -> Result<NodeId> {
    let axis = g.shape(x).rank() - 1;
    let hit = at_label(g, x, label)?;
    let zero = g.constant(0.0)?;
    let picked = g.add(Op::Select, &[hit, x, zero])?;
    let sum = g.reduce(ReduceKind::Sum, picked, &[axis], false)?;
    g.unary(Unary::Neg, sum)
}

/// d²/2 up to δ, δ(|d| − δ/2) beyond (Huber 1964).
fn huber(g: &mut Graph, x: NodeId, y: NodeId, delta: f64) -> Result<NodeId> {
    let d = g.binary(Binary::Sub, x, y)?;
    let size = g.unary(Unary::Abs, d)?;
    let limit = g.constant(delta)?;
    let near = g.binary(Binary::Le, size, limit)?;
    let square = g.unary(Unary::Square, d)?;
    let square = g.scale(square, 0.5)?;
    let line = g.shift(size, -0.5 * delta)?;
    let line = g.scale(line, delta)?;
    g.add(Op::Select, &[near, square, line])
}

/// A loss and how much it weighs; positions predicted right, of those that can be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Sum over positions, weighed; of losses without classes the sample's mean.
    pub loss: f64,
    /// Sum of the weights of positions, by which `loss` is divided in the end.
    pub weight: f64,
    /// Positions predicted right; with `bce`, samples right in every element.
    pub right: usize,
    /// Positions that count, with `bce` samples; 0 for losses that compare numbers.
    pub counted: usize,
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Score) {
        self.loss += other.loss;
        self.weight += other.weight;
        self.right += other.right;
        self.counted += other.counted;
    }
}
