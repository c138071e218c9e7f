//! `mantissa completions` and `mantissa man`: what shells and `man` know of the command line, made of its own definition.

use super::out;
use crate::error::{Error, Result};
use clap::Args;
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell, as in `mantissa completions bash > ~/.local/share/bash-completion/completions/mantissa`
    shell: Shell,
}

#[derive(Args)]
pub struct ManArgs {
    /// Where the pages go, as in ~/.local/share/man/man1
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mantissa", &mut text);
    out(&String::from_utf8_lossy(&text));
    Ok(())
}

pub fn man(args: &ManArgs, command: clap::Command) -> Result<()> {
    std::fs::create_dir_all(&args.dir).map_err(Error::io("create", &args.dir))?;
    clap_mangen::generate_to(command, &args.dir).map_err(Error::io("write", &args.dir))
}
