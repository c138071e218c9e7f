//! Attention as one operation: its value and gradients, how it is recognised, and its kernels on both devices.

mod common;

use common::{announce, compile, noise};
use mantissa::format::Format;
use mantissa::ir::{AttentionPart, Graph, NodeId, Op, Tensor, evaluate, text, verify};
use mantissa::lower::{Contraction, Kernel, lower, print_program};
use mantissa::plan::Policy;
use mantissa::run::Backend;
use mantissa::run::cpu::Cpu;
use mantissa::run::cuda::{Cuda, available};

/// Extents of an attention, and what it is like.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    width: usize,
    causal: bool,
    /// Extents of a mask.
    mask: Option<[usize; 4]>,
}

const PLAIN: Case = Case { batch: 2, heads: 3, groups: 3, queries: 5, keys: 7, width: 8, causal: false, mask: None };

const CASES: [Case; 8] = [
    PLAIN,
    Case { causal: true, ..PLAIN },
    Case { heads: 4, groups: 2, queries: 70, keys: 70, width: 16, causal: true, ..PLAIN },
    Case { keys: 33, mask: Some([2, 1, 1, 33]), ..PLAIN },
    Case { batch: 1, heads: 4, groups: 1, queries: 130, keys: 67, width: 64, mask: Some([1, 4, 130, 67]), ..PLAIN },
    Case { batch: 1, heads: 2, groups: 2, queries: 200, keys: 200, width: 64, causal: true, ..PLAIN },
    Case { batch: 1, heads: 2, groups: 1, queries: 129, keys: 160, width: 128, causal: true, ..PLAIN },
    Case { batch: 1, queries: 65, keys: 31, width: 72, ..PLAIN },
];

/// The five parts, stored as a plan in this format stores them.
fn planned(c: &Case, format: Format) -> Graph {
    let Case { batch, heads, groups, queries, keys, width, causal, mask } = *c;
    let own = format!("f32[{batch}, {heads}, {queries}, {width}]");
    let shared = format!("f32[{batch}, {groups}, {keys}, {width}]");
    let declared = mask.map_or(String::new(), |m| format!("input m: f32{m:?}"));
    let last = if mask.is_some() { ", m" } else { "" };
    let attrs = format!("format={format}, scale=0.3, causal={causal}");
    let source = format!(
        "model a {{ input x: {own} input y: {shared} input z: {shared} input g: {own} {declared}
          q = put(x, format={format}) k = put(y, format={format}) v = put(z, format={format}) d = put(g, format={format})
          o = put(attention(q, k, v{last}, {attrs}), format=f32)
          l = put(attention_lse(q, k{last}, {attrs}), format=f32)
          e = put(sum(d * o, axes=[3]), format=f32)
          dq = put(attention_grad_q(q, k, v, d, l, e{last}, {attrs}), format={format})
          dk = put(attention_grad_k(q, k, v, d, l, e{last}, {attrs}), format=f32)
          dv = put(attention_grad_v(q, k, v, d, l, e{last}, {attrs}), format={format})
          output o output l output dq output dk output dv }}"
    );
    text::parse(&source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)))
}

const RESULTS: [&str; 6] = ["o", "l", "dq", "dk", "dv", "e"];

/// Numbers for a source. Of a mask some are hidden, and all that two rows of keys would see.
fn held(g: &Graph, id: NodeId) -> Tensor {
    let is_mask = g.name_of(id) == "m";
    let dims = g.ty(id).dims();
    let mut at = 0;
    Tensor::from_fn(&dims, |i| {
        at += 1;
        let x = f64::from(noise(id.index() as u32, at) * 2.0 - 1.0);
        let whole = is_mask && dims[2] > 2 && i[2] < 2;
        let hidden = is_mask && (whole || noise(99, at) < 0.3);
        if hidden { f64::NEG_INFINITY } else { f64::from(x as f32) }
    })
}

fn values(g: &Graph) -> Vec<Tensor> {
    evaluate(g, |id| held(g, id))
}

/// The largest distance of two tensors, beside the largest number of the first; infinities must be where they are.
fn apart(exact: &[f64], found: &[f64]) -> f64 {
    assert_eq!(exact.len(), found.len());
    // What cancels to nothing is no scale: operands are of size 1.
    let scale = exact.iter().filter(|v| v.is_finite()).fold(0.1, |m: f64, v| m.max(v.abs()));
    exact.iter().zip(found).fold(0.0, |worst: f64, (a, b)| {
        let off = if a == b { 0.0 } else { (a - b).abs() / scale };
        if off.is_nan() { f64::INFINITY } else { worst.max(off) }
    })
}

