//! What is calibrated: a step in f32 at one point of its training, or a model in inference, and what was seen of it.

use super::bench::Bench;
use super::compile::Settings;
use super::feeds::{feed, feeds, inputs, saved_sources, shuffled};
use super::forward::Inference;
use super::gradients::write_sources;
use super::observe::observe;
use super::positions::Positions;
use super::watching::watching;
use crate::data::Dataset;
use crate::error::Result;
use crate::format::Spread;
use crate::ir::{Graph, NodeId, verify};
use crate::lower::lower_visibly;
use crate::model::{Model, Weight, Weights};
use crate::plan::{Evidence, observed};
use crate::rewrite::RuleSet;
use std::collections::BTreeMap;

/// A step with its sources standing still, and batches to look at it by.
pub struct Subject {
    pub(super) step: Graph,
    /// The values whose errors count, by what they belong to: gradients by parameter, outputs by their names.
    pub(super) results: BTreeMap<String, String>,
    pub(super) evidence: Evidence,
    pub(super) loss_scale: f64,
    /// Parameters and states.
    pub(super) sources: Weights,
    pub(super) probed: Vec<Vec<usize>>,
    pub(super) held_out: Vec<Vec<usize>>,
    /// Has nothing been chosen by what is held out?
    pub(super) fresh: bool,
}

/// Batches that nothing was trained on, as far as there are such.
struct Split {
    probed: Vec<Vec<usize>>,
    held_out: Vec<Vec<usize>>,
    fresh: bool,
}

impl Split {
    /// Splits an epoch's order of samples, the first batches of which were trained on.
    fn new(order: &[usize], batch: usize, trained: usize, wanted: usize) -> Split {
        let mut batches: Vec<Vec<usize>> = order.chunks_exact(batch).map(<[usize]>::to_vec).collect();
        let first = trained % batches.len().max(1);
        batches.rotate_left(first);
        let held = wanted.div_ceil(2).min(batches.len() / 3);
        let held_out = if held == 0 { batches.clone() } else { batches.drain(..held).collect() };
        batches.truncate(wanted);
        Split { probed: batches, held_out, fresh: held > 0 }
    }
}

impl Subject {
    /// Trains some steps in f32, with every value in sight.
    pub fn training(
        settings: &Settings,
        model: &Model,
        rules: &RuleSet,
        bench: Bench,
        batches: usize,
        tick: &dyn Fn(),
    ) -> Result<Subject> {
        let (mut session, evidence) = observe(settings, model, rules, bench, batches, tick)?.taken();
        let (step, results) = (session.compiled.step.clone(), session.compiled.gradient_of.clone());
        let split = Split::new(&session.order(bench.data), session.compiled.settings.batch(), batches, batches);
        let g = session.compiled.planned.graph.clone();
        let mut sources = Weights::new();
        for id in saved_sources(&g) {
            let (name, ty) = (g.name_of(id), g.ty(id));
            let held = Weight::from_bytes(ty.format, &ty.dims(), &session.read_bytes(name)?);
            sources.insert(name.to_owned(), held);
        }
        let loss_scale = f64::from(session.scale()?);
        Ok(Subject::new(step, results, evidence, loss_scale, sources, bench.data, split))
    }

    /// Runs a model on some batches, with every value in sight.
    pub(super) fn inference(model: &Inference, bench: Bench, batches: usize, tick: &dyn Fn()) -> Result<Subject> {
        let step = model.graph.clone();
        let data = bench.data;
        data.check_features(&inputs(&feeds(&step)), model.batch())?;
        if let Some(positions) = Positions::new(&step)? {
            positions.check(data)?;
        }
        let split = Split::new(&shuffled(data.samples, bench.seed), model.batch(), 0, batches);
        let mut evidence = seen(&step, &model.weights, bench, &split.probed, tick)?;
        // What was recognised as a part of something is in the file all the same.
        let file = &model.bound.graph;
        let names = |id: NodeId| (!file.is_auto_named(id)).then(|| file.name_of(id));
        if file.ids().filter_map(names).any(|name| step.find(name).is_none()) {
            let parts = seen(file, &model.weights, bench, &split.probed, &|| {})?;
            for name in file.ids().filter_map(names).filter(|name| step.find(name).is_none()) {
                if let Some(spread) = parts.values.get(name) {
                    evidence.values.insert(name.to_owned(), spread.clone());
                }
            }
        }
        Ok(Subject::new(step, model.results(), evidence, 1.0, model.weights.clone(), data, split))
    }

    fn new(
        step: Graph,
        results: BTreeMap<String, String>,
        mut evidence: Evidence,
        loss_scale: f64,
        sources: Weights,
        data: &Dataset,
        split: Split,
    ) -> Subject {
        let Split { probed, held_out, fresh } = split;
        for (name, held) in sources.iter().filter(|(_, w)| w.format.is_float()) {
            evidence.add(name, &Spread::of(&held.values::<f32>()));
        }
        for f in feeds(&step).iter().filter(|f| !f.label && f.ty.format.is_float()) {
            let Some(feature) = data.feature(&f.input) else { continue };
            for &r in probed.iter().chain(&held_out).flatten() {
                evidence.add(&f.buffer, &Spread::of(feature.row(r)));
            }
        }
        Subject { step, results, evidence, loss_scale, sources, probed, held_out, fresh }
    }
}

/// Runs a graph on some batches and looks at every value.
fn seen(graph: &Graph, weights: &Weights, bench: Bench, batches: &[Vec<usize>], tick: &dyn Fn()) -> Result<Evidence> {
    let graph = observed(graph)?;
    let feeds = feeds(&graph);
    let (evidence, watcher) = watching();
    let mut device = bench.backend.watch(lower_visibly(verify(&graph)?)?, watcher)?;
    write_sources(device.as_mut(), weights)?;
    for rows in batches {
        feed(device.as_mut(), &feeds, bench.data, rows)?;
        device.run()?;
        evidence.borrow_mut().steps += 1;
        tick();
    }
    Ok(evidence.replace(Evidence::default()))
}
