//! Steps of many layers, of which few are planned: what they compute, and which steps are planned so.

mod common;

use common::{check_places, compile};
use mantissa::format::Format;
use mantissa::ir::verify;
use mantissa::lower::outline;
use mantissa::plan::{Overrides, Policy};
use proptest::prelude::*;
use std::io::Write;

/// So many layers, from what declares and computes one: `#` is its number, `@@` the one before.
fn repeated(layers: usize, layer: &str) -> String {
    let one = |i: usize| layer.replace("@@", &(i - 1).to_string()).replace('#', &i.to_string()) + "\n";
    (1..=layers).map(one).collect()
}

/// A model of such layers.
fn model(layers: usize, before: &str, layer: &str, after: &str) -> String {
    format!("model deep {{ input x: f32[batch, 8] label y: i64[batch] {before}\n")
        + &repeated(layers, layer)
        + &after.replace("@@", &layers.to_string())
        + "\nloss = cross_entropy(logits, y) }"
}

const START: &str = "param w: f32[8, 16] = xavier_uniform h0 = tanh(x @ w)";
const END: &str = "param v: f32[16, 4] = xavier_uniform logits = h@@ @ v";

/// Models whose layers are alike, with how many of the kind there are.
fn alike() -> Vec<(&'static str, String, usize)> {
    let residual =
        "param a#: f32[16, 24] = xavier_uniform param b#: f32[24] = zeros param c#: f32[24, 16] = xavier_uniform
        h# = h@@ + gelu(h@@ @ a# + b#) @ c#";
    let plain = "param a#: f32[16, 16] = xavier_uniform h# = tanh(h@@ @ a#)";
    let normed = "param s#: f32[16] = ones param t#: f32[16] = zeros param a#: f32[16, 16] = xavier_uniform
        h# = h@@ + relu(layer_norm(h@@, s#, t#, eps=1e-5) @ a#)";
    let shared = "param a#: f32[16, 16] = xavier_uniform h# = h@@ + relu(layer_norm(h@@, s, t, eps=1e-5) @ a#)";
    let attention = "param q#: f32[16, 16] = xavier_uniform param k#: f32[16, 16] = xavier_uniform param u#: f32[16, 20] = xavier_uniform
        param o#: f32[20, 16] = xavier_uniform
        p# = softmax(matmul(h@@ @ q#, h@@ @ k#, t=nt) * 0.25) h# = h@@ + (p# @ (h@@ @ u#)) @ o#";
    let from_start =
        "param a#: f32[16, 12] = xavier_uniform param c#: f32[12, 16] = xavier_uniform h# = tanh((h@@ * h0) @ a#) @ c#";
    let two_back = "param a#: f32[16, 16] = xavier_uniform h# = tanh(h@@ @ a#) + g@@ * 0.5 g# = h@@ * 0.7";
    let start_and_norm = format!("{START} param s: f32[16] = ones param t: f32[16] = zeros");
    let start_and_older = format!("{START} g0 = h0 * 0.3");
    vec![
        ("residual", model(12, START, residual, END), 12),
        ("plain", model(10, START, plain, END), 10),
        ("normed", model(11, START, normed, END), 11),
        ("shared", model(11, &start_and_norm, shared, END), 11),
        ("attention", model(9, START, attention, END), 9),
        ("from the start", model(11, START, from_start, END), 11),
        ("two back", model(12, &start_and_older, two_back, END), 12),
    ]
}

#[test]
fn layers_that_are_alike_are_planned_as_few_and_compute_the_same() {
    for (name, source, layers) in alike() {
        for (policy, tolerance) in [(Policy::Fp32, 1e-4), (Policy::O1, 0.2), (Policy::Greedy, 0.2), (Policy::O2, 0.2)] {
            let compiled = compile(&source, policy, Format::F16, |_| {});
            let [(all, few)] = compiled.planned.layers[..] else {
                panic!("{name} under {policy}: runs of layers {:?}", compiled.planned.layers)
            };
            assert!(few < all && all + 1 >= layers, "{name} under {policy}: {all} layers planned as {few}");
            check_places(&format!("{name} under {policy}"), &compiled, tolerance);
        }
    }
}

/// What a layer hands to the next is stored, and so is what all layers' overflow checks found: no kernel reads more because
/// there are more layers. Small batches tempt most, for there what a kernel reads costs next to nothing.
#[test]
fn kernels_read_no_more_in_a_deeper_network() {
    let attention = "param s#: f32[32] = ones param t#: f32[32] = zeros param q#: f32[32, 96] = normal(0.1) param bq#: f32[96] = zeros
        param o#: f32[32, 32] = normal(0.1) param bo#: f32[32] = zeros
        m# = layer_norm(h@@, s#, t#) @ q# + bq#
        k# = slice(m#, axis=2, start=0, stop=32) l# = slice(m#, axis=2, start=32, stop=64)
        p# = softmax(matmul(k#, l#, t=nt) * 0.2)
        g# = h@@ + matmul(p#, slice(m#, axis=2, start=64, stop=96)) @ o# + bo#";
    let perceptron =
        "param v#: f32[32] = ones param w#: f32[32] = zeros param u#: f32[32, 128] = normal(0.1) param bu#: f32[128] = zeros
        param d#: f32[128, 32] = normal(0.1) param bd#: f32[32] = zeros
        h# = g# + gelu(layer_norm(g#, v#, w#) @ u# + bu#) @ d# + bd#";
    let most = |layer: &str, layers: usize| {
        let text = "model deep { input h0: f32[batch, 16, 32] label y: f32[batch, 16, 32]\n".to_owned()
            + &repeated(layers, layer)
            + &format!("loss = mse(h{layers}, y) }}");
        let compiled = compile(&text, Policy::O1, Format::F16, |s| s.sizes = [("batch".to_owned(), 2)].into());
        assert!(!compiled.planned.layers.is_empty());
        let program = outline(verify(&compiled.planned.graph).unwrap()).unwrap();
        // Scalars share one kernel, however many there are.
        let tensors = program.kernels().filter(|k| k.body().outer_size() > 1);
        tensors.map(|k| k.reads().len()).max().unwrap()
    };
    let alone = perceptron.replace("g#", "h@@");
    for layer in [attention.to_owned() + " " + perceptron, alone] {
        assert_eq!(most(&layer, 8), most(&layer, 16));
    }
}

