//! What the scripts in `tests/extra` call to compare this crate with things it did not compute.
//!
//! ```text
//! extra_checks round FORMAT ieee|saturate    f32 numbers in, each rounded to FORMAT, as f32, out
//! extra_checks encode FORMAT ieee|saturate   f32 numbers in, their 16-bit codes out
//! extra_checks decode FORMAT                 every code of FORMAT, as f32, out
//! extra_checks forward MODEL.onnx            the input as f32 in, the first output as f32 out
//! extra_checks gradients MODEL.onnx LOSS DIR.. the loss and its gradients, from each DIR to itself
//! extra_checks nvrtc ARCH..                  generates kernels for many plans and compiles them
//! ```
//!
//! Numbers travel over standard input and output, little-endian. `tests/extra/run.sh` builds and runs all of it.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "extra_checks/gradients.rs"]
mod gradients;

use mantissa::cost::Target;
use mantissa::error::{Error, Result};
use mantissa::format::{Format, Overflow};
use mantissa::ir::{Op, text, verify};
use mantissa::lower::{cuda, lower};
use mantissa::model::{Bound, Model, Purpose};
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::{Device, cpu::CpuRunner, cuda::compile};
use mantissa::train::{Optimizer, Settings};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: extra_checks round|encode FORMAT ieee|saturate, decode FORMAT, forward MODEL.onnx, \
                     gradients MODEL.onnx cross_entropy|mse|bce|- DIR.., or nvrtc ARCH..";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match &args[..] {
        ["round", format, mode] => round(format, mode),
        ["encode", format, mode] => encode(format, mode),
        ["decode", format] => decode(format),
        ["forward", model] => forward(Path::new(model)),
        ["gradients", model, loss, dirs @ ..] if !dirs.is_empty() => gradients::run(Path::new(model), loss, dirs),
        ["nvrtc", archs @ ..] if !archs.is_empty() => nvrtc(archs),
        _ => Err(Error::Request(USAGE.into())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint!("{}", e.render(false));
            ExitCode::FAILURE
        }
    }
}

fn round(format: &str, mode: &str) -> Result<()> {
    let (format, mode) = (narrow_format(format)?, overflow(mode)?);
    write_f32(read_f32()?.into_iter().map(|x| format.round(x.into(), mode) as f32))
}

fn encode(format: &str, mode: &str) -> Result<()> {
    let (format, mode) = (narrow_format(format)?, overflow(mode)?);
    write(&read_f32()?.into_iter().flat_map(|x| format.encode(x.into(), mode).to_le_bytes()).collect::<Vec<u8>>())
}

fn decode(format: &str) -> Result<()> {
    let format = narrow_format(format)?;
    write_f32((0..=u16::MAX >> (16 - 8 * format.bytes())).map(|code| format.decode(code) as f32))
}

/// Runs a model's forward graph in f32 on the CPU.
fn forward(path: &Path) -> Result<()> {
    let model = Model::read(path)?;
    let values = read_f32()?;
    let bound = bind(&model, values.len())?;
    let graph = &bound.graph;
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("cpu")?);
    let planned = plan(graph, &request, &RuleSet::builtin()?)?.graph;
    let mut cpu = CpuRunner::new(lower(verify(&planned)?)?);
    for id in planned.sources() {
        let name = planned.name_of(id);
        match planned.op(id) {
            Op::Input { .. } => cpu.write(name, &values)?,
            _ => {
                let w = bound.weights.get(name).ok_or_else(|| Error::Request(format!("`{name}` has no data")))?;
                cpu.write_as(name, w.format, w.bytes())?
            }
        }
    }
    cpu.run()?;
    let output = graph.outputs().first().ok_or_else(|| Error::Request("the model has no output".into()))?;
    write_f32(cpu.read(&output.name)?.into_iter())
}

/// The model with its one named size chosen so that the input holds as many numbers as were given.
fn bind(model: &Model, given: usize) -> Result<Bound> {
    let with = |n: usize| {
        let sizes = model.free_dims().into_iter().map(|d| (d, n)).collect();
        model.bind(&sizes, Purpose::Inference)
    };
    let one = with(1)?;
    let inputs: Vec<_> = one.graph.sources().filter(|&id| matches!(one.graph.op(id), Op::Input { .. })).collect();
    let [input] = inputs[..] else {
        return Err(Error::Request(format!("the model has {} inputs, not one", inputs.len())));
    };
    with(given / one.graph.ty(input).elements().max(1))
}

/// IEEE division and square root call a slow path for subnormal operands, around which ptxas saves a register or two.
const DIVISION_SLOW_PATH: usize = 16;

/// Bytes that a kernel may save around calls of slow paths: around one, or around a square root and a division. A kernel of
/// 40 registers with both saves 32 bytes on sm_80, and none if either is taken out.
fn saved_around_calls(source: &str, kernel: &str) -> usize {
    let end = source.find(&format!(" {kernel}(")).unwrap_or(source.len());
    let functor = &source[source[..end].rfind("struct ").unwrap_or(0)..end];
    let both = functor.contains("sqrtf(") && functor.contains(" / ");
    DIVISION_SLOW_PATH * if both { 2 } else { 1 }
}

