//! What a program must compute, and what the compiler's version of it computes.

use super::generate::{Numbers, Program};
use super::noisy::{self, Errors};
use mantissa::autodiff::gradients;
use mantissa::format::{Format, Overflow};
use mantissa::ir::{Graph, Init, NodeId, Op, Role, Tensor, evaluate, text, verify};
use mantissa::lower::{Program as Lowered, lower};
use mantissa::model::Model;
use mantissa::plan::Policy;
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
use mantissa::train::{Compiled, Optimizer, Recipe, Scaler, Settings, names};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What became of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Agrees,
    /// In f64 it overflows or yields NaN: there is nothing to compare with.
    Meaningless,
    /// A step that overflowed, where the plan in f64 overflows too, was skipped.
    Skipped,
    /// The device cannot run it, and says so before anything runs.
    Refused,
    Wrong(String),
}

/// How a program is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub policy: Policy,
    pub low: Format,
    /// [`Settings::search`].
    pub search: Option<usize>,
}

impl Way {
    pub const FP32: Way = Way::new(Policy::Fp32, Format::F16);
    pub const NARROW: [Way; 5] = [
        Way::new(Policy::O1, Format::F16),
        Way::new(Policy::O1, Format::Bf16),
        Way::new(Policy::O2, Format::F16),
        Way::new(Policy::Greedy, Format::F16),
        Way::new(Policy::Auto, Format::F16),
    ];

    const fn new(policy: Policy, low: Format) -> Way {
        Way { policy, low, search: None }
    }

    /// Most programs are searched a little: that is sooner, and plans that nobody would choose must compute the same.
    pub fn of_program(self, number: u64) -> Way {
        let search = [None, Some(0), Some(1), Some(2), Some(4), Some(8), Some(16), Some(32)];
        Way { search: search[(number % 8) as usize], ..self }
    }
}

/// Runs with errors that say how far results are pinned down.
const RUNS: u64 = 5;
/// As many before a program is called wrong: near ties and roundings that absorb a number show in few of them.
const SECOND_OPINION: u64 = 60;
/// Bits that are rounded away besides.
const COARSE: [u32; 3] = [1, 2, 3];
/// How many times as far off as those a result may be.
const MARGIN: f64 = 12.0;
/// Loss scale to begin with.
const SCALE: f64 = 256.0;
/// Beyond this, f32 is no measure.
const HUGE: f64 = 1e30;

/// A model, what it computes in f64, and how much of that is certain.
pub struct Reference {
    pub program: Program,
    /// The program and its gradients.
    graph: Graph,
    /// The loss under its own name, gradients under `optimizer.momentum.NAME`: where they are in the graph, and in f64.
    values: BTreeMap<String, (NodeId, Tensor)>,
}

impl Reference {
    /// None if the program means nothing in f64.
    pub fn new(program: Program) -> Result<Option<Reference>, String> {
        let mut graph = program.graph.clone();
        let loss = graph.find("loss").ok_or("no loss")?;
        let params: Vec<NodeId> = graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. })).collect();
        let one = graph.constant(1.0).map_err(|e| e.to_string())?;
        let of = gradients(&mut graph, loss, one, &params).map_err(|e| format!("differentiating: {e}"))?;
        let held = |id: NodeId| source(&graph, id, program.numbers);
        let all = evaluate(&graph, held);
        if all.iter().flat_map(|t| &t.data).any(|v| v.abs() > HUGE && v.is_finite() && v.abs() != f64::from(f32::MAX)) {
            return Ok(None);
        }
        let value = |id: NodeId| (id, all[id.index()].clone());
        let mut values = BTreeMap::from([("loss".to_owned(), value(loss))]);
        for (param, grad) in of {
            values.insert(format!("optimizer.momentum.{}", graph.name_of(param)), value(grad));
        }
        let finite = values.values().flat_map(|(_, t)| &t.data).all(|v| v.abs() < HUGE);
        Ok(finite.then_some(Reference { program, graph, values }))
    }

    /// The numbers of a source.
    pub fn source(&self, id: NodeId) -> Tensor {
        source(&self.graph, id, self.program.numbers)
    }

    /// A value of the program in f64, and how far off each of its numbers may be in f32.
    pub fn allowed(&self, id: NodeId) -> (Tensor, Tensor) {
        let exact = evaluate(&self.graph, |id| self.source(id)).swap_remove(id.index());
        let runs: Vec<Tensor> =
            errors().map(|e| self.noisy(e).swap_remove(id.index())).chain([exact.clone()]).collect();
        let spread = spread(&runs.iter().collect::<Vec<_>>());
        let allowed = exact.data.iter().zip(spread).map(|(v, s)| MARGIN * s + 1e-5 * v.abs() + 1e-7);
        let allowed = Tensor::new(&exact.dims, allowed.collect());
        (exact, allowed)
    }

    /// All values of the program, with errors.
    fn noisy(&self, mut errors: Errors) -> Vec<Tensor> {
        noisy::evaluate(&self.graph, &|id| source(&self.graph, id, self.program.numbers), &mut errors)
    }
}

