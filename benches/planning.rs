//! How long planning takes, by the number of layers too, and a training step on the CPU executor.
//!
//! `cargo bench --bench planning`

use criterion::{Criterion, criterion_group, criterion_main};
use mantissa::ir::{Graph, Init, Op, text, verify};
use mantissa::lower::lower;
use mantissa::model::Model;
use mantissa::plan::{Policy, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::cpu::CpuRunner;
use mantissa::run::{Device, initialise};
use mantissa::train::Settings;

fn model() -> Model {
    let source = include_str!("../examples/digits/mlp.mir");
    Model::from_graph(text::parse(source, "mlp.mir").expect("the example parses"))
}

/// A transformer's decoder of so many layers, 128 tokens and 256 channels wide.
fn decoder(layers: usize) -> Model {
    let mut text = "model decoder {
        input ids: i64[batch, 128]  label y: i64[batch, 128]
        param wte: f32[512, 256] = normal(0.02)  param wpe: f32[128, 256] = normal(0.02)
        seen = le(iota(dims=[128, 128], axis=1), iota(dims=[128, 128], axis=0))
        x0 = gather(wte, ids) + wpe\n"
        .to_owned();
    for i in 0..layers {
        let next = i + 1;
        for (name, rows, columns) in [("qkv", 256, 768), ("out", 256, 256), ("up", 256, 1024), ("down", 1024, 256)] {
            text += &format!(
                "param {name}{i}: f32[{rows}, {columns}] = normal(0.02) param {name}{i}.b: f32[{columns}] = zeros\n"
            );
        }
        for name in ["a", "m"] {
            text += &format!("param {name}{i}.w: f32[256] = ones param {name}{i}.b: f32[256] = zeros\n");
        }
        text += &format!("y{i} = layer_norm(x{i}, a{i}.w, a{i}.b) @ qkv{i} + qkv{i}.b\n");
        for (part, name) in ["q", "k", "v"].into_iter().enumerate() {
            let (start, stop) = (256 * part, 256 * (part + 1));
            text += &format!(
                "{name}{i} = transpose(reshape(slice(y{i}, axis=2, start={start}, stop={stop}), dims=[batch, 128, 4, 64]), perm=[0, 2, 1, 3])\n"
            );
        }
        text += &format!(
            "s{i} = matmul(q{i}, k{i}, t=nt) * 0.125
            p{i} = softmax(select(broadcast(seen, dims=[batch, 4, 128, 128]), s{i}, -1e30), axis=3)
            z{i} = reshape(transpose(p{i} @ v{i}, perm=[0, 2, 1, 3]), dims=[batch, 128, 256])
            h{i} = x{i} + z{i} @ out{i} + out{i}.b
            x{next} = h{i} + gelu(layer_norm(h{i}, m{i}.w, m{i}.b) @ up{i} + up{i}.b) @ down{i} + down{i}.b\n"
        );
    }
    text += &format!("loss = cross_entropy(x{layers} @ transpose(wte), y)\n}}");
    Model::from_graph(text::parse(&text, "decoder.mir").expect("the decoder parses"))
}

/// A chain of channels that each have a scale and a shift of their own, as exports of learned affine blocks have: all that
/// trains these numbers is one kernel.
fn scalars(blocks: usize) -> Model {
    let mut text = "model scalars { input x0: f32[batch, 64] param w: f32[64] = ones\n".to_owned();
    for i in 0..blocks {
        let next = i + 1;
        text += &format!("param scale{i}: f32[1] = ones param shift{i}: f32[1] = zeros\n");
        text += &format!("x{next} = tanh(x{i} * w) * scale{i} + shift{i}\n");
    }
    text += &format!("loss = mean(x{blocks}, axes=[0, 1])\n}}");
    Model::from_graph(text::parse(&text, "scalars.mir").expect("the chain parses"))
}

fn fill(device: &mut CpuRunner, graph: &Graph) {
    for id in graph.sources() {
        let name = graph.name_of(id);
        let values =
            match graph.op(id) {
                Op::Param { init, ty } | Op::State { init, ty } if !matches!(init, Init::Copy(_)) => {
                    initialise(name, init, ty, 1).expect("known")
                }
                op => (0..graph.ty(id).elements())
                    .map(|i| {
                        if matches!(op, Op::Input { label: true, .. }) {
                            (i % 10) as f32
                        } else {
                            (i % 17) as f32 / 16.0
                        }
                    })
                    .collect(),
            };
        device.write(name, &values).expect("sources take values");
    }
}

fn benches(c: &mut Criterion) {
    let rules = RuleSet::builtin().expect("built-in rules load");
    let settings = Settings::default();
    let (_, step) =
        settings.build(&model(), &RuleSet::builtin().expect("built-in rules load")).expect("the example builds");
    let request = settings.request().expect("the target is known");
    let mut group = c.benchmark_group("digits");
    group.sample_size(10);
    group.bench_function("plan", |b| b.iter(|| plan(&step, &request, &rules).expect("plans")));
    for policy in [Policy::Fp32, Policy::O1] {
        let settings = Settings { policy, ..Settings::default() };
        let compiled = settings.compile(&model(), &rules, None).expect("compiles");
        let graph = &compiled.planned.graph;
        let mut device = CpuRunner::new(lower(verify(graph).expect("verified")).expect("lowers"));
        fill(&mut device, graph);
        group.bench_function(format!("cpu step {policy}"), |b| b.iter(|| device.run().expect("runs")));
    }
    group.finish();
    // Layers are alike, so time should not grow as their number does.
    let mut group = c.benchmark_group("plan decoder");
    group.sample_size(10);
    for layers in [12, 48] {
        let settings = Settings { sizes: [("batch".to_owned(), 2)].into(), ..Settings::default() };
        let (_, step) = settings.build(&decoder(layers), &rules).expect("the decoder builds");
        group.bench_function(format!("{layers} layers, {} values", step.len()), |b| {
            b.iter(|| plan(&step, &request, &rules).expect("plans"))
        });
    }
    group.finish();
    // Four times the numbers should take four times as long.
    let mut group = c.benchmark_group("plan scalar parameters");
    group.sample_size(10);
    for blocks in [50, 200] {
        let settings = Settings { sizes: [("batch".to_owned(), 8)].into(), ..Settings::default() };
        let (_, step) = settings.build(&scalars(blocks), &rules).expect("the chain builds");
        group.bench_function(format!("{} parameters, {} values", 2 * blocks, step.len()), |b| {
            b.iter(|| plan(&step, &request, &rules).expect("plans"))
        });
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
