//! How long planning takes, and a training step on the CPU executor.
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
}

criterion_group!(all, benches);
criterion_main!(all);
