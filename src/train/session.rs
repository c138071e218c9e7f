//! Running a compiled step over data, epoch after epoch.

use super::compile::Compiled;
use super::diagnose::{Culprit, diagnose};
use super::feeds::{Feed, feed, feeds, inputs, saved_sources, shuffled};
use super::loss::Score;
use super::positions::Positions;
use super::recipe::ScalerMode;
use super::step::names;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::ir::ops::random;
use crate::ir::{Init, Op, verify};
use crate::lower::{lower, lower_visibly};
use crate::model::{Checkpoint, Saved};
use crate::plan::print_profile;
use crate::run::{Backend, Device, Watcher, initialise};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often a run that has no loss scale is asked whether its gradients are finite.
const LOOK: Duration = Duration::from_millis(50);

/// How often the loss is read while an epoch runs.
const SHOW: Duration = Duration::from_millis(500);

/// How far an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Samples trained on in this epoch.
    pub samples: usize,
    /// Mean loss of the epoch so far, where it was looked at: about twice a second.
    pub loss: Option<f64>,
}

/// What an epoch came to.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct EpochReport {
    /// Counted from 1.
    pub epoch: usize,
    /// Batches run, with those that were skipped.
    pub steps: u64,
    /// Mean training loss over the epoch's batches whose loss was finite; NaN if none was.
    pub loss: f64,
    /// Steps of the epoch that were skipped, because a gradient was not finite.
    pub skipped: u64,
    /// Steps skipped since training began.
    pub skipped_in_all: u64,
    /// Loss scale after the epoch; 1 where scaling is off.
    pub scale: f64,
    /// Without evaluation.
    pub samples_per_s: f64,
    /// None without test data, and where the loss is of no prediction.
    #[serde(flatten)]
    pub test: Option<EvalReport>,
}

/// Loss and, for classifiers, the share of samples predicted right.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct EvalReport {
    /// Mean over samples, or over the positions that count by the weights of their classes.
    #[serde(rename = "test_loss")]
    pub loss: f64,
    /// 0 to 1; none for losses that compare numbers.
    #[serde(rename = "test_accuracy", skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// A training run: the step and the evaluation graph on a device, and where the run stands.
pub struct Session {
    /// What is run.
    pub compiled: Compiled,
    step: Box<dyn Device>,
    eval: Option<Box<dyn Device>>,
    /// Decides initial values, the order of samples and dropout.
    pub seed: u64,
    /// Epochs behind the session.
    pub epoch: usize,
    /// Inputs and their staged copies, then labels: buffer name, the input it feeds, extents with the batch leading.
    feeds: Vec<Feed>,
    /// Where the model looks things up by what data holds.
    positions: Option<Positions>,
}

impl Session {
    /// Loads both graphs onto a device and gives parameters and states their initial values.
    ///
    /// # Errors
    /// A plan that the device cannot run or hold, a device that is not there, a parameter whose value the file lacks.
    pub fn new(compiled: Compiled, seed: u64, backend: &dyn Backend) -> Result<Session> {
        let step = backend.open(lower(verify(&compiled.planned.graph)?)?)?;
        let eval = match &compiled.eval {
            Some(g) => Some(backend.open(lower(verify(g)?)?)?),
            None => None,
        };
        Session::on(compiled, seed, step, eval)
    }

    /// A run that tells a watcher what every value is like that the plan stores ([`crate::train::Settings::observed`]).
    pub(super) fn watched(compiled: Compiled, seed: u64, backend: &dyn Backend, watcher: Watcher) -> Result<Session> {
        let program = lower_visibly(verify(&compiled.planned.graph)?)?;
        Session::on(compiled, seed, backend.watch(program, watcher)?, None)
    }

    pub(super) fn on(
        compiled: Compiled,
        seed: u64,
        step: Box<dyn Device>,
        eval: Option<Box<dyn Device>>,
    ) -> Result<Session> {
        let feeds = feeds(&compiled.planned.graph);
        let positions = Positions::new(&compiled.step)?;
        let mut session = Session { compiled, step, eval, seed, epoch: 0, feeds, positions };
        session.initialise()?;
        Ok(session)
    }

