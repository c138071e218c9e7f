//! Everything that reads what strangers wrote, as one function of bytes each: what the fuzz targets call, and
//! `tests/readers.rs` on their corpora.

use mantissa::cost::Target;
use mantissa::data::{Source, load, load_features};
use mantissa::error::Result;
use mantissa::ir::{Graph, text, verify};
use mantissa::lower::lower;
use mantissa::model::{Checkpoint, Model, Modes, Purpose};
use mantissa::plan::{Overrides, PlanFile};
use mantissa::rewrite::RuleSet;
use mantissa::train::RunFile;
use mantissa::trainer::Payload;
use std::collections::BTreeMap;
use std::path::Path;

/// A reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Onnx,
    Mir,
    Rules,
    Plan,
    Policy,
    RunFile,
    Target,
    Checkpoint,
    Npy,
    Npz,
    Csv,
    Idx,
    Trainer,
}

impl Reader {
    /// All of them. A fuzz target goes by the reader's name in lower case, and so does its folder in `corpus`.
    #[allow(dead_code, reason = "a fuzz target has one reader")]
    pub const ALL: [Reader; 13] = [
        Reader::Onnx,
        Reader::Mir,
        Reader::Rules,
        Reader::Plan,
        Reader::Policy,
        Reader::RunFile,
        Reader::Target,
        Reader::Checkpoint,
        Reader::Npy,
        Reader::Npz,
        Reader::Csv,
        Reader::Idx,
        Reader::Trainer,
    ];

    /// Reads bytes as far as a command goes before it computes anything. They are a file's, which is written first, because
    /// that is what commands are given; errors are values, and panics the reader's faults.
    pub fn read(self, bytes: &[u8], folder: &Path) -> Result<()> {
        let path = folder.join(format!("input.{}", self.extension()));
        std::fs::write(&path, bytes).expect("the folder takes files");
        match self {
            Reader::Onnx => {
                let model = Model::read(&path)?;
                let sizes: BTreeMap<String, usize> = model.free_dims().into_iter().map(|name| (name, 2)).collect();
                model.bind(&sizes, Purpose::Inference)?;
                printed(&model.bind(&sizes, Purpose::Training(&Modes::default()))?.graph)
            }
            Reader::Mir => {
                let model = Model::read(&path)?;
                let sizes = model.free_dims().into_iter().map(|name| (name, 2)).collect();
                printed(&model.bind(&sizes, Purpose::Training(&Modes::default()))?.graph)
            }
            Reader::Rules => {
                let rules = String::from_utf8_lossy(bytes);
                RuleSet::default().load("fuse", &rules, "input.rules")
            }
            Reader::Plan => {
                let plan = PlanFile::read(&path)?;
                lower(verify(&text::parse(&plan.step, "the plan")?)?).map(|_| ())
            }
            Reader::Policy => Overrides::read(&path).map(|_| ()),
            Reader::RunFile => {
                let file = RunFile::read(&path, &[])?;
                file.settings(100).request().map(|_| ())
            }
            Reader::Target => Target::read(&path).map(|_| ()),
            Reader::Checkpoint => Checkpoint::read(&path).map(|checkpoint| {
                checkpoint.first_non_finite();
                checkpoint.into_weights();
            }),
            Reader::Npy | Reader::Idx => load_features(&path, 1.0).map(|_| ()),
            Reader::Npz | Reader::Csv => load(&Source { features: path, labels: None }, 1.0).map(|_| ()),
            Reader::Trainer => match Payload::read(&path)? {
                Some(payload) => payload.into_compiled().map(|_| ()),
                None => Ok(()),
            },
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Reader::Onnx => "onnx",
            Reader::Mir => "mir",
            Reader::Rules => "rules",
            Reader::Plan => "json",
            Reader::Policy | Reader::RunFile | Reader::Target => "toml",
            Reader::Checkpoint => "safetensors",
            Reader::Npy => "npy",
            Reader::Npz => "npz",
            Reader::Csv => "csv",
            Reader::Idx => "idx",
            Reader::Trainer => "trainer",
        }
    }
}

/// What was read must be what its text says.
fn printed(graph: &Graph) -> Result<()> {
    let written = text::print(graph);
    let again = text::parse(&written, "printed").unwrap_or_else(|e| panic!("does not read back: {e}\n{written}"));
    assert_eq!(text::print(&again), written, "reads back as something else");
    Ok(())
}
