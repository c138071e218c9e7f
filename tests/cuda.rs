//! On a GPU: every kernel kind and 100 steps of training agree with the CPU executor.

mod common;

use bytesize::ByteSize;
use common::{MODELS, announce, compile, decoder, distance, feed, initialise_all, noise};
use mantissa::format::{Format, Overflow, Spread};
use mantissa::ir::{NodeId, Op, Tensor, evaluate, text, verify};
use mantissa::lower::lower;
use mantissa::plan::Policy;
use mantissa::run::cpu::{Cpu, CpuRunner};
use mantissa::run::cuda::{Cuda, available};
use mantissa::run::{Backend, Device};
use mantissa::train::{Compiled, Settings};
use std::cell::RefCell;
use std::rc::Rc;

fn gpu() -> bool {
    if !available() {
        announce("skipped: no GPU");
    }
    available()
}

fn compare(source: &str, policy: Policy, low: Format, steps: u32) -> f64 {
    compare_compiled(&compile(source, policy, low, |_| {}), steps)
}

/// Runs a compiled model on both devices and returns the largest relative distance of any parameter or metric.
fn compare_compiled(compiled: &Compiled, steps: u32) -> f64 {
    let graph = &compiled.planned.graph;
    let program = || lower(verify(graph).unwrap()).unwrap();
    let mut cpu = CpuRunner::new(program());
    let mut cuda = Cuda::default().open(program()).unwrap_or_else(|e| panic!("{e}"));
    for device in [&mut cpu as &mut dyn Device, &mut *cuda] {
        initialise_all(device, graph, 3);
        for step in 0..steps {
            feed(device, graph, 10 * step + 1, compiled.classes().unwrap_or(1));
            device.run().unwrap();
        }
    }
    let mut worst = distance(&cuda.read("loss").unwrap(), &cpu.read("loss").unwrap());
    for id in graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. } | Op::State { .. })) {
        let name = graph.name_of(id);
        let d = distance(&cuda.read(name).unwrap(), &cpu.read(name).unwrap());
        assert!(d.is_finite(), "{name} is not finite");
        // Moments of gradients that cancel to nothing have no relative accuracy; parameters do.
        if !name.starts_with("optimizer.") {
            worst = worst.max(d);
        }
    }
    worst
}

#[test]
fn every_model_agrees_after_one_step() {
    if !gpu() {
        return;
    }
    let cases = [
        (Policy::Fp32, Format::F16, 2e-5),
        (Policy::O1, Format::F16, 4e-3),
        (Policy::O1, Format::Bf16, 2e-2),
        (Policy::O2, Format::F16, 8e-3),
        (Policy::O1, Format::Tf32, 4e-3),
    ];
    for (policy, low, tolerance) in cases {
        for (name, source) in MODELS {
            let d = compare(source, policy, low, 1);
            announce(&format!("{name:<18} {policy} {low}: {d:.2e}"));
            assert!(d < tolerance, "{name} under {policy} {low}: {d:e}");
        }
    }
}

/// Images of the size that networks are trained on: cuDNN wants more workspace for these than small ones take, and refuses
/// algorithms that its own heuristic names.
#[test]
fn convolutions_of_images_agree() {
    if !gpu() {
        return;
    }
    let source = "model images { input x: f32[batch, 3, 224, 224] label y: i64[batch] param a: f32[64, 3, 7, 7] = normal(0.1)
        param b: f32[64, 64, 3, 3] = normal(0.05) param c: f32[128, 64, 1, 1] = normal(0.1) param f: f32[128, 5] = kaiming_uniform
        s = relu(conv(x, a, strides=[2, 2], lo=[3, 3], hi=[3, 3])) t = relu(conv(s, b, strides=[2, 2], lo=[1, 1], hi=[1, 1]))
        u = conv(t, c, strides=[2, 2]) loss = cross_entropy(mean(u, axes=[2, 3]) @ f, y) }";
    for (low, tolerance) in [(Format::F16, 4e-3), (Format::Bf16, 2e-2)] {
        let batch = |s: &mut Settings| _ = s.sizes.insert("batch".into(), 32);
        let d = compare_compiled(&compile(source, Policy::O1, low, batch), 1);
        announce(&format!("images of 224 x 224 in {low}: {d:.1e}"));
        assert!(d < tolerance, "{low}: {d:e}");
    }
}

