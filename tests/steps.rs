//! Planned steps on the CPU executor against the reference evaluator in f64.

mod common;

use common::{MODELS, compile, distance, feed, initialise_all};
use mantissa::format::{Format, widen};
use mantissa::ir::{Op, Role, Tensor, evaluate, text, verify};
use mantissa::lower::lower;
use mantissa::plan::Policy;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
use mantissa::train::Compiled;

/// One step on the CPU executor and the planned graph in the f64 evaluator (which rounds at every put, nowhere else):
/// the largest relative distance of any updated parameter or metric.
fn against_reference(source: &str, policy: Policy, low: Format) -> f64 {
    distance_of(&compile(source, policy, low, |_| {}))
}

fn distance_of(compiled: &Compiled) -> f64 {
    let graph = &compiled.planned.graph;
    let mut cpu = CpuRunner::new(lower(verify(graph).unwrap()).unwrap());
    initialise_all(&mut cpu, graph, 3);
    feed(&mut cpu, graph, 1, compiled.classes().unwrap_or(1));
    let values = evaluate(graph, |id| {
        let name = graph.name_of(id);
        let ty = graph.ty(id);
        let bytes = cpu.read_bytes(name).unwrap();
        let mut wide = vec![0.0; ty.elements()];
        widen(ty.format, &bytes, &mut wide);
        Tensor::new(&ty.dims(), wide.into_iter().map(f64::from).collect())
    });
    cpu.run().unwrap();
    let mut worst = 0f64;
    for o in graph.outputs() {
        let expected: Vec<f32> = values[o.node.index()].data.iter().map(|&v| v as f32).collect();
        let got = cpu.read(&o.name).unwrap();
        let exempt = o.role == Role::Update && o.name.starts_with("optimizer.");
        let d = distance(&got, &expected);
        assert!(d.is_finite(), "{} is not finite", o.name);
        if !exempt {
            worst = worst.max(d);
        }
    }
    worst
}

#[test]
fn f32_steps_match_f64() {
    for (name, source) in MODELS {
        let d = against_reference(source, Policy::Fp32, Format::F16);
        assert!(d < 2e-5, "{name}: {d:e}");
    }
}

#[test]
fn low_precision_steps_match_the_rounding_reference() {
    for (policy, low, tolerance) in
        [(Policy::O1, Format::F16, 4e-3), (Policy::O1, Format::Bf16, 2e-2), (Policy::O2, Format::F16, 8e-3)]
    {
        for (name, source) in MODELS {
            let d = against_reference(source, policy, low);
            assert!(d < tolerance, "{name} under {policy} {low}: {d:e}");
        }
    }
}

/// A value that a policy file wants in f8e4m3 is a byte an element, in units of its largest magnitude over 448.
#[test]
fn scaled_values_are_stored_in_a_byte() {
    let source = "model m { input x: f32[batch, 32] label y: f32[batch, 8] param w: f32[32, 64] = kaiming_uniform
        param v: f32[64, 8] = kaiming_uniform h = x @ w loss = mse(gelu(h) @ v, y) }";
    let compiled = compile(source, Policy::Greedy, Format::F16, |s| {
        s.target = "cpu".into();
        s.overrides.names.insert("h".into(), Format::F8E4M3);
    });
    let graph = &compiled.planned.graph;
    let scaled: Vec<_> = graph.ids().filter(|&id| graph.ty(id).format == Format::F8E4M3).collect();
    assert!(matches!(scaled[..], [h] if graph.inputs(h).len() == 2), "{}", mantissa::ir::text::print(graph));
    let d = distance_of(&compiled);
    assert!(d < 2e-2, "{d:e}");
    // Where kernels do not move f8e4m3, it is not to be had.
    let refused = std::panic::catch_unwind(|| {
        compile(source, Policy::Greedy, Format::F16, |s| {
            s.overrides.names.insert("h".into(), Format::F8E4M3);
        })
    });
    let message = refused.expect_err("sm_90 stores no f8e4m3");
    assert!(
        message.downcast_ref::<String>().is_some_and(|m| m.contains("asks for f8e4m3, but this plan has f32 and f16"))
    );
}

/// By hand: the scale is 896 / 448, and f8e4m3 has steps of 1/64 from 1/8, of 1 from 8; a tensor of zeros has zeros.
#[test]
fn scaled_numbers_are_what_they_are_by_hand() {
    let text = "model m { input x: f32[4] s = scale_of(x, format=f8e4m3) q = cast(x, s, format=f8e4m3) y = put(q * s, format=f32) output y output s output q }";
    let graph = mantissa::ir::text::parse(text, "m.mir").unwrap();
    let mut cpu = CpuRunner::new(lower(verify(&graph).unwrap()).unwrap());
    for (x, y, scale, codes) in [
        ([896.0, 1.0, 0.3, -17.0], [896.0, 1.0, 0.3125, -16.0], 2.0, [0x7e, 0x30, 0x22, 0xd0]),
        ([0.0; 4], [0.0; 4], f32::MIN_POSITIVE, [0; 4]),
    ] {
        cpu.write("x", &x).unwrap();
        cpu.run().unwrap();
        assert_eq!((cpu.read("y").unwrap(), cpu.read("s").unwrap()), (y.to_vec(), vec![scale]));
        assert_eq!(cpu.read_bytes("q").unwrap(), codes);
    }
}

