//! `plan.json`: a plan that can be kept, read by other programs, and fed back to `train`.

use super::{Budget, Calibration, Measured, Planned, Policy};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Op, text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Raised whenever an older reader would misread a newer file.
pub const PLAN_VERSION: u32 = 1;

/// A plan with what it was made for and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanFile {
    /// [`PLAN_VERSION`] of the program that wrote the file.
    pub version: u32,
    /// Identifies the training step the plan was made for: model, sizes, optimizer and scaler.
    pub step_fingerprint: String,
    /// Name of the target, or of its profile.
    pub target: String,
    /// How formats were chosen.
    pub policy: Policy,
    /// The narrow format of the policy's lists.
    pub low: Format,
    /// Of one step on the target, with its launches.
    pub predicted_seconds: f64,
    /// Bytes that one step reads and writes, at least.
    pub bytes_moved: usize,
    /// What policy auto went by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceSummary>,
    /// Limits that ended rewriting or the search before they were done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Why each stored value has its format.
    pub values: Vec<PlannedValue>,
    /// The planned step in text form: the plan itself.
    pub step: String,
}

/// A plan's evidence in short.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvidenceSummary {
    /// Batches that the probe saw.
    pub batches: usize,
    /// How much noise roundings may add.
    pub budget: Budget,
    /// Where training's loss scale starts.
    pub loss_scale: f64,
    /// Narrow formats there were to choose from.
    pub formats: Vec<Format>,
    /// Root of the summed squares of what roundings were estimated to add, in budgets.
    pub estimated: f64,
    /// What the plan was measured to add.
    pub measured: Option<Measured>,
    /// Root of the noise in budgets and seconds of the step, for other budgets.
    #[serde(default)]
    pub frontier: Vec<(f64, f64)>,
    /// Shares of the squared budget by what is rounded.
    pub roundings: Vec<RoundingShare>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundingShare {
    pub value: String,
    pub format: Format,
    pub share: f64,
}

impl EvidenceSummary {
    fn new(planned: &Planned, calibration: &Calibration, formats: Vec<Format>) -> EvidenceSummary {
        let noise = planned.noise.iter();
        EvidenceSummary {
            batches: calibration.batches,
            budget: calibration.budget,
            loss_scale: calibration.loss_scale,
            formats,
            estimated: planned.estimated_noise(),
            measured: planned.measured.clone(),
            frontier: planned.frontier.clone(),
            roundings: noise.map(|(v, f, s)| RoundingShare { value: v.clone(), format: *f, share: *s }).collect(),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedValue {
    pub name: String,
    /// The loop's body it is a value of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    pub format: Format,
    pub shape: Vec<usize>,
    pub rule: Option<String>,
    pub reason: Option<String>,
}

/// What a plan stores, its loops' bodies after the rest.
fn values(planned: &Planned, body: Option<&str>) -> Vec<PlannedValue> {
    let g = &planned.graph;
    let stored = g.ids().filter(|&id| matches!(g.op(id), Op::Put(_)));
    let mut out: Vec<PlannedValue> = stored
        .map(|id| {
            let value = g.name_of(g.inputs(id)[0]);
            PlannedValue {
                name: value.to_owned(),
                body: body.map(str::to_owned),
                format: g.ty(id).format,
                shape: g.ty(id).dims(),
                rule: planned.rules.get(value).cloned(),
                reason: planned.reasons.get(value).cloned(),
            }
        })
        .collect();
    planned.bodies.iter().for_each(|(name, b)| out.extend(values(b, Some(name))));
    out
}

/// SHA-256 of a graph's text, in hexadecimal.
pub fn fingerprint(graph: &Graph) -> String {
    Sha256::digest(text::print(graph)).iter().map(|b| format!("{b:02x}")).collect()
}

impl PlanFile {
    /// The file of a plan of `step`.
    pub fn new(step: &Graph, planned: &Planned, request: &super::Request) -> PlanFile {
        PlanFile {
            version: PLAN_VERSION,
            step_fingerprint: fingerprint(step),
            target: request.target.name.clone(),
            policy: request.policy,
            low: request.low,
            predicted_seconds: planned.estimate.seconds,
            bytes_moved: planned.estimate.bytes,
            evidence: request
                .calibration
                .as_ref()
                .filter(|_| request.policy == Policy::Auto)
                .map(|c| EvidenceSummary::new(planned, c, request.formats.iter().collect())),
            limits: planned.limits(),
            values: values(planned, None),
            step: text::print(&planned.graph),
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a plan is plain data") + "\n"
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// A file that cannot be read, that is no plan, or whose version is not [`PLAN_VERSION`].
    pub fn read(path: &Path) -> Result<PlanFile> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let bad = |e: serde_json::Error| Error::Request(format!("{}: not a plan file: {e}", path.display()));
        let version = serde_json::from_str::<serde_json::Value>(&text).map_err(bad)?["version"].as_u64();
        if version != Some(PLAN_VERSION.into()) {
            let found = version.map_or("none".to_owned(), |v| v.to_string());
            return Err(Error::Request(format!(
                "{}: plan version {found}, but this mantissa reads version {PLAN_VERSION}; plan the model again",
                path.display()
            )));
        }
        serde_json::from_str(&text).map_err(bad)
    }

    /// The planned graph, if the plan was made for this step.
    ///
    /// # Errors
    /// [`Error::Request`] for a plan of another step; [`Error::Source`] for a damaged one.
    pub fn graph_for(&self, step: &Graph, path: &Path) -> Result<Graph> {
        if self.step_fingerprint != fingerprint(step) {
            return Err(Error::Request(format!(
                "{}: this plan was made for another training step (model `{}`); a plan fits one model, batch size, optimizer and scaler: plan the model again",
                path.display(),
                text::parse(&self.step, "plan").map_or_else(|_| "?".into(), |g| g.name)
            )));
        }
        text::parse(&self.step, &format!("{} (step)", path.display()))
    }
}