    fn initialise(&mut self) -> Result<()> {
        let g = self.compiled.planned.graph.clone();
        for id in g.sources() {
            let (Op::Param { init, ty } | Op::State { init, ty }) = g.op(id) else { continue };
            let name = g.name_of(id);
            let values = match init {
                // Whole numbers that f32 holds.
                _ if name == random::SEED => vec![(self.seed % (1 << 24)) as f32],
                Init::Copy(_) => continue,
                Init::Data => {
                    let weight = self.compiled.weights.get(name).ok_or_else(|| {
                        Error::Request(format!(
                            "parameter `{name}` takes its values from the model file, which has none for it"
                        ))
                    })?;
                    self.step.write_as(name, weight.format, weight.bytes())?;
                    continue;
                }
                _ => initialise(name, init, ty, self.seed).expect("only data and copies have no values of their own"),
            };
            self.step.write(name, &values)?;
        }
        self.refresh_copies()
    }

    /// Rounds parameters into the copies that the optimizer will carry along.
    fn refresh_copies(&mut self) -> Result<()> {
        let g = self.compiled.planned.graph.clone();
        for id in g.sources() {
            if let Op::State { init: Init::Copy(of), .. } = g.op(id) {
                let values = self.step.read(of)?;
                self.step.write(g.name_of(id), &values)?;
            }
        }
        Ok(())
    }

    /// The loss scale at present.
    ///
    /// # Errors
    /// A device that fails.
    pub fn scale(&mut self) -> Result<f32> {
        if self.step.program().find(names::SCALE).is_some() {
            return Ok(self.step.read(names::SCALE)?[0]);
        }
        let s = &self.compiled.settings;
        Ok(if s.scaling() == ScalerMode::Static { s.recipe.scaler.init as f32 } else { 1.0 })
    }

    /// The device, for the log.
    pub fn device(&self) -> String {
        self.step.describe()
    }

    /// Times every kernel of the step and says what it took beside what was predicted. The run ends with this.
    ///
    /// # Errors
    /// A device that fails, or that cannot time single kernels.
    pub fn profile(mut self) -> Result<String> {
        let measured = self.step.profile()?;
        let target = self.compiled.settings.request()?.target;
        let step = &self.step;
        Ok(print_profile(&self.compiled.planned, step.program(), &target, &measured, &step.describe()))
    }

    /// Refuses data that does not fit the model. Training data must fill a batch.
    ///
    /// # Errors
    /// [`Error::Data`]: too few samples, other arrays than inputs, positions outside a table, labels of a wrong kind.
    pub fn check(&self, data: &Dataset, training: bool) -> Result<()> {
        let batch = if training { self.compiled.settings.batch() } else { 1 };
        let classes = self.compiled.classes().map(|n| {
            let head = self.compiled.task.head.as_ref();
            (n, head.and_then(|h| h.criterion.options.ignore_index))
        });
        data.check_features(&inputs(&self.feeds), batch)?;
        if let Some(positions) = &self.positions {
            positions.check(data)?;
        }
        let label = self.feeds.iter().find(|f| f.label).map_or(Vec::new(), Feed::sample_dims);
        data.check_labels(classes, label.iter().product())
    }

    /// Overwrites an input or label, and the copies of it that are staged in other formats.
    ///
    /// # Errors
    /// [`Error::Request`] for another number of values than the input has; a device that fails.
    pub fn feed(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let g = &self.compiled.planned.graph;
        let copy = |id: &crate::ir::NodeId| matches!(g.op(*id), Op::Input { copy_of: Some(of), .. } if of == name);
        let copies: Vec<String> = g.sources().filter(copy).map(|id| g.name_of(id).to_owned()).collect();
        if g.find(name).is_some() {
            self.step.write(name, values)?;
        }
        copies.iter().try_for_each(|c| self.step.write(c, values))
    }

