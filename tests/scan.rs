//! Loops: text, values against the same graph written out step by step, gradients against finite differences, and plans
//! against the reference evaluator.

use mantissa::autodiff::gradients;
use mantissa::ir::{Graph, NodeId, Op, Tensor, evaluate, text, verify};

/// A cell with everything that a gradient goes through: a product with a shared matrix, a bias, a scale of its own shape,
/// a reduction, two states (one of which the other reads), and values that depend on the position.
fn cell(steps: usize, reverse: bool) -> Graph {
    let model = format!(
        "model loops {{
           input x: f32[{steps}, 2, 3]
           param h0: f32[2, 4] = normal(1)
           param c0: f32[2, 4] = normal(1)
           param w: f32[3, 4] = normal(1)
           param r: f32[4, 4] = normal(1)
           param b: f32[4] = normal(1)
           param s: f32[2, 4] = normal(1)
           body cell {{
             input x: f32[2, 3]
             state h: f32[2, 4] = data
             state c: f32[2, 4] = data
             param w: f32[3, 4] = data
             param r: f32[4, 4] = data
             param b: f32[4] = data
             param s: f32[2, 4] = data
             z = x @ w + h @ r + b
             gate = sigmoid(z)
             next = gate * c + tanh(z * s)
             y = gate * mean(next, axes=[1], keep=true)
             output y
             update h = tanh(next) * s
             update c = next
           }}
           ys = scan(x, h0, c0, w, r, b, s, body=cell, steps=[{steps}], reverse={reverse}, stack=y)
           zs = scan(x, h0, c0, w, r, b, s, body=cell, steps=[{steps}], reverse={reverse}, stack=z)
           last = scan(x, h0, c0, w, r, b, s, body=cell, steps=[{steps}], reverse={reverse}, last=h)
           loss = sum(ys * ys) + sum(sin(zs)) + sum(last * last * last)
         }}"
    );
    text::parse(&model, "loops.mir").unwrap()
}

/// A cell that multiplies two operands which all steps share: their gradients are products with an operand that has no
/// positions.
fn shared_product() -> Graph {
    let model = "model shared {
           input x: f32[3, 2, 3]
           param h0: f32[2, 4] = normal(1)
           param a: f32[3, 5] = normal(1)
           param b: f32[5, 4] = normal(1)
           body cell {
             input x: f32[2, 3]
             state h: f32[2, 4] = data
             param a: f32[3, 5] = data
             param b: f32[5, 4] = data
             y = tanh(x @ (a @ b) + h * sum(b))
             output y
             update h = y
           }
           ys = scan(x, h0, a, b, body=cell, steps=[3], stack=y)
           loss = sum(ys * ys)
         }";
    text::parse(model, "shared.mir").unwrap()
}

fn values(g: &Graph, seed: usize) -> impl Fn(NodeId) -> Tensor {
    let dims: Vec<Vec<usize>> = g.ids().map(|id| g.ty(id).dims()).collect();
    move |id| {
        let mut n = seed * 1000 + id.index() * 100;
        Tensor::from_fn(&dims[id.index()], |_| {
            n += 1;
            ((n * 7919 % 1009) as f64 / 1009.0 - 0.5) * 1.6
        })
    }
}

#[test]
fn text_reads_back() {
    let g = cell(3, true);
    let printed = text::print(&g);
    assert_eq!(text::print(&text::parse(&printed, "again").unwrap()), printed);
    assert!(printed.contains("body cell {"), "{printed}");
    assert_eq!(printed.matches("body cell {").count(), 1, "one loop, one body: {printed}");
}

#[test]
fn gradients_are_finite_differences() {
    let cells =
        [(1, false), (2, true), (4, false), (4, true)].map(|(n, reverse)| (format!("{n} {reverse}"), cell(n, reverse)));
    for (case, mut g) in cells.into_iter().chain([("shared".to_owned(), shared_product())]) {
        let loss = g.find("loss").unwrap();
        let wrt: Vec<NodeId> = g.sources().collect();
        let one = g.constant(1.0).unwrap();
        let forward = g.clone();
        let found = gradients(&mut g, loss, one, &wrt).unwrap();
        verify(&g).unwrap();
        let base = values(&g, 1);
        let all = evaluate(&g, &base);
        for &source in &wrt {
            let gradient = &all[found[&source].index()];
            for i in 0..gradient.data.len() {
                let at = |h: f64| {
                    let moved = evaluate(&forward, |id| {
                        let mut v = base(id);
                        if id == source {
                            v.data[i] += h;
                        }
                        v
                    });
                    moved[loss.index()].data[0]
                };
                let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                let exact = gradient.data[i];
                let name = g.name_of(source);
                assert!(
                    (numeric - exact).abs() <= 1e-6 * (1.0 + exact.abs()),
                    "{case}: d {name}[{i}] is {exact}, numerically {numeric}"
                );
            }
        }
    }
}

#[test]
fn products_by_shared_weights_leave_the_loop() {
    let mut g = cell(4, false);
    let (loss, w) = (g.find("loss").unwrap(), g.find("w").unwrap());
    let one = g.constant(1.0).unwrap();
    let found = gradients(&mut g, loss, one, &[w]).unwrap();
    assert!(matches!(g.op(found[&w]), Op::MatMul { .. }), "the weight's gradient is one product over all steps");
}

#[test]
fn mistakes_are_said() {
    let bad = |from: &str, to: &str| {
        let text = text::print(&cell(3, false)).replacen(from, to, 1);
        text::parse(&text, "loops.mir").map(|_| ()).unwrap_err().to_string()
    };
    for (from, to, says) in [
        ("body=cell", "body=sell", "there is no `body sell"),
        ("stack=y", "stack=why", "the body has no value `why`"),
        ("last=h", "last=x", "the body has no state `x`"),
        ("steps=[3]", "steps=[2]", "takes f32[2, 2, 3], not f32[3, 2, 3]"),
        ("update h = ", "output again = ", "the body never updates `h`"),
        ("scan(x, ", "scan(", "the body has 7 sources for 6 operands"),
    ] {
        let error = bad(from, to);
        assert!(error.contains(says), "{from} -> {to}: {error}");
    }
}
