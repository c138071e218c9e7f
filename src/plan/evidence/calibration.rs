//! What a calibration found out about a step's values, and what follows from it: the formats each may have.
//!
//! Two things are asked of a format. Its *range* must hold what the value was seen to be, with headroom, because nothing
//! repairs an overflow but a skipped step. And the *noise* that rounding to it adds to the gradients must be small beside
//! the noise they have anyway, from one batch to the next: that is what the budget is a share of. Noise adds up over a
//! plan, so it is the search that keeps it within the budget; here only what would break the budget alone is refused.

use super::ranges::Evidence;
use crate::error::{Error, Result};
use crate::format::{FloatSpec, Format, Formats, Spread};
use crate::ir::{Graph, NodeId, Op, Stage};
use crate::plan::policy::Verdict;
use crate::rewrite::Allow;
use egg::Id;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

/// How much larger than anything seen a number must be to overflow: training moves on from what was seen.
pub const HEADROOM: f64 = 4.0;

/// How much noise rounding may add to each parameter's gradient (root mean square).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// As a share of the gradient's own noise from batch to batch.
    Noise(f64),
    /// As a share of the gradient.
    Relative(f64),
    /// In inference, as a share of each output.
    Outputs(f64),
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::Noise(0.1)
    }
}

impl Budget {
    /// What it is a share of, in inference.
    ///
    /// # Errors
    /// [`Error::Request`] for a share of noise between batches, which inference does not have.
    pub fn of_outputs(self) -> Result<Budget> {
        match self {
            Budget::Relative(x) | Budget::Outputs(x) => Ok(Budget::Outputs(x)),
            Budget::Noise(_) => Err(Error::Request(
                "inference has no gradients whose noise could be a measure: --budget takes a share of the outputs, as rel=1e-2"
                    .into(),
            )),
        }
    }

    /// What suffers, by what a result belongs to.
    pub fn result(self, name: &str) -> String {
        match self {
            Budget::Outputs(_) => format!("the output `{name}`"),
            Budget::Noise(_) | Budget::Relative(_) => format!("the gradient of `{name}`"),
        }
    }

    /// The number alone: 0.1 is 10 %.
    pub fn share(self) -> f64 {
        match self {
            Budget::Noise(x) | Budget::Relative(x) | Budget::Outputs(x) => x,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Budget::Noise(x) => write!(f, "{} % of the gradients' noise from batch to batch", 100.0 * x),
            Budget::Relative(x) => write!(f, "{x:e} of the gradients"),
            Budget::Outputs(x) => write!(f, "{x:e} of the outputs"),
        }
    }
}

impl FromStr for Budget {
    type Err = Error;
    fn from_str(s: &str) -> Result<Budget> {
        let (kind, number) = s.split_once('=').unwrap_or(("noise", s));
        let share = match number.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|p| p / 100.0),
            None => number.trim().parse::<f64>(),
        };
        match (kind, share) {
            ("noise", Ok(x)) if x > 0.0 && x.is_finite() => Ok(Budget::Noise(x)),
            ("rel", Ok(x)) if x > 0.0 && x.is_finite() => Ok(Budget::Relative(x)),
            _ => Err(Error::Request(format!(
                "--budget takes a share of the gradients' noise from batch to batch, as 0.1 or 10%, or of the gradients, as rel=1e-3; not `{s}`"
            ))),
        }
    }
}

/// Noise by format, as a share of the budget: all that a plan rounds may add up to 1.
pub type Shares = BTreeMap<Format, f64>;

/// What a calibration says, by e-class.
pub(in crate::plan) struct Estimates {
    /// By the class of a value or of a source.
    pub values: HashMap<Id, Shares>,
    /// By the classes of a product and of the value it reads.
    pub operands: HashMap<(Id, Id), Shares>,
}

/// What some steps on real data, run in f32, say about a step's values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Batches that the probe saw.
    pub batches: usize,
    /// The unit of the shares below.
    pub budget: Budget,
    /// The loss scale that keeps most of the gradients in f16's range; gradients were observed at this scale.
    pub loss_scale: f64,
    /// Ranges of values and sources, by name.
    pub evidence: Evidence,
    /// Noise that storing a value adds to the gradients, by the value's name.
    pub values: BTreeMap<String, Shares>,
    /// The same where only one product reads it rounded, by the names of the product and of the value.
    pub operands: BTreeMap<String, BTreeMap<String, Shares>>,
}

impl Calibration {
    /// Does the format hold everything that was seen, with headroom?
    pub fn in_range(spread: &Spread, format: Format) -> bool {
        format.float().is_some_and(|s| f64::from(spread.largest) * HEADROOM <= s.max)
    }

    /// The same of what something is divided by, at both ends: its overflow and its loss to zero are quiet, so more room is
    /// asked for.
    fn divides_in_range(spread: &Spread, format: Format) -> bool {
        let room = HEADROOM * HEADROOM;
        let held = |s: FloatSpec| {
            let is_large = f64::from(spread.smallest) >= s.min_normal() * HEADROOM || spread.zeros == spread.count;
            f64::from(spread.largest) * room <= s.max && is_large
        };
        format.float().is_some_and(held)
    }

    /// Values that may be stored narrow, as far as noise is concerned.
    pub fn roundable(&self) -> BTreeSet<&str> {
        let fits = |shares: &Shares| Format::STORED.iter().any(|f| shares.get(f).is_some_and(|&s| s <= 1.0));
        self.values.iter().filter(|(_, shares)| fits(shares)).map(|(name, _)| name.as_str()).collect()
    }

