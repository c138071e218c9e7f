//! Classes of bug that mixed precision has had elsewhere and that planning can cause or prevent, a test for each. What they
//! are, and where they were seen, stands above each test.

use mantissa::data::{Dataset, Feature, Labels};
use mantissa::format::Format;
use mantissa::ir::{Graph, NodeId, Op, text};
use mantissa::model::Model;
use mantissa::plan::{Overrides, Policy};
use mantissa::rewrite::RuleSet;
use mantissa::run::cpu::Cpu;
use mantissa::train::{Bench, Compiled, Effort, ScalerMode, Session, Settings, compile_by_evidence};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn model(source: &str) -> Model {
    Model::from_graph(text::parse(source, "test.mir").unwrap_or_else(|e| panic!("{}", e.render(false))))
}

fn settings(policy: Policy) -> Settings {
    Settings { policy, sizes: [("batch".to_owned(), 64)].into(), ..Settings::default() }
}

fn compile(source: &str, settings: &Settings) -> Compiled {
    settings.compile(&model(source), &RuleSet::builtin().unwrap(), None).unwrap()
}

fn dataset(samples: usize, width: usize, classes: i64) -> Dataset {
    let noise = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / 4.3e9;
    let values = (0..samples * width).map(|i| noise(i) + ((i / width) as i64 % classes) as f32 * 0.1).collect();
    let labels = Labels::Classes((0..samples as i64).map(|i| i % classes).collect());
    let features = vec![Feature { name: "x".into(), values, dims: vec![width] }];
    Dataset { features, labels, samples, path: PathBuf::from("generated") }
}

fn session(compiled: Compiled) -> Session {
    Session::new(compiled, 0, &Cpu).unwrap()
}

/// Values stored in a narrow format.
fn narrow(g: &Graph) -> Vec<NodeId> {
    g.ids().filter(|&id| matches!(g.op(id), Op::Put(f) if f.is_low())).collect()
}

const NORMED: &str = "model normed {
    input x: f32[batch, 256]  label y: i64[batch]
    param w1: f32[256, 512] = kaiming_uniform  param s: f32[512] = ones  param b: f32[512] = zeros
    param w2: f32[512, 512] = kaiming_uniform  param w3: f32[512, 8] = kaiming_uniform
    h = layer_norm(x @ w1, s, b)
    loss = cross_entropy(gelu(h @ w2) @ w3, y)
}";

/// Norms forced to f32 double what the backward pass keeps and add casts (pytorch#188955, timm#1340): their operands and
/// results may be narrow, their statistics never are.
#[test]
fn norms_are_narrow_outside_and_wide_inside() {
    let rules = RuleSet::builtin().unwrap();
    // Large enough for what is stored to count.
    let data = dataset(4096, 256, 8);
    let sizes = [("batch".to_owned(), 1024)].into();
    let s = Settings { formats: vec![Format::F16], sizes, ..settings(Policy::Auto) };
    let effort = Effort { batches: 3, ..Effort::default() };
    let compiled =
        compile_by_evidence(&s, &model(NORMED), &rules, Bench { data: &data, seed: 0, backend: &Cpu }, effort, &|_| ())
            .unwrap();
    let g = &compiled.planned.graph;
    let norm = g.ids().find(|&id| matches!(g.op(id), Op::LayerNorm { .. })).expect("it stays whole");
    assert_eq!(g.ty(g.inputs(norm)[0]).format, Format::F16, "{}", text::print(g));
    let stored = g.users(norm).into_iter().find(|&u| matches!(g.op(u), Op::Put(_))).expect("a product reads it");
    assert_eq!(g.ty(stored).format, Format::F16);
}

/// Parts of a step were costed as if a backward kernel could be one with a forward kernel, because what lies between was
/// not in sight: the search believed in savings that the whole step takes back, and ended at 72.6 µs.
#[test]
fn parts_of_a_step_keep_its_passes_apart() {
    let sizes = [("batch".to_owned(), 1024)].into();
    let seconds =
        compile(NORMED, &Settings { sizes, low: Format::F16, ..settings(Policy::O1) }).planned.estimate.seconds;
    assert!(seconds < 70e-6, "{:.1} µs", 1e6 * seconds);
}

/// Casts left where they fall make autocast slower than f32 (diffusers#511, pytorch#118499), weights cast in every step
/// most of all (sglang-omni#2262): a tensor is rounded to a format once, where it is written.
#[test]
fn nothing_is_cast_twice_and_weights_not_at_all() {
    let g = compile(NORMED, &settings(Policy::O1)).planned.graph;
    let mut seen = BTreeSet::new();
    for id in narrow(&g) {
        assert!(seen.insert((g.inputs(id)[0], g.ty(id).format)), "`{}` is rounded twice", g.name_of(id));
    }
    let casts: Vec<&str> = g.ids().filter(|&id| matches!(g.op(id), Op::Cast(_))).map(|id| g.name_of(id)).collect();
    assert!(casts.is_empty(), "copies of what lies in memory: {casts:?}");
}

