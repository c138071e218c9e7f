//! Policy auto: noise estimated against noise measured, budgets kept, and networks that lists of operations cannot train.

mod common;

use common::announce;
use mantissa::data::{Dataset, Feature, Labels};
use mantissa::error::Error;
use mantissa::format::Format;
use mantissa::ir::{Op, text};
use mantissa::model::Model;
use mantissa::plan::{Budget, Policy, print_table};
use mantissa::rewrite::RuleSet;
use mantissa::run::Backend;
use mantissa::run::cpu::Cpu;
use mantissa::run::cuda::{Cuda, available};
use mantissa::train::{Bench, Compiled, Effort, ScalerMode, Session, Settings, compile_by_evidence};
use std::path::PathBuf;

/// Ten noisy prototypes of 64 numbers.
fn dataset(samples: usize) -> Dataset {
    let mut state = 7u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let prototypes: Vec<f32> = (0..640).map(|_| uniform()).collect();
    let classes: Vec<i64> = (0..samples as i64).map(|i| i % 10).collect();
    let values = classes
        .iter()
        .flat_map(|&c| prototypes[c as usize * 64..][..64].to_vec())
        .map(|p| p + 0.5 * uniform())
        .collect();
    let path = PathBuf::from("generated");
    let features = vec![Feature { name: "x".into(), values, dims: vec![64] }];
    Dataset { features, labels: Labels::Classes(classes), samples, path }
}

fn model(source: &str) -> Model {
    Model::from_graph(text::parse(source, "test.mir").unwrap_or_else(|e| panic!("{}", e.render(false))))
}

fn settings(formats: &[Format]) -> Settings {
    // Large enough for narrow formats to pay.
    let sizes = [("batch".to_owned(), 128)].into();
    Settings { formats: formats.to_vec(), sizes, ..Settings::default() }
}

/// Few batches, which are large.
fn effort(budget: Budget) -> Effort {
    Effort { budget, batches: 4, ..Effort::default() }
}

fn auto(source: &str, formats: &[Format], effort: Effort) -> Result<Compiled, Error> {
    by_evidence(&settings(formats), source, &dataset(1536), &Cpu, effort)
}

fn by_evidence(
    settings: &Settings,
    source: &str,
    data: &Dataset,
    backend: &dyn Backend,
    effort: Effort,
) -> Result<Compiled, Error> {
    let bench = Bench { data, seed: 0, backend };
    compile_by_evidence(settings, &model(source), &RuleSet::builtin().unwrap(), bench, effort, &|_| ())
}

const SMOOTH: &str = "model smooth {
    input x: f32[batch, 64]  label y: i64[batch]
    param w1: f32[64, 48] = kaiming_uniform  param b1: f32[48] = zeros
    param scale: f32[48] = ones  param shift: f32[48] = zeros
    param w2: f32[48, 48] = kaiming_uniform  param w3: f32[48, 10] = kaiming_uniform
    h = layer_norm(tanh(x @ w1 + b1), scale, shift)
    loss = cross_entropy(gelu(h @ w2) @ w3, y)
}";

const RECTIFIED: &str = "model rectified {
    input x: f32[batch, 64]  label y: i64[batch]
    param w1: f32[64, 96] = kaiming_uniform  param b1: f32[96] = zeros
    param w2: f32[96, 96] = kaiming_uniform  param w3: f32[96, 10] = kaiming_uniform
    h = relu(x @ w1 + b1)
    loss = cross_entropy(relu(h @ w2) @ w3, y)
}";

const CONVOLUTION: &str = "model convolution {
    input x: f32[batch, 64]  label y: i64[batch]
    param k1: f32[8, 1, 3, 3] = kaiming_uniform  param k2: f32[8, 8, 3, 3] = kaiming_uniform
    param w: f32[512, 10] = kaiming_uniform
    image = reshape(x, dims=[batch, 1, 8, 8])
    a = relu(conv(image, k1, strides=[1, 1], lo=[1, 1], hi=[1, 1]))
    b = relu(conv(a, k2, strides=[1, 1], lo=[1, 1], hi=[1, 1]))
    loss = cross_entropy(reshape(b, dims=[batch, 512]) @ w, y)
}";

