//! Helpers shared by the integration tests.
#![allow(dead_code, reason = "each test crate uses some of these")]

use mantissa::format::{Format, Overflow};
use mantissa::ir::{Graph, Init, NodeId, Op, Tensor, evaluate, text};
use mantissa::model::Model;
use mantissa::plan::Policy;
use mantissa::rewrite::RuleSet;
use mantissa::run::{Device, initialise};
use mantissa::train::{Compiled, Settings};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;

/// Small models that together use every operation family.
pub const MODELS: [(&str, &str); 22] = [
    (
        "mlp",
        "model mlp { input x: f32[batch, 12] label y: i64[batch] param w1: f32[12, 20] = kaiming_uniform param b1: f32[20] = zeros param w2: f32[20, 5] = kaiming_uniform param b2: f32[5] = zeros h = relu(x @ w1 + b1) logits = h @ w2 + b2 loss = cross_entropy(logits, y) }",
    ),
    (
        "gelu_norm",
        "model gelu_norm { input x: f32[batch, 16] label y: f32[batch, 3] param w: f32[16, 24] = kaiming_uniform param s: f32[24] = ones param t: f32[24] = zeros param v: f32[24, 3] = xavier_uniform h = layer_norm(gelu(x @ w), s, t, eps=1e-5) p = h @ v loss = mse(p, y) }",
    ),
    (
        "sigmoid_bce",
        "model sigmoid_bce { input x: f32[batch, 6] label y: f32[batch, 1] param w: f32[6, 8] = kaiming_uniform param v: f32[8, 1] = xavier_uniform p = tanh(x @ w) @ v loss = bce_with_logits(p, y) }",
    ),
    (
        "attention",
        "model attention { input x: f32[batch, 6, 8] label y: f32[batch, 6, 8] param q: f32[8, 8] = xavier_uniform param k: f32[8, 8] = xavier_uniform param v: f32[8, 8] = xavier_uniform a = softmax(matmul(x @ q, x @ k, t=nt) * 0.35) p = matmul(a, x @ v) loss = mse(p, y) }",
    ),
    (
        "log_softmax",
        "model log_softmax { input x: f32[batch, 7] label y: f32[batch, 4] param w: f32[7, 4] = kaiming_uniform p = log_softmax(x @ w) loss = mse(p, y) }",
    ),
    (
        "shapes",
        "model shapes { input x: f32[batch, 6] label y: f32[batch, 10] param w: f32[6, 12] = kaiming_uniform h = x @ w a = slice(h, axis=1, start=1, stop=9, step=2) b = slice(h, axis=1, start=6, stop=12) p = concat(tanh(a), transpose(transpose(b)), axis=1) loss = mse(p, y) }",
    ),
    (
        "pad",
        "model pad { input x: f32[batch, 5] label y: f32[batch, 8] param w: f32[5, 5] = kaiming_uniform p = pad(x @ w, axis=1, lo=1, hi=2) loss = mse(p, y) }",
    ),
    (
        "embedding",
        "model embedding { input x: f32[batch, 4] label y: f32[batch, 4] param e: f32[9, 4] = normal(1) param i: f32[4] = ones r = gather(e, iota(dims=[3], axis=0)) s = sum(r, axes=[0]) p = x * s + i loss = mse(p, y) }",
    ),
    (
        "broadcast",
        "model broadcast { input x: f32[batch, 3, 4] label y: f32[batch, 3, 4] param s: f32[3, 1] = ones param b: f32[4] = zeros p = softplus(x * s) + sigmoid(b - x) loss = mse(p, y) }",
    ),
    (
        "reductions",
        "model reductions { input x: f32[batch, 6] label y: f32[batch, 1] param w: f32[6, 6] = kaiming_uniform h = exp(x @ w * 0.1) m = reduce_max(h, axes=[1], keep=true) p = mean(h / m, axes=[1], keep=true) + log(sum(h, axes=[1], keep=true)) loss = mse(p, y) }",
    ),
    (
        "unary",
        "model unary { input x: f32[batch, 5] label y: f32[batch, 5] param w: f32[5] = uniform(1) a = sqrt(square(x * w) + 1) b = gelu_tanh(x + w) * rsqrt(a) c = abs(sin(b)) + cos(w) / a - max(x, w) * min(b, 0.5) p = select(gt(x, w), c, erf(b)) - recip(a) + log1p(exp(neg(b))) loss = mse(p, y) }",
    ),
    (
        "sinc",
        "model sinc { input x: f32[batch, 5] label y: f32[batch, 5] param w: f32[5] = uniform(1) p = sinc(x * w) + w * sinc(x * 0) loss = mse(p, y) }",
    ),
    (
        "roll",
        "model roll { input x: f32[batch, 5] label y: f32[batch, 5] param w: f32[5, 5] = xavier_uniform p = roll(roll(x @ w, axis=1, by=2), axis=1, by=4) * roll(tanh(x), axis=1, by=5) loss = mse(p, y) }",
    ),
    (
        "transposed_product",
        "model transposed_product { input x: f32[batch, 3, 4] label y: f32[4, batch, 3] param w: f32[4, 4] = xavier_uniform b = matmul(x, x, t=nt) p = transpose(tanh(b @ (x @ w)), perm=[2, 0, 1]) loss = mse(p, y) }",
    ),
    (
        "convnet",
        "model convnet { input x: f32[batch, 2, 7, 6] label y: i64[batch] param w: f32[4, 2, 3, 3] = normal(0.3) param b: f32[4, 1, 1] = zeros param g: f32[4, 1, 1] = ones param v: f32[4, 2, 2, 2] = normal(0.3) param f: f32[48, 5] = kaiming_uniform c = conv(x, w, strides=[1, 1], lo=[1, 1], hi=[1, 1]) n = standardise(c, axes=[0, 2, 3], eps=1e-5) * g + b h = relu(n) p = reduce_max(window(window(h, axis=2, size=3, stride=2, lo=1, hi=1, fill=-inf), axis=4, size=3, stride=2, lo=1, hi=1, fill=-inf), axes=[3, 5]) q = conv_input(p, v, strides=[2, 2], groups=2, lo=[1, 0], hi=[1, 0], extents=[6, 6]) m = mean(window(window(q, axis=2, size=2, stride=2), axis=4, size=2, stride=2), axes=[3, 5]) k = concat(m, slice(m, axis=1, start=0, stop=0), axis=1) logits = reshape(concat(k, tanh(slice(k, axis=2, start=0, stop=1)), axis=2), dims=[batch, 48]) @ f loss = cross_entropy(logits, y) }",
    ),
    (
        "counts",
        "model counts { input x: f32[batch, 300] label y: f32[batch, 4] param w: f32[300, 4] = xavier_uniform n = sum(convert(gt(x, 0.2), format=i64), axes=[1], keep=true) m = reduce_max(convert(x * 100, format=i32), axes=[1], keep=true) p = (x @ w) * (convert(n, format=f32) / 300) + convert(m, format=f32) * 0.01 loss = mse(p, y) }",
    ),
    (
        "dropout",
        "model dropout { input x: f32[batch, 3, 4] label y: f32[batch, 12] param w: f32[12, 12] = xavier_uniform state s: f32[] = constant(7) state t: f32[] = constant(2) h = reshape(x, dims=[batch, 12]) @ w k = ge(random(s, t, dims=[batch, 12], salt=3), 0.3) r = reshape(random(s, t, dims=[batch, 3, 4], salt=5), dims=[batch, 12]) p = select(k, h / 0.7, 0) + mean(r * h, axes=[1], keep=true) loss = mse(p, y) }",
    ),
    (
        "rms_scatter",
        "model rms_scatter { input x: f32[batch, 4, 6] label y: f32[batch, 4, 6] param w: f32[6, 6] = normal(0.4) param s: f32[6] = ones param e: f32[5, 6] = normal(0.5) i = iota(dims=[2], axis=0) h = rms_normalise(x @ w, axes=[2], eps=1e-6) * s t = scatter(e, i, slice(e, axis=0, start=3, stop=5) * 0.5, axis=0, kind=add) p = h * sum(t, axes=[0]) + convert(x, format=f16) loss = mse(p, y) }",
    ),
    (
        "loop",
        "model loop { input x: f32[batch, 12] label y: i64[batch] param w: f32[3, 8] = xavier_uniform param r: f32[8, 8] = xavier_uniform param b: f32[8] = zeros param v: f32[16, 5] = xavier_uniform \
         rows = transpose(reshape(x, dims=[batch, 4, 3]), perm=[1, 0, 2]) \
         body cell { input x: f32[batch, 3] state h: f32[batch, 8] state c: f32[batch, 8] param w: f32[3, 8] param r: f32[8, 8] param b: f32[8] \
           z = x @ w + h @ r + b y = sigmoid(z) * c update c = tanh(z) + c update h = tanh(y) } \
         h0 = broadcast(0.5, dims=[batch, 8]) \
         down = scan(rows, h0, h0, w, r, b, body=cell, steps=[4], last=h) \
         up = mean(scan(rows, h0, h0, w, r, b, body=cell, steps=[4], reverse=true, stack=y), axes=[0], keep=false) \
         logits = concat(down, up, axis=1) @ v loss = cross_entropy(logits, y) }",
    ),
    (
        "scatters",
        "model scatters { input x: f32[batch, 6] label y: f32[batch, 4] param w: f32[6, 4] = kaiming_uniform \
         i = iota(dims=[3], axis=0) j = i + i u = slice(x, axis=1, stop=3) \
         a = scatter(x, j, u, axis=1, kind=mul) b = scatter(a, i, u, axis=1, kind=max) c = scatter(b, j, u * 0.5, axis=1, kind=min) \
         d = scatter(c, i, u, axis=1, kind=add) e = scatter(d, j, u, axis=1) p = e @ w loss = mse(p, y) }",
    ),
    (
        "factorisation",
        "model factorisation { input x: f32[batch, 3, 4] label y: f32[batch, 4] param w: f32[4, 4] = kaiming_uniform \
         e = x @ w s = sum(e, axes=[1]) q = sum(e * e, axes=[1]) \
         p = mean(s * s - q, axes=[1], keep=true) loss = mse(s * 0.1 + broadcast(p * 0.1, dims=[batch, 4]), y) }",
    ),
    // Rows so few and so long that several blocks share one.
    (
        "batch_norm",
        "model batch_norm { input x: f32[batch, 2, 4096] label y: f32[batch, 2] param g: f32[2, 1] = ones param b: f32[2, 1] = zeros \
         h = relu(standardise(x, axes=[0, 2]) * g + b) loss = mse(mean(h, axes=[2]), y) }",
    ),
];

