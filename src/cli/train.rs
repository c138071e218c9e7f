//! `mantissa train`.

use super::evidence::EvidenceArgs;
use super::{Reporter, StepArgs, out, read_to_train};
use crate::data::{self, Dataset, Source};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, write_atomically};
use crate::plan::{PlanFile, Policy, percent};
use crate::run::DeviceKind;
use crate::train::{Compiled, RunFile, Session, Settings};
use clap::Args;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct TrainArgs {
    /// A run file (.toml), or a model (.mir, .onnx) together with --data
    #[arg(value_name = "RUN.toml|MODEL")]
    what: PathBuf,
    #[command(flatten)]
    step: StepArgs,
    #[command(flatten)]
    evidence: EvidenceArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Use a plan made by `mantissa plan -o`
    #[arg(long, value_name = "PLAN.json")]
    plan: Option<PathBuf>,
    /// Change a value of the run file, as in train.epochs=5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What to train on.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Training data: .npz with x and y, .csv, or a directory of IDX files
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Test data, as --data; a directory holds both splits
    #[arg(long)]
    pub test: Option<PathBuf>,
    /// Multiply features by this
    #[arg(long, value_name = "X")]
    pub scale: Option<f64>,
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Options of a run that do not change what is compiled; compiled trainers have the same.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// cpu, cuda, or auto (cuda if there is one)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Where to write metrics and the checkpoint [default: a new directory under runs/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write into --out even if it exists
    #[arg(long)]
    pub force: bool,
    /// Go on from a checkpoint
    #[arg(long, value_name = "CHECKPOINT")]
    pub resume: Option<PathBuf>,
    /// At the end, time every kernel and print it beside its prediction
    #[arg(long)]
    pub profile: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where a run's data is and how long it goes on.
pub struct RunPlan {
    pub name: String,
    pub train: Source,
    pub test: Option<Source>,
    pub scale: f64,
    pub epochs: usize,
    pub seed: u64,
}

impl RunPlan {
    /// The run that the options ask for; `base` supplies what they leave open.
    pub fn with(mut self, args: &DataArgs) -> Result<RunPlan> {
        if let Some(path) = &args.data {
            self.train = Source::find(path, "train")?;
            self.test = if path.is_dir() { Source::find(path, "test").ok() } else { None };
        }
        if let Some(path) = &args.test {
            self.test = Some(Source::find(path, "test")?);
        }
        self.scale = args.scale.unwrap_or(self.scale);
        self.seed = args.seed.unwrap_or(self.seed);
        Ok(self)
    }
}

/// What to train, how, and on what: by a run file, or by a model and options.
pub(super) fn prepare(what: &Path, set: &[String], args: &DataArgs) -> Result<(PathBuf, Settings, RunPlan, Dataset)> {
    let is_run_file = what.extension().is_some_and(|e| e == "toml");
    if is_run_file {
        let file = RunFile::read(what, set)?;
        let dir = what.parent().unwrap_or(Path::new("."));
        let name = what.parent().and_then(Path::file_name).map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let plan = RunPlan {
            name,
            train: file.data.train.relative_to(dir),
            test: file.data.test.as_ref().map(|t| t.relative_to(dir)),
            scale: file.data.scale,
            epochs: file.train.epochs,
            seed: file.train.seed,
        };
        let plan = plan.with(args)?;
        let data = data::load(&plan.train, plan.scale)?;
        Ok((dir.join(&file.model), file.settings(data.samples), plan, data))
    } else {
        let Some(path) = &args.data else {
            return Err(Error::Request(format!(
                "{}: a model needs --data to train on (or give a run file, .toml)",
                what.display()
            )));
        };
        if !set.is_empty() {
            return Err(Error::Request(
                "--set changes values of a run file; with a model, use the options themselves".into(),
            ));
        }
        let name = what.file_stem().map_or("run".into(), |n| n.to_string_lossy().into_owned());
        let plan = RunPlan { name, train: Source::find(path, "train")?, test: None, scale: 1.0, epochs: 10, seed: 0 }
            .with(args)?;
        let data = data::load(&plan.train, plan.scale)?;
        Ok((what.to_owned(), Settings::default(), plan, data))
    }
}

pub fn run(args: &TrainArgs) -> Result<()> {
    let (model_path, mut settings, mut plan, data) = prepare(&args.what, &args.set, &args.run.data)?;
    plan.epochs = args.run.epochs.unwrap_or(plan.epochs);
    args.step.apply(&mut settings)?;
    settings.total_steps = (data.samples / settings.batch() * plan.epochs) as u64;
    let model = read_to_train(&model_path, &args.step)?;
    let saved = match &args.plan {
        Some(path) => Some((PlanFile::read(path)?, path.as_path())),
        None => None,
    };
    if let Some((file, _)) = &saved {
        (settings.policy, settings.low, settings.target) = (file.policy, file.low, file.target.clone());
        if let Some(e) = &file.evidence {
            settings.recipe.scaler.init = e.loss_scale;
            settings.formats.clone_from(&e.formats);
        }
    }
    let compiled = if settings.policy == Policy::Auto && saved.is_none() {
        args.evidence.compile(&settings, &model, &args.step, &data, plan.seed)?
    } else {
        settings.compile(&model, &args.step.rule_set()?, saved.as_ref().map(|(f, p)| (f, *p)))?
    };
    if let (Some(m), Some(c)) = (&compiled.planned.measured, &compiled.settings.calibration) {
        eprintln!("{}; the plan adds {} of that, measured on {}", c.budget_text(), percent(m.overall()), m.on());
        if let Some(line) = m.given_up_text() {
            eprintln!("{line}");
        }
    }
    train(compiled, data, &plan, &args.run, &HashMap::new())
}

/// Trains, writes metrics and the checkpoint, prints a summary.
pub fn train(
    compiled: Compiled,
    data: Dataset,
    plan: &RunPlan,
    args: &RunArgs,
    cubins: &HashMap<String, Vec<u8>>,
) -> Result<()> {
    let device: DeviceKind = args.device.parse()?;
    let open = |program| device.open(program, cubins);
    let mut session = Session::new(compiled, plan.seed, &open)?;
    session.check(&data, true)?;
    let test = match &plan.test {
        Some(source) => Some(data::load(source, plan.scale)?),
        None => None,
    };
    if let Some(t) = &test {
        session.check(t, false)?;
    }
    if let Some(path) = &args.resume {
        session.restore(&Checkpoint::read(path)?, path)?;
    }
    let dir = Output::create(args, &plan.name)?;
    let settings = &session.compiled.settings;
    eprintln!(
        "{}: {} parameters, {} samples, batch {}, {} {} for {}, on {}",
        session.compiled.planned.graph.name,
        session.compiled.parameters(),
        data.samples,
        settings.batch(),
        settings.policy,
        settings.low,
        settings.target,
        session.device()
    );
    eprint!("{}", session.compiled.layers);
    let reporter = Reporter::new(plan.epochs, data.samples);
    let start = Instant::now();
    let mut last = None;
    let mut best: Option<f64> = None;
    let checkpoint = dir.dir.join("checkpoint.safetensors");
    while session.epoch < plan.epochs {
        let epoch = session.epoch;
        let mut report = match session.train_epoch(&data, |seen| reporter.tick(epoch, seen)) {
            Err(Error::Diverged(why)) => {
                reporter.finish();
                return Err(kept(&mut session, &checkpoint, why));
            }
            report => report?,
        };
        if let Some(t) = &test {
            report.test = session.evaluate(t)?;
        }
        best = report.test.and_then(|t| t.accuracy).into_iter().chain(best).reduce(f64::max);
        reporter.epoch(&report);
        dir.log(&report)?;
        last = Some(report);
    }
    reporter.finish();
    let seconds = start.elapsed().as_secs_f64();
    session.checkpoint()?.write(&checkpoint)?;
    let Some(last) = last else {
        out(&format!("nothing to do: the checkpoint has {} epochs, {} were asked for\n", session.epoch, plan.epochs));
        return Ok(());
    };
    if last.skipped > 0 && last.skipped >= last.steps {
        return Err(Error::Diverged(format!(
            "no step of the last epoch was good: all {} were skipped because a gradient overflowed, and the loss scale is down \
             to {}; more epochs may bring it far enough down, or begin with a lower one (train.scaler.init)",
            last.steps, last.scale
        )));
    }
    let accuracy = last.test.and_then(|t| t.accuracy);
    if args.json {
        let summary = serde_json::json!({ "seconds": seconds, "last": last, "best_test_accuracy": best, "checkpoint": checkpoint });
        out(&format!("{summary}\n"));
        return Ok(());
    }
    out(&format!(
        "trained {} epochs in {seconds:.2} s ({:.0} samples/s)\n",
        last.epoch,
        (last.steps as usize * session.compiled.settings.batch() * last.epoch) as f64 / seconds
    ));
    out(&format!("training loss   {:.4}\n", last.loss));
    if let Some(t) = last.test {
        out(&format!("test loss       {:.4}\n", t.loss));
    }
    if let Some(a) = accuracy {
        out(&format!("test accuracy   {:.2} % (best epoch {:.2} %)\n", 100.0 * a, 100.0 * best.unwrap_or(a)));
    }
    out(&format!(
        "loss scale      {}, {} step{} skipped\n",
        last.scale,
        last.skipped_in_all,
        if last.skipped_in_all == 1 { "" } else { "s" }
    ));
    out(&format!("written to      {}\n", dir.dir.display()));
    if args.profile {
        out(&format!("\n{}", session.profile()?));
    }
    Ok(())
}

/// The error that ends a run, with what the last good step left kept where that is of use.
fn kept(session: &mut Session, checkpoint: &Path, why: String) -> Error {
    let written = session.checkpoint().and_then(|c| c.write(checkpoint));
    Error::Diverged(match written {
        Ok(()) => format!("{why}\nwhat the last good step left is in {}", checkpoint.display()),
        Err(Error::Diverged(_)) => why,
        Err(e) => format!("{why}\nwhat the last good step left could not be kept: {e}"),
    })
}

/// A run's directory.
struct Output {
    dir: PathBuf,
}

impl Output {
    /// Makes the directory: `--out`, which must be new, or the next free one under `runs/`.
    fn create(args: &RunArgs, name: &str) -> Result<Output> {
        let dir = match &args.out {
            Some(dir) if dir.exists() && !args.force => {
                return Err(Error::Request(format!(
                    "{} exists; give another --out, or --force to write into it",
                    dir.display()
                )));
            }
            Some(dir) => dir.clone(),
            None => (1..)
                .map(|i| PathBuf::from(format!("runs/{name}-{i:03}")))
                .find(|d| !d.exists())
                .expect("there is always a next number"),
        };
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        write_atomically(&dir.join("metrics.jsonl"), b"")?;
        Ok(Output { dir })
    }

    fn log(&self, report: &crate::train::EpochReport) -> Result<()> {
        let path = self.dir.join("metrics.jsonl");
        let line = serde_json::to_string(report).expect("a report is plain data") + "\n";
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        file.and_then(|mut f| f.write_all(line.as_bytes())).map_err(Error::io("write", &path))
    }
}
