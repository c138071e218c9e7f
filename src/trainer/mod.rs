//! The compiled trainer: a copy of this executable with a plan appended.
//!
//! Layout: `[executable][payload][payload length: u64 LE][magic]`. The payload is a safetensors file: settings and planned
//! graphs (as text) in its metadata, the weights that the model file held and compiled kernels as tensors. It is found
//! by reading the end of the running executable, so the file can be copied anywhere and needs nothing beside it.

use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{text, verify};
use crate::lower::cuda::generate;
use crate::lower::lower;
use crate::model::{Checkpoint, Saved, Weights};
use crate::plan::Planned;
use crate::run::cuda;
use crate::train::{Compiled, Criterion, Settings, Task};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const MAGIC: &[u8; 16] = b"mantissa-train-1";
/// Prefix of kernels among the payload's tensors.
const CUBIN: &str = "cubin:";

/// What a trainer carries besides tensors; stored as JSON in the payload's metadata.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    settings: Settings,
    /// The bound model, the step before planning, the planned step and the planned forward graph.
    model: String,
    /// The name of the loss, and of the prediction that evaluation scores, and how.
    loss: String,
    head: Option<(String, Criterion)>,
    step: String,
    planned: String,
    eval: Option<String>,
    model_fingerprint: String,
}

/// A trainer's plan, weights and kernels.
#[derive(Debug)]
pub struct Payload {
    header: Header,
    weights: Weights,
    /// Compiled kernels by [`cuda::key`].
    pub cubins: HashMap<String, Vec<u8>>,
}

/// The payload of the running executable, if it has one.
///
/// # Errors
/// Those of [`Payload::read`].
pub fn embedded() -> Result<Option<Payload>> {
    let Ok(path) = std::env::current_exe() else { return Ok(None) };
    Payload::read(&path)
}

/// Compiles the kernels of a step and its forward graph for each architecture, by key.
///
/// # Errors
/// What [`generate`] refuses, and NVRTC where it is missing or fails.
pub fn compile_kernels(compiled: &Compiled, architectures: &[String]) -> Result<HashMap<String, Vec<u8>>> {
    let mut out = HashMap::new();
    for graph in [Some(&compiled.planned.graph), compiled.eval.as_ref()].into_iter().flatten() {
        let source = generate(&lower(verify(graph)?)?)?.source;
        for arch in architectures {
            out.insert(cuda::key(&source, arch), cuda::compile_cached(&source, arch)?);
        }
    }
    Ok(out)
}

/// The bytes of a trainer for a compiled step: this executable and its payload.
///
/// # Errors
/// The running executable, where it cannot be found or read.
pub fn build(compiled: &Compiled, cubins: &HashMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let exe = std::env::current_exe().map_err(Error::io("find", "the running executable"))?;
    let mut bytes = std::fs::read(&exe).map_err(Error::io("read", &exe))?;
    let header = Header {
        settings: compiled.settings.clone(),
        model: text::print(&compiled.task.graph),
        loss: compiled.task.graph.name_of(compiled.task.loss).to_owned(),
        head: compiled
            .task
            .head
            .as_ref()
            .map(|h| (compiled.task.graph.name_of(h.prediction).to_owned(), h.criterion.clone())),
        step: text::print(&compiled.step),
        planned: text::print(&compiled.planned.graph),
        eval: compiled.eval.as_ref().map(text::print),
        model_fingerprint: compiled.model_fingerprint.clone(),
    };
    let mut file = Checkpoint::default();
    file.metadata.insert("plan".into(), serde_json::to_string(&header).expect("a header is plain data"));
    for (name, w) in &compiled.weights {
        let saved = Saved { format: w.format, dims: w.dims.clone(), bytes: w.bytes().to_vec() };
        file.tensors.insert(name.clone(), saved);
    }
    for (key, cubin) in cubins {
        file.tensors.insert(
            format!("{CUBIN}{key}"),
            Saved { format: Format::U8, dims: vec![cubin.len()], bytes: cubin.clone() },
        );
    }
    let payload = file.to_bytes();
    bytes.extend_from_slice(&payload);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    Ok(bytes)
}

impl Payload {
    /// The payload of an executable file; none if it has none.
    ///
    /// # Errors
    /// [`Error::Model`] where there is one and it is damaged.
    pub fn read(path: &Path) -> Result<Option<Payload>> {
        let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let Some(tail_at) = len.checked_sub(24) else { return Ok(None) };
        let mut tail = [0; 24];
        file.seek(SeekFrom::Start(tail_at))
            .and_then(|_| file.read_exact(&mut tail))
            .map_err(Error::io("read", path))?;
        if &tail[8..] != MAGIC {
            return Ok(None);
        }
        let size = tail[..8].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        let damaged = || Error::model(path, "the plan in this trainer is damaged; compile it again");
        let start = tail_at.checked_sub(size).ok_or_else(damaged)?;
        let mut bytes = vec![0; size as usize];
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
        let file = Checkpoint::from_bytes(&bytes, path).map_err(|_| damaged())?;
        let header =
            serde_json::from_str(file.metadata.get("plan").map_or("", String::as_str)).map_err(|_| damaged())?;
        let mut payload = Payload { header, weights: Weights::new(), cubins: HashMap::new() };
        for (name, t) in file.tensors {
            match name.strip_prefix(CUBIN) {
                Some(key) => {
                    payload.cubins.insert(key.to_owned(), t.bytes);
                }
                None => {
                    payload.weights.insert(name, t.weight());
                }
            }
        }
        Ok(Some(payload))
    }

    /// The compiled step that the trainer was made of.
    ///
    /// # Errors
    /// What the parsers say of graphs that are damaged.
    pub fn into_compiled(self) -> Result<Compiled> {
        let h = self.header;
        let request = h.settings.request()?;
        let planned = text::parse(&h.planned, "the trainer's plan")?;
        let graph = text::parse(&h.model, "the trainer's model")?;
        let lost = || Error::Request("the plan in this trainer is damaged; compile it again".into());
        Ok(Compiled {
            task: Task::restore(graph, &h.loss, h.head).ok_or_else(lost)?,
            step: text::parse(&h.step, "the trainer's step")?,
            gradient_of: std::collections::BTreeMap::new(),
            planned: Planned::from_graph(planned, &request)?,
            eval: h.eval.map(|e| text::parse(&e, "the trainer's forward graph")).transpose()?,
            settings: h.settings,
            model_fingerprint: h.model_fingerprint,
            weights: self.weights,
            layers: Default::default(),
        })
    }
}
