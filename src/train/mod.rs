//! Training: from a model and a recipe to a step, and running it over data; and planning models for inference.

mod auto;
mod bench;
mod calibrate;
mod compile;
mod diagnose;
mod feeds;
mod forward;
mod gradients;
mod inference;
mod loss;
mod observe;
mod positions;
mod recipe;
mod run;
mod runfile;
mod session;
mod step;
mod subject;
mod task;
mod watching;

pub use auto::{Stage, compile_by_evidence};
pub use bench::Bench;
pub use calibrate::{Effort, Laboratory};
pub use compile::{Compiled, Settings};
pub use forward::Inference;
pub use inference::{PlannedInference, plan_inference};
pub use loss::{Criterion, LossKind, Objective, Score};
pub use observe::{Observed, observe};
pub use recipe::{Decay, Optimizer, Recipe, Scaler, ScalerMode, Schedule};
pub use run::{Outcome, Place, Progress, Run, train};
pub use runfile::{DataSection, RunFile};
pub use session::{EpochReport, EvalReport, Seen, Session};
pub use step::names;
pub use task::{Head, Task};
