//! `mantissa rules`.

use super::out;
use crate::error::{Error, Result};
use crate::rewrite::{Arrow, CONDITIONS, PHASES, RuleSet, check};
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum RulesCommand {
    /// Print every rule with its doc string
    List {
        #[arg(long, value_name = "DIR")]
        rules: Option<PathBuf>,
    },
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

fn load(dir: &Option<PathBuf>) -> Result<RuleSet> {
    dir.as_ref().map_or_else(RuleSet::builtin, |d| RuleSet::from_dir(d))
}

pub fn run(command: &RulesCommand) -> Result<()> {
    match command {
        RulesCommand::List { rules } => {
            let set = load(rules)?;
            for phase in PHASES {
                out(&format!("{phase}\n"));
                for r in set.phase(phase) {
                    out(&format!("  {:<26} {} {}\n", r.name, if r.arrow == Arrow::Exact { "=" } else { "~" }, r.doc));
                    out(&format!("  {:<26}   {}\n", "", r.text));
                }
            }
            out("conditions\n");
            for (name, _, doc) in CONDITIONS {
                out(&format!("  {name:<26}   {doc}\n"));
            }
            Ok(())
        }
        RulesCommand::Check { rules, trials, seed } => {
            let set = load(rules)?;
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
            if failed > 0 { Err(Error::Diverged(format!("{failed} rules failed the numerical check"))) } else { Ok(()) }
        }
    }
}