#[test]
fn layers_that_differ_are_planned_as_they_are() {
    let unlike =
        "param a#: f32[16, 1#] = xavier_uniform param c#: f32[1#, 16] = xavier_uniform h# = h@@ + tanh(h@@ @ a#) @ c#";
    // The last layers read the first ones' values: which, no other number of layers tells.
    let mut skips = START.to_owned();
    for i in 1..=8 {
        skips += &format!(" param a{i}: f32[16, 16] = xavier_uniform h{i} = tanh(h{} @ a{i})", i - 1);
    }
    for i in 9..=16 {
        skips += &format!(" param a{i}: f32[16, 16] = xavier_uniform h{i} = tanh(h{} @ a{i}) + h{}", i - 1, 17 - i);
    }
    for (name, source) in
        [("unlike", model(9, START, unlike, END)), ("skips", model(0, &skips, "", &END.replace("@@", "16")))]
    {
        let compiled = compile(&source, Policy::Fp32, Format::F16, |_| {});
        assert_eq!(compiled.planned.layers, [], "{name}");
        check_places(name, &compiled, 1e-4);
    }
}

#[test]
fn a_layer_with_a_format_of_its_own_parts_those_before_it_from_those_after() {
    let (_, source, _) = alike().swap_remove(0);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"\"h6\" = \"f32\"\n").unwrap();
    let overrides = Overrides::read(file.path()).unwrap();
    let compiled = compile(&source, Policy::O1, Format::F16, |s| s.overrides = overrides.clone());
    check_places("one layer apart", &compiled, 0.2);
}

#[test]
fn runs_of_layers_of_two_kinds_are_both_planned_as_few() {
    let mut before = START.to_owned();
    for i in 1..=9 {
        let j = i - 1;
        before += &format!(" param a{i}: f32[16, 16] = xavier_uniform h{i} = h{j} + tanh(h{j} @ a{i})");
    }
    before += " param m: f32[16, 24] = xavier_uniform g0 = h9 @ m";
    let layer = "param b#: f32[24, 24] = xavier_uniform g# = g@@ + gelu(g@@ @ b#)";
    let source = model(10, &before, layer, "param v: f32[24, 4] = xavier_uniform logits = g@@ @ v");
    let compiled = compile(&source, Policy::O1, Format::F16, |_| {});
    assert_eq!(compiled.planned.layers.len(), 2, "{:?}", compiled.planned.layers);
    check_places("two kinds", &compiled, 0.2);
}

/// What a layer of a random network computes, from the last layer's result, the one before that, and the start.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("h@@".to_owned()),
        Just("g@@".to_owned()),
        Just("h0".to_owned()),
        Just("(h@@ + b#)".to_owned()),
        Just("(g@@ * z)".to_owned())
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| format!("tanh({a})")),
            inner.clone().prop_map(|a| format!("(({a}) @ a#)")),
            inner.clone().prop_map(|a| format!("(relu({a}) @ c#)")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("(({a}) + ({b}))")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("(({a}) * ({b}))")),
        ]
    })
}

/// Checks a network whose layers compute `e` and `f`, as [`expression`] makes them.
fn check_expressions(e: &str, f: &str, layers: usize) {
    let before = format!("{START} param z: f32[16] = ones g0 = h0 * 0.3");
    // A part of what comes in goes on, so that nothing that is squared again and again leaves f32's range.
    let layer = format!(
        "param a#: f32[16, 16] = xavier_uniform param c#: f32[16, 16] = xavier_uniform param b#: f32[16] = zeros
         h# = 0.5 * tanh({e} + b#) + 0.1 * (h@@ @ (a# + c#)) g# = 0.5 * tanh({f}) + 0.2 * g@@"
    );
    let source = model(layers, &before, &layer, "param v: f32[16, 4] = xavier_uniform logits = (h@@ + g@@) @ v");
    check_places(&source, &compile(&source, Policy::Fp32, Format::F16, |_| {}), 2e-2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, max_shrink_iters: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_network_of_layers_computes_what_its_step_says(e in expression(), f in expression(), layers in 7usize..11) {
        check_expressions(&e, &f, layers);
    }
}

/// tanh(h0), which the first layer and the next compute alike, was said to be where tanh(h2) is.
#[test]
fn what_the_ends_share_with_the_middle_is_not_said_to_be_elsewhere() {
    for layers in 7..11 {
        check_expressions("((h0) + (tanh((h@@ + b#))))", "h@@", layers);
    }
}
