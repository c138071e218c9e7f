//! Training: from a model and a recipe to a step, and running it over data.

mod auto;
mod calibrate;
mod compile;
mod gradients;
mod loss;
mod observe;
mod recipe;
mod runfile;
mod session;
mod step;
mod task;

pub use auto::{Stage, compile_by_evidence};
pub use calibrate::{Effort, Laboratory};
pub use compile::{Compiled, Settings};
pub use loss::{Criterion, LossKind, Objective, Score};
pub use observe::{Observed, observe};
pub use recipe::{Decay, Optimizer, Recipe, Scaler, ScalerMode, Schedule};
pub use runfile::{DataSection, RunFile};
pub use session::{EpochReport, EvalReport, Open, Session};
pub use step::{Built, build_step, names};
pub use task::{Head, Task};
