//! Random numbers that depend on nothing but a seed, a step and a position: the same bits on every device, whatever
//! order they are drawn in, and drawn again for free where a gradient needs them.

use super::{Shape, Tensor, Type};
use crate::format::Format;

/// State that random operations read: the seed of the run modulo 2^24, a scalar of f32.
pub const SEED: &str = "random.seed";
/// State that random operations read: how many steps were taken, a scalar of f32.
pub const STEP: &str = "random.step";

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the first of its four words.
/// Counter: the position, the step, 0. Key: the seed and the operation's salt.
pub fn philox(position: u64, step: u32, seed: u32, salt: u32) -> u32 {
    philox4([position as u32, (position >> 32) as u32, step, 0], [seed, salt])[0]
}

fn philox4(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (p, q) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(q >> 32) as u32 ^ c[1] ^ k[0], q as u32, (p >> 32) as u32 ^ c[3] ^ k[1], p as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The upper 24 bits as a number in [0, 1), which f32 holds exactly.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

pub(super) fn infer(dims: &Shape, x: &[&Type]) -> Result<Type, String> {
    for (what, ty) in [("seed", x[0]), ("step", x[1])] {
        if ty.shape.rank() != 0 || ty.format != Format::F32 {
            return Err(format!("the {what} is {ty}, not a scalar f32"));
        }
    }
    Ok(Type::new(dims.clone(), Format::F32))
}

pub(super) fn eval(dims: &[usize], salt: u32, x: &[&Tensor]) -> Tensor {
    let (seed, step) = (x[0].data[0] as u32, x[1].data[0] as u32);
    let n: usize = dims.iter().product();
    let draw = |i: usize| f64::from(uniform(philox(i as u64, step, seed, salt)));
    Tensor::new(dims, (0..n).map(draw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the authors' Random123 (`kat_vectors`, philox4x32 10 rounds).
    #[test]
    fn philox_is_random123s() {
        assert_eq!(philox4([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let n = 1 << 16;
        let draws: Vec<f64> = (0..n).map(|i| f64::from(uniform(philox(i, 3, 1, 7)))).collect();
        assert!(draws.iter().all(|&u| (0.0..1.0).contains(&u)));
        let mean = draws.iter().sum::<f64>() / n as f64;
        let square = draws.iter().map(|u| u * u).sum::<f64>() / n as f64;
        // Three standard deviations of the means of n draws.
        assert!((mean - 0.5).abs() < 3.0 * (1.0 / 12.0 / n as f64).sqrt(), "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 3.0 * (4.0 / 45.0 / n as f64).sqrt(), "{square}");
    }
}