    /// The budget in a few words.
    pub fn budget_text(&self) -> String {
        format!("rounding may add {}", self.budget)
    }

    /// What was seen of a value, or of the value that it shows in another shape.
    pub fn spread(&self, graph: &Graph, id: NodeId) -> Option<&Spread> {
        self.evidence.spread(graph, id)
    }

    /// What storing a value adds to the gradients' noise, for all its readers. In other formats it is only multiplied.
    pub(in crate::plan) fn stored(&self, name: &str) -> Shares {
        let shares = self.values.get(name).into_iter().flatten();
        shares.filter(|(f, _)| Format::STORED.contains(f)).map(|(&f, &x)| (f, x)).collect()
    }

    /// What may be done with a value, and why. `divides`: something is divided by it.
    pub fn verdict(&self, graph: &Graph, id: NodeId, formats: Formats, divides: bool) -> Verdict {
        let node = graph.node(id);
        let refuse = |why: String| Verdict { allow: Allow::NONE, why };
        if !node.ty.format.is_float() {
            return refuse("not a floating-point value".into());
        }
        if node.stage == Stage::Update {
            return refuse("unscaling, optimizer and loss scaler".into());
        }
        if node.ty.shape.rank() == 0 {
            return refuse("a scalar: nothing to gain".into());
        }
        if node.ty.format.is_low() || matches!(node.op, Op::Scan(_)) {
            return Verdict { allow: Allow::within(formats), why: "in the format it comes in".into() };
        }
        let name = graph.name_of(id);
        let Some(spread) = self.spread(graph, id) else {
            return refuse("nothing is known of its range".into());
        };
        let Some(shares) = self.values.get(name) else {
            return refuse("nothing is known of what rounding it does".into());
        };
        let (mut held, mut fit, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let narrow: Formats = formats.iter().filter(|f| f.is_low()).collect();
        for format in narrow.iter() {
            let share = shares.get(&format).copied().unwrap_or(f64::INFINITY);
            if !Calibration::in_range(spread, format) {
                said.push(format!(
                    "{format} overflows at {:.3e}, {HEADROOM} x {:.3e}",
                    format.float().map_or(0.0, |s| s.max),
                    spread.largest
                ));
                continue;
            }
            if divides && !Calibration::divides_in_range(spread, format) {
                said.push(format!(
                    "something is divided by it, and {:.3e} to {:.3e} leaves too little of {format}'s range",
                    spread.smallest, spread.largest
                ));
                continue;
            }
            held.push(format);
            if share <= 1.0 {
                said.push(format!("{format} takes {} of the budget", percent(share)));
                fit.push((format, share));
            } else {
                said.push(format!("{format} would take {} of the budget", percent(share)));
            }
        }
        // Formats of a size cost the same, so only the one that adds less noise is offered, and what products read.
        let own = fit.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|f| f.0);
        let read = graph.users(id).into_iter().filter_map(|p| self.multiplied_in(graph, p, narrow));
        let read: Vec<Format> = read.filter(|f| fit.iter().any(|known| known.0 == *f)).collect();
        let allow = Allow {
            stores: own.into_iter().chain(read).collect(),
            casts: held.into_iter().collect(),
            // What needs no casts is offered beside what does.
            multiplies: [narrow, formats.and(Formats::from_iter([Format::Tf32]))]
                .into_iter()
                .filter_map(|f| self.multiplied_in(graph, id, f))
                .collect(),
        };
        Verdict { allow, why: said.join("; ") }
    }

    /// The format in which a product's operands fit and add the least noise. A product shown in another shape is one too:
    /// rules make it of a transpose.
    fn multiplied_in(&self, graph: &Graph, product: NodeId, formats: Formats) -> Option<Format> {
        if graph.op(product).is_view() {
            return self.multiplied_in(graph, *graph.inputs(product).first()?, formats);
        }
        graph.op(product).multiplies_in()?;
        let name = graph.name_of(product);
        let noise = |format: Format| -> Option<f64> {
            let mut sum = 0.0;
            for &x in graph.inputs(product) {
                if graph.ty(x).format.is_low() {
                    continue;
                }
                if !Calibration::in_range(self.spread(graph, x)?, format) {
                    return None;
                }
                let alone = self.operands.get(name).and_then(|of| of.get(graph.name_of(x)));
                sum += alone.or_else(|| self.values.get(graph.name_of(x)))?.get(&format)?;
            }
            (sum <= 1.0).then_some(sum)
        };
        let able = formats.iter().filter_map(|f| Some((f, noise(f)?)));
        able.min_by(|a, b| a.1.total_cmp(&b.1)).map(|f| f.0)
    }
}

/// A share as people read it.
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        p if p.is_nan() || p > 1e6 => "more than all".into(),
        0.0 => "nothing".into(),
        p if p < 0.01 => "less than 0.01 %".into(),
        p if p < 10.0 => format!("{p:.2} %"),
        p => format!("{p:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_read_as_they_are_written() {
        for (text, budget) in [
            ("0.1", Budget::Noise(0.1)),
            ("10%", Budget::Noise(0.1)),
            ("noise=0.05", Budget::Noise(0.05)),
            ("rel=1e-3", Budget::Relative(1e-3)),
        ] {
            assert_eq!(text.parse::<Budget>().unwrap(), budget);
        }
        for bad in ["", "-1", "rel=", "inf", "abs=1", "0"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }
}
