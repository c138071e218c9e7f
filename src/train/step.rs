//! The training step as one pure function: `(params, state, batch) → (params', state', metrics)`.
//!
//! Loss scaling, the overflow check, unscaling, clipping, the optimizer, its schedule and the skip are ordinary nodes,
//! so they are planned and fused like the rest, and a skipped step leaves *all* state as it was.

use super::recipe::{Decay, Optimizer, Recipe, Scaler, ScalerMode};
use super::task::Task;
use crate::autodiff::gradients;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Binary, Graph, Init, NodeId, Num, Op, Output, ReduceKind, Role, Shape, Stage, Type, Unary, verify};
use crate::plan::Policy;
use std::collections::BTreeMap;

/// Names of the step's own state, as checkpoints and logs know them.
pub mod names {
    /// The loss scale; only where it is dynamic.
    pub const SCALE: &str = "scaler.scale";
    /// Good steps in a row since the scale grew.
    pub const GOOD_STEPS: &str = "scaler.good_steps";
    /// Overflows left until the scale comes down; at 0 each one brings it down.
    pub const PATIENCE: &str = "scaler.patience";
    /// Steps skipped since training began, in every mode.
    pub const SKIPPED: &str = "scaler.skipped";
    /// Good steps since training began, by which schedule and bias corrections go.
    pub const STEP: &str = "optimizer.step";
    /// Sum of the epoch's finite losses.
    pub const LOSS_SUM: &str = "log.loss_sum";
    /// Batches of the epoch whose loss was not finite.
    pub const BAD_LOSSES: &str = "log.bad_losses";
    /// Batches of the epoch so far, with those that were skipped.
    pub const BATCHES: &str = "log.batches";
    /// The position, among the batches counted, of the first that was skipped; below 0 while none was.
    pub const FIRST_SKIPPED: &str = "log.first_skipped";
}

/// A training step.
pub struct Built {
    pub graph: Graph,
    /// The value that is the gradient of each trained parameter, as the optimizer reads it, by the parameter's name.
    pub gradient_of: BTreeMap<String, String>,
}

/// Builds the training step of a task. `total_steps` is where a schedule without an end of its own ends.
pub fn build_step(task: &Task, recipe: &Recipe, policy: Policy, low: Format, total_steps: u64) -> Result<Built> {
    recipe.check()?;
    let master = policy.master(low);
    let mut graph = task.graph.map_ops(|op| match op {
        Op::Param { init, ty } if ty.format == Format::F32 => {
            Op::Param { init: init.clone(), ty: Type::new(ty.shape.clone(), master) }
        }
        other => other.clone(),
    })?;
    // Statistics that the model keeps (of batch norms) are state like any other.
    let statistics: Vec<Output> = graph.outputs().iter().filter(|o| o.role == Role::Update).cloned().collect();
    graph.clear_outputs();
    let params: Vec<NodeId> = graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. })).collect();
    if params.is_empty() {
        return Err(Error::Graph(format!("model `{}` has no parameters: there is nothing to train", graph.name)));
    }
    let mut s = Step { g: graph, master };
    s.g.stage = Stage::Update;
    let mode = recipe.scaler.resolved(policy, low);
    let scale = match mode {
        ScalerMode::Dynamic => s.state(names::SCALE, recipe.scaler.init)?,
        ScalerMode::Static => s.g.constant(recipe.scaler.init)?,
        ScalerMode::Off | ScalerMode::Auto => s.g.constant(1.0)?,
    };
    let grads = gradients(&mut s.g, task.loss, scale, &params)?;
    let pairs: Vec<(NodeId, NodeId)> = params.iter().filter_map(|p| Some((*p, *grads.get(p)?))).collect();
    let Some((first, others)) = pairs.split_first() else {
        return Err(Error::Graph(format!("the loss of model `{}` depends on no parameter", s.g.name)));
    };
    s.g.stage = Stage::Update;
    let inverse = s.g.unary(Unary::Recip, scale)?;

    // One source of truth: what is checked is what the optimizer consumes. It is checked in every format: a step with a
    // gradient that is not finite is not taken, so that parameters and optimizer state stay finite, whatever else happens.
    let mut unscale = inverse;
    let first_skipped = s.state(names::FIRST_SKIPPED, -1.0)?;
    let mut overflow = if mode == ScalerMode::Off {
        // No scale comes down to repair it: nothing more is done until somebody has looked.
        let zero = s.g.constant(0.0)?;
        let stopped = s.g.binary(Binary::Ge, first_skipped, zero)?;
        s.or_non_finite(stopped, first.1)?
    } else {
        s.any_non_finite(first.1)?
    };
    for &(_, grad) in others {
        overflow = s.or_non_finite(overflow, grad)?;
    }
    if let Some(limit) = recipe.clip_norm {
        let norm = s.global_norm(&pairs, inverse)?;
        overflow = s.or_non_finite(overflow, norm)?;
        // min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
        let (limit, one) = (s.g.constant(limit)?, s.g.constant(1.0)?);
        let guarded = s.g.shift(norm, 1e-6)?;
        let ratio = s.g.binary(Binary::Div, limit, guarded)?;
        let coefficient = s.g.binary(Binary::Min, one, ratio)?;
        unscale = s.g.binary(Binary::Mul, inverse, coefficient)?;
        s.g.add_output("grad_norm", Role::Metric, norm);
    }
    let step = s.state(names::STEP, 0.0)?;
    let lr = s.learning_rate(recipe, step, total_steps)?;
    s.optimize(&recipe.optimizer, &pairs, unscale, step, lr, overflow)?;
    let next = s.g.shift(step, 1.0)?;
    s.update(names::STEP, step, next, overflow)?;
    for o in &statistics {
        let old =
            s.g.find(&o.name).ok_or_else(|| Error::Graph(format!("update of `{}`, which is no state", o.name)))?;
        s.update(&o.name, old, o.node, overflow)?;
    }
    if mode == ScalerMode::Dynamic {
        s.rescale(&recipe.scaler, scale, overflow)?;
    }
    s.log(task.loss, overflow, first_skipped)?;
    let before = s.g;
    let graph = before.prune(before.outputs())?;
    verify(&graph)?;
    let gradient_of = pairs.into_iter().map(|(p, g)| (before.name_of(p).to_owned(), before.name_of(g).to_owned()));
    Ok(Built { gradient_of: gradient_of.collect(), graph })
}

