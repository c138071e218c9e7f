//! `mantissa export`.

use super::{LossArgs, SizeArgs, data_name, new_file, read_model, write_onnx};
use crate::error::Result;
use crate::format::Format;
use crate::model::{Checkpoint, Purpose, Weight};
use crate::train::{Settings, Task};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct ExportArgs {
    /// The model that was trained: .mir or .onnx
    model: PathBuf,
    /// Its checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// The ONNX file to write
    #[arg(short, long, value_name = "FILE.onnx")]
    output: PathBuf,
    /// Overwrite the output file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    loss: LossArgs,
}

pub fn run(args: &ExportArgs) -> Result<()> {
    let mut settings = Settings::default();
    args.sizes.apply(&mut settings)?;
    args.loss.apply(&mut settings);
    new_file(&args.output, args.force)?;
    let model = read_model(&args.model, &args.sizes)?;
    let checkpoint = Checkpoint::read(&args.checkpoint)?;
    let name = args.model.display().to_string();
    checkpoint.require_model(&model.fingerprint(), &name, &args.checkpoint)?;
    let values = checkpoint.tensors.iter().map(|(name, t)| {
        let w = t.weight();
        // What was trained in a narrow format is written as f32.
        let wide = if t.format.is_low() { Weight::from_values(Format::F32, &w.dims, &w.values::<f32>()) } else { w };
        (name.clone(), wide)
    });
    let values = values.collect();
    // What a model of our own text yields besides its loss is what the loss is taken of.
    let prediction = if model.has_modes() {
        None
    } else {
        let mut bound = model.bind(&settings.sizes, Purpose::Inference)?;
        let task = Task::new(bound.graph, settings.loss.as_deref(), &settings.objective, &mut bound.weights)?;
        task.head.map(|h| task.graph.name_of(h.prediction).to_owned())
    };
    let sizes = args.sizes.given(&settings);
    let written = model.to_onnx(&values, &sizes, prediction.as_deref(), &data_name(&args.output))?;
    write_onnx(&args.output, &written, args.force)?;
    if args.output.extension().is_none_or(|e| e != "onnx") {
        say!("note: ONNX files are called .onnx by most tools");
    }
    say!("written to {}", args.output.display());
    Ok(())
}
