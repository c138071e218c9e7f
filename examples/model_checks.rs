//! What the scripts in `tests/extra` call to run whole models.
//!
//! ```text
//! model_checks forward MODEL DIR                     inputs from DIR/inputs.safetensors, outputs to DIR/outputs.safetensors
//! model_checks train MODEL LOSS POLICY FORMAT STEPS LR
//!                                                    steps on one random batch; a line "loss X" for each
//! ```

use mantissa::cost::Target;
use mantissa::error::{Error, Result};
use mantissa::format::Format;
use mantissa::ir::{Op, Role, verify};
use mantissa::lower::lower;
use mantissa::model::{Checkpoint, Model, Purpose, Saved};
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use mantissa::run::DeviceKind;
use mantissa::run::cpu::CpuRunner;
use mantissa::train::{Session, Settings};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match &args[..] {
        ["forward", model, dir] => forward(Path::new(model), Path::new(dir)),
        ["train", model, loss, policy, format, steps, lr] => train(Path::new(model), loss, policy, format, steps, lr),
        _ => Err(Error::Request(
            "usage: model_checks forward MODEL DIR | train MODEL LOSS POLICY FORMAT STEPS LR".into(),
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint!("{}", e.render(false));
            ExitCode::FAILURE
        }
    }
}

fn timed<T>(what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let out = f()?;
    eprintln!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    Ok(out)
}

/// Runs a model's forward graph in f32 on the CPU.
fn forward(path: &Path, dir: &Path) -> Result<()> {
    let model = Model::read(path)?;
    let given = Checkpoint::read(&dir.join("inputs.safetensors"))?;
    let shapes: BTreeMap<String, Vec<usize>> = given.tensors.iter().map(|(n, t)| (n.clone(), t.dims.clone())).collect();
    let mut bound = timed("import", || model.bind_shaped(&shapes, Purpose::Inference, &BTreeMap::new()))?;
    let outputs: Vec<_> = bound.graph.outputs().iter().filter(|o| o.role == Role::Output).cloned().collect();
    bound.graph = bound.graph.prune(&outputs)?;
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("cpu")?);
    let planned = timed("plan", || plan(&bound.graph, &request, &RuleSet::builtin()?))?.graph;
    let program = timed("lower", || lower(verify(&planned)?))?;
    eprintln!("{} values, {} kernels", bound.graph.len(), program.calls.len());
    let mut cpu = CpuRunner::new(program);
    for id in planned.sources() {
        let name = planned.name_of(id);
        match planned.op(id) {
            Op::Input { .. } => cpu.write_bytes(name, &given.tensors[name].bytes)?,
            _ => {
                let w = &bound.weights[name];
                cpu.write_as(name, w.format, w.bytes())?;
            }
        }
    }
    timed("run", || cpu.run())?;
    let mut out = Checkpoint::default();
    for o in &outputs {
        let values = cpu.read(&o.name)?;
        let dims = bound.graph.output(&o.name, Role::Output).map_or(Vec::new(), |n| bound.graph.ty(n).dims());
        let bytes = little_endian(&values);
        out.tensors.insert(o.name.clone(), Saved { format: Format::F32, dims, bytes });
    }
    out.write(&dir.join("outputs.safetensors"))
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Trains on one random batch. Labels are drawn from all classes, other inputs uniformly.
fn train(path: &Path, loss: &str, policy: &str, format: &str, steps: &str, lr: &str) -> Result<()> {
    let model = Model::read(path)?;
    let mut settings = Settings {
        policy: policy.parse()?,
        low: format.parse().map_err(|_| Error::Request(format!("unknown format `{format}`")))?,
        target: std::env::var("MANTISSA_TARGET").unwrap_or_else(|_| "sm_90".into()),
        loss: if loss == "-" { None } else { Some(loss.to_owned()) },
        ..Settings::default()
    };
    let steps: usize = steps.parse().map_err(|_| Error::Request(format!("`{steps}` is no number of steps")))?;
    *settings.recipe.optimizer.lr_mut() = lr.parse().map_err(|_| Error::Request(format!("`{lr}` is no rate")))?;
    timed("import and differentiate", || settings.build(&model, &RuleSet::builtin()?))?;
    let compiled = timed("compile", || settings.compile(&model, &RuleSet::builtin()?, None))?;
    let predicted = 1e3 * compiled.planned.estimate.seconds;
    eprintln!(
        "{} values in the step, {} evaluations, predicted {predicted:.3} ms",
        compiled.step.len(),
        compiled.planned.evaluations
    );
    let classes = compiled.classes().unwrap_or(2);
    let graph = compiled.task.graph.clone();
    let backend = DeviceKind::Auto.backend();
    let mut session = timed("open", || Session::new(compiled, 0, &*backend))?;
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    for id in graph.sources() {
        let Op::Input { label, ty, copy_of: None } = graph.op(id) else { continue };
        let values: Vec<f32> = (0..ty.elements())
            .map(|_| match (label, ty.format.is_float()) {
                (true, false) => (uniform() * classes as f64).floor() as f32,
                (_, false) => (uniform() * 100.0).floor() as f32,
                // Targets that a few steps can learn: near 1.
                (true, true) => (0.9 + 0.2 * uniform()) as f32,
                (false, true) => (uniform() * 2.0 - 1.0) as f32,
            })
            .collect();
        session.feed(graph.name_of(id), &values)?;
    }
    let mut seconds = Vec::new();
    for step in 0..steps {
        let start = Instant::now();
        let loss = session.step()?;
        println!("loss {loss}");
        if step == 0 {
            eprintln!("first step: {:.2} s", start.elapsed().as_secs_f64());
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    eprintln!("median step: {:.3} ms", 1e3 * seconds.get(steps / 2).copied().unwrap_or(0.0));
    if std::env::var_os("MANTISSA_PROFILE").is_some() {
        eprintln!("{}", session.profile()?);
    }
    Ok(())
}
