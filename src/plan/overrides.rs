//! What a user wants otherwise than the policy: formats by name and by operation.
//!
//! ```toml
//! "*.lm_head.*" = "f32"     # values and parameters whose names match; * stands for any characters, ? for one
//! "h?.mlp" = "bf16"
//! op.softmax = "f32"        # every softmax
//! ```
//!
//! `f32` keeps a value from being rounded wherever it is read: a parameter's products are then f32 in both passes. A
//! narrow format allows that format and no other, whatever the policy says; whether it pays is still the planner's to
//! find. A gradient follows the value it belongs to, unless its own name (`d.h`) is matched. Names go before operations.

use super::policy::Verdict;
use crate::error::{Error, Result};
use crate::format::{Format, Formats};
use crate::hint::is_meant;
use crate::ir::{Graph, NodeId, Op};
use crate::rewrite::Allow;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use wildmatch::WildMatch;

/// Formats that a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overrides {
    /// By operation, as text writes it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub op: BTreeMap<String, Format>,
    /// By pattern of names.
    #[serde(flatten)]
    pub names: BTreeMap<String, Format>,
}

impl Overrides {
    /// Reads a policy file.
    ///
    /// # Errors
    /// A file that cannot be read, or that is no table of formats, with the place.
    pub fn read(path: &Path) -> Result<Overrides> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        toml::from_str(&text).map_err(|e| Error::Source {
            file: path.display().to_string(),
            text: text.clone(),
            span: e.span().unwrap_or(0..0),
            message: e.message().to_owned(),
            help: Some("a policy file has lines such as \"*.lm_head.*\" = \"f32\" and op.softmax = \"f32\"".into()),
        })
    }

    /// The formats that are asked for.
    pub fn formats(&self) -> Formats {
        self.op.values().chain(self.names.values()).copied().collect()
    }

    /// Is nothing asked for?
    pub fn is_empty(&self) -> bool {
        self.op.is_empty() && self.names.is_empty()
    }

    /// Refuses what cannot be meant: formats that cannot be planned, patterns that match nothing, and patterns that want
    /// different formats for the same value.
    ///
    /// # Errors
    /// [`Error::Request`] naming the key, and the name that may have been meant.
    pub fn check(&self, step: &Graph, formats: Formats) -> Result<()> {
        let bad = |what: String| Err(Error::Request(format!("policy file: {what}")));
        for (key, &format) in self.op.iter().chain(&self.names) {
            if format != Format::F32 && !formats.contains(format) {
                let able: Vec<&str> = formats.iter().map(Format::name).collect();
                return bad(format!("`{key}` asks for {format}, but this plan has f32 and {}", able.join(", ")));
            }
        }
        let graphs = with_bodies(step);
        let nodes = || graphs.iter().flat_map(|g| g.ids().map(move |id| (*g, id)));
        for op in self.op.keys() {
            if !nodes().any(|(g, id)| g.op(id).name() == op) {
                let hint = is_meant(op, nodes().map(|(g, id)| g.op(id).name()));
                return bad(format!("the step has no operation `{op}`{hint}"));
            }
        }
        for pattern in self.names.keys() {
            let matcher = WildMatch::new(pattern);
            if !nodes().any(|(g, id)| matcher.matches(g.name_of(id))) {
                let hint = is_meant(pattern, nodes().map(|(g, id)| g.name_of(id)));
                return bad(format!("no value's name matches `{pattern}`{hint}; --emit step lists them"));
            }
        }
        for (graph, id) in nodes() {
            let matching = self.matching(graph.name_of(id));
            if let [(first, a), .., (last, b)] = matching[..]
                && a != b
            {
                return bad(format!("`{first}` wants {a} and `{last}` wants {b} for `{}`", graph.name_of(id)));
            }
        }
        Ok(())
    }

    /// Patterns that match a name, those of the same format together.
    fn matching(&self, name: &str) -> Vec<(&str, Format)> {
        let all = self.names.iter().filter(|(p, _)| WildMatch::new(p).matches(name));
        let mut all: Vec<(&str, Format)> = all.map(|(p, &f)| (p.as_str(), f)).collect();
        all.sort_by_key(|m| m.1);
        all
    }

    /// What is wanted of a value, and the key that says so.
    fn wanted(&self, graph: &Graph, id: NodeId) -> Option<(&str, Format)> {
        let of = |id: NodeId| self.matching(graph.name_of(id)).first().copied();
        let by_op = || self.op.get_key_value(graph.op(id).name()).map(|(op, &f)| (op.as_str(), f));
        of(id).or_else(|| graph.node(id).grad_of.and_then(of)).or_else(by_op)
    }

    /// The policy's verdicts with what is wanted put in.
    pub(super) fn apply(&self, graph: &Graph, verdicts: &mut [Verdict]) {
        if self.is_empty() {
            return;
        }
        for (id, verdict) in graph.ids().zip(verdicts) {
            let Some((key, format)) = self.wanted(graph, id) else { continue };
            if !graph.ty(id).format.is_float() {
                continue;
            }
            verdict.why = format!("policy file: `{key}` = {format}");
            verdict.allow =
                if format == Format::F32 { Allow::NONE } else { Allow::within(Formats::from_iter([format])) };
        }
    }
}

/// A graph and the bodies of its loops.
fn with_bodies(graph: &Graph) -> Vec<&Graph> {
    let mut out = vec![graph];
    for id in graph.ids() {
        if let Op::Scan(s) = graph.op(id) {
            out.extend(with_bodies(s.body.graph()));
        }
    }
    out
}