struct Step {
    g: Graph,
    master: Format,
}

impl Step {
    /// A scalar of f32 state.
    fn state(&mut self, name: &str, init: f64) -> Result<NodeId> {
        let ty = Type::new(Shape::scalar(), Format::F32);
        self.g.add_named(name, Op::State { init: Init::Constant(Num::new(init)), ty }, &[])
    }

    /// Declares the next value of a parameter or state, which a skipped step does not take.
    fn update(&mut self, name: &str, old: NodeId, new: NodeId, overflow: NodeId) -> Result<()> {
        let kept = self.g.add(Op::Select, &[overflow, old, new])?;
        self.g.rename(kept, &format!("{name}.next"));
        self.g.add_output(name, Role::Update, kept);
        Ok(())
    }

    fn or_non_finite(&mut self, bad: NodeId, x: NodeId) -> Result<NodeId> {
        let found = self.any_non_finite(x)?;
        self.g.binary(Binary::Or, bad, found)
    }

    fn any_non_finite(&mut self, x: NodeId) -> Result<NodeId> {
        let finite = self.g.unary(Unary::IsFinite, x)?;
        let bad = self.g.unary(Unary::Not, finite)?;
        self.g.reduce_all(ReduceKind::Any, bad)
    }

    /// √Σ (g/scale)² over all gradients.
    fn global_norm(&mut self, pairs: &[(NodeId, NodeId)], inverse: NodeId) -> Result<NodeId> {
        let mut total = None;
        for &(_, grad) in pairs {
            let unscaled = self.g.binary(Binary::Mul, grad, inverse)?;
            let square = self.g.unary(Unary::Square, unscaled)?;
            let sum = self.g.reduce_all(ReduceKind::Sum, square)?;
            total = Some(match total {
                None => sum,
                Some(t) => self.g.binary(Binary::Add, t, sum)?,
            });
        }
        self.g.unary(Unary::Sqrt, total.expect("there are gradients"))
    }

