//! Gradients against central finite differences in f64, for every operation with a gradient.

mod common;

use common::{MODELS, noise};
use mantissa::autodiff::gradients;
use mantissa::format::Format;
use mantissa::ir::{Binary, Graph, NodeId, Op, ReduceKind, Tensor, Unary, evaluate, text};
use mantissa::model::Weights;
use mantissa::train::{Objective, Task};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Values of all sources: integers small, floats away from the kinks of |x|, relu and max at 0.
fn sources(graph: &Graph, seed: u32) -> BTreeMap<NodeId, Tensor> {
    let value = |id: NodeId| {
        let ty = graph.ty(id);
        let data = (0..ty.elements()).map(|i| {
            let x = f64::from(noise(seed + id.index() as u32, i));
            if ty.format == Format::I64 {
                (x * 4.0).floor()
            } else {
                (0.3 + 0.9 * x) * if noise(seed + 99, i + 7 * id.index()) < 0.4 { -1.0 } else { 1.0 }
            }
        });
        Tensor::new(&ty.dims(), data.collect())
    };
    graph.sources().map(|id| (id, value(id))).collect()
}

/// Compares every parameter's gradient of the model's loss, and of the loss's gradients, with finite differences at a few
/// elements.
fn check(source: &str, seed: u32) -> Result<(), String> {
    let (mut graph, loss, params) = task(source)?;
    let once = append(&mut graph, loss, &params)?;
    differences(&graph, loss, &once, seed)?;
    let mut squares = Vec::new();
    for &g in once.values() {
        let square = graph.unary(Unary::Square, g).map_err(|e| e.to_string())?;
        squares.push(graph.reduce_all(ReduceKind::Sum, square).map_err(|e| e.to_string())?);
    }
    let Some(length) = squares.into_iter().reduce(|a, b| graph.binary(Binary::Add, a, b).expect("scalars add")) else {
        return Ok(());
    };
    let twice = append(&mut graph, length, &params)?;
    differences(&graph, length, &twice, seed).map_err(|e| format!("the gradients' gradient: {e}"))
}

/// A model's graph, its loss and its parameters.
fn task(source: &str) -> Result<(Graph, NodeId, Vec<NodeId>), String> {
    let graph = text::parse(source, "gradient test").map_err(|e| e.render(false))?;
    let graph = graph.bind(&BTreeMap::from([("batch".to_owned(), 3)])).map_err(|e| e.to_string())?;
    let Task { graph, loss, .. } =
        Task::new(graph, None, &Objective::default(), &mut Weights::new()).map_err(|e| e.to_string())?;
    let params: Vec<NodeId> = graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. })).collect();
    Ok((graph, loss, params))
}

fn append(graph: &mut Graph, of: NodeId, params: &[NodeId]) -> Result<BTreeMap<NodeId, NodeId>, String> {
    let one = graph.constant(1.0).map_err(|e| e.to_string())?;
    gradients(graph, of, one, params).map_err(|e| e.to_string())
}

