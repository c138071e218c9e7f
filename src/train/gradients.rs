//! A step's results (gradients, or a model's outputs): in f32, and as a plan computes them.

use super::feeds::{Feed, feed, feeds};
use crate::data::Dataset;
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Role, verify};
use crate::lower::lower_visibly;
use crate::model::{Weight, Weights};
use crate::plan::{Planned, gradient_output, gradient_outputs, observed};
use crate::run::Device;
use crate::run::cpu::CpuRunner;
use std::collections::BTreeMap;

/// Computes the results alone, in f32.
pub struct PlainResults {
    device: CpuRunner,
    feeds: Vec<Feed>,
    results: Vec<String>,
}

impl PlainResults {
    /// `results` are values of the step, by what they are called.
    pub fn new(step: &Graph, results: &BTreeMap<String, String>) -> Result<PlainResults> {
        let graph = observed(&step.prune(&gradient_outputs(step, results))?)?;
        let device = CpuRunner::open(lower_visibly(verify(&graph)?)?)?;
        Ok(PlainResults { device, feeds: feeds(&graph), results: results.keys().cloned().collect() })
    }

    /// The results on some samples. `sources` are parameters and states; of two with a name the later counts.
    pub fn of<'s>(
        &mut self,
        sources: impl IntoIterator<Item = (&'s String, &'s Weight)>,
        data: &Dataset,
        rows: &[usize],
    ) -> Result<Vec<(String, Vec<f32>)>> {
        write_sources(&mut self.device, sources)?;
        feed(&mut self.device, &self.feeds, data, rows)?;
        self.device.run()?;
        self.results.iter().map(|p| Ok((p.clone(), self.device.read(&gradient_output(p))?))).collect()
    }

    /// Gives back memory until it is asked again.
    pub fn release(&mut self) {
        self.device.release();
    }
}

/// Writes those of the sources that the device's program has.
pub fn write_sources<'s>(
    device: &mut dyn Device,
    sources: impl IntoIterator<Item = (&'s String, &'s Weight)>,
) -> Result<()> {
    for (name, held) in sources {
        if device.program().find(name).is_some() {
            device.write_as(name, held.format, held.bytes())?;
        }
    }
    Ok(())
}

/// Writes the copies that a plan keeps of some sources.
pub fn write_copies(device: &mut dyn Device, graph: &Graph, sources: &Weights) -> Result<()> {
    for id in graph.sources() {
        if let Op::State { init: Init::Copy(of), .. } = graph.op(id)
            && let Some(held) = sources.get(of)
        {
            device.write(graph.name_of(id), &held.values::<f32>())?;
        }
    }
    Ok(())
}

/// A plan that also hands out the gradients, as the optimizer reads them, and the outputs' names by parameter.
pub fn with_gradients(
    planned: &Planned,
    step: &Graph,
    gradient_of: &BTreeMap<String, String>,
) -> Result<(Graph, BTreeMap<String, String>)> {
    let mut graph = planned.graph.clone();
    let mut named = BTreeMap::new();
    for (parameter, gradient) in gradient_of {
        let Some(&value) = step.find(gradient).and_then(|id| planned.places.get(id.index())?.as_ref()) else {
            continue;
        };
        let output = gradient_output(parameter);
        let node = as_read(&mut graph, value)?;
        graph.add_output(&output, Role::Output, node);
        named.insert(parameter.clone(), output);
    }
    Ok((graph, named))
}

/// The buffer that a value's readers see: the value itself if somebody reads it unrounded, else what is stored of it.
pub(super) fn as_read(graph: &mut Graph, value: NodeId) -> Result<NodeId> {
    let users = graph.users(value);
    let stored = users.iter().copied().filter(|&u| matches!(graph.op(u), Op::Put(_)));
    let narrowest = stored.min_by_key(|&u| graph.ty(u).format.bytes());
    let unrounded = users.iter().any(|&u| !matches!(graph.op(u), Op::Put(_)));
    match narrowest {
        Some(put) if !unrounded => Ok(put),
        _ if graph.op(value).is_buffer() => Ok(value),
        _ => graph.add(Op::Put(Format::F32), &[value]),
    }
}
