//! Random programs against the reference evaluator: some hundred here, more in the second layer
//! (`examples/random_programs.rs`, which also makes a failure small).

mod common;
mod programs;

use mantissa::ir::text;
use mantissa::lower::Program as Lowered;
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use programs::draw::random_bytes;
use programs::generate;
use programs::judge::{Open, Reference, Verdict, Way, judge, on_cpu};

/// What becomes of some programs; those that are wrong are shown.
fn verdicts(seeds: std::ops::Range<u64>, way: Way, open: Open) -> Vec<Verdict> {
    let rules = RuleSet::builtin().unwrap();
    let one =
        |seed| match Reference::new(generate(&random_bytes(seed))).unwrap_or_else(|e| panic!("program {seed}: {e}")) {
            Some(reference) => judge(&reference, way.of_program(seed), &rules, open),
            None => Verdict::Meaningless,
        };
    seeds.map(one).collect()
}

fn agree(seeds: std::ops::Range<u64>, way: Way) {
    let found = verdicts(seeds.clone(), way, &on_cpu);
    for (seed, verdict) in seeds.clone().zip(&found) {
        let text = || text::print(&generate(&random_bytes(seed)).graph);
        assert!(!matches!(verdict, Verdict::Wrong(_)), "program {seed}, {way:?}: {verdict:?}\n{}", text());
    }
    let judged = found.iter().filter(|v| matches!(v, Verdict::Agrees)).count();
    assert!(judged * 3 > found.len() * 2, "only {judged} of {} programs under {way:?} say anything", found.len());
}

#[test]
fn programs_in_f32_agree() {
    agree(0..160, Way::FP32);
}

#[test]
fn programs_in_narrow_formats_agree() {
    for (i, way) in Way::NARROW.into_iter().enumerate() {
        let first = 1000 + 20 * i as u64;
        agree(first..first + 20, way);
    }
}

/// The fault that was there once: `concat` of a `pad` along the same axis read its parts at the wrong positions, because the
/// pad's guard knew nothing of the position along the concatenation.
#[test]
fn the_fault_put_back_is_found() {
    let faulty = |mut program: Lowered| -> mantissa::error::Result<Box<dyn Device>> {
        for load in program.calls.iter_mut().flat_map(|c| &mut c.kernel.body_mut().loads) {
            if load.view.guards.len() > 1 {
                load.view.guards[0].terms.clear();
            }
        }
        on_cpu(program)
    };
    let wrong = (0..160).find(|&seed| matches!(verdicts(seed..seed + 1, Way::FP32, &faulty)[..], [Verdict::Wrong(_)]));
    assert!(wrong.is_some(), "none of 160 programs shows the fault");
}
