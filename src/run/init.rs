//! Initial values of parameters and states.

use crate::ir::{Init, Type};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The initial values of one source, in f32. The generator is seeded by the run's seed and the source's name, so adding
/// a parameter changes no other. `None` for values that the model file or another source holds.
pub fn initialise(name: &str, init: &Init, ty: &Type, seed: u64) -> Option<Vec<f32>> {
    let dims = ty.dims();
    let n = ty.elements();
    let mut key: [u8; 32] = Sha256::digest(name).into();
    key[..8].iter_mut().zip(seed.to_le_bytes()).for_each(|(k, s)| *k ^= s);
    let mut rng = ChaCha8Rng::from_seed(key);
    // Weights are `[fan in, fan out]`; further leading axes count as fan in.
    let fan_out = dims.last().copied().unwrap_or(1).max(1);
    let fan_in = (n / fan_out).max(1);
    let mut uniform = |bound: f64| (0..n).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32).collect();
    Some(match init {
        Init::Constant(x) => vec![x.get() as f32; n],
        Init::KaimingUniform => uniform((6.0 / fan_in as f64).sqrt()),
        Init::XavierUniform => uniform((6.0 / (fan_in + fan_out) as f64).sqrt()),
        Init::Uniform(x) => uniform(x.get()),
        Init::Normal(std) => (0..n).map(|_| normal(&mut rng, std.get())).collect(),
        Init::Data | Init::Copy(_) => return None,
    })
}

/// Box & Muller 1958.
fn normal(rng: &mut impl Rng, std: f64) -> f32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos() * std) as f32
}