/// ONNX's Cast has no scale: a file without it would hold other numbers.
#[test]
fn a_scaled_value_is_not_exported_without_its_scale() {
    let export = |scale: &str| {
        let text = format!(
            "model m {{ input x: f32[4] input s: f32 q = cast(x{scale}, format=f16) y = put(q * s, format=f32) output y }}"
        );
        let graph = mantissa::ir::text::parse(&text, "m.mir").unwrap();
        mantissa::model::Model::from_graph(graph).to_onnx(&Default::default(), &Default::default(), None, "")
    };
    assert!(export("").is_ok());
    let refused = export(", s").map(|_| ()).expect_err("the scale is lost").to_string();
    assert!(refused.contains("ONNX has no such operation") && refused.contains("cast"), "{refused}");
}

#[test]
fn a_plan_reads_back_from_its_text() {
    for (name, source) in MODELS {
        let compiled = compile(source, Policy::O1, Format::F16, |_| {});
        for graph in [&compiled.step, &compiled.planned.graph] {
            let text = mantissa::ir::text::print(graph);
            let again = mantissa::ir::text::parse(&text, name).unwrap_or_else(|e| panic!("{}", e.render(false)));
            assert_eq!(mantissa::ir::text::print(&again), text);
        }
        let has_product = source.contains('@');
        assert!(
            !has_product
                || compiled.planned.graph.ids().any(|id| matches!(compiled.planned.graph.op(id), Op::Put(Format::F16))),
            "{name} uses no f16"
        );
    }
}

/// Autocast runs a batch norm in its input's format: scale and shift are parameters, however they are shaped to fit. What
/// comes from elsewhere in f32 widens what it meets.
#[test]
fn parameters_do_not_widen_what_they_scale() {
    let source = "model net {
        input x: f32[batch, 4, 6, 6]  input z: f32[batch, 4, 6, 6]  label y: i64[batch]
        param w: f32[4, 4, 3, 3] = normal(0.1)  param g: f32[4] = ones  param b: f32[4] = zeros
        param v: f32[144, 3] = kaiming_uniform
        c = conv(x, w, strides=[1, 1], lo=[1, 1], hi=[1, 1])
        s = standardise(c, axes=[0, 2, 3], eps=1e-5)
        n = s * reshape(g, dims=[1, 4, 1, 1]) + reshape(b, dims=[1, 4, 1, 1])
        h = relu(n)
        m = h * tanh(z)
        q = mean(c, axes=[0, 2, 3], keep=true)
        k = c - q
        loss = cross_entropy(reshape(h + m + k, dims=[batch, 144]) @ v, y)
    }";
    let reasons = compile(source, Policy::O1, Format::F16, |_| {}).planned.reasons;
    for value in ["s", "n", "h", "k"] {
        assert_eq!(reasons[value], "follows its low inputs", "{value}");
    }
    assert_eq!(reasons["m"], "an input is f32");
    // What a batch norm measures by stays f32, and widens nothing either.
    assert!(reasons["q"].starts_with("a statistic"), "{}", reasons["q"]);
}

/// A loss over classes is computed in its logits' format: in f64, to the last bits.
#[test]
fn cross_entropy_of_f64_is_f64() {
    let source = "model wide { input x: f32[batch, 6]  label y: i64[batch]  param w: f32[6, 5] = kaiming_uniform
        loss = cross_entropy(convert(x @ w, format=f64) * 3, y) }";
    let compiled = compile(source, Policy::Fp32, Format::F16, |_| {});
    let loss = compiled.step.find("loss").expect("it has a loss");
    assert_eq!(compiled.step.ty(loss).format, Format::F64);
    assert!(distance_of(&compiled) < 1e-6);
    // Of a batch of two whole logits each, by hand: ln(1 + e^-1) in the mean.
    let graph =
        text::parse("model two { input x: f64[2, 2] label y: i64[2] loss = cross_entropy(x, y) }", "two").unwrap();
    let given = |id| match graph.name_of(id) {
        "x" => Tensor::new(&[2, 2], vec![1.0, 0.0, 2.0, 3.0]),
        _ => Tensor::new(&[2], vec![0.0, 1.0]),
    };
    let values = evaluate(&graph, given);
    let loss = values[graph.find("loss").unwrap().index()].data[0];
    assert!((loss - (-1f64).exp().ln_1p()).abs() < 1e-15, "{loss}");
}