    fn learning_rate(&mut self, recipe: &Recipe, step: NodeId, total_steps: u64) -> Result<NodeId> {
        let g = &mut self.g;
        let schedule = &recipe.schedule;
        let end = if schedule.steps > 0 { schedule.steps } else { total_steps }.max(schedule.warmup + 1) as f64;
        let warmup = schedule.warmup as f64;
        let mut lr = g.constant(recipe.optimizer.lr())?;
        let one = g.constant(1.0)?;
        if schedule.decay != Decay::Constant {
            // How far the decay has come, from 0 to 1.
            let since = g.shift(step, -warmup)?;
            let share = g.scale(since, 1.0 / (end - warmup))?;
            let zero = g.constant(0.0)?;
            let share = g.binary(Binary::Max, share, zero)?;
            let share = g.binary(Binary::Min, share, one)?;
            let factor = if schedule.decay == Decay::Linear {
                g.binary(Binary::Sub, one, share)?
            } else {
                let angle = g.scale(share, std::f64::consts::PI)?;
                let cos = g.unary(Unary::Cos, angle)?;
                let lifted = g.shift(cos, 1.0)?;
                g.scale(lifted, 0.5)?
            };
            lr = g.binary(Binary::Mul, lr, factor)?;
        }
        if schedule.warmup > 0 {
            let next = g.shift(step, 1.0)?;
            let ramp = g.scale(next, 1.0 / warmup)?;
            let ramp = g.binary(Binary::Min, one, ramp)?;
            lr = g.binary(Binary::Mul, lr, ramp)?;
        }
        Ok(lr)
    }

    fn optimize(
        &mut self,
        optimizer: &Optimizer,
        pairs: &[(NodeId, NodeId)],
        unscale: NodeId,
        step: NodeId,
        lr: NodeId,
        overflow: NodeId,
    ) -> Result<()> {
        // Bias corrections 1 − βᵗ, shared by all parameters.
        let correction = |g: &mut Graph, beta: f64| -> Result<NodeId> {
            let t = g.shift(step, 1.0)?;
            let (b, one) = (g.constant(beta)?, g.constant(1.0)?);
            let power = g.binary(Binary::Pow, b, t)?;
            g.binary(Binary::Sub, one, power)
        };
        for &(param, grad) in pairs {
            let name = self.g.name_of(param).to_owned();
            let shape = self.g.shape(param).clone();
            let state = |s: &mut Step, kind: &str| {
                let ty = Type::new(shape.clone(), s.master);
                let name = format!("optimizer.{kind}.{name}");
                Ok::<_, Error>((s.g.add_named(name.clone(), Op::State { init: Init::zeros(), ty }, &[])?, name))
            };
            let g = self.g.binary(Binary::Mul, grad, unscale)?;
            match *optimizer {
                Optimizer::Sgd { momentum, nesterov, weight_decay, .. } => {
                    let mut d = self.decayed(g, param, weight_decay)?;
                    if momentum != 0.0 {
                        let (b, b_name) = state(self, "momentum")?;
                        let kept = self.g.scale(b, momentum)?;
                        let next = self.g.binary(Binary::Add, kept, d)?;
                        d = if nesterov {
                            let ahead = self.g.scale(next, momentum)?;
                            self.g.binary(Binary::Add, d, ahead)?
                        } else {
                            next
                        };
                        self.update(&b_name, b, next, overflow)?;
                    }
                    let move_by = self.g.binary(Binary::Mul, d, lr)?;
                    let next = self.g.binary(Binary::Sub, param, move_by)?;
                    self.update(&name, param, next, overflow)?;
                }
                Optimizer::Adam { beta1, beta2, eps, weight_decay, .. }
                | Optimizer::Adamw { beta1, beta2, eps, weight_decay, .. } => {
                    let decoupled = matches!(optimizer, Optimizer::Adamw { .. });
                    let g = if decoupled { g } else { self.decayed(g, param, weight_decay)? };
                    let (m, m_name) = state(self, "m")?;
                    let (v, v_name) = state(self, "v")?;
                    let m_next = self.moving_average(m, g, beta1)?;
                    let square = self.g.unary(Unary::Square, g)?;
                    let v_next = self.moving_average(v, square, beta2)?;
                    let (c1, c2) = (correction(&mut self.g, beta1)?, correction(&mut self.g, beta2)?);
                    let rate = self.g.binary(Binary::Div, lr, c1)?;
                    let c2 = self.g.unary(Unary::Sqrt, c2)?;
                    let root = self.g.unary(Unary::Sqrt, v_next)?;
                    let root = self.g.binary(Binary::Div, root, c2)?;
                    let root = self.g.shift(root, eps)?;
                    let ratio = self.g.binary(Binary::Div, m_next, root)?;
                    let move_by = self.g.binary(Binary::Mul, rate, ratio)?;
                    let mut from = param;
                    if decoupled && weight_decay != 0.0 {
                        let share = self.g.scale(lr, weight_decay)?;
                        let one = self.g.constant(1.0)?;
                        let keep = self.g.binary(Binary::Sub, one, share)?;
                        from = self.g.binary(Binary::Mul, param, keep)?;
                    }
                    let next = self.g.binary(Binary::Sub, from, move_by)?;
                    self.update(&m_name, m, m_next, overflow)?;
                    self.update(&v_name, v, v_next, overflow)?;
                    self.update(&name, param, next, overflow)?;
                }
            }
        }
        Ok(())
    }

