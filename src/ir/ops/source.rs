//! Where values come from: initial values of parameters and states, and positions.

use super::attr::Num;
use super::{Format, Op, Shape, Type};
use std::fmt;

/// How a parameter or state starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Init {
    Constant(Num),
    /// Uniform in ±√(6 / fan in): He et al. 2015, eq. 10, for ReLU networks.
    KaimingUniform,
    /// Uniform in ±√(6 / (fan in + fan out)): Glorot & Bengio 2010, eq. 16.
    XavierUniform,
    Normal(Num),
    /// Uniform in ± the bound.
    Uniform(Num),
    /// The values the model file holds.
    Data,
    /// Another source's value, rounded to this one's format: what the optimizer carries along for products to read.
    Copy(String),
}

impl Init {
    pub fn zeros() -> Init {
        Init::Constant(Num::new(0.0))
    }

    pub fn parse(word: &str, argument: Option<Num>) -> Result<Init, String> {
        match (word, argument) {
            ("zeros", None) => Ok(Init::zeros()),
            ("ones", None) => Ok(Init::Constant(Num::new(1.0))),
            ("constant", Some(x)) => Ok(Init::Constant(x)),
            ("normal", Some(x)) => Ok(Init::Normal(x)),
            ("uniform", Some(x)) => Ok(Init::Uniform(x)),
            ("kaiming_uniform", None) => Ok(Init::KaimingUniform),
            ("xavier_uniform", None) => Ok(Init::XavierUniform),
            ("data", None) => Ok(Init::Data),
            _ => Err("initial values are zeros, ones, constant(x), normal(std), uniform(bound), kaiming_uniform, \
                      xavier_uniform and data"
                .into()),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Init::Constant(x) if x.get() == 0.0 => f.write_str("zeros"),
            Init::Constant(x) if x.get() == 1.0 => f.write_str("ones"),
            Init::Constant(x) => write!(f, "constant({x})"),
            Init::KaimingUniform => f.write_str("kaiming_uniform"),
            Init::XavierUniform => f.write_str("xavier_uniform"),
            Init::Normal(x) => write!(f, "normal({x})"),
            Init::Uniform(x) => write!(f, "uniform({x})"),
            Init::Data => f.write_str("data"),
            Init::Copy(of) => write!(f, "copy({})", crate::ir::text::quoted(of)),
        }
    }
}

/// Sources that are copies: a state that the optimizer carries along, an input that the loader stages.
impl Op {
    /// The source that this one is a copy of.
    pub fn copy_of(&self) -> Option<&str> {
        match self {
            Op::State { init: Init::Copy(of), .. } | Op::Input { copy_of: Some(of), .. } => Some(of),
            _ => None,
        }
    }

    /// A copy of another source, if it is a copy at all.
    pub fn with_copy_of(mut self, source: &str) -> Op {
        if let Op::State { init: Init::Copy(of), .. } | Op::Input { copy_of: Some(of), .. } = &mut self {
            source.clone_into(of);
        }
        self
    }
}

pub(super) fn infer_iota(dims: &Shape, axis: usize) -> Result<Type, String> {
    if axis >= dims.rank() {
        return Err(format!("axis {axis} is outside {dims}"));
    }
    Ok(Type::new(dims.clone(), Format::I64))
}
