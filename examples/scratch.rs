use mantissa::*;
use std::collections::BTreeMap;
fn main() {
    let text = std::fs::read_to_string("examples/digits/mlp.mir").unwrap();
    let g = ir::text::parse(&text, "mlp.mir").map_err(|e| { eprint!("{}", e.render(false)); }).unwrap();
    let g = g.bind(&BTreeMap::from([("batch".to_string(), 32)])).unwrap();
    let task = train::Task::new(g, None).unwrap();
    let policy: plan::Policy = std::env::args().nth(1).unwrap_or("o1".into()).parse().unwrap();
    let step = train::build_step(&task, &train::Recipe::default(), policy, format::Format::F16, 1000).unwrap();
    println!("{}", ir::text::print(&step));
    let request = plan::Request { policy, low: format::Format::F16, target: cost::Target::named(&std::env::args().nth(2).unwrap_or("sm_90".into())).unwrap() };
    let rules = rewrite::RuleSet::builtin().map_err(|e| { eprint!("{}", e.render(false)); }).unwrap();
    let t = std::time::Instant::now();
    let p = plan::plan(&step, &request, &rules).unwrap();
    println!("{:?} {} evals", t.elapsed(), p.evaluations);
    for ph in &p.phases { println!("{:?}", ph); }
    println!("{}", ir::text::print(&p.graph));
    println!("{}", plan::print_table(&p, &request).unwrap());
}
