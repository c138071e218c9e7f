//! Products that were timed on a device, and what they say of others.
//!
//! The model knows tiles and rates, not what a library makes of a shape. So a timed product is kept as the ratio of its
//! time to the modelled one, and a product nobody timed is corrected by the ratios of those like it: of the same layout and
//! format, near in the logarithms of their extents.

use super::{Target, products};
use crate::format::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A contraction as its library sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Which operands of a matrix product are transposed (`nn`, `nt`, `tn`, `tt`), which convolution it is (`conv1` and so on
    /// with kernels of one element), or what of an attention, by the operation's name.
    pub kind: &'static str,
    /// What is multiplied.
    pub format: Format,
    /// Batch or groups, rows, columns, and the extent summed over.
    pub extents: [usize; 4],
    /// Rows of a narrow operand do not begin at multiples of 16 bytes.
    pub misaligned: bool,
}

impl Work {
    /// A convolution or one of its gradients?
    pub fn is_conv(&self) -> bool {
        self.kind.starts_with("conv")
    }

    /// Attention or one of its gradients?
    pub fn is_attention(&self) -> bool {
        self.kind.starts_with("attention")
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.extents.contains(&0)
    }

    /// Multiplications and additions.
    pub fn operations(&self) -> f64 {
        2.0 * self.extents.iter().map(|&n| n as f64).product::<f64>()
    }
}

/// A product, the bytes of its operands and result, and the microseconds it took, launch and all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed(pub String, pub Format, pub [usize; 4], pub bool, pub usize, pub f64);

/// Timed products by kind and format.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(BTreeMap<(&'static str, Format), Vec<Known>>);

/// f16 and bf16 take the same time.
fn timed_as(format: Format) -> Format {
    if format == Format::Bf16 { Format::F16 } else { format }
}

/// A timed product's place among others, and the logarithm of its ratio to the model.
#[derive(Clone, Debug)]
struct Known {
    place: [f32; 5],
    ratio: f32,
}

/// Distances below this are no difference, in factors of two.
const NEAR: f32 = 0.25;
/// Timed products further than this say nothing, in factors of two.
const FAR: f32 = 5.0;

fn place(extents: [usize; 4], misaligned: bool) -> [f32; 5] {
    let [a, b, c, d] = extents.map(|n| (n.max(1) as f32).log2());
    // What is misaligned runs other kernels.
    [a, b, c, d, if misaligned { FAR } else { 0.0 }]
}

/// All kinds of products.
const KINDS: [&str; 10] =
    ["nn", "nt", "tn", "tt", "conv", "conv_input", "conv_weight", "conv1", "conv1_input", "conv1_weight"];

