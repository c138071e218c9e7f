//! What a step's values look like over some steps.

use crate::format::Spread;
use crate::ir::{Graph, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Spreads of a step's values, by name, over the steps observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// How many were observed.
    pub steps: usize,
    /// Sources, computed values and inputs, by name.
    pub values: BTreeMap<String, Spread>,
    /// The step, from 1, and the value that was the first to be infinite or NaN.
    pub first_non_finite: Option<(usize, String)>,
}

impl Evidence {
    /// What was seen of a value, or of the value that it shows in another shape.
    pub fn spread(&self, graph: &Graph, id: NodeId) -> Option<&Spread> {
        let own = self.values.get(graph.name_of(id));
        own.or_else(|| graph.inputs(id).first().filter(|_| graph.op(id).is_view()).and_then(|&x| self.spread(graph, x)))
    }

    /// Takes in what a value's elements are like, in the order in which a step computes values.
    pub fn add(&mut self, name: &str, seen: &Spread) {
        self.values.entry(name.to_owned()).or_default().merge(seen);
        if self.first_non_finite.is_none() && seen.non_finite > 0 {
            self.first_non_finite = Some((self.steps + 1, name.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_non_finite_value_is_named() {
        let mut e = Evidence::default();
        e.add("a", &Spread::of(&[1.0, f32::MIN_POSITIVE / 4.0]));
        e.steps += 1;
        e.add("b", &Spread::of(&[1.0, f32::INFINITY]));
        e.add("a", &Spread::of(&[f32::NAN]));
        assert_eq!(e.first_non_finite, Some((2, "b".into())));
        assert_eq!((e.values["a"].count, e.values["a"].non_finite), (3, 1));
        assert_eq!(e.values["a"].at(-128), 1);
    }
}