/// To first order and with kinks smoothed, the sum of what single roundings add is what the plan adds.
#[test]
fn estimated_noise_is_the_measured_noise() {
    for (name, source) in [("smooth", SMOOTH), ("rectified", RECTIFIED), ("convolution", CONVOLUTION)] {
        for format in [Format::F16, Format::Bf16] {
            let effort = self::effort(Budget::Noise(0.5));
            let compiled = auto(source, &[format], effort).unwrap();
            let noise = &compiled.planned.noise;
            assert!(noise.len() > 8, "{name} {format}: most is rounded, not {noise:?}");
            let estimated = noise.iter().map(|n| n.2).sum::<f64>().sqrt();
            let measured = compiled.planned.measured.as_ref().unwrap().overall();
            let ratio = measured / estimated;
            assert!((0.2..3.0).contains(&ratio), "{name} {format}: estimated {estimated:.4}, measured {measured:.4}");
        }
    }
}

/// The loader rounds what a product reads in another shape; the cast is the input's rounding.
#[test]
fn the_noise_of_a_reshaped_input_is_known() {
    let source = "model reshaped {
        input x: f32[batch, 64]  label y: i64[batch]
        param w1: f32[64, 512] = kaiming_uniform  param w2: f32[512, 10] = kaiming_uniform
        h = tanh(reshape(x, dims=[batch, 1, 64]) @ w1)
        loss = cross_entropy(mean(h, axes=[1]) @ w2, y)
    }";
    let compiled = auto(source, &[Format::F16], effort(Budget::Noise(0.5))).unwrap();
    assert!(compiled.planned.graph.find("x.f16").is_some(), "{}", text::print(&compiled.planned.graph));
    assert!(compiled.planned.noise.iter().any(|n| n.0 == "x"), "{:?}", compiled.planned.noise);
}

/// Every plan keeps to its budget, and the smaller it is, the less is rounded.
#[test]
fn smaller_budgets_round_less() {
    let mut stored = Vec::new();
    for share in [0.1, 3e-3, 3e-4, 1e-5] {
        let effort = self::effort(Budget::Relative(share));
        let compiled = auto(SMOOTH, &[Format::F16, Format::Bf16], effort).unwrap();
        let measured = compiled.planned.measured.as_ref().unwrap();
        assert!(measured.keeps_budget(), "{share}: {measured:?}");
        let g = &compiled.planned.graph;
        stored.push(g.ids().filter(|&id| matches!(g.op(id), Op::Put(f) if f.is_low())).count());
    }
    assert!(stored[0] > 15 && stored[3] <= 4, "roundings by budget: {stored:?}");
    assert!(stored[1] <= stored[0] && stored[2] <= stored[1] && stored[3] <= stored[2] + 2, "{stored:?}");
}

#[test]
fn the_choice_is_the_same_every_time() {
    let plan = || {
        text::print(&auto(RECTIFIED, &[Format::F16, Format::Bf16], effort(Budget::default())).unwrap().planned.graph)
    };
    assert_eq!(plan(), plan());
}

/// What is rounded beyond the range never enters a plan, however large the budget.
#[test]
fn ranges_are_kept() {
    let loud =
        RECTIFIED.replace("h = relu(x @ w1 + b1)", "h = relu(x @ w1 + b1) * 1e5").replace("@ w3", "@ (w3 * 1e-5)");
    let effort = self::effort(Budget::Noise(1e3));
    let compiled = auto(&loud, &[Format::F16], effort).unwrap();
    let g = &compiled.planned.graph;
    for id in g.ids().filter(|&id| matches!(g.op(id), Op::Put(Format::F16))) {
        let value = g.name_of(g.inputs(id)[0]);
        assert_ne!(value, "h", "1e5 is beyond f16");
    }
    assert!(compiled.planned.reasons["h"].contains("f16 overflows"), "{}", compiled.planned.reasons["h"]);
}