/// Products in tf32 read f32 and round it to 10 bits of mantissa. A GPU's library may leave that out, as cuDNN does for small
/// images.
#[test]
fn products_in_tf32_round_what_they_read() {
    let source =
        "model p { input x: f32[96, 256] input w: f32[256, 128] input i: f32[4, 16, 12, 12] input k: f32[8, 16, 3, 3]
        product = matmul(x, w, format=tf32) whole = x @ w
        image = conv(i, k, format=tf32, strides=[1, 1]) clear = conv(i, k, strides=[1, 1])
        a = put(product, format=f32) b = put(whole, format=f32) c = put(image, format=f32) d = put(clear, format=f32)
        output a output b output c output d }";
    let g = text::parse(source, "p").unwrap_or_else(|e| panic!("{}", e.render(false)));
    let held = |id: NodeId| -> Vec<f32> { (0..g.ty(id).elements()).map(|i| noise(id.index() as u32, i)).collect() };
    let exact = evaluate(&g, |id| Tensor::new(&g.ty(id).dims(), held(id).iter().map(|&v| f64::from(v)).collect()));
    let exact =
        |name: &str| -> Vec<f32> { exact[g.find(name).unwrap().index()].data.iter().map(|&v| v as f32).collect() };
    let check = |device: &mut dyn Device| {
        g.sources().for_each(|id| device.write(g.name_of(id), &held(id)).unwrap());
        device.run().unwrap();
        for (narrow, wide) in [("a", "b"), ("c", "d")] {
            assert!(distance(&device.read(wide).unwrap(), &exact(wide)) < 1e-5, "f32 is f32");
            let read = device.read(narrow).unwrap();
            let (d, rounding) = (distance(&read, &exact(narrow)), distance(&read, &exact(wide)));
            announce(&format!("tf32 {narrow}: {d:.1e} from rounded operands, {rounding:.1e} from f32"));
            assert!(d.min(rounding) < 1e-6 && d.max(rounding) > 1e-5, "{d:e} and {rounding:e}");
        }
    };
    let program = || lower(verify(&g).unwrap()).unwrap();
    check(&mut CpuRunner::new(program()));
    if gpu() {
        let mut cuda = Cuda::default().open(program()).unwrap_or_else(|e| panic!("{e}"));
        check(&mut *cuda);
    }
}

/// Few columns of many rows: blocks share a column's rows, and the one that comes last adds up what they found.
#[test]
fn sums_over_long_columns_agree() {
    for columns in [33, 48] {
        let source = format!(
            "model c {{ input x: f32[8192, {columns}] input y: f16[8192, {columns}]
            s = put(sum(x * x, axes=[0]), format=f32) m = put(reduce_max(x - y, axes=[0]), format=f32)
            h = put(sum(convert(y, format=f32) * 0.125, axes=[0]), format=f32)
            output s output m output h }}"
        );
        let g = text::parse(&source, "c").unwrap_or_else(|e| panic!("{}", e.render(false)));
        let held = |id: NodeId| -> Vec<f32> {
            let fits = |v: f32| g.ty(id).format.round(v.into(), Overflow::Ieee) as f32;
            (0..g.ty(id).elements()).map(|i| fits(noise(id.index() as u32, i) - 0.25)).collect()
        };
        let exact = evaluate(&g, |id| Tensor::new(&g.ty(id).dims(), held(id).iter().map(|&v| f64::from(v)).collect()));
        let check = |device: &mut dyn Device| {
            g.sources().for_each(|id| device.write(g.name_of(id), &held(id)).unwrap());
            // Twice: what blocks count by is left as it was.
            for _ in 0..2 {
                device.run().unwrap();
                for name in ["s", "m", "h"] {
                    let exact: Vec<f32> = exact[g.find(name).unwrap().index()].data.iter().map(|&v| v as f32).collect();
                    let d = distance(&device.read(name).unwrap(), &exact);
                    assert!(d < 1e-5, "{columns} columns, {name}: {d:e}");
                }
            }
        };
        let program = || lower(verify(&g).unwrap()).unwrap();
        check(&mut CpuRunner::new(program()));
        if gpu() {
            let mut cuda = Cuda::default().open(program()).unwrap_or_else(|e| panic!("{e}"));
            check(&mut *cuda);
        }
    }
}

