//! Memory: `put` rounds a value and stores it, `cast` copies a stored tensor to another format, `alias` is the same memory
//! in another shape, `after` the same at a later time. `convert` rounds in registers: a cast that the model itself asks for.

use super::attr::{Attr, Attrs};
use super::signature::{Attribute, Family, Kind, Reads, Signature};
use super::{Binary, Context, Gradients, Op, Shape, Tensor, Type, names};
use crate::format::Format;

/// The smallest scale, so that zeros stay zeros.
pub const LEAST_SCALE: f64 = f32::MIN_POSITIVE as f64;

/// Where values lie, and in which format.
pub(super) struct Memory;

impl Family for Memory {
    fn signatures(&self) -> Vec<Signature> {
        let format = || Attribute::new("format", Kind::Format);
        let dims = || Attribute::new("dims", Kind::Dims);
        vec![
            Signature::new(names::CONVERT, 1).with([format()]),
            Signature::new(names::PUT, 1).reads(Reads::Registers).in_memory().with([format()]),
            Signature::new(names::CAST, 2).optional(1).reads(Reads::Memory).in_memory().with([format()]),
            Signature::new("scale_of", 1).reads(Reads::Memory).in_memory().with([format()]),
            Signature::new(names::ALIAS, 1).reads(Reads::Memory).in_memory().with([dims()]),
            Signature::new(names::AFTER, 2).reads(Reads::Memory).in_memory(),
        ]
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Convert(_) => names::CONVERT,
            Op::Put(_) => names::PUT,
            Op::Cast(_) => names::CAST,
            Op::ScaleOf(_) => "scale_of",
            Op::Alias { .. } => names::ALIAS,
            _ => names::AFTER,
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        match op {
            Op::Put(f) | Op::Cast(f) | Op::Convert(f) | Op::ScaleOf(f) => vec![Attr::Format(*f)],
            Op::Alias { dims } => vec![Attr::Dims(dims.clone())],
            _ => Vec::new(),
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        Ok(match name {
            names::CONVERT => Op::Convert(a.format("format")?),
            names::PUT => Op::Put(a.format("format")?),
            names::CAST => Op::Cast(a.format("format")?),
            "scale_of" => Op::ScaleOf(a.format("format")?),
            names::ALIAS => Op::Alias { dims: a.dims("dims")? },
            _ => Op::After,
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        let (x, scale) = (x[0], x.get(1));
        match op {
            // What is narrower than f32 is an f32 that the format holds.
            Op::Convert(f) => Ok(Type::new(x.shape.clone(), f.once_read())),
            Op::Put(f) => Ok(Type::new(x.shape.clone(), *f)),
            Op::Cast(f) if x.format.is_float() != f.is_float() => Err(format!("{} cannot be cast to {f}", x.format)),
            Op::Cast(f) => match scale {
                Some(s) if **s != Type::new(Shape::scalar(), Format::F32) => {
                    Err(format!("the scale is {s}, not a scalar f32"))
                }
                _ => Ok(Type::new(x.shape.clone(), *f)),
            },
            Op::ScaleOf(Format::Bool) => Err("truth values are not scaled".into()),
            Op::ScaleOf(_) if !x.format.is_float() => Err(format!("{} is not scaled", x.format)),
            Op::ScaleOf(_) => Ok(Type::new(Shape::scalar(), Format::F32)),
            // Row-major memory has no shape of its own.
            Op::Alias { dims } if x.shape.count() != dims.count() => {
                Err(format!("{} and {dims} hold different numbers of elements", x.shape))
            }
            Op::Alias { dims } => Ok(Type::new(dims.clone(), x.format)),
            _ => Ok(x.clone()),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Cast(f) if x.len() == 2 => x[0].map(|v| f.stored(v / x[1].data[0])),
            Op::Put(f) | Op::Cast(f) | Op::Convert(f) => x[0].map(|v| f.stored(v)),
            Op::ScaleOf(f) => {
                let amax = x[0].data.iter().fold(0.0, |m, v| Binary::Max.eval(m, v.abs()));
                Tensor::scalar(Binary::Max.eval(amax / f.largest(), LEAST_SCALE))
            }
            _ => Tensor::new(&ty.dims(), x[0].data.clone()),
        }
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        Ok(match op {
            Op::Convert(f) => vec![f.is_float().then_some(c.dy)],
            Op::Alias { .. } => {
                let dims = c.graph.shape(c.x[0]).clone();
                vec![Some(c.graph.reshape(c.dy, &dims)?)]
            }
            Op::After => vec![Some(c.dy), None],
            Op::ScaleOf(_) => vec![None],
            Op::Cast(_) if c.x.len() == 2 => {
                let d = c.graph.binary(Binary::Div, c.dy, c.x[1])?;
                vec![Some(d), None]
            }
            _ => vec![Some(c.dy)],
        })
    }
}
