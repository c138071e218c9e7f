//! The command line of a compiled trainer.

use super::train::{RunArgs, to_the_end};
use crate::data::{Source, load};
use crate::error::{Error, Result};
use crate::run::DeviceKind;
use crate::train::Run;
use crate::trainer::Payload;
use clap::Parser;
use std::path::PathBuf;

/// Trains the model this executable was compiled for.
#[derive(Parser)]
#[command(version = super::VERSION)]
struct TrainerCli {
    #[command(flatten)]
    run: RunArgs,
}

pub fn main(mut payload: Payload) -> Result<()> {
    let args = TrainerCli::parse().run;
    let kernels = std::mem::take(&mut payload.cubins);
    let compiled = payload.into_compiled()?;
    if args.data.data.is_none() {
        return Err(Error::Request("--data is needed: .npz with x and y, .csv, or a directory of IDX files".into()));
    }
    let none = Source { features: PathBuf::new(), labels: None };
    let name = compiled.planned.graph.name.clone();
    let mut run = args.data.change(Run::on(name, none))?;
    run.epochs = args.epochs.unwrap_or(run.epochs);
    let data = load(&run.train, run.scale)?;
    let backend = args.device.parse::<DeviceKind>()?.with_kernels(kernels);
    to_the_end(compiled, &data, &run, &args, &*backend)
}
