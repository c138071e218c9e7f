//! A run from its first epoch to its last, and the files it leaves: metrics line by line, and a checkpoint.

use super::compile::Compiled;
use super::session::{EpochReport, Seen, Session};
use crate::data::{self, Dataset, Source};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::Checkpoint;
use crate::run::Backend;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is trained on, and how long.
pub struct Run {
    /// What its directory under `runs/` is called after.
    pub name: String,
    /// Trained on in every epoch.
    pub train: Source,
    /// Evaluated on after every epoch.
    pub test: Option<Source>,
    /// Features are multiplied by this.
    pub scale: f64,
    /// Epochs in all, with those that a resumed checkpoint has behind it.
    pub epochs: usize,
    /// Decides initial values, the order of samples and dropout.
    pub seed: u64,
}

impl Run {
    /// A run of ten epochs on data as it is.
    pub fn on(name: String, train: Source) -> Run {
        Run { name, train, test: None, scale: 1.0, epochs: 10, seed: 0 }
    }
}

/// Where a run happens.
pub struct Place<'a> {
    /// What steps run on.
    pub device: &'a dyn Backend,
    /// A new directory; none: the next free one under `runs/`.
    pub out: Option<&'a Path>,
    /// The directory may exist.
    pub force: bool,
    /// A checkpoint to go on from.
    pub resume: Option<&'a Path>,
    /// A checkpoint is written at the end of an epoch if so much time has passed since the last one, and at the end of the
    /// run: what interrupts it loses no more than this and an epoch.
    pub keep: Duration,
}

/// Who is told how a run goes.
pub trait Progress {
    /// Everything is ready.
    fn begins(&self, session: &Session, samples: usize);
    /// How far an epoch, counted from 0, has come.
    fn seen(&self, epoch: usize, seen: Seen);
    /// An epoch is over.
    fn epoch(&self, report: &EpochReport);
    /// The last epoch is over, or there will be no more.
    fn ends(&self);
}

/// What a run came to.
pub struct Outcome {
    /// As the last epoch left it.
    pub session: Session,
    /// Wall time of the epochs, with their evaluations and the checkpoints between them.
    pub seconds: f64,
    /// None where the checkpoint had all epochs already.
    pub last: Option<EpochReport>,
    /// The largest of this run's epochs, 0 to 1; none without test data, and for losses that compare numbers.
    pub best_test_accuracy: Option<f64>,
    /// Where the run's files are.
    pub dir: PathBuf,
    /// Path of the last checkpoint, in `dir`.
    pub checkpoint: PathBuf,
}

/// Trains a compiled step.
///
/// # Errors
/// Where data, checkpoint or device do not suit the step, files cannot be written, or training cannot go on
/// ([`Error::Diverged`]): what the last good step left is kept where that is of use.
pub fn train(compiled: Compiled, data: &Dataset, run: &Run, place: &Place, progress: &dyn Progress) -> Result<Outcome> {
    let mut session = Session::new(compiled, run.seed, place.device)?;
    session.check(data, true)?;
    let test = run.test.as_ref().map(|source| data::load(source, run.scale)).transpose()?;
    if let Some(t) = &test {
        session.check(t, false)?;
    }
    if let Some(path) = place.resume {
        session.restore(&Checkpoint::read(path)?, path)?;
    }
    let files = Output::create(place, &run.name)?;
    let checkpoint = files.dir.join("checkpoint.safetensors");
    progress.begins(&session, data.samples);
    let start = Instant::now();
    let mut saved = start;
    let (mut last, mut best): (Option<EpochReport>, Option<f64>) = (None, None);
    while session.epoch < run.epochs {
        let epoch = session.epoch;
        let mut report = match session.train_epoch(data, |seen| progress.seen(epoch, seen)) {
            Ok(report) => report,
            Err(e) => {
                progress.ends();
                return Err(match e {
                    Error::Diverged(why) => kept(&mut session, &checkpoint, why),
                    e => e,
                });
            }
        };
        if let Some(t) = &test {
            report.test = session.evaluate(t)?;
        }
        best = report.test.and_then(|t| t.accuracy).into_iter().chain(best).reduce(f64::max);
        files.log(&report)?;
        if saved.elapsed() >= place.keep {
            session.checkpoint()?.write(&checkpoint)?;
            saved = Instant::now();
        }
        progress.epoch(&report);
        last = Some(report);
    }
    progress.ends();
    let seconds = start.elapsed().as_secs_f64();
    session.checkpoint()?.write(&checkpoint)?;
    if let Some(last) = last.as_ref().filter(|l| l.skipped > 0 && l.skipped >= l.steps) {
        return Err(Error::Diverged(format!(
            "no step of the last epoch was good: all {} were skipped because a gradient overflowed, and the loss scale is down \
             to {}; more epochs may bring it far enough down, or begin with a lower one (train.scaler.init)",
            last.steps, last.scale
        )));
    }
    Ok(Outcome { session, seconds, last, best_test_accuracy: best, dir: files.dir, checkpoint })
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
    fn create(place: &Place, name: &str) -> Result<Output> {
        let dir = match place.out {
            Some(dir) if dir.exists() && !place.force => {
                return Err(Error::Request(format!(
                    "{} exists; give another --out, or --force to write into it",
                    dir.display()
                )));
            }
            Some(dir) => dir.to_owned(),
            None => (1..)
                .map(|i| PathBuf::from(format!("runs/{name}-{i:03}")))
                .find(|d| !d.exists())
                .expect("there is always a next number"),
        };
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        write_atomically(&dir.join("metrics.jsonl"), b"")?;
        Ok(Output { dir })
    }

    fn log(&self, report: &EpochReport) -> Result<()> {
        let path = self.dir.join("metrics.jsonl");
        let line = serde_json::to_string(report).expect("a report is plain data") + "\n";
        let file = std::fs::OpenOptions::new().append(true).open(&path);
        file.and_then(|mut f| f.write_all(line.as_bytes())).map_err(Error::io("write", &path))
    }
}
