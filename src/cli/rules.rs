//! `mantissa rules`.

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
                println!("{phase}");
                for r in set.phase(phase) {
                    println!("  {:<26} {} {}", r.name, if r.arrow == Arrow::Exact { "=" } else { "~" }, r.doc);
                    println!("  {:<26}   {}", "", r.text);
                }
            }
            println!("conditions");
            for (name, _, doc) in CONDITIONS {
                println!("  {name:<26}   {doc}");
            }
            Ok(())
        }
        RulesCommand::Check { rules, trials, seed } => {
            let set = load(rules)?;
            let mut failed = 0;
            for r in &set.rules {
                match check::check_rule(r, *trials, *seed) {
                    Ok(n) => println!("ok    {:<26} {n} instances", r.name),
                    Err(why) => {
                        failed += 1;
                        println!("FAIL  {:<26} {why}", r.name);
                    }
                }
            }
            println!("{} rules, {failed} failed", set.rules.len());
            if failed > 0 { Err(Error::Diverged(format!("{failed} rules failed the numerical check"))) } else { Ok(()) }
        }
    }
}