/// Compares gradients of a scalar with finite differences.
fn differences(graph: &Graph, of: NodeId, grads: &BTreeMap<NodeId, NodeId>, seed: u32) -> Result<(), String> {
    let inputs = sources(graph, seed);
    let values = evaluate(graph, |id| inputs[&id].clone());
    let at = |changed: &BTreeMap<NodeId, Tensor>| evaluate(graph, |id| changed[&id].clone())[of.index()].data[0];
    for (&param, &grad) in grads {
        let analytic = &values[grad.index()];
        if analytic.dims != inputs[&param].dims {
            return Err(format!("the gradient of `{}` has shape {:?}", graph.name_of(param), analytic.dims));
        }
        let n = analytic.data.len();
        for i in (0..n).step_by((n / 5).max(1)) {
            let h = 1e-5;
            let mut moved = inputs.clone();
            let mut bump = |by: f64| {
                moved.get_mut(&param).expect("a source").data[i] = inputs[&param].data[i] + by;
                at(&moved)
            };
            let numeric = (bump(h) - bump(-h)) / (2.0 * h);
            let a = analytic.data[i];
            if (a - numeric).abs() > 1e-6 * (1.0 + a.abs().max(numeric.abs())) {
                return Err(format!(
                    "d loss / d {}[{i}] is {a}, by finite differences {numeric}",
                    graph.name_of(param)
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn every_model() {
    for (name, source) in MODELS {
        check(source, 1).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_gather_at_one_position_along_the_last_axis() {
    let source = "model m { input i: i64 param a: f32[2, 5] = ones loss = sum(square(gather(a, i, axis=1))) }";
    check(source, 2).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_unary_operation() {
    for u in Unary::ALL.into_iter().filter(|u| !u.is_predicate() && *u != Unary::BitNot) {
        // Logarithms and roots take positive numbers, inverse functions the range of what they invert.
        let x = match u {
            Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt => "square(w) + 0.5",
            Unary::Acosh => "square(w) + 1.5",
            Unary::Asin | Unary::Acos | Unary::Atanh => "0.9 * sin(w)",
            _ => "w",
        };
        let source = format!(
            "model m {{ param w: f32[2, 3] = ones param v: f32[2, 3] = ones loss = sum(v * {}({x})) }}",
            u.name()
        );
        check(&source, 5).unwrap_or_else(|e| panic!("{}: {e}", u.name()));
    }
}

fn shape() -> impl Strategy<Value = (String, String, String)> {
    // Pairs that broadcast, with extents 1 and 0 among them, and their common shape's reduction axes.
    prop::sample::select(vec![
        ("f32[2, 3]", "f32[2, 3]", "[0, 1]"),
        ("f32[2, 3]", "f32[3]", "[1]"),
        ("f32[4, 1]", "f32[1, 3]", "[0]"),
        ("f32", "f32[2, 2]", "[0, 1]"),
        ("f32[1]", "f32[3]", "[0]"),
        ("f32[2, 1, 3]", "f32[4, 1]", "[0, 2]"),
        ("f32[0, 3]", "f32[3]", "[0]"),
        ("f32[1, 1]", "f32[1, 1]", "[1]"),
    ])
    .prop_map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn binary_operations_broadcast((a, b, _) in shape(), op in prop::sample::select(Binary::ALL.to_vec()), seed in 0u32..1000) {
        if !op.is_comparison() && !op.is_logic() && !op.is_bitwise() {
            let base = if op == Binary::Pow { "abs(a) + 0.2" } else { "a" };
            let source = format!("model m {{ param a: {a} = ones param b: {b} = ones loss = sum({}({base}, b) * 0.7) }}", op.name());
            check(&source, seed).map_err(|e| TestCaseError::fail(format!("{} of {a} and {b}: {e}", op.name())))?;
        }
    }

    #[test]
    fn reductions((a, b, axes) in shape(), kind in prop::sample::select(vec!["sum", "mean", "reduce_max", "reduce_min", "prod"]), keep: bool, seed in 0u32..1000) {
        if !a.contains('0') {
            let source = format!("model m {{ param a: {a} = ones param b: {b} = ones c = a * 1 + b * 0.5 loss = sum(square({kind}(c, axes={axes}, keep={keep}))) }}");
            check(&source, seed).map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn products(t in prop::sample::select(vec!["nn", "nt", "tn", "tt"]), m in 1usize..4, k in 1usize..4, n in 1usize..4, batch in prop::option::of(1usize..3), seed in 0u32..1000) {
        let dims = |transposed: bool, r: usize, c: usize| {
            let (r, c) = if transposed { (c, r) } else { (r, c) };
            batch.map_or(format!("f32[{r}, {c}]"), |b| format!("f32[{b}, {r}, {c}]"))
        };
        let (a, b) = (dims(t.starts_with('t'), m, k), dims(t.ends_with('t'), k, n));
        let source = format!("model m {{ param a: {a} = ones param b: {b} = ones loss = sum(square(matmul(a, b, t={t}))) }}");
        check(&source, seed).map_err(TestCaseError::fail)?;
    }

    /// With queries, keys, values and a mask that are all trained; and the gradient of ln Σ eˢ.
    #[test]
    fn attention(groups in 1usize..3, share in 1usize..3, queries in 1usize..4, keys in 1usize..4, causal: bool, masked: bool, seed in 0u32..1000) {
        let (heads, mask) = (groups * share, if masked { ", m" } else { "" });
        let source = format!(
            "model m {{ param q: f32[1, {heads}, {queries}, 2] = ones param k: f32[1, {groups}, {keys}, 2] = ones
             param v: f32[1, {groups}, {keys}, 3] = ones param m: f32[1, 1, {queries}, {keys}] = ones
             o = attention(q, k, v{mask}, scale=0.7, causal={causal}) l = attention_lse(q, k{mask}, scale=0.7, causal={causal})
             loss = sum(square(o)) + sum(sin(l)) + sum(m) }}"
        );
        check(&source, seed).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn moving_elements(start in 0usize..3, len in 1usize..4, step in 1usize..3, lo in 0usize..2, hi in 0usize..2, inner in 0usize..2, seed in 0u32..1000) {
        let stop = (start + len).min(5);
        let source = format!(
            "model m {{ param a: f32[2, 5] = ones b = slice(a, axis=1, start={start}, stop={stop}, step={step}) c = pad(b, axis=0, lo={lo}, hi={hi}, inner={inner}) d = concat(c, c * 2, axis=1) loss = sum(square(transpose(d)) * 0.3) }}"
        );
        check(&source, seed).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn rows(rows in 1usize..4, width in 1usize..6, seed in 0u32..1000) {
        let body = "p = softmax(a) q = log_softmax(a, axis=0) n = layer_norm(a, s, t, eps=0.01) g = gather(a, i, axis=0) loss = sum(square(p + q * 0.1 + n)) + sum(square(g))";
        let source = format!("model m {{ param a: f32[{rows}, {width}] = ones param s: f32[{width}] = ones param t: f32[{width}] = ones i = iota(dims=[{rows}], axis=0) {body} }}");
        check(&source, seed).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn convolutions(
        kind in prop::sample::select(vec!["conv", "conv_input"]),
        axes in 1usize..4, stride in 1usize..3, dilation in 1usize..3, lo in 0usize..2, hi in 0usize..2,
        kernel in 1usize..4, extra in 0usize..3, groups in 1usize..3, seed in 0u32..1000,
    ) {
        let list = |v: usize| format!("{:?}", vec![v; axes]);
        let reach = dilation * (kernel - 1) + 1;
        // An input that the windows cover, and a little more.
        let extent = (reach + extra).saturating_sub(lo + hi).max(1);
        let places = (extent + lo + hi).checked_sub(reach).map_or(0, |room| room / stride + 1);
        let spatial = |n: usize| format!(", {n}").repeat(axes);
        let attrs = format!("strides={}, dilations={}, lo={}, hi={}, groups={groups}", list(stride), list(dilation), list(lo), list(hi));
        let w = format!("param w: f32[{}, 2{}] = ones", 2 * groups, spatial(kernel));
        let x = if kind == "conv" { format!("[2, {}{}]", 2 * groups, spatial(extent)) } else { format!("[2, {}{}]", 2 * groups, spatial(places)) };
        let more = if kind == "conv" { String::new() } else { format!(", extents={}", list(extent)) };
        let source = format!("model m {{ param x: f32{x} = ones {w} y = {kind}(x, w, {attrs}{more}) loss = sum(square(y)) * 0.1 }}");
        check(&source, seed).map_err(|e| TestCaseError::fail(format!("{source}: {e}")))?;
    }

    #[test]
    fn windows(size in 1usize..4, stride in 1usize..4, dilation in 1usize..3, lo in 0usize..2, hi in 0usize..3, seed in 0u32..1000) {
        let window = format!("window(x, axis=1, size={size}, stride={stride}, dilation={dilation}, lo={lo}, hi={hi}");
        let source = format!(
            "model m {{ param x: f32[2, 6, 2] = ones a = mean({window}), axes=[2]) b = reduce_max({window}, fill=-9), axes=[2]) loss = sum(square(a)) + sum(b * b) }}"
        );
        check(&source, seed).map_err(|e| TestCaseError::fail(format!("{source}: {e}")))?;
    }

    #[test]
    fn norms(axes in prop::sample::select(vec!["[0]", "[1]", "[0, 2]", "[1, 2]", "[0, 1, 2]"]), seed in 0u32..1000) {
        let source = format!(
            "model m {{ param x: f32[2, 3, 2] = ones param s: f32[3, 1] = ones y = standardise(x, axes={axes}, eps=0.01) * s z = rms_normalise(x, axes={axes}, eps=0.01) loss = sum(y * y * y) + sum(square(z) * s + z) }}"
        );
        check(&source, seed).map_err(|e| TestCaseError::fail(format!("{source}: {e}")))?;
    }

    #[test]
    fn scatters(kind in prop::sample::select(vec!["set", "add"]), axis in 0usize..2, seed in 0u32..1000) {
        let (updates, n) = if axis == 0 { ("f32[2, 3]", 2) } else { ("f32[4, 2]", 2) };
        let source = format!(
            "model m {{ param x: f32[4, 3] = ones param u: {updates} = ones i = iota(dims=[{n}], axis=0) y = scatter(x, i, u, axis={axis}, kind={kind}) loss = sum(square(y)) }}"
        );
        check(&source, seed).map_err(|e| TestCaseError::fail(format!("{source}: {e}")))?;
    }
}
