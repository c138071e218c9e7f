//! A step's results (gradients, or a model's outputs): in f32, and as a plan computes them.

use super::feeds::{Feed, feed, feeds};
use crate::data::Dataset;
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Role, verify};
use crate::lower::{Program, lower_visibly};
use crate::model::{Weight, Weights};
use crate::plan::{Planned, gradient_output, gradient_outputs, observed};
use crate::run::{Backend, Device};
use std::collections::BTreeMap;

/// A program that is on a device while it is used: programs that take turns need not fit beside each other.
pub(super) struct OnDemand<'b> {
    backend: &'b dyn Backend,
    program: Program,
    device: Option<Box<dyn Device>>,
}

impl<'b> OnDemand<'b> {
    pub fn new(backend: &'b dyn Backend, program: Program) -> OnDemand<'b> {
        OnDemand { backend, program, device: None }
    }

    /// The device; if it has just been opened, nothing has been written yet: true.
    pub fn device(&mut self) -> Result<(&mut dyn Device, bool)> {
        let is_new = self.device.is_none();
        let device = match self.device.take() {
            Some(device) => device,
            None => self.backend.open(self.program.clone())?,
        };
        Ok((self.device.insert(device).as_mut(), is_new))
    }

    /// Gives the device's memory back, with what was written.
    pub fn release(&mut self) {
        self.device = None;
    }
}

/// Computes the results alone, in f32.
pub struct PlainResults<'b> {
    device: OnDemand<'b>,
    feeds: Vec<Feed>,
    results: Vec<String>,
}

impl<'b> PlainResults<'b> {
    /// `results` are values of the step, by what they are called.
    pub fn new(step: &Graph, results: &BTreeMap<String, String>, backend: &'b dyn Backend) -> Result<PlainResults<'b>> {
        let graph = observed(&step.prune(&gradient_outputs(step, results))?)?;
        let device = OnDemand::new(backend, lower_visibly(verify(&graph)?)?);
        Ok(PlainResults { device, feeds: feeds(&graph), results: results.keys().cloned().collect() })
    }

    /// The results on some samples. `sources` are parameters and states; of two with a name the later counts.
    pub fn of<'s>(
        &mut self,
        sources: impl IntoIterator<Item = (&'s String, &'s Weight)>,
        data: &Dataset,
        rows: &[usize],
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let (device, _) = self.device.device()?;
        write_sources(device, sources)?;
        feed(device, &self.feeds, data, rows)?;
        device.run()?;
        self.results.iter().map(|p| Ok((p.clone(), device.read(&gradient_output(p))?))).collect()
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