/// The numbers of a source, by its name; those of a copy are rounded ones of what it copies.
fn source(graph: &Graph, id: NodeId, numbers: Numbers) -> Tensor {
    let (op, ty) = (graph.op(id), graph.ty(id));
    let name = op.copy_of().unwrap_or(graph.name_of(id));
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let seed = hasher.finish() as u32;
    let of = |i: usize| {
        let x = f64::from(super::super::common::noise(seed, i));
        match op {
            Op::State { init: Init::Constant(_), .. } if name == "seed" => 7.0,
            Op::State { init: Init::Constant(_), .. } if name == "step" => 2.0,
            Op::State { init: Init::Constant(c), .. } => c.get(),
            // Classes that every loss has; positions that wrap around.
            Op::Input { label: true, .. } => 0.0,
            _ if ty.format == Format::I64 => (x * 4.0).floor() - 1.0,
            _ => {
                let even = 2.0 * x - 1.0;
                let value = match numbers {
                    Numbers::Even => even,
                    Numbers::Halves => (even * 2.0).round() / 2.0,
                    Numbers::Sparse => {
                        if x < 0.7 {
                            0.0
                        } else {
                            even
                        }
                    }
                    Numbers::Large => 100.0 * even,
                    Numbers::Small => 1e-3 * even,
                };
                f64::from(value as f32)
            }
        }
    };
    let data = (0..ty.elements()).map(of);
    Tensor::new(
        &ty.dims(),
        data.map(|v| if ty.format.is_float() { ty.format.round(v, Overflow::Ieee) } else { v }).collect(),
    )
}

/// Opens a lowered program somewhere.
pub type Open<'a> = &'a dyn Fn(Lowered) -> mantissa::error::Result<Box<dyn Device>>;

pub fn on_cpu(program: Lowered) -> mantissa::error::Result<Box<dyn Device>> {
    Ok(Box::new(CpuRunner::new(program)))
}

/// What no generated kernel does yet, in the words of the error.
const NOT_GENERATED: &str = "are not generated for CUDA";

/// Compiles a program one way, runs a step, and compares loss and gradients.
pub fn judge(reference: &Reference, way: Way, rules: &RuleSet, open: Open) -> Verdict {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        compiled(reference, way, rules).and_then(|c| compare(reference, way, &c, open))
    }));
    match outcome {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(why)) => Verdict::Wrong(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Verdict::Wrong(format!("panic: {}", text.unwrap_or("?")))
        }
    }
}

fn compiled(reference: &Reference, way: Way, rules: &RuleSet) -> Result<Compiled, String> {
    // As it would be read from a file.
    let written = text::print(&reference.program.graph);
    let model = Model::from_graph(
        text::parse(&written, "random").map_err(|e| format!("does not read back: {}", e.render(false)))?,
    );
    let optimizer = Optimizer::Sgd { lr: 1e-3, momentum: 0.5, nesterov: false, weight_decay: 0.0 };
    let scaler = Scaler { init: SCALE, ..Scaler::default() };
    let recipe = Recipe { optimizer, scaler, ..Recipe::default() };
    let loss = Some("loss".into());
    let settings =
        Settings { policy: way.policy, low: way.low, search: way.search, recipe, loss, ..Settings::default() };
    settings.compile(&model, rules, None).map_err(|e| format!("is not compiled: {e}"))
}

