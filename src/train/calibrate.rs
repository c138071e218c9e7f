//! Calibration: what rounding a step's values does to its results, and what a plan does to them.
//!
//! Results are gradients, or a model's outputs in inference. Batches give their noise, a loss scale is chosen for the
//! ranges found, and a probe ([`crate::plan::probe`]) says how much rounding each value would add. Plans are measured on
//! batches that the probe has not seen.

use super::bench::Bench;
use super::compile::Settings;
use super::feeds::{feed, feeds};
use super::gradients::{OnDemand, PlainResults, write_copies, write_sources};
use super::recipe::ScalerMode;
use super::step::names;
use super::subject::Subject;
use crate::error::{Error, Result};
use crate::format::{Format, Spread};
use crate::ir::{Graph, Op, Stage, verify};
use crate::lower::{lower, lower_visibly};
use crate::model::{Weight, Weights};
use crate::plan::{Budget, Calibration, HEADROOM, Kink, Measured, Probe, Shares, probe};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What to calibrate with.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Batches trained on; as many again are probed, and half as many are held out.
    pub batches: usize,
    /// Draws of weights for each probed batch and format.
    pub draws: usize,
    /// How much noise a plan may add; by default a tenth of the gradients' own.
    pub budget: Budget,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { batches: 8, draws: 2, budget: Budget::default() }
    }
}

/// Noise below this share of the gradient counts as this: no rounding should have to be finer.
const LEAST_NOISE: f64 = 0.01;

/// A gradient that moves by more than this share of its unit where parameters move by a unit in the last place of f32 is
/// rounding residue: its true value is 0 (a key's bias before a softmax, a bias before a batch norm) or one of several
/// (maxima that nearly tie).
const RESIDUE: f64 = 0.1;

/// Batches that tell residue.
const NUDGED: usize = 2;

/// What is measured: a graph that rounds, made of the subject's step.
pub struct Trial {
    pub graph: Graph,
    /// Its outputs by the subject's results.
    pub outputs: BTreeMap<String, String>,
    /// Constants that it alone has.
    pub constants: Weights,
}

/// Where a subject's rounding errors are estimated and measured.
pub struct Laboratory<'a> {
    settings: &'a Settings,
    bench: Bench<'a>,
    subject: Subject,
    effort: Effort,
    plain: PlainResults<'a>,
    /// What a result's error is measured in: the norm of its noise, or its own.
    unit: BTreeMap<String, f64>,
    /// How much each result counts.
    weight: BTreeMap<String, f64>,
    /// How much larger noise is taken than it was estimated.
    strictness: f64,
    /// Built by the first calibration.
    instrument: Option<Instrument<'a>>,
}

/// The probe, ready to run: it stays the same however strictly its findings are judged.
struct Instrument<'a> {
    probe: Probe,
    device: OnDemand<'a>,
    /// Width and slope of every kink, by format.
    bands: Vec<BTreeMap<Format, [f64; 2]>>,
}

