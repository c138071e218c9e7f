//! Memory: `put` rounds a value and stores it, `cast` copies a stored tensor to another format.

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
