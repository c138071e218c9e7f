//! Which values may be stored in the plan's low format, and which products may multiply in it.
//!
//! `o1` follows PyTorch's autocast lists (products low, a list of operations f32, the rest as its inputs, of which parameters
//! and means over the batch do not count, so that a batch norm's result has its input's format as there), `o2` and
//! `o3` the NVIDIA Apex levels of those names. A gradient is treated as the value it belongs to, because autocast's
//! backward operations run in the format their forward operation used. Reductions and the inside of softmax, norms and
//! losses are f32 in every policy: that is the kernels' arithmetic, not a choice.

use super::Request;
use super::divisors::divisors;
use super::interval::{Interval, beyond, bounds};
use crate::error::{Error, Result};
use crate::format::{Format, Formats};
use crate::hint::is_meant;
use crate::ir::{AttentionPart, Graph, NodeId, Op, ReduceKind, Stage, Unary};
use crate::rewrite::Allow;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Who says which values may be narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Everything f32.
    Fp32,
    /// The autocast lists.
    O1,
    /// Everything low but norms, softmax and losses; f32 master weights.
    O2,
    /// Everything low, weights and optimizer state too: the speed of light, not a way to train.
    O3,
    /// What frameworks do: the autocast lists, obeyed without asking what a cast costs. A baseline.
    Greedy,
    /// By evidence, within a budget of noise; the autocast lists where there is no evidence.
    Auto,
}

