//! Measuring a device: small programs whose times say what it can do, written as a profile to plan for.

mod probes;

use crate::cost::{Target, Timed};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Op, verify};
use crate::lower::lower;
use crate::lower::waits;
use crate::run::{Backend, Device};
use probes::{Probe, Product, pointwise, products, rows, total};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Products that should take longer than this are left out, in seconds.
const LONG: f64 = 0.05;
/// How long a probe runs at least each time, in seconds, and how often the time is taken.
const RUN: f64 = 2e-3;
const REPETITIONS: usize = 3;

/// How many steps [`measure`] tells of.
pub fn steps(base: &Target) -> usize {
    chosen(base).len() + 5
}

/// Times what decides plans, on a device. `base` says what it should be like: its formats,
/// its caches, and roughly how fast it is. `tick` is told after each of [`steps`].
///
/// # Errors
/// What the backend cannot open or run; products that do not become a launch each, and so cannot be timed.
pub fn measure(base: &Target, backend: &dyn Backend, tick: &dyn Fn()) -> Result<Target> {
    let mut target = base.clone();
    let bench = Bench { backend, tick, noise: noise() };
    let launch = bench.alone(&pointwise(64, 1)?)?;
    target.launch_us = launch * 1e6;
    // Far more than caches hold.
    let large = if base.library_products { 64 << 20 } else { 8 << 20 };
    let copied = bench.alone(&pointwise(large, 1)?)? - launch;
    target.bandwidth_gb_s = (2 * 4 * large) as f64 / copied * 1e-9;
    let (elements, operations) = (large / 16, 256);
    let computed = bench.alone(&pointwise(elements, operations)?)? - launch;
    target.scalar_gflops = (elements * operations) as f64 / computed * 1e-9;
    target.total_us = (bench.alone(&total(4096)?)? - launch).max(0.0) * 1e6;
    let rows = rows(8, 1 << 16)?;
    let times = waits(lower(verify(&rows.graph)?)?.calls[0].kernel.body());
    let waited = bench.alone(&rows)? - launch;
    if base.library_products && times > 0 {
        target.latency_us = waited / times as f64 * 1e6;
    }
    let mut timed: Vec<(Product, f64)> = Vec::new();
    for p in chosen(base) {
        let seconds = bench.together(&p.probe()?, base)?;
        timed.push((p, seconds));
        tick();
    }
    let rate = |f: Format| {
        let of = timed.iter().filter(|(p, _)| p.work.format == f);
        of.map(|(p, s)| p.work.operations() / s * 1e-12).fold(0.0, f64::max)
    };
    // Formats of a size have units of the same speed; what is not timed keeps its proportion.
    let faster = rate(Format::F16) / base.product_tflops.get(&Format::F16).copied().unwrap_or(f64::NAN);
    for (&f, held) in &mut target.product_tflops {
        *held = match rate(f) {
            measured if measured > 0.0 => measured,
            _ if faster.is_finite() => *held * faster,
            _ => *held,
        };
    }
    let is_small = |p: &Product| p.work.operations() < 1e6 && p.work.format != Format::Tf32;
    let mut small: Vec<f64> = timed.iter().filter(|(p, _)| is_small(p)).map(|t| t.1).collect();
    small.sort_by(f64::total_cmp);
    if let Some(median) = small.get(small.len() / 2) {
        target.product_us = (median - launch).max(0.0) * 1e6;
    }
    target.timed = timed
        .into_iter()
        .map(|(p, s)| {
            Timed(p.work.kind.to_owned(), p.work.format, p.work.extents, p.work.misaligned, p.bytes(), rounded(s * 1e6))
        })
        .collect();
    for x in [
        &mut target.launch_us,
        &mut target.bandwidth_gb_s,
        &mut target.scalar_gflops,
        &mut target.total_us,
        &mut target.latency_us,
        &mut target.product_us,
    ] {
        *x = rounded(*x);
    }
    target.product_tflops.values_mut().for_each(|r| *r = rounded(*r));
    Ok(target.tabled())
}

/// The products that do not take too long.
fn chosen(base: &Target) -> Vec<Product> {
    let formats: Vec<Format> =
        [Format::F16, Format::Tf32, Format::F32].into_iter().filter(|&f| base.multiplies(f)).collect();
    let seconds = |p: &Product| p.work.operations() / (base.product_tflops[&p.work.format] * 1e12);
    products(&formats).into_iter().filter(|p| seconds(p) < LONG).collect()
}

