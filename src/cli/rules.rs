//! `mantissa rules`.

use super::out;
use super::what::WhatArgs;
use crate::error::{Error, Result};
use crate::rewrite::{Arrow, CONDITIONS, PHASES, RuleSet, SETS, check};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum RulesCommand {
    /// Print every rule with its doc string
    List {
        #[arg(long, value_name = "DIR")]
        rules: Option<PathBuf>,
    },
    /// Plan a model and say which rule fired, where it made something, and what of that was chosen
    Trace(Box<TraceArgs>),
    /// Test every rule on random tensors in f64
    Check {
        #[arg(long, value_name = "DIR")]
        rules: Option<PathBuf>,
        /// Random instances per rule
        #[arg(long, default_value_t = 20)]
        trials: usize,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Args)]
pub struct TraceArgs {
    /// A model (.mir, .onnx), or a run file (.toml) for the step that `train` would run
    #[arg(value_name = "MODEL|RUN.toml")]
    model: PathBuf,
    #[command(flatten)]
    what: WhatArgs,
    /// Print the trace as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: &RulesCommand) -> Result<()> {
    match command {
        RulesCommand::List { rules } => {
            let set = RuleSet::load_from(rules.as_deref())?;
            for phase in PHASES {
                out(&format!("{phase}\n"));
                for r in set.phase(phase) {
                    out(&format!("  {:<26} {} {}\n", r.name, if r.arrow == Arrow::Exact { "=" } else { "~" }, r.doc));
                    out(&format!("  {:<26}   {}\n", "", r.text));
                }
            }
            out("sets, for `for`\n");
            for (name, doc) in SETS {
                out(&format!("  {name:<26}   {doc}\n"));
            }
            out("conditions\n");
            for (name, _, doc) in CONDITIONS {
                out(&format!("  {name:<26}   {doc}\n"));
            }
            Ok(())
        }
        RulesCommand::Trace(args) => {
            let asked = args.what.read(&args.model, false)?;
            let trace = asked.settings.trace(&asked.model, &asked.rules)?;
            if args.json {
                out(&(serde_json::to_string_pretty(&trace).expect("a trace is plain data") + "\n"));
            } else {
                out(&trace.print());
            }
            Ok(())
        }
        RulesCommand::Check { rules, trials, seed } => {
            let set = RuleSet::load_from(rules.as_deref())?;
            let mut failed = 0;
            for r in &set.rules {
                match check::check_rule(r, *trials, *seed) {
                    Ok(n) => out(&format!("ok    {:<26} {n} instances\n", r.name)),
                    Err(why) => {
                        failed += 1;
                        out(&format!("FAIL  {:<26} {why}\n", r.name));
                    }
                }
            }
            out(&format!("{} rules, {failed} failed\n", set.rules.len()));
            if failed > 0 {
                Err(Error::Diverged(format!("the numerical check failed {failed} of the rules")))
            } else {
                Ok(())
            }
        }
    }
}
