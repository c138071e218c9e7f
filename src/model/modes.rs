//! Which layers of a model act in training as they do in inference.
//!
//! A batch norm that trains standardises by the batch's statistics and moves its running ones; a dropout that trains drops.
//! Files do not tell: PyTorch's present exporter writes a network in training mode without saying so on the nodes. So a model
//! that is trained has all of its layers trained, as `model.train()` does, but for those that somebody wants frozen.

use crate::error::{Error, Result};
use crate::hint::is_meant;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use wildmatch::WildMatch;

/// Layers that stay as in inference: `"train"` (none), `"frozen"` (all), or patterns of names, where `*` stands for any
/// characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Spelling", into = "Spelling")]
pub enum Frozen {
    /// None of them: all train.
    #[default]
    None,
    /// All of them.
    All,
    /// Those with a matching name, of the layer or of one of its tensors.
    Named(Vec<String>),
}

/// As a run file has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Spelling {
    Word(Word),
    Patterns(Vec<String>),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Train,
    Frozen,
}

impl From<Spelling> for Frozen {
    fn from(s: Spelling) -> Frozen {
        match s {
            Spelling::Word(Word::Train) => Frozen::None,
            Spelling::Word(Word::Frozen) => Frozen::All,
            Spelling::Patterns(patterns) => Frozen::Named(patterns),
        }
    }
}

impl From<Frozen> for Spelling {
    fn from(f: Frozen) -> Spelling {
        match f {
            Frozen::None => Spelling::Word(Word::Train),
            Frozen::All => Spelling::Word(Word::Frozen),
            Frozen::Named(patterns) => Spelling::Patterns(patterns),
        }
    }
}

impl FromStr for Frozen {
    type Err = Error;

    /// `train`, `frozen`, or `frozen=PATTERN,…`, as options have it.
    ///
    /// # Errors
    /// Other words.
    fn from_str(s: &str) -> Result<Frozen> {
        match (s, s.strip_prefix("frozen=")) {
            ("train", _) => Ok(Frozen::None),
            ("frozen", _) => Ok(Frozen::All),
            (_, Some(patterns)) => Ok(Frozen::Named(patterns.split(',').map(str::to_owned).collect())),
            _ => Err(Error::Request(format!(
                "`{s}` is neither train nor frozen nor frozen=PATTERN,.. with patterns of names{}",
                is_meant(s, ["train", "frozen"].into_iter())
            ))),
        }
    }
}

impl Frozen {
    /// Is a layer frozen that goes by these names: its own, and those of its tensors?
    pub fn holds<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> bool {
        match self {
            Frozen::None => false,
            Frozen::All => true,
            Frozen::Named(patterns) => {
                let patterns: Vec<WildMatch> = patterns.iter().map(|p| WildMatch::new(p)).collect();
                names.into_iter().any(|name| patterns.iter().any(|p| p.matches(name)))
            }
        }
    }
}

/// What is frozen of a model's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Modes {
    /// Those that use running statistics and leave them alone. Default: none.
    pub batch_norm: Frozen,
    /// Those that drop nothing. Default: none.
    pub dropout: Frozen,
}

impl Modes {
    pub(super) const ALL_TRAINED: Modes = Modes { batch_norm: Frozen::None, dropout: Frozen::None };
}

/// How many layers train and how many are frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Act as in training.
    pub trained: usize,
    /// Act as in inference.
    pub frozen: usize,
}

impl Count {
    /// One more layer.
    pub fn add(&mut self, trained: bool) {
        *if trained { &mut self.trained } else { &mut self.frozen } += 1;
    }
}

/// The layers of a bound model whose acting depends on what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// `BatchNormalization` nodes.
    pub batch_norms: Count,
    /// `Dropout` nodes; what a file spells out is not counted.
    pub dropouts: Count,
}

impl fmt::Display for Layers {
    /// A line for each kind that there is; nothing where there is none.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (what, count, trains) in [
            ("batch norms", self.batch_norms, "train (the batch's statistics; running ones are updated)"),
            ("dropouts", self.dropouts, "drop"),
        ] {
            match count {
                Count { trained: 0, frozen: 0 } => {}
                Count { trained, frozen: 0 } => writeln!(f, "{what}: {trained} {trains}")?,
                Count { trained, frozen } => {
                    writeln!(f, "{what}: {trained} {trains}, {frozen} frozen (as in inference)")?
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_spelled_alike_in_files_and_options() {
        for (option, text, frozen) in [
            ("train", "\"train\"", Frozen::None),
            ("frozen", "\"frozen\"", Frozen::All),
            ("frozen=a.*,b", "[\"a.*\", \"b\"]", Frozen::Named(vec!["a.*".into(), "b".into()])),
        ] {
            assert_eq!(option.parse::<Frozen>().unwrap(), frozen);
            let read: Modes = toml::from_str(&format!("batch_norm = {text}")).unwrap();
            assert_eq!(read.batch_norm, frozen);
            assert_eq!(toml::from_str::<Modes>(&toml::to_string(&read).unwrap()).unwrap(), read);
        }
        assert!("frosen".parse::<Frozen>().unwrap_err().to_string().contains("frozen"));
        let some = Frozen::Named(vec!["layer1.*".into()]);
        assert!(some.holds(["bn", "layer1.0.bn1.weight"]) && !some.holds(["layer2.0.bn1.weight"]));
    }
}