/// Beyond f16's range, and of more accuracy than bf16 has: products go to tf32 rather than back to f32, and no value is
/// stored in it.
#[test]
fn products_are_in_tf32_where_nothing_narrower_will_do() {
    let source = "model loud {
        input x: f32[batch, 64]  label y: i64[batch]
        param w1: f32[64, 512] = kaiming_uniform
        param w2: f32[512, 512] = kaiming_uniform  param w3: f32[512, 10] = kaiming_uniform
        h = tanh(x @ w1) * 1e6
        loss = cross_entropy(tanh(h @ w2 * 1e-6) @ w3, y)
    }";
    let effort = self::effort(Budget::Relative(2e-3));
    let compiled = auto(source, &Format::MULTIPLIED, effort).unwrap();
    let (planned, g) = (&compiled.planned, &compiled.planned.graph);
    let products: Vec<Format> = g.ids().filter_map(|id| g.op(id).multiplies_in()).collect();
    assert!(products.contains(&Format::Tf32), "{products:?}");
    assert!(g.ids().all(|id| g.ty(id).format != Format::Tf32), "{}", text::print(g));
    let measured = planned.measured.as_ref().unwrap();
    assert!(measured.keeps_budget(), "{measured:?}");
    let rounds = |n: &&(String, Format, f64)| n.1 == Format::Tf32 && n.2 > 0.0;
    assert!(planned.noise.iter().any(|n| rounds(&n)), "what tf32 rounds is counted: {:?}", planned.noise);
    let without = auto(source, &Format::STORED, effort).unwrap();
    assert!(planned.estimate.seconds < 0.98 * without.planned.estimate.seconds, "tf32 pays");
}

/// Overflow, lost gradients and large logits in one network: autocast's lists fail where evidence does not.
#[test]
fn a_network_that_defeats_lists_trains_by_evidence() {
    let source = include_str!("models/hostile.mir");
    let data = dataset(1536);
    let train = |compiled: Compiled| {
        let mut session = Session::new(compiled, 0, &Cpu).unwrap();
        let epochs: Result<Vec<_>, _> = (0..8).map(|_| session.train_epoch(&data, |_| ())).collect();
        epochs.map(|mut all| all.remove(7))
    };
    let rules = RuleSet::builtin().unwrap();
    let lists = Settings { policy: Policy::O1, ..settings(&[]) };
    let fp32 = Settings { policy: Policy::Fp32, ..settings(&[]) };
    let reference = train(fp32.compile(&model(source), &rules, None).unwrap()).unwrap().loss;
    let listed = train(lists.compile(&model(source), &rules, None).unwrap());
    assert!(listed.is_err(), "autocast's lists overflow: {listed:?}");
    let compiled = auto(source, &[Format::F16, Format::Bf16], effort(Budget::default())).unwrap();
    let reasons = compiled.planned.reasons.clone();
    assert!(compiled.planned.noise.len() > 8, "some of it is rounded: {:?}", compiled.planned.noise);
    let loss = train(compiled).unwrap().loss;
    assert!((loss - reference).abs() < 0.1 * reference, "loss {loss}, {reference} in f32");
    assert!(reasons["loud"].contains("f16 overflows"), "{}", reasons["loud"]);
}

/// A budget that nothing can keep is refused, and says what is still rounded. f32 itself is not exact.
#[test]
fn data_that_cannot_calibrate_is_refused() {
    let error = by_evidence(&settings(&[Format::F16]), SMOOTH, &dataset(8), &Cpu, Effort::default()).unwrap_err();
    assert!(error.to_string().contains("batch"), "{error}");
}

