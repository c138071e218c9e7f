//! The compiled trainer: a copy of this executable with a plan appended.
//!
//! Layout: `[executable][payload][payload length: u64 LE][magic]`. The payload is JSON: planned graphs in text form,
//! settings, weights the model file held. It is found by reading the end of the running executable, so the file can be
//! copied anywhere and needs nothing beside it.

use crate::cli::{RunArgs, RunPlan, train};
use crate::cost::Target;
use crate::data::Source;
use crate::error::{Error, Result};
use crate::ir::text;
use crate::plan::{Planned, Request};
use crate::train::{Compiled, Settings, Task};
use clap::Parser;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"mantissa-train-1";

#[derive(Debug, Serialize, Deserialize)]
pub struct Payload {
    pub settings: Settings,
    /// The bound model, the step before planning, the planned step and the planned forward graph.
    pub model: String,
    pub step: String,
    pub planned: String,
    pub eval: Option<String>,
    pub model_fingerprint: String,
    pub weights: BTreeMap<String, Vec<f32>>,
}

/// The payload of the running executable, if it has one.
pub fn embedded() -> Result<Option<Payload>> {
    let Ok(path) = std::env::current_exe() else { return Ok(None) };
    read_payload(&path)
}

fn read_payload(path: &Path) -> Result<Option<Payload>> {
    let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let Some(tail_at) = len.checked_sub(24) else { return Ok(None) };
    let mut tail = [0; 24];
    file.seek(SeekFrom::Start(tail_at)).and_then(|_| file.read_exact(&mut tail)).map_err(Error::io("read", path))?;
    if &tail[8..] != MAGIC {
        return Ok(None);
    }
    let size = tail[..8].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let damaged = || Error::model(path, "the plan in this trainer is damaged; compile it again");
    let start = tail_at.checked_sub(size).ok_or_else(damaged)?;
    let mut bytes = vec![0; size as usize];
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| damaged())
}

/// The bytes of a trainer for a compiled step: this executable (without a payload of its own) and the plan.
pub fn build(compiled: &Compiled) -> Result<Vec<u8>> {
    let exe = std::env::current_exe().map_err(Error::io("find", "the running executable"))?;
    let mut bytes = std::fs::read(&exe).map_err(Error::io("read", &exe))?;
    let payload = Payload {
        settings: compiled.settings.clone(),
        model: text::print(&compiled.task.graph),
        step: text::print(&compiled.step),
        planned: text::print(&compiled.planned.graph),
        eval: compiled.eval.as_ref().map(text::print),
        model_fingerprint: compiled.model_fingerprint.clone(),
        weights: compiled.weights.clone(),
    };
    let payload = serde_json::to_vec(&payload).expect("a payload is plain data");
    bytes.extend_from_slice(&payload);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    Ok(bytes)
}

/// Writes an executable file, whole or not at all.
pub fn write_executable(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::model::write_atomically(path, bytes)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(Error::io("make executable", path))?;
    }
    Ok(())
}

/// Trains the model this executable was compiled for.
#[derive(Parser)]
#[command(version)]
struct TrainerCli {
    #[command(flatten)]
    run: RunArgs,
}

/// The trainer's own command line.
pub fn main(payload: Payload) -> Result<()> {
    let args = TrainerCli::parse().run;
    let compiled = payload.into_compiled()?;
    if args.data.is_none() {
        return Err(Error::Request("--data is needed: .npz with x and y, .csv, or a directory of IDX files".into()));
    }
    let none = Source { features: PathBuf::new(), labels: None };
    let plan = RunPlan { name: compiled.planned.graph.name.clone(), train: none, test: None, scale: 1.0, epochs: 10, seed: 0 }.with(&args)?;
    let data = crate::data::load(&plan.train, plan.scale)?;
    train(compiled, data, &plan, &args, &std::collections::HashMap::new())
}

impl Payload {
    fn into_compiled(self) -> Result<Compiled> {
        let graph = text::parse(&self.model, "the trainer's model")?;
        let step = text::parse(&self.step, "the trainer's step")?;
        let planned = text::parse(&self.planned, "the trainer's plan")?;
        let target = Target::named(&self.settings.target)?;
        let request = Request { policy: self.settings.policy, low: self.settings.low, target };
        Ok(Compiled {
            task: Task::new(graph, None)?,
            step,
            planned: Planned::from_graph(planned, &request)?,
            eval: self.eval.map(|e| text::parse(&e, "the trainer's forward graph")).transpose()?,
            settings: self.settings,
            model_fingerprint: self.model_fingerprint,
            weights: self.weights,
        })
    }
}
