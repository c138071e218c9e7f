//! Rules, and where they come from: the files in the binary, or a directory's.

use super::PHASES;
use super::reader::parse_item;
use super::rule::{Read, Rule};
use super::sexpr::read;
use super::typed::check_types;
use crate::error::{Error, Result, Spanned};
use crate::hint::is_meant;
use std::collections::BTreeSet;
use std::path::Path;

/// All rules, in file order.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    /// Each with a name of its own.
    pub rules: Vec<Rule>,
}

macro_rules! embedded {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../rules/", $name, ".rules")))),*] };
}

impl RuleSet {
    /// The rules in the binary.
    ///
    /// # Errors
    /// A rule that does not read: with the place. The tests read them all.
    pub fn builtin() -> Result<RuleSet> {
        let mut set = RuleSet::default();
        for (phase, text) in embedded!("recognise", "simplify", "layout", "fuse", "precision", "carry") {
            // A test checks the types of these.
            set.add(phase, text, &format!("rules/{phase}.rules"), |_| Ok(()))?;
        }
        Ok(set)
    }

    /// The rules of a directory where one is given, else those in the binary.
    ///
    /// # Errors
    /// Those of [`RuleSet::from_dir`].
    pub fn load_from(dir: Option<&Path>) -> Result<RuleSet> {
        dir.map_or_else(RuleSet::builtin, RuleSet::from_dir)
    }

    /// The rules of a directory: the files `PHASE.rules` that are there.
    ///
    /// # Errors
    /// Where there are none, one is called after no phase, or one does not read: with the place.
    pub fn from_dir(dir: &Path) -> Result<RuleSet> {
        let mut set = RuleSet::default();
        let names = format!("they are named {}.rules", PHASES.join(".rules, "));
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let path = entry.map_err(Error::io("read", dir))?.path();
            if path.extension().is_some_and(|e| e == "rules") {
                let phase = path.file_stem().and_then(|p| p.to_str()).unwrap_or("");
                if !PHASES.contains(&phase) {
                    let hint = is_meant(phase, PHASES.into_iter());
                    return Err(Error::Request(format!(
                        "{}: a file of rules is a phase; {names}{hint}",
                        path.display()
                    )));
                }
                files.insert(phase.to_owned());
            }
        }
        if files.is_empty() {
            return Err(Error::Request(format!("{}: no rule files; {names}", dir.display())));
        }
        for phase in PHASES.into_iter().filter(|&p| files.contains(p)) {
            let path = dir.join(format!("{phase}.rules"));
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            set.load(phase, &text, &path.display().to_string())?;
        }
        Ok(set)
    }

    /// Adds the rules of one file.
    ///
    /// # Errors
    /// Where one does not read, has a name that is taken, or makes of some tensors what has no type, or another than what
    /// it replaces: with the place.
    pub fn load(&mut self, phase: &str, text: &str, file: &str) -> Result<()> {
        self.add(phase, text, file, check_types)
    }

    fn add(
        &mut self,
        phase: &str,
        text: &str,
        file: &str,
        check: impl Fn(&Read) -> std::result::Result<(), Spanned>,
    ) -> Result<()> {
        let at = |e: Spanned| e.in_file(file, text);
        for item in read(text).map_err(at)? {
            for read in parse_item(phase, &item).map_err(at)? {
                let name = &read.rule.name;
                if self.rules.iter().any(|r| r.name == *name) {
                    return Err(at(Spanned::new(item.span(), format!("there are two rules named `{name}`"))));
                }
                check(&read).map_err(at)?;
                self.rules.push(read.rule);
            }
        }
        Ok(())
    }

    /// The rules of a phase, in file order.
    pub fn phase<'a>(&'a self, phase: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |r| r.phase == phase)
    }
}