/// A static scale is what the user said, whatever the evidence.
#[test]
fn a_static_loss_scale_stays() {
    let mut settings = settings(&[Format::F16]);
    settings.recipe.scaler.mode = ScalerMode::Static;
    settings.recipe.scaler.init = 1024.0;
    let compiled = by_evidence(&settings, SMOOTH, &dataset(1536), &Cpu, effort(Budget::Noise(0.5))).unwrap();
    assert_eq!(compiled.settings.recipe.scaler.init, 1024.0);
    assert_eq!(compiled.settings.calibration.as_ref().unwrap().loss_scale, 1024.0);
    assert_eq!(Session::new(compiled, 0, &Cpu).unwrap().scale().unwrap(), 1024.0);
}

/// Layers that are alike are planned one by one where evidence tells them apart, and the plan says so.
#[test]
fn layers_by_evidence_are_planned_one_by_one() {
    let mut source =
        "model deep { input x: f32[batch, 64] label y: i64[batch] param w0: f32[64, 16] = kaiming_uniform h0 = x @ w0 "
            .to_owned();
    for i in 1..9 {
        source += &format!("param w{i}: f32[16, 16] = kaiming_uniform h{i} = h{} + tanh(h{} @ w{i}) ", i - 1, i - 1);
    }
    source += "param v: f32[16, 10] = kaiming_uniform loss = cross_entropy(h8 @ v, y) }";
    let by_lists = Settings { policy: Policy::O1, ..settings(&[Format::F16]) };
    let by_lists = by_lists.compile(&model(&source), &RuleSet::builtin().unwrap(), None).unwrap();
    let by_evidence = auto(&source, &[Format::F16], effort(Budget::Noise(0.5))).unwrap();
    let table = |c: &Compiled| print_table(&c.planned, &c.settings.request().unwrap()).unwrap();
    assert!(table(&by_lists).contains("layers: 8 that are alike, planned as 4"), "{}", table(&by_lists));
    let why = "layers: planned one by one, for evidence differs from layer to layer";
    assert!(table(&by_evidence).contains(why), "{}", table(&by_evidence));
}

/// A GPU finds of every value and rounding what the CPU finds, and measures plans as the CPU does.
#[test]
fn a_gpu_calibrates_as_the_cpu_does() {
    if !available() {
        announce("skipped: no GPU");
        return;
    }
    let both = [Format::F16, Format::Bf16];
    for (name, source) in [("smooth", SMOOTH), ("rectified", RECTIFIED), ("convolution", CONVOLUTION)] {
        let on = |backend: &dyn Backend| {
            by_evidence(&settings(&both), source, &dataset(1536), backend, effort(Budget::Noise(0.3))).unwrap()
        };
        let (cpu, gpu) = (on(&Cpu), on(&Cuda::default()));
        let found = |c: &Compiled| c.settings.calibration.clone().unwrap();
        let (ours, theirs) = (found(&cpu), found(&gpu));
        assert_eq!(ours.evidence.values.keys().collect::<Vec<_>>(), theirs.evidence.values.keys().collect::<Vec<_>>());
        for (value, a) in &ours.evidence.values {
            let b = &theirs.evidence.values[value];
            assert_eq!((a.count, a.non_finite), (b.count, b.non_finite), "{value} of {name}");
            let far = (f64::from(a.largest) / f64::from(b.largest)).ln().abs();
            assert!(a.largest == b.largest || far < 0.05, "{value} of {name}: {} and {}", a.largest, b.largest);
        }
        let (mut worst, mut shares) = (1.0f64, 0);
        for (value, a) in &ours.values {
            for (format, &a) in a {
                let b = theirs.values[value][format];
                assert_eq!(a == 0.0, b == 0.0, "{value} of {name} in {format}: {a} and {b}");
                if a > 1e-12 {
                    (worst, shares) = (worst.max(a / b).max(b / a), shares + 1);
                }
            }
        }
        announce(&format!("{name}: {shares} shares, {worst:.3} times apart at most"));
        assert!(shares > 20 && worst < 1.5, "{name}: {shares} shares are up to {worst} times apart");
        assert!(gpu.planned.measured.unwrap().keeps_budget());
    }
}