fn compare(reference: &Reference, way: Way, compiled: &Compiled, open: Open) -> Result<Verdict, String> {
    let graph = &compiled.planned.graph;
    let numbers = reference.program.numbers;
    let lowered = lower(verify(graph).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let mut device = match open(lowered).map_err(|e| e.to_string()) {
        Err(why) if why.contains(NOT_GENERATED) => return Ok(Verdict::Refused),
        opened => opened?,
    };
    for id in graph.sources() {
        let held = source(graph, id, numbers);
        let values: Vec<f32> = held.data.iter().map(|&v| v as f32).collect();
        match graph.ty(id).format {
            Format::I64 => {
                let whole: Vec<i64> = held.data.iter().map(|&v| v as i64).collect();
                device.write_bytes(graph.name_of(id), bytemuck::cast_slice(&whole))
            }
            _ => device.write(graph.name_of(id), &values),
        }
        .map_err(|e| e.to_string())?;
    }
    device.run().map_err(|e| format!("does not run: {e}"))?;
    let overflows = overflows(graph, &evaluate(graph, |id| source(graph, id, numbers)));
    if graph.find(names::SKIPPED).is_some() && device.read(names::SKIPPED).map_err(|e| e.to_string())?[0] > 0.0 {
        return if overflows { Ok(Verdict::Skipped) } else { Err("is skipped though nothing overflows".into()) };
    }
    let noisy = |mut errors| noisy::evaluate(graph, &|id| source(graph, id, numbers), &mut errors);
    let few: Vec<Vec<Tensor>> = (0..RUNS).map(Errors::new).map(noisy).collect();
    for (name, (at, expected)) in &reference.values {
        let output = graph.outputs().iter().find(|o| o.name == *name && o.role != Role::Output);
        let Some(output) = output.or_else(|| graph.outputs().iter().find(|o| o.name == *name)) else {
            return Err(format!("the step has no `{name}`"));
        };
        let got = device.read(name).map_err(|e| e.to_string())?;
        let runs: Vec<&Tensor> = few.iter().map(|values| &values[output.node.index()]).collect();
        if differ(name, expected, &got, &runs, way).is_ok() {
            continue;
        }
        // The program with errors, too: where its f64 is no measure of f32, neither is the plan's.
        let planned = errors().map(|e| noisy(e).swap_remove(output.node.index()));
        let program = errors().map(|e| reference.noisy(e).swap_remove(at.index()));
        let runs: Vec<Tensor> = planned.chain(program).chain([expected.clone()]).collect();
        differ(name, expected, &got, &runs.iter().collect::<Vec<_>>(), way)?;
    }
    Ok(Verdict::Agrees)
}

/// Does a value that is held in a narrow format come near what it holds, in the body of a loop too?
fn overflows(graph: &Graph, values: &[Tensor]) -> bool {
    graph.ids().any(|id| {
        let most = graph.ty(id).format.float().map_or(f64::INFINITY, |s| 0.5 * s.max);
        let here =
            graph.ty(id).format.is_low() && values[id.index()].data.iter().any(|v| v.is_nan() || v.abs() >= most);
        let Op::Scan(scan) = graph.op(id) else { return here };
        let (x, mut inside) = (graph.inputs(id), false);
        let x: Vec<&Tensor> = x.iter().map(|i| &values[i.index()]).collect();
        scan.eval_by(&x, graph.ty(id), &mut |body, source| {
            let values = evaluate(body, source);
            inside |= overflows(body, &values);
            values
        });
        here || inside
    })
}

/// All kinds of errors.
fn errors() -> impl Iterator<Item = Errors> {
    (0..SECOND_OPINION).map(Errors::new).chain(COARSE.into_iter().map(Errors::Rounding))
}

/// How far several runs lie apart, by element.
fn spread(runs: &[&Tensor]) -> Vec<f64> {
    let of = |i: usize| {
        let all = || runs.iter().map(|r| r.data[i]);
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        if low.is_finite() && high.is_finite() { high - low } else { f64::INFINITY }
    };
    (0..runs[0].data.len()).map(of).collect()
}

/// Compares one result with what it must be, as closely as it is pinned down.
fn differ(name: &str, expected: &Tensor, got: &[f32], runs: &[&Tensor], way: Way) -> Result<(), String> {
    let n = expected.data.len();
    let spread = spread(runs);
    let finite = |s: &&f64| s.is_finite();
    let mean = (spread.iter().filter(finite).map(|s| s * s).sum::<f64>() / n.max(1) as f64).sqrt();
    let size = (expected.data.iter().map(|v| v * v).sum::<f64>() / n.max(1) as f64).sqrt();
    let unit = if way.policy == Policy::Fp32 { 1e-6 } else { way.low.float().map_or(0.0, |s| s.unit_roundoff()) };
    for i in 0..n {
        let allowed = MARGIN * spread[i].max(mean) + unit * size + 1e-7;
        let (want, is) = (expected.data[i], f64::from(got[i]));
        let off = (want - is).abs();
        if off.is_nan() || off > allowed {
            return Err(format!("`{name}`[{i}] is {is:e}, not {want:e} ± {allowed:.1e}"));
        }
    }
    Ok(())
}
