use mantissa::*;
use std::collections::BTreeMap;
// scratch bench: MLP dims batch n
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dims: Vec<usize> = args[1].split(',').map(|s| s.parse().unwrap()).collect();
    let batch: usize = args[2].parse().unwrap();
    let policy: plan::Policy = args[3].parse().unwrap();
    let n: usize = args.get(4).map_or(0, |s| s.parse().unwrap());
    let mut t = format!("model mlp {{\n input x: f32[batch, {}]\n label y: i64[batch]\n", dims[0]);
    let mut h = "x".to_string();
    for i in 0..dims.len()-1 {
        t += &format!(" param w{i}: f32[{}, {}] = kaiming_uniform\n param b{i}: f32[{}] = zeros\n", dims[i], dims[i+1], dims[i+1]);
        let e = format!("{h} @ w{i} + b{i}");
        t += &if i + 2 < dims.len() { format!(" h{i} = relu({e})\n") } else { format!(" logits = {e}\n") };
        h = format!("h{i}");
    }
    t += " loss = cross_entropy(logits, y)\n}";
    let g = ir::text::parse(&t, "mlp").unwrap();
    let model = model::Model { graph: g, weights: BTreeMap::new() };
    let mut s = train::Settings { policy, ..Default::default() };
    s.sizes.insert("batch".into(), batch);
    s.recipe.optimizer = train::Optimizer::Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let rules = rewrite::RuleSet::builtin().unwrap();
    let t0 = std::time::Instant::now();
    let c = s.compile(&model, &rules, None).unwrap();
    eprintln!("planned in {:?}", t0.elapsed());
    let program = lower::lower(ir::verify(&c.planned.graph).unwrap()).unwrap();
    if n == 0 {
        let src = lower::cuda::generate(&program).unwrap().source;
        for arch in ["sm_75", "sm_80", "sm_89", "sm_90a"] {
            match run::cuda::compile(&src, arch) { Ok((b, log)) => { println!("{arch}: {} bytes", b.len()); if arch == "sm_90a" { println!("{}", log.lines().filter(|l| l.contains("registers") || l.contains("spill")||l.contains("Compiling")).collect::<Vec<_>>().join("\n")); } } Err(e) => { println!("{e}"); std::process::exit(1) } }
        }
        return;
    }
    let t0 = std::time::Instant::now();
    let mut r = run::cuda::CudaRunner::new(program, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("cuda ready in {:?}", t0.elapsed());
    use run::Device;
    let g = c.planned.graph.clone();
    for id in g.sources() { if let ir::Op::Param{init,ty} | ir::Op::State{init,ty} = g.op(id) { let nm = g.name_of(id); if let Some(v) = run::initialise(nm, init, ty, 1) { r.write(nm, &v).unwrap(); } } }
    for id in g.sources() { if let ir::Op::State{init: ir::Init::Copy(of),..} = g.op(id) { let v = r.read(of).unwrap(); r.write(g.name_of(id), &v).unwrap(); } }
    for id in g.sources() { if let ir::Op::Input{label,ty,..} = g.op(id) { let k = ty.elements(); if *label { let v: Vec<i64> = (0..k).map(|i| (i * 7 % dims[dims.len()-1]) as i64).collect(); r.write_bytes(g.name_of(id), bytemuck::cast_slice(&v)).unwrap(); } else { let v: Vec<f32> = (0..k).map(|i| ((i as u32).wrapping_mul(2654435761) >> 8) as f32 / 16777216.0).collect(); r.write(g.name_of(id), &v).unwrap(); } } }
    let mut ms = vec![]; for _ in 0..7 { ms.push(r.time(n / 10 + 3, n).unwrap()); }
    ms.sort_by(f64::total_cmp);
    println!("{{\"work\": \"mantissa {}\", \"policy\": \"{policy}\", \"ms\": {:.4}, \"min\": {:.4}, \"max\": {:.4}, \"loss\": {}, \"scale\": {:?}}}", args[1], ms[3], ms[0], ms[6], r.read("loss").unwrap()[0], r.read("scaler.scale").map(|v| v[0]).ok());
    println!("{}", plan::print_table(&c.planned, &s.request().unwrap()).unwrap().lines().filter(|l| !l.starts_with("       ")).collect::<Vec<_>>().join("\n"));
}