    fn decayed(&mut self, g: NodeId, param: NodeId, weight_decay: f64) -> Result<NodeId> {
        if weight_decay == 0.0 {
            return Ok(g);
        }
        let pull = self.g.scale(param, weight_decay)?;
        self.g.binary(Binary::Add, g, pull)
    }

    /// β a + (1 − β) x
    fn moving_average(&mut self, a: NodeId, x: NodeId, beta: f64) -> Result<NodeId> {
        let kept = self.g.scale(a, beta)?;
        let new = self.g.scale(x, 1.0 - beta)?;
        self.g.binary(Binary::Add, kept, new)
    }

    /// `torch.amp.GradScaler.update`, with floor, cap and hysteresis. Unlike everything else it acts on skipped steps.
    fn rescale(&mut self, s: &Scaler, scale: NodeId, overflow: NodeId) -> Result<()> {
        let good = self.state(names::GOOD_STEPS, 0.0)?;
        let patience = self.state(names::PATIENCE, s.hysteresis as f64)?;
        let g = &mut self.g;
        let (zero, one, full) = (g.constant(0.0)?, g.constant(1.0)?, g.constant(s.hysteresis as f64)?);
        // A good step.
        let more = g.shift(good, 1.0)?;
        let interval = g.constant(s.interval as f64)?;
        let grows = g.binary(Binary::Ge, more, interval)?;
        let larger = g.scale(scale, s.growth)?;
        let cap = g.constant(s.cap)?;
        let larger = g.binary(Binary::Min, larger, cap)?;
        let scale_good = g.add(Op::Select, &[grows, larger, scale])?;
        let good_good = g.add(Op::Select, &[grows, zero, more])?;
        let patience_good = g.add(Op::Select, &[grows, full, patience])?;
        // An overflow.
        let left = g.binary(Binary::Sub, patience, one)?;
        let spent = g.binary(Binary::Le, left, zero)?;
        let smaller = g.scale(scale, s.backoff)?;
        let floor = g.constant(s.floor)?;
        let smaller = g.binary(Binary::Max, smaller, floor)?;
        let scale_bad = g.add(Op::Select, &[spent, smaller, scale])?;
        let patience_bad = g.binary(Binary::Max, left, zero)?;
        for (name, old_or_bad, good_value) in [
            (names::SCALE, scale_bad, scale_good),
            (names::GOOD_STEPS, zero, good_good),
            (names::PATIENCE, patience_bad, patience_good),
        ] {
            let next = g.add(Op::Select, &[overflow, old_or_bad, good_value])?;
            g.add_output(name, Role::Update, next);
        }
        Ok(())
    }

    /// Sums for the log, so that the host can read them late: now and then is enough.
    fn log(&mut self, loss: NodeId, overflow: NodeId, first_skipped: NodeId) -> Result<()> {
        let (sum, bad, batches) =
            (self.state(names::LOSS_SUM, 0.0)?, self.state(names::BAD_LOSSES, 0.0)?, self.state(names::BATCHES, 0.0)?);
        let skipped = self.state(names::SKIPPED, 0.0)?;
        let g = &mut self.g;
        let finite = g.unary(Unary::IsFinite, loss)?;
        let (zero, one) = (g.constant(0.0)?, g.constant(1.0)?);
        let counted = g.add(Op::Select, &[finite, loss, zero])?;
        let sum_next = g.binary(Binary::Add, sum, counted)?;
        let bad_next = g.shift(bad, 1.0)?;
        let bad_next = g.add(Op::Select, &[finite, bad, bad_next])?;
        let batches_next = g.shift(batches, 1.0)?;
        let more = g.shift(skipped, 1.0)?;
        let skipped_next = g.add(Op::Select, &[overflow, more, skipped])?;
        let none_yet = g.binary(Binary::Lt, first_skipped, zero)?;
        let is_first = g.binary(Binary::And, overflow, none_yet)?;
        let first_next = g.add(Op::Select, &[is_first, batches, first_skipped])?;
        for (name, next) in [
            (names::LOSS_SUM, sum_next),
            (names::BAD_LOSSES, bad_next),
            (names::BATCHES, batches_next),
            (names::SKIPPED, skipped_next),
            (names::FIRST_SKIPPED, first_next),
        ] {
            g.add_output(name, Role::Update, next);
        }
        let flag = g.add(Op::Select, &[overflow, one, zero])?;
        g.add_output("loss", Role::Metric, loss);
        g.add_output("overflow", Role::Metric, flag);
        Ok(())
    }
}
