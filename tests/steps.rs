//! Planned steps on the CPU executor against the reference evaluator in f64.

mod common;

use common::{MODELS, compile, distance, feed, initialise_all};
use mantissa::format::{Format, widen};
use mantissa::ir::{Op, Role, Tensor, evaluate, verify};
use mantissa::lower::lower;
use mantissa::plan::Policy;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;

/// One step on the CPU executor and the planned graph in the f64 evaluator (which rounds at every put, nowhere else):
/// the largest relative distance of any updated parameter or metric.
fn against_reference(source: &str, policy: Policy, low: Format) -> f64 {
    let compiled = compile(source, policy, low, |_| {});
    let graph = &compiled.planned.graph;
    let mut cpu = CpuRunner::new(lower(verify(graph).unwrap()).unwrap());
    initialise_all(&mut cpu, graph, 3);
    feed(&mut cpu, graph, 1, compiled.classes().unwrap_or(1));
    let values = evaluate(graph, |id| {
        let name = graph.name_of(id);
        let ty = graph.ty(id);
        let bytes = cpu.read_bytes(name).unwrap();
        let mut wide = vec![0.0; ty.elements()];
        widen(ty.format, &bytes, &mut wide);
        Tensor::new(&ty.dims(), wide.into_iter().map(f64::from).collect())
    });
    cpu.run().unwrap();
    let mut worst = 0f64;
    for o in graph.outputs() {
        let expected: Vec<f32> = values[o.node.index()].data.iter().map(|&v| v as f32).collect();
        let got = cpu.read(&o.name).unwrap();
        let exempt = o.role == Role::Update && o.name.starts_with("optimizer.");
        let d = distance(&got, &expected);
        assert!(d.is_finite(), "{} is not finite", o.name);
        if !exempt {
            worst = worst.max(d);
        }
    }
    worst
}

#[test]
fn f32_steps_match_f64() {
    for (name, source) in MODELS {
        let d = against_reference(source, Policy::Fp32, Format::F16);
        assert!(d < 2e-5, "{name}: {d:e}");
    }
}

#[test]
fn low_precision_steps_match_the_rounding_reference() {
    for (policy, low, tolerance) in
        [(Policy::O1, Format::F16, 4e-3), (Policy::O1, Format::Bf16, 2e-2), (Policy::O2, Format::F16, 8e-3)]
    {
        for (name, source) in MODELS {
            let d = against_reference(source, policy, low);
            assert!(d < tolerance, "{name} under {policy} {low}: {d:e}");
        }
    }
}

#[test]
fn a_plan_reads_back_from_its_text() {
    for (name, source) in MODELS {
        let compiled = compile(source, Policy::O1, Format::F16, |_| {});
        for graph in [&compiled.step, &compiled.planned.graph] {
            let text = mantissa::ir::text::print(graph);
            let again = mantissa::ir::text::parse(&text, name).unwrap_or_else(|e| panic!("{}", e.render(false)));
            assert_eq!(mantissa::ir::text::print(&again), text);
        }
        let has_product = source.contains('@');
        assert!(
            !has_product
                || compiled.planned.graph.ids().any(|id| matches!(compiled.planned.graph.op(id), Op::Put(Format::F16))),
            "{name} uses no f16"
        );
    }
}