/// Each part is what its spelling is, by products and softmax.
#[test]
fn parts_are_what_they_stand_for() {
    for case in &CASES[..5] {
        let g = planned(case, Format::F32);
        let spelled = g.spelled(|id| matches!(g.op(id), Op::Attention { .. })).unwrap();
        assert!(!spelled.ids().any(|id| matches!(spelled.op(id), Op::Attention { .. })));
        let (own, other) = (values(&g), values(&spelled));
        for name in RESULTS {
            let find = |g: &Graph, values: &[Tensor]| values[g.find(name).unwrap().index()].data.clone();
            let off = apart(&find(&spelled, &other), &find(&g, &own));
            // Both are stored as f32 on the way.
            assert!(off < 1e-5, "{name} of {case:?}: {off:e}");
        }
    }
}

/// Runs a planned graph on a device and compares with the f64 evaluation of the same rounded operands.
fn check(backend: &dyn Backend, case: &Case, format: Format, tolerance: f64) {
    let g = planned(case, format);
    let exact = values(&g);
    let mut device = backend.open(lower(verify(&g).unwrap()).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    for id in g.sources() {
        let data: Vec<f32> = held(&g, id).data.iter().map(|&v| v as f32).collect();
        device.write(g.name_of(id), &data).unwrap();
    }
    device.run().unwrap();
    for name in &RESULTS[..5] {
        let found: Vec<f64> = device.read(name).unwrap().into_iter().map(f64::from).collect();
        let off = apart(&exact[g.find(name).unwrap().index()].data, &found);
        assert!(off < tolerance, "{name} in {format} of {case:?}: {off:e}");
    }
}

const FORMATS: [(Format, f64); 3] = [(Format::F32, 2e-5), (Format::F16, 3e-3), (Format::Bf16, 2e-2)];

#[test]
fn the_cpu_agrees_with_f64() {
    for case in &CASES {
        for (format, tolerance) in FORMATS {
            check(&Cpu, case, format, tolerance);
        }
    }
}

#[test]
fn a_gpu_agrees_with_f64() {
    if !available() {
        return announce("skipped: no GPU");
    }
    let random = (0..12).map(|seed| {
        let pick = |n: u32, of: &[usize]| of[(noise(seed * 17 + n, 3) * of.len() as f32) as usize % of.len()];
        let groups = pick(0, &[1, 2, 3]);
        let queries = pick(1, &[1, 17, 64, 127, 128, 131, 260]);
        let causal = noise(seed, 5) < 0.5;
        let keys = if causal { queries } else { pick(2, &[1, 31, 64, 65, 200]) };
        Case {
            batch: pick(3, &[1, 2]),
            heads: groups * pick(4, &[1, 2]),
            groups,
            queries,
            keys,
            width: pick(5, &[8, 24, 32, 64, 80, 96, 128, 20, 136]),
            causal,
            mask: (noise(seed, 6) < 0.4).then_some([1, 1, queries, keys]),
        }
    });
    for (n, case) in CASES.into_iter().chain(random).enumerate() {
        // One of the narrow formats each, but for the first.
        for (format, tolerance) in
            FORMATS.into_iter().enumerate().filter(|(i, _)| n == 0 || *i != 1 + n % 2).map(|f| f.1)
        {
            check(&Cuda::default(), &case, format, tolerance);
        }
        announce(&format!("{case:?}"));
    }
}

/// Heads are read where a projection stored them, and what only copies them is left out.
#[test]
fn heads_are_read_where_they_lie() {
    let source =
        "model a { input x: f32[2, 16, 3, 4, 8]  p = put(x * 2, format=bf16)  t = transpose(p, perm=[2, 0, 3, 1, 4])
        q = put(reshape(slice(t, axis=0, start=0, stop=1), dims=[2, 4, 16, 8]), format=bf16)
        k = put(reshape(slice(t, axis=0, start=1, stop=2), dims=[2, 4, 16, 8]), format=bf16)
        v = put(reshape(slice(t, axis=0, start=2, stop=3), dims=[2, 4, 16, 8]), format=bf16)
        o = attention(q, k, v, format=bf16)  r = put(transpose(o, perm=[0, 2, 1, 3]), format=bf16)  output r }";
    let g = text::parse(source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)));
    let program = lower(verify(&g).unwrap()).unwrap();
    let kinds: Vec<&str> = program.kernels().map(Kernel::kind).collect();
    assert_eq!(kinds, ["pointwise", "attention"], "{}", print_program(&program));
    let Some(Kernel::Product(p)) = program.kernels().last() else { unreachable!() };
    let Contraction::Attention(a) = &p.contraction else { unreachable!() };
    assert_eq!(a.operands[1].strides, [16 * 96, 8, 96, 1]);
    assert_eq!([0, 1, 2].map(|i| a.operands[i].at.offset), [0, 32, 64]);
    let mut cpu = Cpu.open(program).unwrap();
    let data: Vec<f32> = held(&g, g.find("x").unwrap()).data.iter().map(|&v| v as f32).collect();
    cpu.write("x", &data).unwrap();
    cpu.run().unwrap();
    let found: Vec<f64> = cpu.read("r").unwrap().into_iter().map(f64::from).collect();
    let off = apart(&values(&g)[g.find("r").unwrap().index()].data, &found);
    assert!(off < 1e-2, "{off:e}");
}

