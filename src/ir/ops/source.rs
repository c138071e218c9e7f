//! Where values come from: initial values of parameters and states, and positions.

use super::attr::Num;
use super::attr::{Attr, Attrs};
use super::signature::{Attribute, Family, Kind, Signature};
use super::{Context, Gradients, Tensor, random};
use super::{Format, Op, Shape, Type};
use std::fmt;

/// What the step is given, and what needs no operand of the model: constants, positions, random numbers.
pub(super) struct Sources;

impl Family for Sources {
    fn signatures(&self) -> Vec<Signature> {
        let axis = Attribute::new("axis", Kind::Int).samples(&["0", "1"]);
        let salt = Attribute::new("salt", Kind::Int).or(Attr::int(0));
        vec![
            Signature::new("const", 0).with([Attribute::new("value", Kind::Number)]),
            Signature::new("iota", 0).with([Attribute::new("dims", Kind::Dims), axis]),
            Signature::new("random", 2).with([Attribute::new("dims", Kind::Dims), salt]),
        ]
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Input { label: false, .. } => "input",
            Op::Input { label: true, .. } => "label",
            Op::Param { .. } => "param",
            Op::State { .. } => "state",
            Op::Const(_) => "const",
            Op::Iota { .. } => "iota",
            _ => "random",
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        match op {
            Op::Const(c) => vec![Attr::Float(*c)],
            Op::Iota { dims, axis } => vec![Attr::Dims(dims.clone()), Attr::int(*axis)],
            Op::Random { dims, salt } => vec![Attr::Dims(dims.clone()), Attr::Int(i64::from(*salt))],
            _ => Vec::new(),
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        Ok(match name {
            "const" => Op::Const(a.float("value")?),
            "iota" => Op::Iota { dims: a.dims("dims")?, axis: a.int("axis")? },
            _ => {
                let salt = a.int("salt")?;
                let salt = u32::try_from(salt).map_err(|_| format!("salt={salt} is above {}", u32::MAX))?;
                Op::Random { dims: a.dims("dims")?, salt }
            }
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        match op {
            Op::Input { ty, .. } | Op::Param { ty, .. } | Op::State { ty, .. } => Ok(ty.clone()),
            Op::Iota { dims, axis } if *axis >= dims.rank() => Err(format!("axis {axis} is outside {dims}")),
            Op::Iota { dims, .. } => Ok(Type::new(dims.clone(), Format::I64)),
            Op::Random { dims, .. } => random::infer(dims, x),
            _ => Ok(Type::new(Shape::scalar(), Format::F32)),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Const(c) => Tensor::scalar(c.get()),
            Op::Iota { axis, .. } => Tensor::from_fn(&ty.dims(), |i| i[*axis] as f64),
            Op::Random { salt, .. } => random::eval(&ty.dims(), *salt, x),
            _ => panic!("sources are given, not evaluated"),
        }
    }

    fn vjp(&self, _: &Op, c: Context) -> Gradients {
        Ok(vec![None; c.x.len()])
    }
}

/// How a parameter or state starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Init {
    /// Every element is this number.
    Constant(Num),
    /// Uniform in ±√(6 / fan in): He et al. 2015, eq. 10, for ReLU networks.
    KaimingUniform,
    /// Uniform in ±√(6 / (fan in + fan out)): Glorot & Bengio 2010, eq. 16.
    XavierUniform,
    /// Normal around 0, with this standard deviation.
    Normal(Num),
    /// Uniform in ± the bound.
    Uniform(Num),
    /// The values the model file holds.
    Data,
    /// Another source's value, rounded to this one's format: what the optimizer carries along for products to read.
    Copy(String),
}

impl Init {
    /// Every element is 0.
    pub fn zeros() -> Init {
        Init::Constant(Num::new(0.0))
    }

    pub(crate) fn parse(word: &str, argument: Option<Num>) -> Result<Init, String> {
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