/// Compiles a `.mir` text with batch 8 and the settings given.
pub fn compile(source: &str, policy: Policy, low: Format, change: impl Fn(&mut Settings)) -> Compiled {
    let model = Model::from_graph(text::parse(source, "test").unwrap_or_else(|e| panic!("{}", e.render(false))));
    let mut settings = Settings { policy, low, ..Settings::default() };
    settings.sizes.insert("batch".into(), 8);
    change(&mut settings);
    settings
        .compile(&model, &RuleSet::builtin().expect("built-in rules load"), None)
        .unwrap_or_else(|e| panic!("{}", e.render(false)))
}

/// A deterministic number in 0..1 for a position.
pub fn noise(seed: u32, i: usize) -> f32 {
    let x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(0x9e37_79b9));
    let x = (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d);
    ((x ^ x >> 12) >> 8) as f32 / 16_777_216.0
}

/// Gives parameters and states their initial values.
pub fn initialise_all(device: &mut dyn Device, graph: &Graph, seed: u64) {
    for id in graph.sources() {
        if let Op::Param { init, ty } | Op::State { init, ty } = graph.op(id)
            && let Some(values) = initialise(graph.name_of(id), init, ty, seed)
        {
            device.write(graph.name_of(id), &values).unwrap();
        }
    }
    for id in graph.sources() {
        if let Op::State { init: Init::Copy(of), .. } = graph.op(id) {
            let values = device.read(of).unwrap();
            device.write(graph.name_of(id), &values).unwrap();
        }
    }
}

