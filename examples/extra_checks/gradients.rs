//! A model's loss and the gradients of its parameters in f32 on the CPU, for numbers that others give.
//!
//! Each folder's `inputs.safetensors` holds the model's inputs by name, `label` if the loss is one of ours, and, under a
//! parameter's name, values to take instead of the model's. Its `gradients.safetensors` will hold `loss` and, under each
//! parameter's name, the gradient, if the loss depends on it.

use mantissa::autodiff;
use mantissa::cost::Target;
use mantissa::error::{Error, Result};
use mantissa::format::Format;
use mantissa::ir::{Graph, NodeId, Op, Role, Type, verify};
use mantissa::lower::lower;
use mantissa::model::{Checkpoint, Model, Purpose, Saved, Weights};
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::{Device, cpu::CpuRunner};
use mantissa::train::{Objective, Task};
use std::collections::BTreeMap;
use std::path::Path;

/// What stands before a parameter's name in the name of the output that is its gradient.
const GRADIENT: &str = "gradient of ";

/// `loss` is the name of one of ours, or `-` for the one that the model computes. All folders' inputs have one shape.
pub fn run(path: &Path, loss: &str, dirs: &[&str]) -> Result<()> {
    let model = Model::read(path)?;
    let given = |dir: &str| Ok(Checkpoint::read(&Path::new(dir).join("inputs.safetensors"))?.tensors);
    let shapes = shapes(&model, &given(dirs[0])?);
    let bound = model.bind_shaped(&shapes, Purpose::TRAINING, &BTreeMap::new())?;
    let task = Task::new(bound.graph, Some(loss).filter(|l| *l != "-"), &Objective::default(), &mut Weights::new())?;
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("cpu")?);
    let graph = plan(&differentiated(&task)?, &request, &RuleSet::builtin()?)?.graph;
    let mut cpu = CpuRunner::new(lower(verify(&graph)?)?);
    for dir in dirs {
        fill(&mut cpu, &graph, &given(dir)?, &bound.weights)?;
        cpu.run()?;
        results(&mut cpu, &graph)?.write(&Path::new(dir).join("gradients.safetensors"))?;
    }
    Ok(())
}

fn shapes(model: &Model, given: &BTreeMap<String, Saved>) -> BTreeMap<String, Vec<usize>> {
    model.input_names().into_iter().filter_map(|name| given.get(&name).map(|s| (name, s.dims.clone()))).collect()
}

/// The task's graph with the loss and the gradient of every parameter as its outputs.
fn differentiated(task: &Task) -> Result<Graph> {
    let mut graph = task.graph.clone();
    graph.clear_outputs();
    graph.add_output("loss", Role::Output, task.loss);
    let parameters: Vec<NodeId> = graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. })).collect();
    let seed = graph.constant(1.0)?;
    for (of, gradient) in autodiff::gradients(&mut graph, task.loss, seed, &parameters)? {
        let name = format!("{GRADIENT}{}", graph.name_of(of));
        graph.add_output(name, Role::Output, gradient);
    }
    let outputs = graph.outputs().to_vec();
    graph.prune(&outputs)
}

/// Gives every source its value: the one given, or the model's.
fn fill(cpu: &mut CpuRunner, graph: &Graph, given: &BTreeMap<String, Saved>, weights: &Weights) -> Result<()> {
    for id in graph.sources() {
        let (name, ty) = (graph.name_of(id), graph.ty(id));
        match (given.get(name), weights.get(name)) {
            (Some(saved), _) => cpu.write_bytes(name, bytes_as(saved, ty, name)?)?,
            (None, Some(w)) => cpu.write_as(name, w.format, w.bytes())?,
            (None, None) => return Err(Error::Request(format!("`{name}` ({ty}) has no data"))),
        }
    }
    Ok(())
}

/// The bytes of a tensor that must have the type of what it is for.
fn bytes_as<'a>(saved: &'a Saved, ty: &Type, name: &str) -> Result<&'a [u8]> {
    if saved.format == ty.format && saved.dims == ty.dims() {
        Ok(&saved.bytes)
    } else {
        Err(Error::Request(format!("`{name}` takes {ty}, not {}{:?}", saved.format, saved.dims)))
    }
}

/// The outputs, gradients under the names of their parameters.
fn results(cpu: &mut CpuRunner, graph: &Graph) -> Result<Checkpoint> {
    let mut out = Checkpoint::default();
    for output in graph.outputs() {
        let bytes = cpu.read(&output.name)?.into_iter().flat_map(f32::to_le_bytes).collect();
        let name = output.name.strip_prefix(GRADIENT).unwrap_or(&output.name).to_owned();
        out.tensors.insert(name, Saved { format: Format::F32, dims: graph.ty(output.node).dims(), bytes });
    }
    Ok(out)
}