/// Three digits, which is more than repeats.
fn rounded(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

/// Bytes of numbers near 1 as f16 and as f32. Zeros would take less power than numbers do, and run faster for it.
fn noise() -> [Vec<u8>; 2] {
    // The top bits of an element's last byte are those of 0.5 to 2.
    [(2, 0x38), (4, 0x3f)].map(|(size, top)| {
        let mut bytes = vec![0; NOISE];
        ChaCha8Rng::seed_from_u64(0).fill_bytes(&mut bytes);
        bytes.chunks_exact_mut(size).for_each(|e| e[size - 1] = e[size - 1] & 0x80 | top);
        bytes
    })
}

/// Bytes of noise; what is larger repeats it.
const NOISE: usize = 16 << 20;

/// Where probes are run.
struct Bench<'a> {
    backend: &'a dyn Backend,
    tick: &'a dyn Fn(),
    noise: [Vec<u8>; 2],
}

impl Bench<'_> {
    fn opened(&self, probe: &Probe) -> Result<Box<dyn Device>> {
        let mut device = self.backend.open(lower(verify(&probe.graph)?)?)?;
        for id in probe.graph.sources() {
            let Op::Input { ty, .. } = probe.graph.op(id) else { continue };
            let noise = &self.noise[usize::from(ty.format == Format::F32)];
            let name = probe.graph.name_of(id);
            match noise.get(..ty.bytes()) {
                Some(bytes) => device.write_bytes(name, bytes)?,
                None => {
                    let bytes: Vec<u8> = noise.iter().copied().cycle().take(ty.bytes()).collect();
                    device.write_bytes(name, &bytes)?;
                }
            }
        }
        Ok(device)
    }

    /// Seconds of a program's only launch, its operands in the cache if they fit.
    fn alone(&self, probe: &Probe) -> Result<f64> {
        let seconds = self.opened(probe)?.profile()?.into_iter().sum();
        (self.tick)();
        Ok(seconds)
    }

    /// Seconds of each of a program's launches, one after the other.
    fn together(&self, probe: &Probe, base: &Target) -> Result<f64> {
        let mut device = self.opened(probe)?;
        let launches = device.program().launches.len();
        if launches != probe.copies {
            return Err(Error::Device(format!("{} products became {launches} launches", probe.copies)));
        }
        let expected = base.estimate_program(device.program()).seconds;
        let runs = (RUN / expected).clamp(1.0, 50.0) as usize;
        let mut best = f64::INFINITY;
        for repetition in 0..REPETITIONS {
            // Libraries load their kernels when they are first used.
            best = best.min(device.time(usize::from(repetition == 0), runs)?);
        }
        Ok(best * 1e-3 / probe.copies as f64)
    }
}

/// A profile as a file: its numbers, then a line for each product that was timed.
pub fn to_toml(target: &Target) -> String {
    let mut plain = target.clone();
    plain.timed.clear();
    let text = toml::to_string(&plain).expect("a profile is plain data");
    let (numbers, rates) = text.split_once("\n[product_tflops]").unwrap_or((&text, ""));
    let mut out = format!("# Written by `mantissa doctor --measure`.\n{numbers}\n");
    out += "# Products: layout or convolution; format; batch or groups, rows, columns, extent summed over; are rows\n";
    out += "# misaligned; bytes of operands and result; microseconds, launch and all.\ntimed = [\n";
    for Timed(kind, format, extents, misaligned, bytes, us) in &target.timed {
        out += &format!("  [\"{kind}\", \"{format}\", {extents:?}, {misaligned}, {bytes}, {us:?}],\n");
    }
    format!("{out}]\n\n[product_tflops]{rates}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::cpu::Cpu;

    /// On a CPU that is said to be slow, so that little is timed; what is written reads back and predicts what was timed.
    #[test]
    fn a_measured_profile_is_written_and_read() {
        let mut base = Target::named("cpu").unwrap();
        base.product_tflops.values_mut().for_each(|r| *r = 2e-4);
        let told = std::cell::Cell::new(0);
        let measured = measure(&base, &Cpu, &|| told.set(told.get() + 1)).unwrap();
        assert_eq!(told.get(), steps(&base));
        assert!(
            measured.bandwidth_gb_s > 0.1 && measured.launch_us > 0.0 && measured.product_tflops[&Format::F32] > 0.0
        );
        assert!(measured.timed.len() > 20, "{}", measured.timed.len());
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), to_toml(&measured)).unwrap();
        let read = Target::read(file.path()).unwrap();
        assert_eq!(read.timed, measured.timed);
        // What was timed is what is predicted.
        let p = products(&[Format::F16]).remove(0);
        let is_it = |t: &&Timed| t.0 == p.work.kind && t.1 == p.work.format && t.2 == p.work.extents;
        let timed = measured.timed.iter().find(is_it).unwrap();
        let probe = p.probe().unwrap();
        let program = lower(verify(&probe.graph).unwrap()).unwrap();
        let predicted = read.estimate_program(&program).seconds / probe.copies as f64 * 1e6;
        assert!((predicted / timed.5 - 1.0).abs() < 0.35, "{predicted} predicted, {} timed", timed.5);
    }
}