    /// Runs one step on what was fed last, and returns its loss.
    ///
    /// # Errors
    /// A device that fails.
    pub fn step(&mut self) -> Result<f64> {
        self.step.run()?;
        Ok(f64::from(self.step.read("loss")?[0]))
    }

    /// The order of the samples in the epoch at hand.
    pub(super) fn order(&self, data: &Dataset) -> Vec<usize> {
        shuffled(data.samples, self.seed ^ (self.epoch as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The first steps of an epoch, up to so many; `tick` is told after each. Returns their losses.
    ///
    /// # Errors
    /// Those of [`Session::check`], and a device that fails.
    pub fn train_steps(&mut self, data: &Dataset, steps: usize, mut tick: impl FnMut()) -> Result<Vec<f64>> {
        self.check(data, true)?;
        let batch = self.compiled.settings.batch();
        let order = self.order(data);
        let mut losses = Vec::new();
        for rows in order.chunks_exact(batch).take(steps) {
            feed(self.step.as_mut(), &self.feeds, data, rows)?;
            losses.push(self.step()?);
            tick();
        }
        Ok(losses)
    }

    /// One pass over the data in an order that depends on the seed and the epoch alone. The last, incomplete batch is
    /// left out. `tick` is told how many samples have been seen.
    ///
    /// # Errors
    /// [`Error::Diverged`] where training cannot go on, with what it was that was not finite: at once where a gradient is not
    /// and no loss scale could come down for it, and at the end of an epoch in which no step was good and none will be. The
    /// parameters are then as the last good step left them.
    pub fn train_epoch(&mut self, data: &Dataset, mut tick: impl FnMut(Seen)) -> Result<EpochReport> {
        let batch = self.compiled.settings.batch();
        let steps = data.samples / batch;
        self.check(data, true)?;
        let order = self.order(data);
        for (name, start) in
            [(names::LOSS_SUM, 0.0), (names::BAD_LOSSES, 0.0), (names::BATCHES, 0.0), (names::FIRST_SKIPPED, -1.0)]
        {
            if self.step.program().find(name).is_some() {
                self.step.write(name, &[start])?;
            }
        }
        let skipped_before = self.scalar(names::SKIPPED, 0.0)?;
        let start = Instant::now();
        let (mut looked, mut shown) = (start, start);
        for i in 0..steps {
            feed(self.step.as_mut(), &self.feeds, data, &order[i * batch..(i + 1) * batch])?;
            self.step.run()?;
            // Looking makes a device wait, so not every short step is looked at.
            if !self.is_scaled() && looked.elapsed() > LOOK {
                if self.scalar(names::SKIPPED, 0.0)? > skipped_before {
                    return Err(self.stopped(data, &order, "was not finite, so the step was not taken"));
                }
                looked = Instant::now();
            }
            let loss = if shown.elapsed() > SHOW {
                shown = Instant::now();
                Some(self.mean_loss(i + 1)?)
            } else {
                None
            };
            tick(Seen { samples: (i + 1) * batch, loss });
        }
        let seconds = start.elapsed().as_secs_f64();
        let (sum, bad) = self.losses()?;
        let skipped_in_all = self.scalar(names::SKIPPED, 0.0)?;
        let skipped = skipped_in_all - skipped_before;
        if skipped > 0.0 && !self.is_scaled() {
            return Err(self.stopped(data, &order, "was not finite, so the step was not taken"));
        }
        let is_lowest = self.scalar(names::SCALE, 0.0)? <= self.compiled.settings.recipe.scaler.floor;
        if steps > 0 && is_lowest && skipped >= steps as f64 {
            return Err(self.stopped(
                data,
                &order,
                "was not finite in any step of the epoch, and the loss scale is as low as it gets",
            ));
        }
        if steps > 0 && bad >= steps as f64 && skipped < steps as f64 {
            return Err(self.stopped(data, &order, "was finite, but the loss was not in any step of the epoch"));
        }
        self.epoch += 1;
        Ok(EpochReport {
            epoch: self.epoch,
            steps: steps as u64,
            loss: sum / (steps as f64 - bad),
            skipped: skipped as u64,
            skipped_in_all: skipped_in_all as u64,
            scale: self.scalar(names::SCALE, 1.0)?,
            samples_per_s: (steps * batch) as f64 / seconds,
            test: None,
        })
    }

    /// The sum of the epoch's finite losses so far, and how many were not finite.
    fn losses(&mut self) -> Result<(f64, f64)> {
        Ok((self.scalar(names::LOSS_SUM, 0.0)?, self.scalar(names::BAD_LOSSES, 0.0)?))
    }

    /// Mean loss over the epoch's first steps, as far as it was finite.
    fn mean_loss(&mut self, steps: usize) -> Result<f64> {
        let (sum, bad) = self.losses()?;
        Ok(sum / (steps as f64 - bad))
    }

    /// A scalar of the step's state, where the step has it.
    fn scalar(&mut self, name: &str, default: f64) -> Result<f64> {
        if self.step.program().find(name).is_none() {
            return Ok(default);
        }
        Ok(f64::from(self.step.read(name)?[0]))
    }

    /// Is there a loss scale, because of which a step may overflow now and then?
    fn is_scaled(&self) -> bool {
        self.compiled.settings.scaling() != ScalerMode::Off
    }

    /// Why training cannot go on: what the gradient was, and the value it comes from.
    fn stopped(&mut self, data: &Dataset, order: &[usize], what: &str) -> Error {
        let found = self.first_bad(data, order);
        let (place, culprit) = match found {
            Ok((at, culprit)) => (format!(", step {}", at + 1), culprit.map(|c| c.to_string())),
            Err(_) => (String::new(), None),
        };
        let why = culprit.unwrap_or_else(|| {
            "in f32 on the CPU the step is finite, or too large to be looked at there; `mantissa profile` shows values".into()
        });
        Error::Diverged(format!("epoch {}{place}: a gradient {what}: {why}", self.epoch + 1))
    }

    /// The position of the epoch's first bad step, and what made it bad.
    fn first_bad(&mut self, data: &Dataset, order: &[usize]) -> Result<(usize, Option<Culprit>)> {
        let at = self.scalar(names::FIRST_SKIPPED, -1.0)?.max(0.0) as usize;
        let batch = self.compiled.settings.batch();
        let rows = order.get(at * batch..(at + 1) * batch).unwrap_or(&[]);
        let sources = self.saved()?.into_weights();
        Ok((at, diagnose(&self.compiled, &sources, data, rows)?))
    }

    /// Loss and accuracy over a dataset, with the parameters as they are.
    ///
    /// # Errors
    /// A device that fails, and data without an array for an input.
    pub fn evaluate(&mut self, data: &Dataset) -> Result<Option<EvalReport>> {
        let (Some(eval), Some(graph), Some(head)) = (&mut self.eval, &self.compiled.eval, &self.compiled.task.head)
        else {
            return Ok(None);
        };
        for id in graph.sources() {
            if matches!(graph.op(id), Op::Param { .. } | Op::State { .. }) {
                let name = graph.name_of(id);
                match self.compiled.weights.get(name) {
                    // Constants that training has no use for.
                    Some(w) if self.step.program().find(name).is_none() => eval.write_as(name, w.format, w.bytes())?,
                    _ => eval.write(name, &self.step.read(name)?)?,
                }
            }
        }
        let batch = self.compiled.settings.batch();
        let per_sample = data.labels.len() / data.samples;
        let feeds = feeds(graph);
        let dims = self.compiled.task.graph.ty(head.prediction).dims();
        let (mut total, mut seen) = (Score::default(), 0);
        while seen < data.samples {
            // The last batch is filled up with copies of its first sample, which are not counted.
            let count = batch.min(data.samples - seen);
            let rows: Vec<usize> = (0..batch).map(|i| seen + if i < count { i } else { 0 }).collect();
            feed(eval.as_mut(), &feeds, data, &rows)?;
            eval.run()?;
            let out = eval.read("prediction")?;
            let width = out.len() / batch;
            for (i, row) in out.chunks(width.max(1)).take(count).enumerate() {
                let label = |p: usize| data.labels.at((seen + i) * per_sample + p);
                total += head.criterion.score(row, dims.get(1..).unwrap_or(&[]), label);
            }
            seen += count;
        }
        let accuracy = (total.counted > 0).then(|| total.right as f64 / total.counted as f64);
        Ok(Some(EvalReport { loss: total.loss / total.weight, accuracy }))
    }

    /// Everything needed to go on: parameters, optimizer and scaler state, and where the run stands.
    ///
    /// # Errors
    /// [`Error::Diverged`] where one of them is not finite, which a step's gradients cannot tell: they were finite, and the
    /// update was not. Nobody can go on from there.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let saved = self.saved()?;
        match saved.first_non_finite() {
            None => Ok(saved),
            Some((name, bad)) => Err(Error::Diverged(format!(
                "epoch {}: `{name}` is not finite in {bad} of its elements; lower the learning rate",
                self.epoch
            ))),
        }
    }

    fn saved(&mut self) -> Result<Checkpoint> {
        let g = self.compiled.planned.graph.clone();
        let mut tensors = BTreeMap::new();
        for id in saved_sources(&g) {
            let (name, ty) = (g.name_of(id), g.ty(id));
            tensors.insert(
                name.to_owned(),
                Saved { format: ty.format, dims: ty.dims(), bytes: self.step.read_bytes(name)? },
            );
        }
        let metadata = BTreeMap::from([
            ("mantissa".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("model".to_owned(), self.compiled.model_fingerprint.clone()),
            ("model_name".to_owned(), g.name.clone()),
            ("epoch".to_owned(), self.epoch.to_string()),
            ("seed".to_owned(), self.seed.to_string()),
        ]);
        Ok(Checkpoint { tensors, metadata })
    }

    /// Takes up a run where a checkpoint left it.
    ///
    /// # Errors
    /// [`Error::Model`] naming `path`: a checkpoint of another model, optimizer or scaler, or without epoch or seed.
    pub fn restore(&mut self, checkpoint: &Checkpoint, path: &std::path::Path) -> Result<()> {
        let meta = |key: &str| checkpoint.metadata.get(key).map_or("", String::as_str);
        checkpoint.require_model(&self.compiled.model_fingerprint, &self.compiled.planned.graph.name, path)?;
        let g = self.compiled.planned.graph.clone();
        for id in saved_sources(&g) {
            let (name, ty) = (g.name_of(id), g.ty(id));
            let missing = || {
                Error::model(path, format!("no tensor `{name}`: the run it comes from had another optimizer or scaler"))
            };
            let Some(t) = checkpoint.tensors.get(name) else {
                // What is counted for the log begins anew: earlier versions counted less.
                if name.starts_with("log.") || name == names::SKIPPED {
                    continue;
                }
                return Err(missing());
            };
            if t.dims != ty.dims() || t.format != ty.format {
                return Err(Error::model(
                    path,
                    format!("tensor `{name}` is {}{:?}, but the step takes {ty}", t.format, t.dims),
                ));
            }
            self.step.write_bytes(name, &t.bytes)?;
        }
        self.epoch = meta("epoch").parse().map_err(|_| Error::model(path, "its metadata lacks the epoch"))?;
        self.seed = meta("seed").parse().map_err(|_| Error::model(path, "its metadata lacks the seed"))?;
        self.refresh_copies()
    }

    /// The bytes of a parameter or state.
    pub(super) fn read_bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        self.step.read_bytes(name)
    }

    /// A parameter's or state's values.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that the step does not have; a device that fails.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        self.step.read(name)
    }
}

impl Compiled {
    /// How many classes the model tells apart, if its loss takes class indices.
    pub fn classes(&self) -> Option<usize> {
        let head = self.task.head.as_ref().filter(|h| h.criterion.kind.takes_classes())?;
        let dims = self.task.graph.ty(head.prediction).dims();
        dims.get(head.criterion.class_axis(dims.len())).copied()
    }
}
