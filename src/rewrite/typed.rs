//! Types of rules: a rule's right side must have the type of its left.
//!
//! A second type system, over symbolic shapes, would have to say again what every operation's type rule says. Instead the
//! left side is instantiated on some tensors that it takes, as `rules check` does, and the right side is built for them and
//! inferred by the operations themselves. What does not fit is told at its term.

use super::check::left_side;
use super::rule::Read;
use crate::error::Spanned;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Instances that a rule is tried on, and attempts to find them.
const INSTANCES: usize = 12;
const ATTEMPTS: usize = 300;

/// Checks a rule's type. A left side that no small tensors fit is left to `rules check`, which says so.
///
/// # Errors
/// The term of the right side that has no type, or the whole, with the tensors for which it has none.
pub(super) fn check_types(read: &Read) -> Result<(), Spanned> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut tried = 0;
    for _ in 0..ATTEMPTS {
        let Ok(mut left) = left_side(&read.rule, &mut rng) else { continue };
        if let Err(misfit) = left.apply(&read.rule) {
            let span = read.spans[misfit.at].clone();
            return Err(Spanned::new(span, misfit.why).help(format!("the left side fits {}", left.variables())));
        }
        tried += 1;
        if tried == INSTANCES {
            break;
        }
    }
    Ok(())
}
