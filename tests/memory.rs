//! Plans within a limit of memory: they keep to it, and compute the same bits as plans that keep everything.

mod common;

use bytesize::ByteSize;
use common::{MODELS, check_places, decoder, feed, initialise_all};
use mantissa::error::Error;
use mantissa::format::Format;
use mantissa::ir::{Op, text, verify};
use mantissa::lower::{Program, lower};
use mantissa::model::Model;
use mantissa::plan::Policy;
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
use mantissa::train::{Compiled, Settings};
use std::collections::BTreeMap;

fn compiled(source: &str, policy: Policy, batch: usize, limit: Option<usize>) -> Result<Compiled, Error> {
    let model = Model::from_graph(text::parse(source, "test").unwrap_or_else(|e| panic!("{}", e.render(false))));
    let mut settings = Settings { policy, low: Format::Bf16, ..Settings::default() };
    settings.memory_limit = limit.map(|l| ByteSize(l as u64));
    settings.sizes.insert("batch".into(), batch);
    settings.compile(&model, &RuleSet::builtin().unwrap(), None)
}

fn program(compiled: &Compiled) -> Program {
    lower(verify(&compiled.planned.graph).unwrap()).unwrap()
}

/// All parameters, states and metrics after some steps.
fn trained(compiled: &Compiled) -> BTreeMap<String, Vec<u32>> {
    let graph = &compiled.planned.graph;
    let mut device = CpuRunner::new(program(compiled));
    initialise_all(&mut device, graph, 3);
    for step in 0..2 {
        feed(&mut device, graph, 10 * step + 1, compiled.classes().unwrap_or(1));
        device.run().unwrap();
    }
    let held = graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. } | Op::State { .. }));
    let names = held.map(|id| graph.name_of(id).to_owned()).chain(["loss".to_owned()]);
    let mut bits = |name: &String| device.read(name).unwrap().into_iter().map(f32::to_bits).collect();
    names.map(|name| (name.clone(), bits(&name))).collect()
}

/// The smallest share of its memory that a step was fitted into, of those tried.
fn fitted(name: &str, source: &str, policy: Policy, batch: usize, shares: &[f64]) -> f64 {
    let whole = compiled(source, policy, batch, None).unwrap();
    let (bits, memory) = (trained(&whole), program(&whole).memory().total());
    assert!(whole.planned.again.is_none());
    let mut least = 1.0;
    for &share in shares {
        let limit = (memory as f64 * share) as usize;
        match compiled(source, policy, batch, Some(limit)) {
            Ok(less) => {
                let takes = program(&less).memory().total();
                assert!(takes <= limit, "{name} {policy}: {takes} bytes of {limit}");
                let others = trained(&less);
                let differ: Vec<&String> = bits.keys().filter(|k| bits.get(*k) != others.get(*k)).collect();
                assert!(differ.is_empty() && bits.len() == others.len(), "{name} {policy} at {share}: {differ:?}");
                assert_eq!(less.planned.again.is_some(), share < 1.0, "{name}");
                least = share;
            }
            Err(e) => {
                let said = e.to_string();
                assert!(said.contains("at least") && said.contains("--memory-limit"), "{said}");
            }
        }
    }
    least
}

/// Layers with dropout, which draws the same numbers when it is computed again, and a skip from every layer down to the
/// one as far from the end.
fn hourglass(half: usize) -> String {
    let mut text = "model hourglass { input x: f32[batch, 48] label y: f32[batch, 48]
        state s: f32[] = constant(7) state t: f32[] = constant(2)\n"
        .to_owned();
    let mut x = "x".to_owned();
    for i in 0..2 * half {
        let from = if i >= half { format!("(h{} + {x})", 2 * half - 1 - i) } else { x.clone() };
        text += &format!(
            "param w{i}: f32[48, 48] = normal(0.2) k{i} = ge(random(s, t, dims=[batch, 48], salt={i}), 0.2)
             h{i} = tanh({from} @ w{i}) * gelu(select(k{i}, {from}, 0))\n"
        );
        x = format!("h{i}");
    }
    text + &format!("loss = mse({x}, y) }}")
}

