mod common;
use common::*;
use mantissa::format::{Format, widen};
use mantissa::ir::*;
use mantissa::lower::lower;
use mantissa::plan::Policy;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
#[test]
fn scratch() {
    let head = "input x: f32[batch, 2, 7, 6] label y: f32[batch, 4, 7, 6] param w: f32[4, 2, 3, 3] = normal(0.3) param g: f32[4, 1, 1] = ones c = conv(x, w, strides=[1, 1], lo=[1, 1], hi=[1, 1])";
    let pool = "p = reduce_max(window(window(c, axis=2, size=3, stride=2, lo=1, hi=1, fill=-inf), axis=4, size=3, stride=2, lo=1, hi=1, fill=-inf), axes=[3, 5])";
    for (name, body) in [
        ("conv", format!("{head} loss = mse(c, y)")),
        ("norm", format!("{head} p = standardise(c, axes=[0, 2, 3], eps=1e-5) * g loss = mse(p, y)")),
        ("pool", format!("{head} {pool} loss = mean(square(p))")),
        ("pool1", format!("{head} p = mean(window(c, axis=2, size=2, stride=2), axes=[3]) loss = mean(square(p))")),
        (
            "pool1m",
            format!("{head} p = reduce_max(window(c, axis=2, size=2, stride=2), axes=[3]) loss = mean(square(p))"),
        ),
        (
            "pool2",
            format!(
                "{head} p = mean(window(window(c, axis=2, size=2, stride=2), axis=4, size=2, stride=2), axes=[3, 5]) loss = mean(square(p))"
            ),
        ),
        (
            "up",
            format!(
                "{head} param v: f32[4, 2, 2, 2] = normal(0.3) q = conv_input(c, v, strides=[2, 2], groups=2, lo=[1, 0], hi=[1, 0], extents=[12, 12]) loss = mean(square(q))"
            ),
        ),
        (
            "cat",
            format!(
                "{head} k = concat(c, slice(c, axis=1, start=0, stop=0), axis=1) q = concat(k, tanh(slice(k, axis=2, start=0, stop=1)), axis=2) loss = mean(square(q))"
            ),
        ),
        ("full", MODELS[12].1.split_once('{').unwrap().1.rsplit_once('}').unwrap().0.to_owned()),
        (
            "full1",
            MODELS[12].1.split_once('{').unwrap().1.split_once(" q = ").unwrap().0.to_owned()
                + " loss = mean(square(p))",
        ),
        (
            "full2",
            MODELS[12].1.split_once('{').unwrap().1.split_once(" k = ").unwrap().0.to_owned()
                + " loss = mean(square(m))",
        ),
        (
            "full3",
            MODELS[12].1.split_once('{').unwrap().1.split_once(" logits = ").unwrap().0.to_owned()
                + " loss = mean(square(k))",
        ),
    ] {
        let compiled = compile(&format!("model {name} {{ {body} }}"), Policy::Fp32, Format::F16, |_| {});
        let graph = &compiled.planned.graph;
        let program = lower(verify(graph).unwrap()).unwrap();
        let text = mantissa::lower::print_program(&program);
        let mut cpu = CpuRunner::new(program);
        initialise_all(&mut cpu, graph, 3);
        feed(&mut cpu, graph, 1, compiled.classes().unwrap_or(1));
        let values = evaluate(graph, |id| {
            let ty = graph.ty(id);
            let bytes = cpu.read_bytes(graph.name_of(id)).unwrap();
            let mut wide = vec![0.0; ty.elements()];
            widen(ty.format, &bytes, &mut wide);
            Tensor::new(&ty.dims(), wide.into_iter().map(f64::from).collect())
        });
        cpu.run().unwrap();
        let mut worst = 0f64;
        for o in graph.outputs() {
            let expected: Vec<f32> = values[o.node.index()].data.iter().map(|&v| v as f32).collect();
            let d = distance(&cpu.read(&o.name).unwrap(), &expected);
            if !o.name.starts_with("optimizer.") && d > 1e-5 {
                println!("   {} {d}", o.name);
            }
            worst = worst.max(d);
        }
        println!("{name} {worst:e}");
        if std::env::var("SHOW").is_ok_and(|s| s == name) {
            println!("{text}");
        }
    }
}