/// Fills the inputs: features in −1..1, class labels below `classes`, targets in −1..1.
pub fn feed(device: &mut dyn Device, graph: &Graph, seed: u32, classes: usize) {
    for id in graph.sources() {
        let Op::Input { label, ty, .. } = graph.op(id) else { continue };
        let n = ty.elements();
        if ty.format == Format::I64 {
            let values: Vec<i64> = (0..n).map(|i| (noise(seed + 7, i) * classes as f32) as i64).collect();
            device.write_bytes(graph.name_of(id), bytemuck::cast_slice(&values)).unwrap();
        } else {
            let seed = if *label { seed + 1 } else { seed };
            let values: Vec<f32> = (0..n).map(|i| noise(seed, i) * 2.0 - 1.0).collect();
            device.write(graph.name_of(id), &values).unwrap();
        }
    }
}

/// Says something past libtest's capture: what was skipped must be seen.
pub fn announce(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// ‖a − b‖ / ‖b‖
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
    let diff = norm(&|i| f64::from(a[i]) - f64::from(b[i]));
    if diff == 0.0 { 0.0 } else { diff / norm(&|i| f64::from(b[i])).max(1e-12) }
}

/// What every source holds: its own numbers, by its name, so that no layer is like another.
fn value(graph: &Graph, id: NodeId) -> Tensor {
    let (op, ty) = (graph.op(id), graph.ty(id));
    let name = op.copy_of().unwrap_or(graph.name_of(id));
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let seed = hasher.finish() as u32;
    let of = |i: usize| match op {
        Op::Input { label: true, .. } => f64::from((noise(seed, i) * 4.0).floor()),
        // Small enough for gradients of networks that are not trained.
        Op::State { .. } if name == "scaler.scale" => 64.0,
        Op::State { init: Init::Constant(x), .. } => x.get(),
        _ => ty.format.round(0.6 * f64::from(noise(seed, i)) - 0.3, Overflow::Ieee),
    };
    Tensor::new(&ty.dims(), (0..ty.elements()).map(of).collect())
}

