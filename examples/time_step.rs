//! Times the training step of a perceptron on the present GPU, as one CUDA graph per step.
//!
//! `time_step 784,256,10 64 o1 [STEPS]` prints one JSON line (median, least and largest milliseconds per step of seven
//! repetitions) in the form the PyTorch peers print, so that both can be run one after the other on one machine.

use mantissa::ir::{Init, Op, text, verify};
use mantissa::lower::lower;
use mantissa::model::Model;
use mantissa::plan::print_profile;
use mantissa::rewrite::RuleSet;
use mantissa::run::cuda::Cuda;
use mantissa::run::{Backend, Device, initialise};
use mantissa::train::{Optimizer, Settings};
use mantissa::{Error, Result};
use std::fmt::Write;

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1))
        }
    }
}

/// A perceptron with the layer widths given, as text.
fn perceptron(dims: &[usize]) -> String {
    let mut out = format!("model mlp {{ input x: f32[batch, {}] label y: i64[batch]\n", dims[0]);
    let mut h = "x".to_owned();
    for (i, pair) in dims.windows(2).enumerate() {
        let [a, b] = pair else { continue };
        let layer = format!("{h} @ w{i} + b{i}");
        let layer = if i + 2 < dims.len() { format!("relu({layer})") } else { layer };
        let _ =
            writeln!(out, "param w{i}: f32[{a}, {b}] = kaiming_uniform param b{i}: f32[{b}] = zeros h{i} = {layer}");
        h = format!("h{i}");
    }
    out + &format!("loss = cross_entropy({h}, y) }}")
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let usage = || Error::Request("usage: time_step WIDTH,WIDTH,.. BATCH POLICY [STEPS]".into());
    let [_, dims, batch, policy, rest @ ..] = &args[..] else { return Err(usage()) };
    let widths =
        dims.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>().map_err(|_| usage())?;
    let steps: usize = rest.first().map_or(Ok(200), |s| s.parse()).map_err(|_| usage())?;
    let mut settings = Settings { policy: policy.parse()?, ..Settings::default() };
    settings.sizes.insert("batch".into(), batch.parse().map_err(|_| usage())?);
    settings.recipe.optimizer = Optimizer::Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let model = Model::from_graph(text::parse(&perceptron(&widths), "perceptron")?);
    let compiled = settings.compile(&model, &RuleSet::builtin()?, None)?;
    let graph = &compiled.planned.graph;
    let mut device = Cuda::default().open(lower(verify(graph)?)?)?;
    fill(&mut *device, graph, widths[widths.len() - 1])?;
    let mut ms = (0..7).map(|_| device.time(steps / 10 + 3, steps)).collect::<Result<Vec<f64>>>()?;
    ms.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "work": format!("mlp {dims} batch {batch}"), "variant": format!("mantissa {policy}"), "ms": ms[3], "min": ms[0], "max": ms[6],
        "predicted_ms": compiled.planned.estimate.seconds * 1e3, "loss": device.read("loss")?[0],
    });
    println!("{line}");
    if std::env::var_os("MANTISSA_PROFILE").is_some() {
        let measured = device.profile()?;
        let target = settings.request()?.target;
        let on = device.describe();
        eprintln!("{}", print_profile(&compiled.planned, device.program(), &target, &measured, &on));
    }
    Ok(())
}

/// Random weights and a random batch: zeros would run faster than real data.
fn fill(device: &mut dyn Device, graph: &mantissa::ir::Graph, classes: usize) -> Result<()> {
    let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0;
    for id in graph.sources() {
        let name = graph.name_of(id);
        match graph.op(id) {
            Op::Param { init, ty } | Op::State { init, ty } => {
                if let Some(values) = initialise(name, init, ty, 1) {
                    device.write(name, &values)?;
                }
            }
            Op::Input { label: true, ty, .. } => {
                let labels: Vec<i64> = (0..ty.elements()).map(|i| (i * 7 % classes) as i64).collect();
                device.write_bytes(name, bytemuck::cast_slice(&labels))?;
            }
            Op::Input { ty, .. } => device.write(name, &(0..ty.elements()).map(noise).collect::<Vec<_>>())?,
            _ => {}
        }
    }
    for id in graph.sources() {
        if let Op::State { init: Init::Copy(of), .. } = graph.op(id) {
            let values = device.read(of)?;
            device.write(graph.name_of(id), &values)?;
        }
    }
    Ok(())
}
