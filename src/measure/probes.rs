//! Small programs that each do one thing, to be timed.

use crate::cost::{Work, conv_kind};
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Binary, ConvKind, ConvSpec, Graph, NodeId, Num, Op, ReduceKind, Role, Shape, Type};

/// A program of so many launches alike, each with operands of its own, so that they do not find them in the cache.
pub struct Probe {
    pub graph: Graph,
    pub copies: usize,
}

/// A product to be timed.
#[derive(Clone, Debug)]
pub struct Product {
    pub work: Work,
    /// What it is made of.
    op: Op,
    operands: [Vec<usize>; 2],
    result: Vec<usize>,
}

/// Operands and results of a program's copies fill this many bytes at least, where the copies are not too many.
const FOOTPRINT: usize = 96 << 20;
const COPIES: usize = 8;

fn input(g: &mut Graph, name: String, dims: &[usize], format: Format) -> Result<NodeId> {
    g.add_named(name, Op::Input { label: false, ty: Type::new(Shape::of(dims), format), copy_of: None }, &[])
}

impl Product {
    /// A batched matrix product; `kind` says which operands are transposed.
    pub fn gemm(kind: &'static str, format: Format, [batch, m, n, k]: [usize; 4]) -> Product {
        let (ta, tb) = (kind.starts_with('t'), kind.ends_with('t'));
        let dims = |r: usize, c: usize| if batch > 1 { vec![batch, r, c] } else { vec![r, c] };
        let a = if ta { dims(k, m) } else { dims(m, k) };
        let b = if tb { dims(n, k) } else { dims(k, n) };
        let odd = |d: &[usize]| !(d[d.len() - 1] * format.bytes()).is_multiple_of(16);
        let result = dims(m, n);
        let misaligned = format != Format::F32 && [&a, &b, &result].into_iter().any(|d| odd(d));
        let work = Work { kind, format, extents: [batch, m, n, k], misaligned };
        Product { work, op: Op::MatMul { ta, tb, format }, operands: [a, b], result }
    }

    /// A convolution of square images with a square kernel that keeps their extent but for its stride, and its gradients.
    pub fn convs(format: Format, [batch, c, m, extent, kernel, stride]: [usize; 6]) -> [Product; 3] {
        let pad = (kernel - 1) / 2;
        let spec =
            ConvSpec { stride: vec![stride; 2], dilation: vec![1; 2], lo: vec![pad; 2], hi: vec![pad; 2], groups: 1 };
        let places = spec.places(0, extent, kernel);
        let x = vec![batch, c, extent, extent];
        let w = vec![m, c, kernel, kernel];
        let y = vec![batch, m, places, places];
        let area = batch * places * places;
        let of = |kind: ConvKind, extents, operands: [&Vec<usize>; 2], result: &Vec<usize>| Product {
            work: Work { kind: conv_kind(&kind, kernel * kernel), format, extents, misaligned: false },
            op: Op::Conv { kind, spec: spec.clone(), format },
            operands: operands.map(Clone::clone),
            result: result.clone(),
        };
        let taps = kernel * kernel;
        [
            of(ConvKind::Forward, [1, m, area, c * taps], [&x, &w], &y),
            of(ConvKind::Input(vec![extent; 2]), [1, c, batch * extent * extent, m * taps], [&y, &w], &x),
            of(ConvKind::Weight(vec![kernel; 2]), [1, m, c * taps, area], [&x, &y], &w),
        ]
    }

    /// Bytes of the operands and the result.
    pub fn bytes(&self) -> usize {
        let elements = |d: &Vec<usize>| d.iter().product::<usize>();
        let all: usize = self.operands.iter().chain([&self.result]).map(elements).sum();
        all * self.work.format.bytes()
    }

    /// Independent copies of the product, each rounded and stored.
    pub fn probe(&self) -> Result<Probe> {
        let mut g = Graph::new("product");
        let copies = FOOTPRINT.div_ceil(self.bytes().max(1)).clamp(1, COPIES);
        for i in 0..copies {
            let [a, b] = &self.operands;
            let format = self.work.format.in_memory();
            let a = input(&mut g, format!("a{i}"), a, format)?;
            let b = input(&mut g, format!("b{i}"), b, format)?;
            let y = g.add(self.op.clone(), &[a, b])?;
            let put = g.add(Op::Put(format), &[y])?;
            g.add_output(format!("y{i}"), Role::Output, put);
        }
        Ok(Probe { graph: g, copies })
    }
}