/// An attention's scale, whether it is causal, and how many operands it has.
type Fused = (f64, bool, usize);

/// Spellings of exporters, and what they come to: scale, whether it is causal, operands.
#[test]
fn spellings_are_recognised() {
    let causal = "c = ge(iota(dims=[16, 16], axis=0), iota(dims=[16, 16], axis=1))";
    let cases: [(&str, String, Option<Fused>); 16] = [
        ("scaled after", "s = matmul(q, k, t=nt) * 0.25 o = softmax(s) @ v".into(), Some((0.25, false, 3))),
        ("divided", "s = (q @ transpose(k, perm=[0, 1, 3, 2])) / 4 o = softmax(s) @ v".into(), Some((0.25, false, 3))),
        (
            "scaled before, on both sides",
            "h = broadcast(0.5, dims=[1]) s = (q * h) @ (transpose(k, perm=[0, 1, 3, 2]) * h) o = softmax(s) @ v".into(),
            Some((0.25, false, 3)),
        ),
        (
            "flat heads",
            "f = transpose(reshape(k, dims=[8, 16, 16]), perm=[0, 2, 1]) s = q @ reshape(f, dims=[2, 4, 16, 16]) o = softmax(s) @ v".into(),
            Some((1.0, false, 3)),
        ),
        ("causal, selected", format!("{causal} s = select(c, matmul(q, k, t=nt), -inf) o = softmax(s) @ v"), Some((1.0, true, 3))),
        (
            "causal, added",
            format!("{causal} s = matmul(q, k, t=nt) * 0.25 + select(c, 0, -3.4028234663852886e38) o = softmax(s) @ v"),
            Some((0.25, true, 3)),
        ),
        (
            "nearly causal, beside a mask that may hide the rest",
            format!("{causal} s = (matmul(q, k, t=nt) + select(c, 0, -3.4028234663852886e38)) + b o = softmax(s) @ v"),
            Some((1.0, false, 4)),
        ),
        ("scaled values", "s = matmul(q, k, t=nt) o = softmax(s) @ (v * 0.5)".into(), Some((1.0, false, 3))),
        ("scaled below zero", "s = matmul(q, k, t=nt) * -1 o = softmax(s) @ v".into(), None),
        (
            "causal, then scaled below zero",
            format!("{causal} s = (matmul(q, k, t=nt) + select(c, 0, -3.4e38)) * -1 o = softmax(s) @ v"),
            None,
        ),
        (
            "keys that all heads share",
            "m = reshape(slice(slice(k, axis=0, start=0, stop=1), axis=1, start=0, stop=1), dims=[16, 16]) o = softmax(q @ m) @ v".into(),
            None,
        ),
        (
            "causal, inverted, and a mask",
            format!("{causal} s = select(not(c), -inf, matmul(q, k, t=nt)) + b o = softmax(s) @ v"),
            Some((1.0, true, 4)),
        ),
        ("a condition", "s = select(gt(b, 0), matmul(q, k, t=nt), -inf) o = softmax(s) @ v".into(), Some((1.0, false, 4))),
        ("read elsewhere", "p = softmax(matmul(q, k, t=nt)) o = p @ v output p".into(), None),
        ("a trained mask", "s = matmul(q, k, t=nt) + w o = softmax(s) @ v".into(), None),
        ("scaled with its mask", "s = (matmul(q, k, t=nt) + b) * 0.25 o = softmax(s) @ v".into(), None),
    ];
    for (name, body, wanted) in cases {
        let source = format!(
            "model a {{ input q: f32[2, 4, 16, 16] input k: f32[2, 4, 16, 16] input v: f32[2, 4, 16, 16]
              input b: f32[2, 1, 1, 16] param w: f32[1, 4, 16, 16] = normal(0.1) {body} output o }}"
        );
        let g = text::parse(&source, name).unwrap_or_else(|e| panic!("{}", e.render(false)));
        let found = mantissa::plan::attend(g.clone(), &Default::default(), |_| true).unwrap();
        let fused = found.ids().find_map(|id| match found.op(id) {
            Op::Attention { part: AttentionPart::Output, spec, .. } => {
                Some((spec.scale.get(), spec.causal, found.inputs(id).len()))
            }
            _ => None,
        });
        assert_eq!(fused, wanted, "{name}:\n{}", text::print(&found));
        let o = |g: &Graph| values_by_name(g)[g.find("o").unwrap().index()].data.clone();
        let off = apart(&o(&g), &o(&found));
        assert!(off < 1e-12, "{name}: {off:e}");
    }
}

