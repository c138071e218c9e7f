//! What a graph is fed with: samples of a dataset, by the names of its inputs.

use crate::data::{Dataset, Labels};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Type};
use crate::run::Device;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// An input of a graph.
pub(super) struct Feed {
    pub buffer: String,
    /// The model's input, of which the buffer may be a copy in another format.
    pub input: String,
    pub label: bool,
    pub ty: Type,
}

impl Feed {
    /// Extents of one sample.
    pub fn sample_dims(&self) -> Vec<usize> {
        self.ty.dims().get(1..).map_or(Vec::new(), <[usize]>::to_vec)
    }
}

/// Samples in an order that depends on the seed alone.
pub(super) fn shuffled(samples: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

/// Parameters and states, without the copies that follow from them.
pub(super) fn saved_sources(g: &Graph) -> Vec<NodeId> {
    let own = |op: &Op| matches!(op, Op::Param { init, .. } | Op::State { init, .. } if !matches!(init, Init::Copy(_)));
    g.sources().filter(|&id| own(g.op(id))).collect()
}

pub(super) fn feeds(g: &Graph) -> Vec<Feed> {
    let feed = |id| match g.op(id) {
        Op::Input { label, ty, copy_of } => {
            let buffer = g.name_of(id).to_owned();
            let input = copy_of.clone().unwrap_or_else(|| buffer.clone());
            Some(Feed { buffer, input, label: *label, ty: ty.clone() })
        }
        _ => None,
    };
    g.sources().filter_map(feed).collect()
}

/// The model's inputs that are fed, each once, with the extents of one sample.
pub(super) fn inputs(feeds: &[Feed]) -> Vec<(String, Vec<usize>)> {
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    for f in feeds.iter().filter(|f| !f.label) {
        if out.iter().all(|(name, _)| *name != f.input) {
            out.push((f.input.clone(), f.sample_dims()));
        }
    }
    out
}

/// Writes the samples `rows` into every input of a program.
pub(super) fn feed(device: &mut dyn Device, feeds: &[Feed], data: &Dataset, rows: &[usize]) -> Result<()> {
    for f in feeds {
        match (&data.labels, f.label) {
            (_, false) => {
                let feature = data.feature(&f.input).ok_or_else(|| {
                    Error::data(&data.path, format!("no array is named as the model's input `{}`", f.input))
                })?;
                device.write(&f.buffer, &gather(&feature.values, feature.width(), rows))?
            }
            (Labels::Targets(t), true) => device.write(&f.buffer, &gather(t, t.len() / data.samples, rows))?,
            (Labels::Classes(c), true) => {
                let classes = gather(c, c.len() / data.samples, rows);
                if f.ty.format == Format::I64 {
                    device.write_bytes(&f.buffer, bytemuck::cast_slice(&classes))?;
                } else {
                    device.write(&f.buffer, &classes.iter().map(|&c| c as f32).collect::<Vec<_>>())?;
                }
            }
        }
    }
    Ok(())
}

fn gather<T: Copy>(values: &[T], width: usize, rows: &[usize]) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len() * width);
    rows.iter().for_each(|&r| out.extend_from_slice(&values[r * width..(r + 1) * width]));
    out
}
