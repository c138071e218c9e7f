//! Snapshots of rewrites, for people to review: the step, the graph chosen from the e-graph, its kernels, its CUDA.
//!
//! Each file in `tests/rewrites/` is a model under a header line `# test rewrite policy=o1 format=f16 target=sm_90`.

mod common;

use mantissa::format::Format;
use mantissa::ir::{text, verify};
use mantissa::lower::{cuda::generate, lower, print_program};
use mantissa::model::Model;
use mantissa::plan::{Policy, print_table};
use mantissa::rewrite::RuleSet;
use mantissa::train::{Optimizer, Settings};

/// Settings from a header's `key=value` words.
fn settings(header: &str) -> Settings {
    let get = |key: &str| header.split_whitespace().find_map(|w| w.strip_prefix(key).and_then(|w| w.strip_prefix('=')));
    let mut s = Settings::default();
    s.sizes.insert("batch".into(), 16);
    s.policy = get("policy").map_or(s.policy, |p| p.parse::<Policy>().unwrap());
    s.low = get("format").map_or(s.low, |f| f.parse::<Format>().unwrap());
    s.target = get("target").map_or(s.target, str::to_owned);
    if get("optimizer") == Some("sgd") {
        s.recipe.optimizer = Optimizer::Sgd { lr: 0.1, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    }
    s
}

#[test]
fn rewrites() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rewrites");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "mir"))
        .collect();
    files.sort();
    assert!(files.len() >= 4, "the corpus is there");
    let rules = RuleSet::builtin().unwrap();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).unwrap();
        let settings = settings(source.lines().next().unwrap());
        let model = Model::from_graph(text::parse(&source, &name).unwrap_or_else(|e| panic!("{}", e.render(false))));
        let compiled = settings.compile(&model, &rules, None).unwrap();
        let program = lower(verify(&compiled.planned.graph).unwrap()).unwrap();
        insta::assert_snapshot!(format!("{name}.1_step"), text::print(&compiled.step));
        insta::assert_snapshot!(format!("{name}.2_plan"), text::print(&compiled.planned.graph));
        insta::assert_snapshot!(
            format!("{name}.3_table"),
            print_table(&compiled.planned, &settings.request().unwrap()).unwrap()
        );
        insta::assert_snapshot!(format!("{name}.4_kernels"), print_program(&program));
        insta::assert_snapshot!(format!("{name}.5_cuda"), generate(&program).unwrap().source);
    }
}