impl FromStr for Policy {
    type Err = Error;
    fn from_str(s: &str) -> Result<Policy> {
        let all = Policy::ALL.map(|p| (p.name(), p));
        all.iter().find(|(n, _)| *n == s.to_lowercase()).map(|(_, p)| *p).ok_or_else(|| {
            let hint = is_meant(s, all.iter().map(|a| a.0));
            Error::Request(format!("unknown policy `{s}`; policies are {}{hint}", all.map(|a| a.0).join(", ")))
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Policy {
    const ALL: [Policy; 6] = [Policy::Fp32, Policy::O1, Policy::O2, Policy::O3, Policy::Greedy, Policy::Auto];

    /// As options and run files write it.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Fp32 => "fp32",
            Policy::O1 => "o1",
            Policy::O2 => "o2",
            Policy::O3 => "o3",
            Policy::Greedy => "greedy",
            Policy::Auto => "auto",
        }
    }

    /// The format of parameters and optimizer state.
    pub fn master(self, low: Format) -> Format {
        if self == Policy::O3 { low.in_memory() } else { Format::F32 }
    }
}

/// The verdict on one value.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What may be done with the value.
    pub allow: Allow,
    /// The reason, in words.
    pub why: String,
}

/// A verdict for every node of a step.
pub fn paint(graph: &Graph, request: &Request) -> Vec<Verdict> {
    let mut verdicts = by_policy(graph, request);
    request.overrides.apply(graph, &mut verdicts);
    verdicts
}

fn by_policy(graph: &Graph, request: &Request) -> Vec<Verdict> {
    if let (Policy::Auto, Some(calibration)) = (request.policy, &request.calibration) {
        let divides = divisors(graph);
        return graph.ids().map(|id| calibration.verdict(graph, id, request.formats, divides[id.index()])).collect();
    }
    let mut listed: Vec<Listed> = Vec::with_capacity(graph.len());
    // Without data there is still what follows from the operations.
    let known = if request.policy == Policy::Auto { bounds(graph) } else { vec![None; graph.len()] };
    let (large, divides) = (beyond(graph, request.low), divisors(graph));
    for id in graph.ids() {
        let mut verdict = verdict(graph, request, id, &listed, known[id.index()]);
        // Not o3: it says what speed there is, not how to train.
        if verdict.low && request.policy != Policy::O3 {
            let bounded = known[id.index()].is_some();
            if large[id.index()] {
                verdict.low = false;
                verdict.why = format!("holds numbers that {} does not", request.low);
            } else if divides[id.index()] && !bounded && graph.op(id).multiplies_in().is_none() {
                verdict.low = false;
                verdict.why = "something is divided by it, which would hide that it overflows".to_owned();
            }
        }
        listed.push(verdict);
    }
    let low = Formats::from_iter([request.low]);
    let allow = |id: NodeId, l: &Listed| match l.low {
        // A row's sum is subtracted from its scores: rounded to bf16, a sum of 100 would move probabilities by a third.
        true if is_row_statistic(graph.op(id)) => Allow { stores: Formats::NONE, ..Allow::within(low) },
        true => Allow::within(low),
        false => Allow::NONE,
    };
    // A list says what is stored and what multiplies; a product may read anything in its format.
    let verdict =
        |(id, l): (NodeId, Listed)| Verdict { allow: Allow { casts: Formats::ALL, ..allow(id, &l) }, why: l.why };
    graph.ids().zip(listed).map(verdict).collect()
}

/// What a list says of one value.
struct Listed {
    /// May be stored in the low format; for a product, may multiply in it.
    low: bool,
    /// Computed from parameters, state and constants alone, as a batch norm's scale is that is shaped to fit.
    is_setting: bool,
    why: String,
}

fn verdict(graph: &Graph, request: &Request, id: NodeId, done: &[Listed], known: Option<Interval>) -> Listed {
    let policy = request.policy;
    let node = graph.node(id);
    let is_setting = match node.op {
        Op::Input { .. } | Op::Random { .. } => false,
        Op::Param { .. } | Op::State { .. } | Op::Const(_) => true,
        _ => node.op.multiplies_in().is_none() && graph.inputs(id).iter().all(|x| done[x.index()].is_setting),
    };
    let say = |low: bool, why: &str| Listed { low, is_setting, why: why.to_owned() };
    if !node.ty.format.is_float() {
        return say(false, "not a floating-point value");
    }
    if policy == Policy::Fp32 {
        return say(false, "fp32: everything stays f32");
    }
    if node.stage == Stage::Update {
        return say(policy == Policy::O3 && node.ty.shape.rank() > 0, "unscaling, optimizer and loss scaler");
    }
    if node.ty.shape.rank() == 0 {
        return say(false, "a scalar: nothing to gain");
    }
    match policy {
        Policy::Fp32 => unreachable!("handled above"),
        Policy::O3 => return say(true, "o3: everything is low"),
        Policy::O2
            if matches!(
                node.op,
                Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::LayerNorm { .. } | Op::Normalise { .. } | Op::Loss(_)
            ) =>
        {
            return say(false, "o2: norms, softmax and losses stay f32");
        }
        Policy::O2 | Policy::O1 | Policy::Greedy | Policy::Auto => {}
    }
    if node.op.multiplies_in().is_some() {
        return say(true, "a product: on the list of low-precision operations");
    }
    if let Some(forward) = node.grad_of {
        let name = graph.name_of(forward);
        let of_weight = matches!(graph.op(forward), Op::Param { .. });
        let low = if of_weight { uses_low(graph, forward, done) } else { done[forward.index()].low };
        return say(low, &format!("the gradient of `{name}` has its format"));
    }
    if node.op.is_source() && node.ty.format.is_low() {
        return say(true, "comes in a low format");
    }
    if node.op.is_source() {
        return say(policy == Policy::O2 && !matches!(node.op, Op::State { .. }), "comes from outside the step");
    }
    if policy == Policy::O2 {
        return say(true, "o2: the model is cast to the low format");
    }
    if let (Some((lo, hi)), Some(spec)) = (known, request.low.float()) {
        let fits = lo.abs().max(hi.abs()) <= spec.max;
        let what = format!(
            "lies between {lo:.3e} and {hi:.3e}, which {} {}",
            request.low,
            if fits { "holds" } else { "does not hold" }
        );
        return say(fits, &what);
    }
    if on_f32_list(&node.op) {
        return say(false, &format!("{} is on the list of f32 operations", node.op.name()));
    }
    let inputs = graph.inputs(id);
    let follows = |&i: &NodeId| done[i.index()].low;
    if is_statistic(graph, id) {
        return say(false, "a statistic of many elements: little to gain, and the rest is measured by it");
    }
    let neutral = |&i: &NodeId| {
        graph.op(i).is_source()
            || done[i.index()].is_setting
            || is_statistic(graph, i)
            || graph.shape(i).rank() == 0
            || !graph.ty(i).format.is_float()
    };
    if inputs.iter().any(follows) && inputs.iter().all(|i| follows(i) || neutral(i)) {
        say(true, "follows its low inputs")
    } else {
        say(false, "an input is f32")
    }
}

/// A mean over the batch, as a batch norm's: autocast's kernels keep it in f32 and their result in the input's format.
fn is_statistic(graph: &Graph, id: NodeId) -> bool {
    match graph.op(id) {
        Op::Reduce { kind: ReduceKind::Mean, axes, .. } => {
            axes.contains(&0) && graph.shape(graph.inputs(id)[0]).rank() > 1
        }
        op if op.is_view() => graph.inputs(id).first().is_some_and(|&x| is_statistic(graph, x)),
        _ => false,
    }
}

/// Is it what attention keeps of a row of scores?
fn is_row_statistic(op: &Op) -> bool {
    matches!(op, Op::Attention { part: AttentionPart::Lse, .. })
}

/// A weight's gradient is low where some product reads the weight.
fn uses_low(graph: &Graph, param: NodeId, done: &[Listed]) -> bool {
    graph
        .users(param)
        .into_iter()
        .any(|u| graph.node(u).stage == Stage::Forward && done.get(u.index()).is_some_and(|v| v.low))
}

/// The float32 list of `aten/src/ATen/autocast_mode.h`, in our operations.
fn on_f32_list(op: &Op) -> bool {
    match op {
        Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::LayerNorm { .. } | Op::Loss(_) => true,
        Op::Reduce { kind, .. } => matches!(kind, ReduceKind::Sum | ReduceKind::Prod),
        Op::Binary(b) => *b == crate::ir::Binary::Pow,
        Op::Unary(u) => {
            matches!(
                u,
                Unary::Exp
                    | Unary::Expm1
                    | Unary::Log
                    | Unary::Log1p
                    | Unary::Recip
                    | Unary::Rsqrt
                    | Unary::Softplus
                    | Unary::Tan
                    | Unary::Asin
                    | Unary::Acos
                    | Unary::Sinh
                    | Unary::Cosh
            )
        }
        _ => false,
    }
}
