//! Memory: `put` rounds a value and stores it, `cast` copies a stored tensor to another format, `alias` is the same memory
//! in another shape, `after` the same at a later time. `convert` rounds in registers: a cast that the model itself asks for.

use super::{Format, Op, Type};
use crate::format::Overflow;

pub(super) fn infer(op: &Op, format: Format, x: &Type) -> Result<Type, String> {
    if x.format.is_float() != format.is_float() && matches!(op, Op::Cast(_)) {
        return Err(format!("{} cannot be cast to {format}", x.format));
    }
    Ok(Type::new(x.shape.clone(), format))
}

/// Stores overflow as the hardware's conversions do: to infinity, which loss scaling must see. f8e4m3 has none and saturates.
pub(super) fn overflow(format: Format) -> Overflow {
    if format == Format::F8E4M3 { Overflow::Saturate } else { Overflow::Ieee }
}

/// The register format of a converted value: what is narrower than f32 is an f32 that the format holds.
pub(super) fn infer_convert(format: Format, x: &Type) -> Type {
    Type::new(x.shape.clone(), format.once_read())
}

/// Row-major memory has no shape of its own.
pub(super) fn infer_alias(dims: &super::Shape, x: &Type) -> Result<Type, String> {
    if x.shape.count() != dims.count() {
        return Err(format!("{} and {dims} hold different numbers of elements", x.shape));
    }
    Ok(Type::new(dims.clone(), x.format))
}