impl Table {
    pub fn new(target: &Target) -> Table {
        let mut out: BTreeMap<(&'static str, Format), Vec<Known>> = BTreeMap::new();
        for &Timed(ref kind, format, extents, misaligned, bytes, us) in &target.timed {
            // What other versions time may be new here.
            let Some(kind) = KINDS.into_iter().find(|k| k == kind) else { continue };
            let work = Work { kind, format, extents, misaligned };
            let arithmetic = products::seconds(target, &work) + target.product_us * 1e-6;
            let modelled = target.launch_us * 1e-6 + arithmetic.max(bytes as f64 / (target.bandwidth_gb_s * 1e9));
            let known = Known { place: place(extents, misaligned), ratio: (us * 1e-6 / modelled).ln() as f32 };
            out.entry((kind, timed_as(format))).or_default().push(known);
        }
        Table(out)
    }

    /// What to multiply the modelled time of a product by.
    pub fn correction(&self, work: &Work) -> f64 {
        match self.0.get(&(work.kind, timed_as(work.format))) {
            Some(known) if !work.is_nothing() => {
                f64::from(correction(known, &place(work.extents, work.misaligned), None).exp())
            }
            _ => 1.0,
        }
    }

    /// How far the model is from what was timed, in the median, as a factor: alone, and corrected by all the others.
    pub fn errors(&self) -> Option<[f64; 2]> {
        let mut errors: [Vec<f32>; 2] = Default::default();
        for known in self.0.values() {
            for (i, k) in known.iter().enumerate() {
                errors[0].push(k.ratio.abs());
                errors[1].push((k.ratio - correction(known, &k.place, Some(i))).abs());
            }
        }
        let median = |e: &mut Vec<f32>| {
            e.sort_by(f32::total_cmp);
            e.get(e.len() / 2).map(|m| f64::from(m.exp()))
        };
        let [alone, corrected] = &mut errors;
        Some([median(alone)?, median(corrected)?])
    }
}

/// The logarithm of what a product at some place takes beside the model, by the timed ones near it, all but one.
fn correction(known: &[Known], at: &[f32; 5], left_out: Option<usize>) -> f32 {
    // The model itself stands as far away as anything may.
    let (mut weights, mut sum) = (weight(FAR * FAR), 0.0);
    for (_, k) in known.iter().enumerate().filter(|(i, _)| Some(*i) != left_out) {
        let distance: f32 = at.iter().zip(&k.place).map(|(a, b)| (a - b) * (a - b)).sum();
        if distance < FAR * FAR {
            let w = weight(distance);
            weights += w;
            sum += w * k.ratio;
        }
    }
    sum / weights
}

/// By the square of the distance.
fn weight(distance: f32) -> f32 {
    let d = distance.max(NEAR * NEAR);
    1.0 / (d * d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(timed: Vec<Timed>) -> Target {
        Target { timed, ..Target::named("sm_90").unwrap() }.tabled()
    }

    fn work(extents: [usize; 4]) -> Work {
        Work { kind: "nn", format: Format::F16, extents, misaligned: false }
    }

    /// Timed products take the time they took, others something between those near them, far ones what the model says.
    #[test]
    fn timed_products_correct_those_like_them() {
        let bytes = |[b, m, n, k]: [usize; 4]| 2 * b * (m * k + k * n + m * n);
        let timed = |extents: [usize; 4], us| Timed("nn".into(), Format::F16, extents, false, bytes(extents), us);
        let plain = target(Vec::new());
        let (a, b) = ([1, 256, 768, 768], [1, 1024, 768, 768]);
        let t = target(vec![timed(a, 20.0), timed(b, 30.0)]);
        let model = |e: [usize; 4]| {
            let arithmetic = products::seconds(&plain, &work(e)) * 1e6 + plain.product_us;
            plain.launch_us + arithmetic.max(bytes(e) as f64 / (plain.bandwidth_gb_s * 1e3))
        };
        for (extents, us) in [(a, 20.0), (b, 30.0)] {
            let predicted = t.table.correction(&work(extents)) * model(extents);
            assert!((predicted / us - 1.0).abs() < 0.02, "{predicted} for {us}");
        }
        let between = t.table.correction(&work([1, 512, 768, 768]));
        let ends = [a, b].map(|e| t.table.correction(&work(e)));
        assert!(between > ends[0].min(ends[1]) && between < ends[0].max(ends[1]), "{between} between {ends:?}");
        assert_eq!(t.table.correction(&work([1, 8192, 8192, 64])), 1.0);
        assert_eq!(plain.table.correction(&work(a)), 1.0);
        let other = Work { kind: "tn", ..work(a) };
        assert_eq!(t.table.correction(&other), 1.0, "another layout is another product");
    }

    #[test]
    fn a_profile_reads_back() {
        let t = target(vec![Timed("tn".into(), Format::F32, [1, 2, 3, 4], true, 100, 5.5)]);
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), toml::to_string(&t).unwrap()).unwrap();
        let read = Target::named(file.path().to_str().unwrap()).unwrap();
        assert_eq!((&read.timed, &read.name), (&t.timed, &t.name));
        std::fs::write(file.path(), "name = 5").unwrap();
        let error = Target::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("doctor --measure"), "{error}");
    }
}
