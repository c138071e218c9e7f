//! On a GPU: every kernel kind and 100 steps of training agree with the CPU executor.

mod common;

use common::{MODELS, announce, compile, distance, feed, initialise_all};
use mantissa::format::Format;
use mantissa::ir::{Op, verify};
use mantissa::lower::lower;
use mantissa::plan::Policy;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
use mantissa::run::cuda::{CudaRunner, available};
use std::collections::HashMap;

fn gpu() -> bool {
    if !available() {
        announce("skipped: no GPU");
    }
    available()
}

/// Runs a compiled model on both devices and returns the largest relative distance of any parameter or metric.
fn compare(source: &str, policy: Policy, low: Format, steps: u32) -> f64 {
    let compiled = compile(source, policy, low, |_| {});
    let graph = &compiled.planned.graph;
    let program = || lower(verify(graph).unwrap()).unwrap();
    let mut cpu = CpuRunner::new(program());
    let mut cuda = CudaRunner::new(program(), &HashMap::new()).unwrap_or_else(|e| panic!("{e}"));
    for device in [&mut cpu as &mut dyn Device, &mut cuda] {
        initialise_all(device, graph, 3);
        for step in 0..steps {
            feed(device, graph, 10 * step + 1, compiled.classes().unwrap_or(1));
            device.run().unwrap();
        }
    }
    let mut worst = distance(&cuda.read("loss").unwrap(), &cpu.read("loss").unwrap());
    for id in graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. } | Op::State { .. })) {
        let name = graph.name_of(id);
        let d = distance(&cuda.read(name).unwrap(), &cpu.read(name).unwrap());
        assert!(d.is_finite(), "{name} is not finite");
        // Moments of gradients that cancel to nothing have no relative accuracy; parameters do.
        if !name.starts_with("optimizer.") {
            worst = worst.max(d);
        }
    }
    worst
}

#[test]
fn every_model_agrees_after_one_step() {
    if !gpu() {
        return;
    }
    let cases = [
        (Policy::Fp32, Format::F16, 2e-5),
        (Policy::O1, Format::F16, 4e-3),
        (Policy::O1, Format::Bf16, 2e-2),
        (Policy::O2, Format::F16, 8e-3),
    ];
    for (policy, low, tolerance) in cases {
        for (name, source) in MODELS {
            let d = compare(source, policy, low, 1);
            announce(&format!("{name:<18} {policy} {low}: {d:.2e}"));
            assert!(d < tolerance, "{name} under {policy} {low}: {d:e}");
        }
    }
}

#[test]
fn a_hundred_steps_agree() {
    if !gpu() {
        return;
    }
    for (policy, low, tolerance) in
        [(Policy::Fp32, Format::F16, 1e-3), (Policy::O1, Format::F16, 2e-2), (Policy::O1, Format::Bf16, 8e-2)]
    {
        let d = compare(MODELS[0].1, policy, low, 100);
        announce(&format!("100 steps of mlp {policy} {low}: {d:.2e}"));
        assert!(d < tolerance, "{policy} {low}: {d:e}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    if !gpu() {
        return;
    }
    let compiled = compile(MODELS[0].1, Policy::O1, Format::F16, |_| {});
    let graph = &compiled.planned.graph;
    let run = || {
        let mut cuda =
            CudaRunner::new(lower(verify(graph).unwrap()).unwrap(), &HashMap::new()).unwrap_or_else(|e| panic!("{e}"));
        initialise_all(&mut cuda, graph, 3);
        for step in 0..20 {
            feed(&mut cuda, graph, step, 5);
            cuda.run().unwrap();
        }
        cuda.read_bytes("w1").unwrap()
    };
    assert_eq!(run(), run());
}