/// Underflow is silent (TF#27655, gpt-neox#477): gradients that f16 loses without a loss scale stay out of f16.
#[test]
fn gradients_that_a_format_loses_are_not_stored_in_it() {
    let rules = RuleSet::builtin().unwrap();
    let data = dataset(512, 256, 8);
    let quiet = NORMED.replace("@ w3, y)", "@ w3, y) * 1e-7");
    let mut s = Settings { formats: vec![Format::F16], ..settings(Policy::Auto) };
    s.recipe.scaler.mode = ScalerMode::Off;
    let effort = Effort { batches: 3, ..Effort::default() };
    let compiled =
        compile_by_evidence(&s, &model(&quiet), &rules, Bench { data: &data, seed: 0, backend: &Cpu }, effort, &|_| ())
            .unwrap();
    let g = &compiled.planned.graph;
    let kept: Vec<&str> = narrow(g).into_iter().map(|id| g.name_of(id)).filter(|n| n.starts_with("d.")).collect();
    assert!(kept.is_empty(), "gradients near 1e-10 in f16: {kept:?}");
    assert!(compiled.planned.measured.unwrap().keeps_budget());
    // With a scale they are representable, and the scale is found.
    let scaled = Settings { formats: vec![Format::F16], ..settings(Policy::Auto) };
    let compiled = compile_by_evidence(
        &scaled,
        &model(&quiet),
        &rules,
        Bench { data: &data, seed: 0, backend: &Cpu },
        effort,
        &|_| (),
    )
    .unwrap();
    assert!(compiled.settings.recipe.scaler.init >= 65536.0, "{}", compiled.settings.recipe.scaler.init);
}

/// A maximum rounded apart from what it is the maximum of equals nothing any more, and its gradient is lost without a word:
/// where the gradient goes is one operation, not a comparison with what is stored.
#[test]
fn a_maximum_stored_narrow_keeps_its_gradient() {
    let source = "model peaks {
        input x: f32[batch, 256]  label y: f32[batch, 16]
        param w: f32[256, 64] = kaiming_uniform  param v: f32[1, 16] = ones
        h = sin(x @ w) * 1.3
        m = reduce_max(h, axes=[1], keep=true)
        loss = mse(m @ v, y)
    }";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "h = \"f32\"\nm = \"f16\"").unwrap();
    let moved = |settings: &Settings| {
        let mut s = session(compile(source, settings));
        let before = s.read("w").unwrap();
        let data = Dataset { labels: Labels::Targets(vec![5.0; 64 * 16]), ..dataset(64, 256, 8) };
        s.train_steps(&data, 1, || ()).unwrap();
        let step: Vec<f32> = s.read("w").unwrap().iter().zip(&before).map(|(a, b)| a - b).collect();
        step
    };
    let plain = moved(&settings(Policy::Fp32));
    let narrow = Settings { overrides: Overrides::read(file.path()).unwrap(), ..settings(Policy::O2) };
    let g = compile(source, &narrow).planned.graph;
    assert!(g.find("m.f16").is_some() && g.find("h.f16").is_none(), "{}", text::print(&g));
    let rounded = moved(&narrow);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    let cosine = dot(&plain, &rounded) / (dot(&plain, &plain) * dot(&rounded, &rounded)).sqrt();
    assert!(cosine > 0.95, "{cosine}");
}

/// Masks of −1e9 and finfo.min become −inf in f16, and rows where all is masked NaN (transformers#17306, NeMo#2658,
/// rten#1321): constants are computed with in f32, and a row without a finite entry attends to nothing.
#[test]
fn masks_beyond_the_range_do_no_harm() {
    let source = "model masked {
        input x: f32[batch, 32]  label y: i64[batch]
        param q: f32[32, 32] = kaiming_uniform  param w: f32[32, 4] = kaiming_uniform
        s = x @ q
        allowed = lt(iota(dims=[batch, 32], axis=1), iota(dims=[batch, 32], axis=0))
        p = softmax(select(allowed, s, -3e38) + select(allowed, 0, -3e38), axis=1)
        loss = cross_entropy((p * s) @ w, y)
    }";
    for policy in [Policy::O1, Policy::O2, Policy::O3] {
        for low in [Format::F16, Format::Bf16] {
            let compiled = compile(source, &Settings { low, ..settings(policy) });
            let report = session(compiled).train_epoch(&dataset(256, 32, 4), |_| ()).unwrap();
            assert!(report.loss.is_finite() && report.skipped == 0, "{policy} {low}: {report:?}");
        }
    }
}

/// Sums added up in a narrow format stop growing (pytorch#2391, candle#3717, Liger#830): 4096 terms of 0.05
/// in f16 end at 128. Accumulators are f32 whatever the operands are, and gradients of biases and embeddings with them.
#[test]
fn accumulators_are_wide() {
    let source = "model long {
        input x: f32[batch, 4096]
        param g: f32[4096] = ones  param b: f32[2] = zeros  param w: f32[1, 2] = ones
        total = reshape(sum(x * 0 + g * 0.05, axes=[1]), dims=[batch, 1])
        loss = mean(square(total @ w + b))
    }";
    for policy in [Policy::O1, Policy::O3] {
        let mut s = session(compile(source, &settings(policy)));
        s.feed("x", &vec![0.0; 64 * 4096]).unwrap();
        let loss = s.step().unwrap();
        let exact = 204.8f64 * 204.8;
        assert!((loss - exact).abs() < 3e-3 * exact, "{policy}: {loss}");
    }
}