/// The bytes of "N bytes spill stores" in a line of ptxas' report.
fn spill_bytes(line: &str) -> usize {
    let before = line.split(" bytes spill stores").next().unwrap_or("");
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Compiles the generated CUDA of many plans for each architecture. No kernel may spill registers.
fn nvrtc(archs: &[&str]) -> Result<()> {
    let mut sources: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    let mut spilling = 0;
    for arch in archs {
        let target = target_of(arch)?;
        if !sources.contains_key(target) {
            sources.insert(target, generated(target)?);
        }
        let (mut kernels, mut bytes, mut spills) = (0, 0, Vec::new());
        for (name, source) in &sources[target] {
            let (cubin, log) = compile(source, arch)?;
            let here = source.matches("__global__").count();
            let reports = resources(&log);
            if reports.len() != here {
                return Err(Error::Device(format!(
                    "{name}: {here} kernels, but ptxas reports on {}:\n{log}",
                    reports.len()
                )));
            }
            spills.extend(
                reports
                    .iter()
                    .filter(|r| spill_bytes(r.1) > saved_around_calls(source, r.0))
                    .map(|(k, r)| format!("{k} of {name}: {r}")),
            );
            (kernels, bytes) = (kernels + here, bytes + cubin.len());
        }
        let word = if spills.is_empty() { "ok" } else { "FAILED" };
        println!(
            "{word} nvrtc {arch}: {} plans for {target}, {kernels} kernels, {bytes} bytes of CUBIN, {} kernels spill",
            sources[target].len(),
            spills.len()
        );
        spills.iter().for_each(|s| println!("    {s}"));
        spilling += spills.len();
    }
    if spilling == 0 { Ok(()) } else { Err(Error::Device(format!("{spilling} kernels spill registers"))) }
}

/// The target whose plans an architecture runs.
fn target_of(arch: &str) -> Result<&'static str> {
    let number = arch.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_ascii_alphabetic());
    match number.parse::<u32>() {
        Ok(..80) => Ok("sm_70"),
        Ok(80..90) => Ok("sm_80"),
        Ok(90..) => Ok("sm_90"),
        Err(_) => Err(Error::Request(format!("`{arch}` is not an architecture such as sm_90a"))),
    }
}

/// ptxas' lines about the stack, by kernel.
fn resources(log: &str) -> Vec<(&str, &str)> {
    let mut kernel = "";
    let mut out = Vec::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            kernel = name;
        } else if let Some(at) = line.find(|c: char| c.is_ascii_digit()).filter(|_| line.contains("bytes spill stores"))
        {
            out.push((kernel, &line[at..]));
        }
    }
    out
}

/// The CUDA source of every case.
fn generated(target: &str) -> Result<Vec<(String, String)>> {
    let rules = RuleSet::builtin()?;
    let one = |(name, model, settings): (String, Model, Settings)| {
        let compiled = settings.compile(&model, &rules, None)?;
        Ok((name, cuda::generate(&lower(verify(&compiled.planned.graph)?)?)?.source))
    };
    let counts = std::iter::once(Ok(("what watches".to_owned(), cuda::spread_source())));
    cases(target)?.into_iter().map(one).chain(counts).collect()
}

/// Every model under every policy the target has the formats for; optimizers and clipping take turns, and the first
/// model has all of them.
fn cases(target: &str) -> Result<Vec<(String, Model, Settings)>> {
    let adam = Optimizer::Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let sgd = Optimizer::Sgd { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let recipes = [(adam.clone(), None), (sgd.clone(), Some(1.0)), (adam, Some(1.0)), (sgd, None)];
    let mut policies = vec![(Policy::Fp32, Format::F16), (Policy::O1, Format::F16)];
    if Target::named(target)?.multiplies(Format::Bf16) {
        policies.push((Policy::O1, Format::Bf16));
    }
    let digits = [("digits", include_str!("digits/mlp.mir"))];
    let mut out = Vec::new();
    for (i, (name, source)) in digits.into_iter().chain(common::MODELS).enumerate() {
        let model = Model::from_graph(text::parse(source, name)?);
        for (j, &(policy, low)) in policies.iter().enumerate() {
            for (k, (optimizer, clip_norm)) in recipes.iter().enumerate() {
                if i > 0 && k != (i + j) % recipes.len() {
                    continue;
                }
                let mut settings = Settings { policy, low, target: target.into(), ..Settings::default() };
                settings.recipe.optimizer = optimizer.clone();
                settings.recipe.clip_norm = *clip_norm;
                out.push((format!("{name} under {policy} {low}, recipe {k}"), model.clone(), settings));
            }
        }
    }
    Ok(out)
}

/// A floating-point format of at most 16 bits.
fn narrow_format(name: &str) -> Result<Format> {
    let format: Format = name.parse().map_err(|e| Error::Request(format!("{e}")))?;
    if format.is_low() {
        Ok(format)
    } else {
        Err(Error::Request(format!("{format} is not f16, bf16, f8e4m3 or f8e5m2")))
    }
}

fn overflow(mode: &str) -> Result<Overflow> {
    match mode {
        "ieee" => Ok(Overflow::Ieee),
        "saturate" => Ok(Overflow::Saturate),
        _ => Err(Error::Request(format!("`{mode}` is neither ieee nor saturate"))),
    }
}

fn read_f32() -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(Error::io("read", "standard input"))?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Error::Request(format!("{} bytes are not a whole number of f32", bytes.len())));
    }
    Ok(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn write_f32(values: impl Iterator<Item = f32>) -> Result<()> {
    write(&values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
}

fn write(bytes: &[u8]) -> Result<()> {
    std::io::stdout().write_all(bytes).map_err(Error::io("write", "standard output"))
}
