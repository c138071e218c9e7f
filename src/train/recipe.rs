//! How to train: optimizer, schedule, clipping, loss scaling. Plain data, read from a run file.

use crate::error::{Error, Result};
use crate::format::Format;
use crate::plan::Policy;
use serde::{Deserialize, Serialize};

/// How gradients move parameters. Numbers are taken as they are given; ranges are where the formulas make sense.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent, PyTorch's formulation: b ← μ b + g; w ← w − lr (nesterov ? g + μ b : b).
    Sgd {
        /// Learning rate, at least 0. Required.
        lr: f64,
        /// μ, from 0 to below 1. Default: 0, which keeps no state.
        #[serde(default)]
        momentum: f64,
        /// Looks ahead by one step of momentum (Nesterov). Default: false.
        #[serde(default)]
        nesterov: bool,
        /// λ of λ w, which is added to the gradient; at least 0. Default: 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Kingma & Ba 2015, algorithm 1; weight decay is added to the gradient.
    Adam {
        /// Learning rate, at least 0. Required.
        lr: f64,
        /// Decay of the mean of gradients, from 0 to below 1. Default: 0.9.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients, from 0 to below 1. Default: 0.999.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of that mean; above 0. Default: 1e-8.
        #[serde(default = "eps")]
        eps: f64,
        /// λ of λ w, which is added to the gradient; at least 0. Default: 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Loshchilov & Hutter 2019, algorithm 2: weight decay acts on the weights.
    Adamw {
        /// Learning rate, at least 0. Required.
        lr: f64,
        /// Decay of the mean of gradients, from 0 to below 1. Default: 0.9.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients, from 0 to below 1. Default: 0.999.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of that mean; above 0. Default: 1e-8.
        #[serde(default = "eps")]
        eps: f64,
        /// λ of w ← (1 − lr λ) w, before the gradient's move; at least 0. Default: 0.01.
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
    /// The learning rate, before the schedule.
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Sgd { lr, .. } | Optimizer::Adam { lr, .. } | Optimizer::Adamw { lr, .. } => *lr,
        }
    }

    /// The same, to be changed.
    pub fn lr_mut(&mut self) -> &mut f64 {
        match self {
            Optimizer::Sgd { lr, .. } | Optimizer::Adam { lr, .. } | Optimizer::Adamw { lr, .. } => lr,
        }
    }
}

impl Optimizer {
    /// Are all numbers such that the formulas make sense?
    fn check(&self) -> Result<()> {
        let at_least_0 = |what: &str, x: f64| match x {
            x if x >= 0.0 && x.is_finite() => Ok(()),
            _ => Err(Error::Request(format!("optimizer: `{what}` is {x}; it is a number of at least 0"))),
        };
        let share = |what: &str, x: f64| match x {
            x if (0.0..1.0).contains(&x) => Ok(()),
            _ => Err(Error::Request(format!("optimizer: `{what}` is {x}; it is at least 0 and below 1"))),
        };
        at_least_0("lr", self.lr())?;
        match *self {
            Optimizer::Sgd { momentum, nesterov, weight_decay, .. } => {
                share("momentum", momentum)?;
                if nesterov && momentum == 0.0 {
                    return Err(Error::Request("optimizer: `nesterov` looks ahead by `momentum`, which is 0".into()));
                }
                at_least_0("weight_decay", weight_decay)
            }
            Optimizer::Adam { beta1, beta2, eps, weight_decay, .. }
            | Optimizer::Adamw { beta1, beta2, eps, weight_decay, .. } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                if !(eps > 0.0 && eps.is_finite()) {
                    return Err(Error::Request(format!("optimizer: `eps` is {eps}; it is a number above 0")));
                }
                at_least_0("weight_decay", weight_decay)
            }
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
    /// How the rate comes down after the warmup. Default: constant.
    pub decay: Decay,
    /// Good steps over which the rate rises linearly, from 1 / `warmup` of its full height on. Default: 0.
    pub warmup: u64,
    /// Good steps, with those of the warmup, after which the decay has ended. Default: 0, the run's length.
    pub steps: u64,
}

/// Factor of the rate after the warmup, at x from 0 to 1 of the way to the decay's end.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// 1.
    #[default]
    Constant,
    /// 1 − x.
    Linear,
    /// (1 + cos πx) / 2.
    Cosine,
}

/// Loss scaling, with the defaults of `torch.amp.GradScaler` plus a floor and a cap.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Scaler {
    /// When the loss is scaled. Default: auto.
    pub mode: ScalerMode,
    /// The first scale; above 0. Default: 65536. Policy `auto` with data chooses its own.
    pub init: f64,
    /// Factor by which the scale grows; at least 1. Default: 2.
    pub growth: f64,
    /// Factor by which the scale comes down; between 0 and 1. Default: 0.5.
    pub backoff: f64,
    /// Good steps in a row before the scale grows; at least 1. Default: 2000.
    pub interval: u64,
    /// The smallest scale that overflows lead to; above 0, at most `cap`. Default: 1.
    pub floor: f64,
    /// The largest scale that growth leads to; at least `floor`. Default: 2^24.
    pub cap: f64,
    /// Overflows it takes for the scale to back off; later ones do at once until it has grown. At least 1. Default: 1.
    pub hysteresis: u64,
}

/// When the loss is scaled. Steps with a gradient that is not finite are skipped in all modes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ScalerMode {
    /// Static under policy `o3`, dynamic for f16, off for formats with f32's range.
    #[default]
    Auto,
    /// The scale grows after good steps and comes down after overflows.
    Dynamic,
    /// `init` throughout; overflowing steps are skipped.
    Static,
    /// The loss is not scaled, and a step with a gradient that is not finite ends training.
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

    fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Request(format!("scaler: {what}")));
        match self {
            s if !(s.init > 0.0 && s.init.is_finite()) => bad("`init` must be a positive number"),
            s if !(s.growth >= 1.0 && s.growth.is_finite()) => bad("`growth` must be at least 1"),
            s if !(s.backoff > 0.0 && s.backoff < 1.0) => bad("`backoff` must lie between 0 and 1"),
            s if s.interval == 0 || s.hysteresis == 0 => bad("`interval` and `hysteresis` must be at least 1"),
            s if !(s.floor > 0.0 && s.floor <= s.cap && s.cap.is_finite()) => {
                bad("`floor` and `cap` must satisfy 0 < floor ≤ cap")
            }
            // A static scale stays where it is.
            s if s.mode != ScalerMode::Static && !(s.floor..=s.cap).contains(&s.init) => {
                bad("`init` must lie between `floor` and `cap`")
            }
            _ => Ok(()),
        }
    }
}

/// Everything a step does besides the model.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Default: AdamW at a rate of 0.001.
    pub optimizer: Optimizer,
    /// Default: the optimizer's rate throughout.
    pub schedule: Schedule,
    /// Largest global norm of the unscaled gradient, above 0; none leaves it alone. Default: none.
    pub clip_norm: Option<f64>,
    /// Loss scaling.
    pub scaler: Scaler,
}

impl Recipe {
    /// Are all numbers such that a step can be made of them?
    ///
    /// # Errors
    /// The first that makes no sense, with what it may be.
    pub fn check(&self) -> Result<()> {
        self.optimizer.check()?;
        if let Some(norm) = self.clip_norm
            && !(norm > 0.0 && norm.is_finite())
        {
            return Err(Error::Request(format!("clip_norm is {norm}; it is a number above 0")));
        }
        self.scaler.check()
    }
}