/// Chains of any length are looked through, of constants and of scores.
#[test]
fn long_chains_are_no_trouble() {
    let chain = |x: &str, by: &str| (0..20_000).map(|i| format!("{x}{} = {x}{i} + {by}\n", i + 1)).collect::<String>();
    for (last, mask) in [("s20000", "s0"), ("s0 + m20000", "m")] {
        let source = format!(
            "model a {{ input q: f32[1, 1, 4, 8] input v: f32[1, 1, 4, 8] input b: f32[1, 1, 1, 4]
              s0 = matmul(q, q, t=nt) m0 = select(gt(iota(dims=[4, 4], axis=1), 9), 1, 0) {} o = softmax({last}) @ v output o }}",
            if mask == "m" { chain("m", "0.0") } else { chain("s", "b") }
        );
        let g = text::parse(&source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)));
        let found = mantissa::plan::attend(g, &Default::default(), |_| true).unwrap();
        let fused = found.ids().any(|id| matches!(found.op(id), Op::Attention { .. }));
        // Of sums that long the product is not looked for; the constant is a mask that hides nothing.
        assert_eq!(fused, mask == "m", "{last}");
    }
}

/// A query that is no number has no result, whoever computes it; without keys there is nothing to attend to.
#[test]
fn what_is_no_number_shows() {
    for (keys, first) in [(3, f32::NAN), (3, 1.0), (0, 1.0)] {
        let source = format!(
            "model a {{ input q: f32[1, 1, 2, 8] input k: f32[1, 1, {keys}, 8]
              o = put(attention(q, k, k), format=f32) l = put(attention_lse(q, k), format=f32) output o output l }}"
        );
        let g = text::parse(&source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)));
        let query: Vec<f32> = (0..16).map(|i| if i < 8 { first } else { 0.5 }).collect();
        let data = |id: NodeId| if g.name_of(id) == "q" { query.clone() } else { vec![0.25; 8 * keys] };
        let of = |id: NodeId| Tensor::new(&g.ty(id).dims(), data(id).into_iter().map(f64::from).collect());
        let exact = evaluate(&g, of);
        let mut cpu = Cpu.open(lower(verify(&g).unwrap()).unwrap()).unwrap();
        g.sources().for_each(|id| cpu.write(g.name_of(id), &data(id)).unwrap());
        cpu.run().unwrap();
        for name in ["o", "l"] {
            let (found, exact) = (cpu.read(name).unwrap(), &exact[g.find(name).unwrap().index()].data);
            let same = |(a, b): (&f32, &f64)| {
                a.is_nan() == b.is_nan() && (a.is_nan() || f64::from(*a) == *b || (f64::from(*a) - b).abs() < 1e-6)
            };
            assert!(found.iter().zip(exact).all(same), "{name} with {keys} keys: {found:?}, {exact:?}");
            let is_nan = |v: &f32| v.is_nan();
            assert_eq!((found[0].is_nan(), found.iter().skip(found.len() / 2).any(is_nan)), (first.is_nan(), false));
        }
    }
}