/// Copies so many f32 numbers, with so many multiplications and additions on each.
pub fn pointwise(elements: usize, operations: usize) -> Result<Probe> {
    let mut g = Graph::new("pointwise");
    let mut x = input(&mut g, "x".into(), &[elements], Format::F32)?;
    let (a, b) = (g.add(Op::Const(Num::new(0.5)), &[])?, g.add(Op::Const(Num::new(0.25)), &[])?);
    for i in 0..operations.max(1) {
        let (op, c) = if i % 2 == 0 { (Binary::Mul, a) } else { (Binary::Add, b) };
        x = g.binary(op, x, c)?;
    }
    let put = g.add(Op::Put(Format::F32), &[x])?;
    g.add_output("y", Role::Output, put);
    Ok(Probe { graph: g, copies: 1 })
}

/// Centres rows of f32 numbers: a sum, then what needs it.
pub fn rows(rows: usize, elements: usize) -> Result<Probe> {
    let mut g = Graph::new("rows");
    let x = input(&mut g, "x".into(), &[rows, elements], Format::F32)?;
    let mean = g.add(Op::Reduce { kind: ReduceKind::Mean, axes: vec![1], keep: true }, &[x])?;
    let centred = g.binary(Binary::Sub, x, mean)?;
    let put = g.add(Op::Put(Format::F32), &[centred])?;
    g.add_output("y", Role::Output, put);
    Ok(Probe { graph: g, copies: 1 })
}

/// Sums so many f32 numbers to one.
pub fn total(elements: usize) -> Result<Probe> {
    let mut g = Graph::new("total");
    let x = input(&mut g, "x".into(), &[elements], Format::F32)?;
    let sum = g.reduce_all(ReduceKind::Sum, x)?;
    let put = g.add(Op::Put(Format::F32), &[sum])?;
    g.add_output("y", Role::Output, put);
    Ok(Probe { graph: g, copies: 1 })
}

/// The products that are timed in some formats: what layers of training steps are made of.
pub fn products(formats: &[Format]) -> Vec<Product> {
    let mut out = Vec::new();
    for &f in formats {
        // Loading a library's kernels takes most of the time, so of f32 products, which are rarer, fewer are timed.
        let layers: &[[usize; 2]] = match f {
            Format::F32 => &[[64, 768], [768, 64], [768, 768], [3072, 768]],
            _ => &[[64, 64], [64, 768], [768, 64], [768, 768], [768, 3072], [3072, 768], [3072, 3072]],
        };
        let batches: &[usize] = if f == Format::F32 { &[24] } else { &[24, 192] };
        for kind in ["nn", "nt", "tn"] {
            for m in [32, 256, 2048] {
                out.extend(layers.iter().map(|&[n, k]| Product::gemm(kind, f, [1, m, n, k])));
            }
            // Attention's: scores, values and their gradients.
            for &batch in batches {
                for [m, n, k] in [[128, 128, 64], [128, 64, 128], [512, 512, 64], [512, 64, 512]] {
                    out.push(Product::gemm(kind, f, [batch, m, n, k]));
                }
            }
            for extents in [[1, 16, 16, 16], [1, 64, 10, 256], [1, 256, 50_257, 768], [1, 4096, 4096, 4096]] {
                out.push(Product::gemm(kind, f, extents));
            }
        }
        out.push(Product::gemm("nn", f, [1, 8192, 8192, 8192]));
        // Batch, channels in and out, extent, kernel, stride.
        let convs = [
            [2, 64, 64, 56, 1, 1],
            [2, 64, 64, 56, 3, 1],
            [2, 64, 256, 56, 1, 1],
            [2, 256, 64, 56, 1, 1],
            [2, 128, 128, 28, 3, 1],
            [2, 128, 128, 56, 3, 2],
            [2, 512, 128, 28, 1, 1],
            [2, 256, 256, 14, 3, 1],
            [2, 1024, 256, 14, 1, 1],
            [2, 512, 512, 7, 3, 1],
            [2, 32, 32, 64, 3, 1],
            [2, 64, 32, 64, 3, 1],
            [2, 3, 64, 224, 7, 2],
            [32, 64, 64, 56, 3, 1],
            [32, 256, 64, 56, 1, 1],
            [32, 256, 256, 14, 3, 1],
            [32, 512, 512, 7, 3, 1],
            [32, 32, 64, 20, 3, 1],
            // Few channels, small images, kernels as wide as their stride.
            [2, 3, 32, 64, 3, 1],
            [2, 64, 32, 64, 2, 2],
            [2, 32, 64, 32, 3, 1],
            [2, 128, 64, 32, 2, 2],
            [2, 128, 128, 16, 3, 1],
            [32, 4, 32, 84, 8, 4],
            [2, 64, 128, 16, 3, 1],
            [32, 32, 64, 20, 4, 2],
        ];
        let step = if f == Format::F16 { 1 } else { 2 };
        out.extend(convs.into_iter().step_by(step).flat_map(|c| Product::convs(f, c)));
    }
    out
}
