//! Gradients of elementwise operations, a formula each. x, a and b are operands, y is the result, dy its gradient.

use super::formula::{Expr, Sheet};
use super::{Binary, GELU_CUBIC, GELU_SCALE, Unary};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

impl Unary {
    /// dx; none where there is no gradient, or it is 0 wherever it is defined.
    pub(super) fn gradient<'s, 'g>(
        self,
        s: &'s Sheet<'g>,
        x: Expr<'s, 'g>,
        y: Expr<'s, 'g>,
        dy: Expr<'s, 'g>,
    ) -> Option<Expr<'s, 'g>> {
        Some(match self {
            Unary::Not | Unary::IsFinite | Unary::IsNan | Unary::IsInf | Unary::BitNot => return None,
            Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => return None,
            Unary::Neg => -dy,
            Unary::Abs => dy * x.unary(Unary::Sign),
            Unary::Square => dy * (x * 2.0),
            Unary::Recip => dy * -y.square(),
            Unary::Exp => dy * y,
            Unary::Expm1 => dy * (y + 1.0),
            Unary::Log => dy / x,
            Unary::Log1p => dy / (x + 1.0),
            Unary::Sqrt => dy * 0.5 / y,
            Unary::Rsqrt => dy * (y.square() * y * -0.5),
            Unary::Sin => dy * x.unary(Unary::Cos),
            Unary::Cos => dy * -x.unary(Unary::Sin),
            Unary::Tan => dy * (y.square() + 1.0),
            Unary::Asin => dy * (1.0 - x.square()).unary(Unary::Rsqrt),
            Unary::Acos => -(dy * (1.0 - x.square()).unary(Unary::Rsqrt)),
            Unary::Atan => dy / (x.square() + 1.0),
            Unary::Sinh => dy * x.unary(Unary::Cosh),
            Unary::Cosh => dy * x.unary(Unary::Sinh),
            Unary::Tanh => dy * (1.0 - y.square()),
            Unary::Asinh => dy * (x.square() + 1.0).unary(Unary::Rsqrt),
            Unary::Acosh => dy * (x.square() + -1.0).unary(Unary::Rsqrt),
            Unary::Atanh => dy / (1.0 - x.square()),
            Unary::Erf => dy * bell(x, 1.0, 2.0 / PI.sqrt()),
            // (cos πx − sinc x) / x, and 0 at 0.
            Unary::Sinc => {
                let (zero, slope) = (s.constant(0.0), ((x * PI).unary(Unary::Cos) - y) / x);
                dy * s.select(x.binary(Binary::Eq, zero), zero, slope)
            }
            Unary::Sigmoid => dy * (y * (1.0 - y)),
            Unary::Softplus => dy * x.unary(Unary::Sigmoid),
            // The sign of the result is that of the operand, and the result is what the forward pass keeps.
            Unary::Relu => {
                let zero = s.constant(0.0);
                s.select(y.binary(Binary::Gt, zero), dy, zero)
            }
            // Φ(x) + x φ(x)
            Unary::Gelu => {
                let cdf = ((x * FRAC_1_SQRT_2).unary(Unary::Erf) + 1.0) * 0.5;
                dy * (cdf + x * bell(x, 0.5, 1.0 / (2.0 * PI).sqrt()))
            }
            // With u = s(x + c x³), t = tanh u: ½(1 + t) + ½ x (1 − t²) s (1 + 3c x²)
            Unary::GeluTanh => {
                let xx = x.square();
                let t = (x * (xx * GELU_CUBIC + 1.0) * GELU_SCALE).unary(Unary::Tanh);
                let half = (t + 1.0) * 0.5;
                let sech2 = 1.0 - t.square();
                let inner = xx * (3.0 * GELU_CUBIC) + 1.0;
                dy * (half + x * (0.5 * GELU_SCALE) * (sech2 * inner))
            }
        })
    }
}

/// a·exp(−k x²)
fn bell<'s, 'g>(x: Expr<'s, 'g>, k: f64, a: f64) -> Expr<'s, 'g> {
    (x.square() * -k).unary(Unary::Exp) * a
}

impl Binary {
    /// (da, db), in the result's shape; none where there is no gradient.
    pub(super) fn gradients<'s, 'g>(
        self,
        s: &'s Sheet<'g>,
        [a, b]: [Expr<'s, 'g>; 2],
        y: Expr<'s, 'g>,
        dy: Expr<'s, 'g>,
    ) -> Option<[Expr<'s, 'g>; 2]> {
        Some(match self {
            Binary::Add => [dy, dy],
            Binary::Sub => [dy, -dy],
            Binary::Mul => [dy * b, dy * a],
            Binary::Div => {
                let da = dy / b;
                [da, -(da * y)]
            }
            // b a^(b−1) and a^b ln a; the second is 0 where a is not positive.
            Binary::Pow => {
                let slope = b * a.binary(Binary::Pow, b + -1.0);
                let zero = s.constant(0.0);
                // a⁰ is 1 wherever a is, where 0·a⁻¹ would be NaN. Other constant exponents need no question.
                let slope = match b.constant() {
                    Some(c) if c != 0.0 => slope,
                    _ => s.select(b.binary(Binary::Eq, zero), zero, slope),
                };
                let da = dy * slope;
                let positive = a.binary(Binary::Gt, zero);
                [da, dy * s.select(positive, y * a.unary(Unary::Log), zero)]
            }
            // Ties with a bound give the whole gradient to the first operand, as `torch.clamp` does; other ties are shared
            // equally, as in `torch.maximum`.
            Binary::Max | Binary::Min => {
                let (from, above) =
                    if self == Binary::Max { (Binary::Ge, Binary::Gt) } else { (Binary::Le, Binary::Lt) };
                let zero = s.constant(0.0);
                let first = a.binary(from, b);
                if a.is_scalar() || b.is_scalar() {
                    [s.select(first, dy, zero), s.select(first, zero, dy)]
                } else {
                    let share = s.select(a.binary(Binary::Eq, b), dy * 0.5, dy);
                    let above = a.binary(above, b);
                    [s.select(first, share, zero), s.select(above, zero, share)]
                }
            }
            // a − b·q with the whole quotient q, which has no gradient.
            Binary::Mod | Binary::Fmod => {
                let q = (a / b).unary(if self == Binary::Mod { Unary::Floor } else { Unary::Trunc });
                [dy, -(dy * q)]
            }
            _ => return None,
        })
    }
}