/// Statistics are left by the output's kernel, row by row; elsewhere they have a kernel of their own.
#[test]
fn an_output_knows_its_rows() {
    for (stored, launches) in [("l", 1), ("transpose(l, perm=[1, 0, 2])", 2)] {
        let source = format!(
            "model a {{ input q: f32[2, 3, 16, 8] input k: f32[2, 3, 16, 8]
              b = put(attention(q, k, k), format=f32) l = attention_lse(q, k)
              a = put({stored}, format=f32) output a output b }}"
        );
        let g = text::parse(&source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)));
        let program = lower(verify(&g).unwrap()).unwrap();
        assert_eq!(program.launches.len(), launches, "{}", print_program(&program));
    }
}

/// Values of sources by their names: what is not read any more changes nobody's.
fn values_by_name(g: &Graph) -> Vec<Tensor> {
    evaluate(g, |id| {
        let seed = g.name_of(id).bytes().fold(0, |n, b| n * 31 + u32::from(b));
        let mut at = 0;
        Tensor::from_fn(&g.ty(id).dims(), |_| {
            at += 1;
            f64::from(noise(seed, at) * 2.0 - 1.0)
        })
    })
}

/// Shared heads, as a model repeats them, are read where they are.
#[test]
fn repeated_heads_are_shared() {
    let repeat = |x: &str| {
        format!("reshape(broadcast(reshape({x}, dims=[2, 2, 1, 16, 8]), dims=[2, 2, 3, 16, 8]), dims=[2, 6, 16, 8])")
    };
    let source = format!(
        "model a {{ input q: f32[2, 6, 16, 8] input k: f32[2, 2, 16, 8] input v: f32[2, 2, 16, 8]
          s = matmul(q, {}, t=nt) * 0.5 o = softmax(s) @ {} output o }}",
        repeat("k"),
        repeat("v")
    );
    let g = text::parse(&source, "a").unwrap_or_else(|e| panic!("{}", e.render(false)));
    let found = mantissa::plan::attend(g.clone(), &Default::default(), |_| true).unwrap();
    let id = found.ids().find(|&id| matches!(found.op(id), Op::Attention { .. })).expect("recognised");
    let names: Vec<&str> = found.inputs(id).iter().map(|&x| found.name_of(x)).collect();
    assert_eq!(names, ["q", "k", "v"]);
    let o = |g: &Graph| values_by_name(g)[g.find("o").unwrap().index()].data.clone();
    assert!(apart(&o(&g), &o(&found)) < 1e-12);
}

/// A decoder planned for a GPU keeps row statistics and no scores; for the CPU its attention is spelled out.
#[test]
fn a_decoder_stores_no_scores() {
    let source = "model d { input x: f32[batch, 64, 3, 2, 32] label y: i64[batch, 64] param w: f32[64, 50] = normal(0.1)
        param a: f32[32, 32] = normal(0.2)
        t = transpose(x @ a, perm=[2, 0, 3, 1, 4])
        q = reshape(slice(t, axis=0, start=0, stop=1), dims=[batch, 2, 64, 32])
        k = reshape(slice(t, axis=0, start=1, stop=2), dims=[batch, 2, 64, 32])
        v = reshape(slice(t, axis=0, start=2, stop=3), dims=[batch, 2, 64, 32])
        s = select(ge(iota(dims=[64, 64], axis=0), iota(dims=[64, 64], axis=1)), matmul(q, k, t=nt) * 0.17, -inf)
        o = transpose(softmax(s) @ v, perm=[0, 2, 1, 3]) loss = cross_entropy(reshape(o, dims=[batch, 64, 64]) @ w, y) }";
    for (target, is_fused) in [("h100", true), ("sm_70", false), ("cpu", false)] {
        let low = if target == "sm_70" { Format::F16 } else { Format::Bf16 };
        let compiled = compile(source, Policy::O1, low, |s| s.target = target.into());
        let g = &compiled.planned.graph;
        let has_scores = g.ids().any(|id| g.op(id).is_buffer() && g.ty(id).dims() == [8, 2, 64, 64]);
        assert_eq!(has_scores, !is_fused, "{target}:\n{}", text::print(g));
        let lse = g.ids().find(|&id| matches!(g.op(id), Op::Attention { part: AttentionPart::Lse, .. }));
        assert_eq!(lse.is_some(), is_fused, "{target}");
        if let Some(lse) = lse {
            assert_eq!(g.users(lse).iter().map(|&u| g.op(u).clone()).collect::<Vec<_>>(), [Op::Put(Format::F32)]);
        }
    }
}