fn convolutions(layers: usize) -> String {
    let mut text = "model convs { input x: f32[batch, 4, 10, 10] label y: f32[batch, 4, 10, 10]\n".to_owned();
    let mut x = "x".to_owned();
    for i in 0..layers {
        text += &format!(
            "param w{i}: f32[4, 4, 3, 3] = normal(0.2) param g{i}: f32[4, 1, 1] = ones
             c{i} = conv({x}, w{i}, strides=[1, 1], lo=[1, 1], hi=[1, 1])
             x{i} = relu(standardise(c{i}, axes=[0, 2, 3], eps=1e-5) * g{i})\n"
        );
        x = format!("x{i}");
    }
    text + &format!("loss = mse({x}, y) }}")
}

#[test]
fn deep_steps_fit_into_a_part_of_their_memory() {
    for policy in [Policy::Fp32, Policy::O1] {
        for (name, source, batch, share) in [
            ("decoder", decoder(5), 32, 0.7),
            ("hourglass", hourglass(5), 512, 0.9),
            ("convolutions", convolutions(6), 32, 0.9),
        ] {
            let least = fitted(name, &source, policy, batch, &[1.0, 0.9, 0.7, 0.5]);
            assert!(least <= share, "{name} {policy}: only {least} of its memory");
        }
    }
}

/// Models that have nothing to compute again are refused or take little less; none computes anything else.
#[test]
fn any_step_keeps_its_limit_or_is_refused() {
    for (name, source) in MODELS {
        fitted(name, source, Policy::O1, 8, &[0.9]);
    }
}

/// Where a plan says that a value of the step is, it is, though it may be computed twice.
#[test]
fn every_value_is_where_the_plan_says() {
    for (name, source, batch) in [("decoder", decoder(3), 8), ("hourglass", hourglass(3), 64)] {
        let memory = program(&compiled(&source, Policy::Fp32, batch, None).unwrap()).memory().total();
        let less = compiled(&source, Policy::Fp32, batch, Some(memory * 98 / 100)).unwrap();
        check_places(name, &less, 1e-4);
    }
}

#[test]
fn a_plan_that_computes_again_reads_back() {
    let whole = compiled(&decoder(5), Policy::O1, 64, None).unwrap();
    let limit = program(&whole).memory().total() * 8 / 10;
    let planned = compiled(&decoder(5), Policy::O1, 64, Some(limit)).unwrap().planned;
    let printed = text::print(&planned.graph);
    assert!(printed.contains(" = after("));
    let read = text::print(&text::parse(&printed, "plan").unwrap());
    let differ = read.lines().zip(printed.lines()).find(|(a, b)| a != b);

    assert!(differ.is_none(), "{differ:?}");
    // Explain says which values are.
    let value = |l: &str| Some(l.trim().strip_prefix("again.")?.split_once(".bf16:")?.0.to_owned());
    // Heads that attention reads where they lie are named by who reads them: no kernel copies them.
    let is_stored = |v: &String| !v.starts_with("late.") && !v.starts_with(|c: char| c.is_ascii_digit());
    let again: Vec<String> = printed.lines().filter_map(value).filter(is_stored).collect();
    assert!(!again.is_empty() && !planned.computes_again("loss"));
    let unknown: Vec<&String> = again.iter().filter(|v| !planned.computes_again(v)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// All steps of a loop count, not the first that is costed for all.
#[test]
fn a_limit_holds_for_loops() {
    let source = std::fs::read_to_string("examples/digits/gru.mir").unwrap();
    let whole = program(&compiled(&source, Policy::O1, 32, None).unwrap()).memory().total();
    let limit = whole * 85 / 100;
    match compiled(&source, Policy::O1, 32, Some(limit)) {
        Ok(less) => assert!(program(&less).memory().total() <= limit),
        Err(e) => assert!(e.to_string().contains("--memory-limit"), "{e}"),
    }
}
