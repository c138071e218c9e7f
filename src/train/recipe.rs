//! How to train: optimizer, schedule, clipping, loss scaling. Plain data, read from a run file.

use crate::error::{Error, Result};
use crate::format::Format;
use crate::plan::Policy;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent, PyTorch's formulation: b ← μ b + g; w ← w − lr (nesterov ? g + μ b : b).
    Sgd {
        lr: f64,
        #[serde(default)]
        momentum: f64,
        #[serde(default)]
        nesterov: bool,
        #[serde(default)]
        weight_decay: f64,
    },
    /// Kingma & Ba 2015, algorithm 1; weight decay is added to the gradient.
    Adam {
        lr: f64,
        #[serde(default = "beta1")]
        beta1: f64,
        #[serde(default = "beta2")]
        beta2: f64,
        #[serde(default = "eps")]
        eps: f64,
        #[serde(default)]
        weight_decay: f64,
    },
    /// Loshchilov & Hutter 2019, algorithm 2: weight decay acts on the weights.
    Adamw {
        lr: f64,
        #[serde(default = "beta1")]
        beta1: f64,
        #[serde(default = "beta2")]
        beta2: f64,
        #[serde(default = "eps")]
        eps: f64,
        #[serde(default = "adamw_decay")]
        weight_decay: f64,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn eps() -> f64 {
    1e-8
}
fn adamw_decay() -> f64 {
    0.01
}

impl Optimizer {
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Sgd { lr, .. } | Optimizer::Adam { lr, .. } | Optimizer::Adamw { lr, .. } => *lr,
        }
    }

    pub fn lr_mut(&mut self) -> &mut f64 {
        match self {
            Optimizer::Sgd { lr, .. } | Optimizer::Adam { lr, .. } | Optimizer::Adamw { lr, .. } => lr,
        }
    }
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer::Adamw { lr: 1e-3, beta1: beta1(), beta2: beta2(), eps: eps(), weight_decay: adamw_decay() }
    }
}

/// The learning rate as a multiple of the optimizer's, by the number of good steps so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub decay: Decay,
    /// Steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// Steps after which the decay has ended; the run's length if 0.
    pub steps: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    #[default]
    Constant,
    Linear,
    Cosine,
}

/// Loss scaling, with the defaults of `torch.amp.GradScaler` plus a floor and a cap.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Scaler {
    pub mode: ScalerMode,
    pub init: f64,
    pub growth: f64,
    pub backoff: f64,
    /// Good steps in a row before the scale grows.
    pub interval: u64,
    pub floor: f64,
    pub cap: f64,
    /// Overflows tolerated before the scale backs off; refilled when it grows.
    pub hysteresis: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ScalerMode {
    /// Dynamic for f16, off for formats with f32's range.
    #[default]
    Auto,
    Dynamic,
    /// `init` throughout; overflowing steps are skipped.
    Static,
    Off,
}

impl Default for Scaler {
    fn default() -> Scaler {
        Scaler {
            mode: ScalerMode::Auto,
            init: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
            floor: 1.0,
            cap: 16_777_216.0,
            hysteresis: 1,
        }
    }
}

impl Scaler {
    /// The mode that `Auto` stands for.
    pub fn resolved(&self, policy: Policy, low: Format) -> ScalerMode {
        match self.mode {
            ScalerMode::Auto if policy == Policy::O3 && low.is_low() => ScalerMode::Static,
            ScalerMode::Auto if policy != Policy::Fp32 && low == Format::F16 => ScalerMode::Dynamic,
            ScalerMode::Auto => ScalerMode::Off,
            mode => mode,
        }
    }

    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Request(format!("scaler: {what}")));
        match self {
            s if !(s.init > 0.0 && s.init.is_finite()) => bad("`init` must be a positive number"),
            s if !(s.growth >= 1.0 && s.growth.is_finite()) => bad("`growth` must be at least 1"),
            s if !(s.backoff > 0.0 && s.backoff < 1.0) => bad("`backoff` must lie between 0 and 1"),
            s if s.interval == 0 || s.hysteresis == 0 => bad("`interval` and `hysteresis` must be at least 1"),
            s if !(s.floor > 0.0 && s.floor <= s.cap && s.cap.is_finite()) => {
                bad("`floor` and `cap` must satisfy 0 < floor ≤ cap")
            }
            _ => Ok(()),
        }
    }
}

/// Everything a step does besides the model.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    /// Largest global norm of the gradient; none leaves it alone.
    pub clip_norm: Option<f64>,
    pub scaler: Scaler,
}