/// Steps that are made and run side by side do not break each other's captures: workspaces grow while others capture.
#[test]
fn steps_on_several_threads_agree() {
    if !gpu() {
        return;
    }
    let convnet = MODELS.iter().find(|(name, _)| *name == "convnet").expect("it is there").1;
    let many = |at: usize| {
        for extent in (1..=6).map(|n| 8 * (n + at)) {
            let compiled = compile(convnet, Policy::O1, Format::F16, |s| _ = s.sizes.insert("batch".into(), extent));
            let d = compare_compiled(&compiled, 1);
            assert!(d < 4e-3, "batch {extent}: {d:e}");
        }
    };
    std::thread::scope(|s| (0..8).for_each(|at| _ = s.spawn(move || many(at))));
}

/// A plan for little memory, in which kernels wait for what they do not read.
#[test]
fn a_step_that_computes_again_agrees() {
    if !gpu() {
        return;
    }
    let plan = |limit: Option<usize>| {
        compile(&decoder(4), Policy::O1, Format::F16, |s| s.memory_limit = limit.map(|l| ByteSize(l as u64)))
    };
    let whole = lower(verify(&plan(None).planned.graph).unwrap()).unwrap().memory().total();
    let less = plan(Some(whole * 8 / 10));
    assert!(less.planned.again.is_some());
    let d = compare_compiled(&less, 5);
    announce(&format!("5 steps of a decoder in less memory: {d:.2e}"));
    assert!(d < 8e-3, "{d:e}");
}

#[test]
fn a_hundred_steps_agree() {
    if !gpu() {
        return;
    }
    for (policy, low, tolerance) in
        [(Policy::Fp32, Format::F16, 1e-3), (Policy::O1, Format::F16, 2e-2), (Policy::O1, Format::Bf16, 8e-2)]
    {
        let d = compare(MODELS[0].1, policy, low, 100);
        announce(&format!("100 steps of mlp {policy} {low}: {d:.2e}"));
        assert!(d < tolerance, "{policy} {low}: {d:e}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    if !gpu() {
        return;
    }
    let compiled = compile(MODELS[0].1, Policy::O1, Format::F16, |_| {});
    let graph = &compiled.planned.graph;
    let run = || {
        let mut cuda = Cuda::default().open(lower(verify(graph).unwrap()).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        initialise_all(&mut *cuda, graph, 3);
        for step in 0..20 {
            feed(&mut *cuda, graph, step, 5);
            cuda.run().unwrap();
        }
        cuda.read_bytes("w1").unwrap()
    };
    assert_eq!(run(), run());
}

/// What a GPU counts of a source is what the CPU counts, to the element: zeros, subnormals, infinities, NaN.
#[test]
fn what_buffers_hold_is_counted_alike() {
    if !gpu() {
        return;
    }
    let mut bits = 1u32;
    let mut any = || {
        bits = bits.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        f32::from_bits((bits >> ((bits >> 28) + 4)) ^ bits)
    };
    for (format, n) in [("f32", 1), ("f32", 100_003), ("f32", 3 << 20), ("f16", 70_001), ("bf16", 70_001)] {
        let mut values: Vec<f32> = (0..n).map(|_| any()).collect();
        values[n / 2] = -0.0;
        let source = format!("model m {{ input x: {format}[{n}] y = put(sum(x * 0.0), format=f32) output y }}");
        let graph = text::parse(&source, "m.mir").unwrap();
        let seen = |backend: &dyn Backend| {
            let told = Rc::new(RefCell::new(Vec::new()));
            let (to, program) = (told.clone(), lower(verify(&graph).unwrap()).unwrap());
            let watcher = move |name: &str, s: &Spread| to.borrow_mut().push((name.to_owned(), s.clone()));
            let mut device = backend.watch(program, Box::new(watcher)).unwrap();
            device.write("x", &values).unwrap();
            // Counts are of one run each.
            device.run().unwrap();
            device.run().unwrap();
            told.take()
        };
        let (cpu, cuda) = (seen(&Cpu), seen(&Cuda::default()));
        assert_eq!(cpu.len(), 4, "the input and the sum, twice");
        assert_eq!(cpu, cuda, "{n} elements of {format}");
    }
}