impl<'a> Laboratory<'a> {
    /// `tick` is told after each of [`Laboratory::ticks`] runs, with those of the subject.
    pub(super) fn new(
        settings: &'a Settings,
        subject: Subject,
        bench: Bench<'a>,
        effort: Effort,
        tick: &dyn Fn(),
    ) -> Result<Laboratory<'a>> {
        let plain = PlainResults::new(&subject.step, &subject.results, bench.backend)?;
        let (unit, weight) = (BTreeMap::new(), BTreeMap::new());
        let mut lab =
            Laboratory { settings, bench, subject, effort, plain, unit, weight, strictness: 1.0, instrument: None };
        lab.choose_scale();
        lab.measure_noise(tick)?;
        Ok(lab)
    }

    /// How often `tick` is told of progress.
    pub fn ticks(effort: &Effort, formats: usize) -> usize {
        effort.batches * (2 + effort.draws * formats)
    }

    /// Moves a dynamic loss scale to where most of the gradients are normal numbers of f16.
    fn choose_scale(&mut self) {
        if self.settings.scaling() != ScalerMode::Dynamic {
            return;
        }
        let scaled = scaled_values(&self.subject.step);
        let spreads: Vec<&Spread> = scaled.iter().filter_map(|n| self.subject.evidence.values.get(n)).collect();
        let Some(spec) = Format::F16.float() else { return };
        let damage = |octaves: i32| -> f64 {
            let of = |s: &&Spread| {
                let moved = s.scaled(octaves);
                let fate = moved.fate(Format::F16);
                let over = f64::from(moved.largest) * HEADROOM > spec.max;
                if over { 1.0 } else { fate.flushed + 0.1 * fate.subnormal }
            };
            spreads.iter().map(of).sum()
        };
        let now = self.subject.loss_scale.log2().round() as i32;
        let scaler = &self.settings.recipe.scaler;
        let (floor, cap) = (scaler.floor.log2().ceil() as i32, scaler.cap.log2().floor() as i32);
        // The scale it has, unless another is better by more than a thousandth of all values.
        let mut best = (damage(0) - 1e-3 * spreads.len() as f64, 0);
        for octaves in (floor..=cap).map(|e| e - now) {
            let d = damage(octaves);
            if d < best.0 {
                best = (d, octaves);
            }
        }
        let octaves = best.1;
        if octaves != 0 {
            for name in scaled {
                if let Some(s) = self.subject.evidence.values.get_mut(&name) {
                    *s = s.scaled(octaves);
                }
            }
            self.subject.loss_scale *= 2f64.powi(octaves);
        }
        if let Some(held) = self.subject.sources.get_mut(names::SCALE) {
            *held = Weight::from_values(held.format, &held.dims, &[self.subject.loss_scale]);
        }
    }

    /// The gradients' norms and their noise over the probed batches, which decide what errors are measured in.
    fn measure_noise(&mut self, tick: &dyn Fn()) -> Result<()> {
        let count = self.subject.probed.len() as f64;
        let mut sums: BTreeMap<String, (Vec<f32>, f64)> = BTreeMap::new();
        let nudged = self.nudged();
        let mut residue: BTreeMap<String, f64> = BTreeMap::new();
        for (i, rows) in self.subject.probed.iter().enumerate() {
            let plain = self.plain.of(&self.subject.sources, self.bench.data, rows)?;
            if i < NUDGED && !nudged.is_empty() {
                let moved = self.plain.of(self.subject.sources.iter().chain(&nudged), self.bench.data, rows)?;
                for ((p, g), (_, m)) in plain.iter().zip(&moved) {
                    *residue.entry(p.clone()).or_insert(0.0) +=
                        distance2(g, m) / NUDGED.min(self.subject.probed.len()) as f64;
                }
            }
            for (p, g) in plain {
                self.require_finite(&p, &g)?;
                let (sum, squares) = sums.entry(p).or_insert_with(|| (vec![0.0; g.len()], 0.0));
                sum.iter_mut().zip(&g).for_each(|(s, x)| *s += x);
                *squares += norm2(&g);
            }
            tick();
        }
        self.plain.release();
        let elements: BTreeMap<String, usize> = sums.iter().map(|(p, (sum, _))| (p.clone(), sum.len())).collect();
        for (p, (sum, squares)) in sums {
            let (mean2, square) = (norm2(&sum) / (count * count), squares / count);
            let unit = match self.effort.budget {
                Budget::Relative(_) | Budget::Outputs(_) => square,
                // One batch has no noise to measure: then the gradient itself is the measure.
                Budget::Noise(_) if count < 2.0 => square,
                Budget::Noise(_) => {
                    let variance = ((square - mean2) * count / (count - 1.0)).max(0.0);
                    variance.max(LEAST_NOISE * LEAST_NOISE * square)
                }
            };
            if unit > 0.0 && unit.is_finite() {
                self.unit.insert(p.clone(), unit.sqrt());
                self.weight.insert(p, 1.0);
            }
        }
        self.judge_residue_by_the_others(&residue, &elements);
        if self.unit.is_empty() {
            return Err(Error::Diverged(
                "no result of the f32 step (gradients, or outputs in inference) is finite and other than zero, so there is nothing to calibrate by; look at the step with `mantissa profile`".into(),
            ));
        }
        Ok(())
    }

    /// The parameters, each element moved to a neighbouring number of f32.
    fn nudged(&self) -> Weights {
        let mut rng = ChaCha8Rng::seed_from_u64(self.bench.seed);
        let step = &self.subject.step;
        let is_param = |name: &str| step.find(name).is_some_and(|id| matches!(step.op(id), Op::Param { .. }));
        let params = self.subject.sources.iter().filter(|(name, w)| w.format == Format::F32 && is_param(name));
        let mut nudge = |w: &Weight| {
            let values = w.values::<f32>().into_iter();
            let moved: Vec<f32> = values.map(|v| if rng.random() { v.next_up() } else { v.next_down() }).collect();
            Weight::from_values(w.format, &w.dims, &moved)
        };
        params.map(|(name, w)| (name.clone(), nudge(w))).collect()
    }

    /// Errors of gradients that are residue are measured by how much noise an element of the others has.
    fn judge_residue_by_the_others(&mut self, residue: &BTreeMap<String, f64>, elements: &BTreeMap<String, usize>) {
        let is_residue = |p: &String, unit: f64| residue.get(p).is_some_and(|r| r.sqrt() > RESIDUE * unit);
        let (mut squares, mut count) = (0.0, 0);
        for (p, unit) in self.unit.iter().filter(|(p, unit)| !is_residue(p, **unit)) {
            (squares, count) = (squares + unit * unit, count + elements[p]);
        }
        if count == 0 {
            return;
        }
        for (p, unit) in self.unit.iter_mut().filter(|(p, unit)| is_residue(p, **unit)) {
            *unit = unit.max((squares * elements[p] as f64 / count as f64).sqrt());
        }
    }

    /// A gradient that is not finite in f32 measures nothing, and training by it fails.
    fn require_finite(&self, result: &str, values: &[f32]) -> Result<()> {
        let bad = values.iter().filter(|v| !v.is_finite()).count();
        // Outputs may be: a mask's are infinite.
        if bad == 0 || matches!(self.effort.budget, Budget::Outputs(_)) {
            return Ok(());
        }
        let first = self.subject.evidence.first_non_finite.as_ref();
        Err(Error::Diverged(format!(
            "{} is not finite in f32, in {bad} of {} elements, so nothing can be calibrated by it{}",
            self.effort.budget.result(result),
            values.len(),
            first.map_or(String::new(), |(_, value)| format!("; the first value that is not finite is `{value}`"))
        )))
    }

    /// What rounding each value would add to the gradients, with everything else that is known.
    pub(super) fn calibration(&mut self, tick: &dyn Fn()) -> Result<Calibration> {
        let mut instrument = match self.instrument.take() {
            Some(built) => built,
            None => self.instrument()?,
        };
        let calibration = self.calibrate_with(&mut instrument, tick);
        instrument.device.release();
        self.instrument = Some(instrument);
        calibration
    }

    fn instrument(&self) -> Result<Instrument<'a>> {
        let formats = self.settings.probed();
        let probe = probe(&self.subject.step, &self.subject.results, formats.iter().copied().collect())?;
        let device = OnDemand::new(self.bench.backend, lower(verify(&probe.graph)?)?);
        let bands = self.bands(&probe.kinks, &probe.spreads, &formats)?;
        Ok(Instrument { probe, device, bands })
    }

    fn calibrate_with(&self, instrument: &mut Instrument, tick: &dyn Fn()) -> Result<Calibration> {
        let Instrument { probe: Probe { graph, gradients, roundings, kinks, .. }, device, bands } = instrument;
        let formats = self.settings.probed();
        let feeds = feeds(graph);
        let (device, is_new) = device.device()?;
        if is_new {
            write_sources(device, &self.subject.sources)?;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.bench.seed);
        let total: f64 = self.unit.keys().map(|p| self.weight[p]).sum();
        let mut sums = vec![(0.0, 0.0); roundings.len()];
        for rows in &self.subject.probed {
            feed(device, &feeds, self.bench.data, rows)?;
            // Kinks blur by what a format does, so each format has draws of its own.
            for (format, _) in formats.iter().flat_map(|f| (0..self.effort.draws).map(move |n| (f, n))) {
                for (kink, by_format) in kinks.iter().zip(&*bands) {
                    let [width, slope] = by_format[format];
                    device.write(&kink.width, &[width as f32])?;
                    device.write(&kink.slope, &[slope as f32])?;
                }
                for p in &*gradients {
                    let unit = self.unit.get(&p.parameter);
                    let scale = unit
                        .map_or(0.0, |u| (self.weight[&p.parameter] / total).sqrt() / (u * self.effort.budget.share()))
                        as f32;
                    let id = graph.find(&p.weights).expect("the probe declared it");
                    let signs: Vec<f32> =
                        (0..graph.ty(id).elements()).map(|_| if rng.random() { scale } else { -scale }).collect();
                    device.write(&p.weights, &signs)?;
                }
                device.run()?;
                for (s, r) in sums.iter_mut().zip(&*roundings).filter(|(_, r)| r.format == *format) {
                    let sum = f64::from(device.read(&r.sum)?[0]);
                    s.0 += f64::from(device.read(&r.squares)?[0]);
                    s.1 += sum * sum;
                }
                tick();
            }
        }
        let runs = (self.subject.probed.len() * self.effort.draws).max(1) as f64;
        let mut values: BTreeMap<String, Shares> = BTreeMap::new();
        let mut operands: BTreeMap<String, BTreeMap<String, Shares>> = BTreeMap::new();
        for (r, (squares, sums)) in roundings.iter().zip(sums) {
            // Errors that agree show in the second alone; it varies, so it counts where it is clearly larger.
            let (independent, joint) = (squares / runs, sums / runs);
            let share = if joint > 4.0 * independent || joint.is_nan() { joint } else { independent };
            let share = self.judged(share);
            let shares = match &r.product {
                None => values.entry(r.value.clone()).or_default(),
                Some(p) => operands.entry(p.clone()).or_default().entry(r.value.clone()).or_default(),
            };
            *shares.entry(r.format).or_insert(0.0) += share;
        }
        self.add_what_gradients_do_not_read(&mut values);
        if self.settings.formats().contains(&Format::Tf32) {
            values.values_mut().chain(operands.values_mut().flat_map(BTreeMap::values_mut)).for_each(add_tf32);
        }
        Ok(Calibration {
            batches: self.subject.probed.len(),
            budget: self.effort.budget,
            loss_scale: self.subject.loss_scale,
            evidence: self.subject.evidence.clone(),
            values,
            operands,
        })
    }

    /// Band and slope of every kink, by format.
    fn bands(&self, kinks: &[Kink], spreads: &Graph, formats: &[Format]) -> Result<Vec<BTreeMap<Format, [f64; 2]>>> {
        if kinks.is_empty() {
            return Ok(Vec::new());
        }
        let feeds = feeds(spreads);
        let mut device = self.bench.backend.open(lower_visibly(verify(spreads)?)?)?;
        write_sources(device.as_mut(), &self.subject.sources)?;
        let mut squares = vec![BTreeMap::from_iter(formats.iter().map(|&f| (f, 0.0))); kinks.len()];
        for rows in &self.subject.probed {
            feed(device.as_mut(), &feeds, self.bench.data, rows)?;
            device.run()?;
            for (kink, sums) in kinks.iter().zip(&mut squares) {
                for (&format, sum) in sums.iter_mut() {
                    *sum += f64::from(device.read(&kink.moved(format))?[0]) / self.subject.probed.len() as f64;
                }
            }
        }
        let band = |(f, s): (Format, f64)| (f, Kink::band(s.sqrt()));
        Ok(squares.into_iter().map(|of| of.into_iter().map(band).collect()).collect())
    }

    /// Values of the two passes that no gradient depends on can be rounded as one likes.
    fn add_what_gradients_do_not_read(&self, values: &mut BTreeMap<String, Shares>) {
        let mut read = vec![false; self.subject.step.len()];
        self.subject.results.values().filter_map(|g| self.subject.step.find(g)).for_each(|g| read[g.index()] = true);
        for id in self.subject.step.ids().rev() {
            if read[id.index()] {
                self.subject.step.inputs(id).iter().for_each(|x| read[x.index()] = true);
            }
        }
        for id in
            self.subject.step.ids().filter(|&id| !read[id.index()] && self.subject.step.node(id).stage != Stage::Update)
        {
            let free = self.settings.probed().into_iter().map(|f| (f, 0.0)).collect();
            values.entry(self.subject.step.name_of(id).to_owned()).or_insert(free);
        }
    }

    /// Runs a trial on held-out batches and compares its results with those of f32.
    pub(super) fn measure(&mut self, trial: &Trial) -> Result<Measured> {
        // One after the other, so that memory is taken for one at a time.
        let held_out = self.subject.held_out.iter();
        let exact = held_out.map(|rows| self.plain.of(&self.subject.sources, self.bench.data, rows));
        let exact: Vec<_> = exact.collect::<Result<_>>()?;
        self.plain.release();
        let mut device = self.bench.backend.open(lower(verify(&trial.graph)?)?)?;
        let feeds = feeds(&trial.graph);
        let mut errors: BTreeMap<String, f64> = BTreeMap::new();
        for (rows, exact) in self.subject.held_out.iter().zip(exact) {
            let others = self.subject.sources.iter().filter(|(name, _)| !trial.constants.contains_key(*name));
            write_sources(device.as_mut(), others.chain(&trial.constants))?;
            write_copies(device.as_mut(), &trial.graph, &self.subject.sources)?;
            feed(device.as_mut(), &feeds, self.bench.data, rows)?;
            device.run()?;
            for (result, wide) in exact {
                self.require_finite(&result, &wide)?;
                let (Some(output), Some(unit)) = (trial.outputs.get(&result), self.unit.get(&result)) else { continue };
                let rounded = device.read(output)?;
                let error = distance2(&rounded, &wide);
                let error = if error.is_nan() { f64::INFINITY } else { error };
                *errors.entry(result).or_insert(0.0) += error / (unit * unit) / self.subject.held_out.len() as f64;
            }
        }
        let results = errors.into_iter().map(|(p, e)| (p, e.sqrt() / self.effort.budget.share())).collect();
        Ok(Measured { batches: self.subject.held_out.len(), fresh: self.subject.fresh, results, given_up: Vec::new() })
    }

    /// Nothing that adds noise may be rounded any more.
    pub fn forbid(&mut self) {
        self.strictness = f64::INFINITY;
    }

    /// A share of the budget as it is judged after what was measured.
    fn judged(&self, share: f64) -> f64 {
        match share {
            0.0 => 0.0,
            s if s.is_finite() => s * self.strictness,
            _ => f64::INFINITY,
        }
    }

    /// Judges roundings more strictly after a plan that kept not to the budget: all of them by what it was over, and more
    /// those that reach the parameters it disturbed most.
    pub fn tighten(&mut self, measured: &Measured) {
        let over = measured.overall();
        if over > 1.0 {
            self.strictness *= 1.2 * over.min(1e3).powi(2);
        }
        for (p, &error) in &measured.results {
            if let Some(w) = self.weight.get_mut(p) {
                *w *= error.clamp(0.5, 100.0).powi(2);
            }
        }
    }
}

/// Rounding to tf32 adds no more noise than to f16, which has as many mantissa bits, and no more than an eighth of what
/// bf16 adds with three fewer: errors shrink to an eighth, squares of errors to less, but what crosses a kink shrinks as
/// errors do.
fn add_tf32(shares: &mut Shares) {
    let [f16, bf16] = Format::STORED.map(|f| shares.get(&f).copied().unwrap_or(f64::INFINITY));
    shares.insert(Format::Tf32, f16.min(bf16 / 8.0));
}

fn distance2(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

fn norm2(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// Values that grow with the loss scale.
fn scaled_values(step: &Graph) -> Vec<String> {
    let Some(scale) = step.find(names::SCALE) else { return Vec::new() };
    let mut scaled = vec![false; step.len()];
    scaled[scale.index()] = true;
    let mut out = Vec::new();
    for id in step.ids().filter(|&id| step.node(id).stage == Stage::Backward) {
        scaled[id.index()] = step.inputs(id).iter().any(|x| scaled[x.index()]);
        if scaled[id.index()] {
            out.push(step.name_of(id).to_owned());
        }
    }
    out
}