/// Compares a plan with its step in f64: every output, and every value that the plan says it has, if it rounds nothing.
pub fn check_places(name: &str, compiled: &Compiled, tolerance: f64) {
    let (step, planned) = (&compiled.step, &compiled.planned);
    let of = |graph: &Graph| evaluate(graph, |id| value(graph, id));
    let (expected, got) = (of(step), of(&planned.graph));
    let near = |what: &str, id: NodeId, place: NodeId| {
        let narrow = |x: &Tensor| x.data.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let d = distance(&narrow(&got[place.index()]), &narrow(&expected[id.index()]));
        assert!(d < tolerance, "{name}: {what} `{}` is off by {d:e}", step.name_of(id));
    };
    for o in step.outputs() {
        let place = planned.graph.output(&o.name, o.role).unwrap_or_else(|| panic!("{name}: no output `{}`", o.name));
        near("output", o.node, place);
    }
    let is_copy = |name: &str| {
        planned.graph.find(name).is_some_and(|id| matches!(planned.graph.op(id), Op::State { init: Init::Copy(_), .. }))
    };
    let own = planned.graph.outputs().iter().filter(|o| !is_copy(&o.name)).count();
    assert_eq!(own, step.outputs().len(), "{name}");
    // What is rounded may be lost to zero on the way.
    if compiled.planned.graph.ids().any(|id| compiled.planned.graph.ty(id).format.is_low()) {
        return;
    }
    let places = step.ids().zip(&planned.places).filter_map(|(id, place)| Some((id, (*place)?)));
    for (id, place) in places.filter(|&(id, _)| step.ty(id).format.is_float()) {
        near("value", id, place);
    }
}

/// A decoder of so many layers, each with names of its own.
pub fn decoder(layers: usize) -> String {
    let mut text = "model decoder { input x: f32[batch, 16, 32] label y: f32[batch, 16, 32]\n".to_owned();
    let mut x = "x".to_owned();
    for i in 0..layers {
        text += &format!(
            "param q{i}: f32[32, 96] = normal(0.2) param o{i}: f32[32, 32] = normal(0.2)
             param a{i}: f32[32, 128] = normal(0.2) param b{i}: f32[128, 32] = normal(0.2)
             param s{i}: f32[32] = ones param u{i}: f32[32] = zeros
             m{i} = layer_norm({x}, s{i}, u{i}) @ q{i}
             k{i} = slice(m{i}, axis=2, start=0, stop=32) l{i} = slice(m{i}, axis=2, start=32, stop=64)
             p{i} = softmax(matmul(k{i}, l{i}, t=nt) * 0.2)
             r{i} = matmul(p{i}, slice(m{i}, axis=2, start=64, stop=96)) @ o{i} + {x}
             x{i} = gelu(r{i} @ a{i}) @ b{i} + r{i}\n"
        );
        x = format!("x{i}");
    }
    text + &format!("loss = mse({x}, y) }}")
}
