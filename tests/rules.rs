//! Every rule: checked numerically, seen to fire, and errors of rule files.

mod common;

use common::{MODELS, compile};
use mantissa::cost::Target;
use mantissa::format::Format;
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::rewrite::check::check_rule;
use mantissa::train::{Optimizer, Settings};
use std::collections::BTreeSet;

#[test]
fn every_rule_holds_on_random_tensors() {
    for rule in &RuleSet::builtin().unwrap().rules {
        check_rule(rule, 12, 7).unwrap_or_else(|e| panic!("{}: {e}", rule.name));
    }
}

/// Rules of a directory are checked when they are read; those in the binary were, here.
#[test]
fn every_rule_has_a_type() {
    let read = RuleSet::from_dir(std::path::Path::new("rules")).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let names = |set: &RuleSet| set.rules.iter().map(|r| (r.name.clone(), r.text.clone())).collect::<Vec<_>>();
    assert_eq!(names(&read), names(&RuleSet::builtin().unwrap()));
}

/// x * 1 is x, but with a whole number x the 1 makes it an f32: there the rule does not apply.
#[test]
fn a_rule_does_not_apply_where_its_sides_have_other_formats() {
    let source = "model m { input x: f32[4, 4] input i: i64[4, 4] param w: f32[4, 4] = kaiming_uniform
        z = neg(neg(abs(i) * 1)) + 0 loss = mean((x + z) @ w) }";
    let compiled = compile(source, Policy::O1, Format::F16, |_| {});
    let counts: Vec<_> = compiled.planned.phases.iter().flat_map(|p| &p.applied).collect();
    let fired = |name: &str| counts.iter().any(|(rule, n)| rule == name && *n > 0);
    assert!(fired("neg-neg") && fired("add-zero") && !fired("mul-one"));
}

/// Rules that hold for most numbers and are not exact: what masks a whole row, what absorbs another number, ties.
#[test]
fn rules_that_are_nearly_exact_are_found_out() {
    for (name, text) in [
        (
            "finite-mask",
            "(softmax ?a (add ?s (select ?m 0 -3.4028234663852886e38))) => (softmax ?a (select ?m ?s -inf))",
        ),
        ("mask-first", "(softmax ?a (add (select ?m 0 -10000) ?s)) => (softmax ?a (select ?m ?s -inf))"),
        ("absorbed", "(sub (add ?x ?y) ?y) => (mul ?x (add 1 (mul ?y 0)))"),
        ("first-of-equals", "(select (gt ?x ?y) 1 0) => (select (ge ?x ?y) 1 0)"),
        ("sign-of-zero", "(sign ?x) => (select (gt ?x 0) 1 -1)"),
    ] {
        let mut rules = RuleSet::default();
        let loaded = rules.load("recognise", &format!("(rule {name} \"Nearly.\" {text})"), "nearly.rules");
        loaded.unwrap_or_else(|e| panic!("{}", e.render(false)));
        let found = check_rule(&rules.rules[0], 12, 7).expect_err(name);
        assert!(found.contains("the sides differ"), "{name}: {found}");
    }
}

/// Snippets in which the rules fire that no model of the corpus has a place for.
const PLACES: &[(&str, &str)] = &[
    ("recognise", "a = log1p(exp(h)) + log(exp(h) + 1) + log(sigmoid(h)) b = log(softmax(h)) p = relu(relu(a)) + b"),
    ("units", "p = (h * 1 + 0) + (1 * h + (0 + h)) - 0 + h / 1"),
    ("signs", "p = neg(neg(h)) + (h - neg(w)) + (h + neg(w)) + (neg(h) + w)"),
    ("squares", "p = h * h + recip(recip(h)) + 1 / h + recip(sqrt(h))"),
    ("right", "p = h @ transpose(w)"),
    ("right_back", "p = matmul(h, transpose(w), t=nt)"),
    ("left", "p = matmul(transpose(w), w) + 0 * sum(h)"),
    ("bce", "p = log(1 - sigmoid(h))"),
    (
        "gelus",
        "a = (h * 0.5) * (erf(h * 0.7071067811865476) + 1) b = (h * (erf(h / 1.4142135623730951) + 1)) * 0.5 c = (a * 0.5) * (erf(a / 1.4142135623730951) + 1) d = (h * 0.5) * (tanh((h + pow(h, 3) * 0.044715) * 0.7978845608028654) + 1) p = a + b + c + d",
    ),
    (
        "norms",
        "m = mean(h, axes=[1], keep=true) d = h - m s = mean(pow(d, 2), axes=[1], keep=true) a = d / pow(s + 0.001, 0.5) n = mean(x, axes=[0], keep=true) e = x - n b = e * (1 / sqrt(mean(e * e, axes=[0], keep=true) + 0.001)) p = a + b",
    ),
    (
        "rms",
        "a = h * rsqrt(mean(square(h), axes=[1], keep=true) + 0.01) b = x / sqrt(mean(square(x), axes=[1], keep=true) + 0.01) p = a + b",
    ),
    (
        "masks",
        "m = gt(x, 0) a = softmax(h + select(m, 0, -inf)) b = softmax(select(m, 0, -inf) + h) c = softmax(h + select(m, -inf, 0), axis=0) p = a + b + c",
    ),
    ("nan", "s = softmax(h) p = select(is_nan(s), 0, s)"),
    (
        "whole",
        "a = convert(h, format=i8) b = convert(h, format=i16) c = convert(h, format=i32) d = convert(h, format=u8) e = convert(h, format=u16) f = convert(h, format=u32) g = convert(h, format=u64) p = a + b + c + d + e + f + g + h",
    ),
    ("rounded", "p = tanh(convert(h, format=f16)) @ w + tanh(convert(h, format=bf16)) @ v"),
    ("scaled", "p = tanh(h) @ w"),
    ("double", "p = convert(h, format=f64) * h"),
    (
        "attention",
        "q = reshape(h, dims=[1, 1, 2, 8]) k = reshape(x, dims=[1, 1, 2, 8]) p = reshape(attention(q, k, tanh(q)), dims=[4, 4])",
    ),
    (
        "masked",
        "q = reshape(h, dims=[1, 1, 2, 8]) k = reshape(x @ w, dims=[1, 1, 2, 8]) m = reshape(slice(x, axis=0, start=0, stop=1), dims=[1, 1, 2, 2]) p = reshape(attention(q, k, tanh(q), m), dims=[4, 4])",
    ),
    ("twice", "p = transpose(transpose(h) ) + w"),
];

#[test]
fn every_rule_fires_in_the_corpus() {
    let rules = RuleSet::builtin().unwrap();
    let mut silent: BTreeSet<&str> = rules.rules.iter().map(|r| r.name.as_str()).collect();
    let places = PLACES.iter().map(|(name, body)| {
        (*name, format!("model {name} {{ input x: f32[4, 4] param w: f32[4, 4] = kaiming_uniform param v: f32[4, 4] = kaiming_uniform h = x @ v {body} loss = mean(p) }}"))
    });
    let corpus = MODELS.iter().map(|(n, s)| (*n, (*s).to_owned())).chain(places);
    let mut fired: BTreeSet<String> = BTreeSet::new();
    for (name, source) in corpus {
        let sgd = |s: &mut Settings| {
            s.recipe.optimizer = Optimizer::Sgd { lr: 0.1, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
            // Scaled formats are stored where they are asked for.
            if name == "scaled" {
                s.target = "cpu".into();
                s.overrides.names.insert("h".into(), Format::F8E4M3);
            }
        };
        let lists = Format::MULTIPLIED.map(|f| (Policy::O1, f));
        for (policy, low) in lists.into_iter().chain([(Policy::O3, Format::F16)]) {
            // One model will do for what depends on the policy alone.
            if (policy, low) != (Policy::O1, Format::F16)
                && !matches!(name, "mlp" | "convnet" | "rounded" | "attention" | "masked")
            {
                continue;
            }
            let compiled = compile(&source, policy, low, sgd);
            let counts = compiled.planned.phases.iter().flat_map(|p| &p.applied);
            fired.extend(counts.filter(|(_, n)| *n > 0).map(|(name, _)| name.clone()));
        }
    }
    silent.retain(|r| !fired.contains(*r));
    assert!(silent.is_empty(), "these rules never fire: {silent:?}");
}

#[test]
fn saturation_is_small_and_deterministic() {
    let plan = || compile(MODELS[0].1, Policy::O1, Format::F16, |_| {});
    let (a, b) = (plan(), plan());
    assert_eq!(mantissa::ir::text::print(&a.planned.graph), mantissa::ir::text::print(&b.planned.graph));
    let last = a.planned.phases.last().unwrap();
    let summary = format!("{} e-nodes in {} classes from {} values", last.nodes, last.classes, a.step.len());
    insta::assert_snapshot!("mlp_saturation", summary);
}

fn complaint(text: &str) -> String {
    RuleSet::default().load("simplify", text, "bad.rules").expect_err("this must not load").render(false)
}

/// Attributes of a pattern are what the table says, however they are spelled; a variable is a whole word.
#[test]
fn words_of_rules_are_read_as_what_they_are() {
    for (text, why) in [
        ("(rule a \"doc\" f32 => f16)", "the left side must be an operation"),
        ("(rule a \"doc\" (pass (mul ?x (get ?b))) ~> (pass (mul (get ?b) ?x)))", "must not `pass` on its right side"),
        ("(rule a \"doc\" (matmul fp16 nn ?a ?b) => (matmul f32 nn ?a ?b))", "is not a format"),
        ("(rule a \"doc\" (sum axes=yes keep=false ?x) => ?x)", "is not a list of whole numbers"),
        ("(rule a \"doc\" (sum axes=[0] keep=3 ?x) => ?x)", "is not true or false"),
    ] {
        assert!(complaint(text).contains(why), "{text}: {}", complaint(text));
    }
    let mut doubled = "(rule a-?z \"doc\" (neg (neg ?x)) => ?x)".to_owned();
    for (from, to) in ('a'..='y').zip('b'..='z').collect::<Vec<_>>().into_iter().rev() {
        doubled = format!("(for ?{from} in (?{to}?{to}) {doubled})");
    }
    let far = doubled.replace("a-?z", "a-?a");
    assert!(complaint(&far).contains("writes out too much"), "{}", complaint(&far));
    let mut rules = RuleSet::default();
    let text = "(for ?f in (f16 bf16) (rule r-?f \"doc\" (mul ?factor ?x) => (mul ?x ?factor)))
        (rule sums \"doc\" (sum axes=[0,1]   keep=false (add ?x 0)) => (sum axes=[0, 1] keep=false ?x))";
    rules.load("simplify", text, "words.rules").unwrap_or_else(|e| panic!("{}", e.render(false)));
    assert_eq!(rules.rules.len(), 3);
    let source = "model m { input x: f32[4, 4] param w: f32[4, 4] = kaiming_uniform loss = sum((x @ w) + 0) }";
    let model = mantissa::model::Model::from_graph(mantissa::ir::text::parse(source, "m.mir").unwrap());
    rules.rules.extend(RuleSet::builtin().unwrap().rules.into_iter().filter(|r| r.phase != "simplify"));
    let planned = Settings::default().compile(&model, &rules, None).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let counts: Vec<_> = planned.planned.phases.iter().flat_map(|p| &p.applied).collect();
    assert!(counts.iter().any(|(rule, n)| rule == "sums" && *n > 0), "{counts:?}");
}

#[test]
fn rule_file_errors_show_the_place() {
    insta::assert_snapshot!("unbound", complaint("(rule a \"doc\"\n  (mul ?x 1) => ?y)"));
    insta::assert_snapshot!(
        "unknown_condition",
        complaint("(rule a \"doc\"\n  (mul ?x 1) => ?x\n  when (fitz f16 ?x))")
    );
    insta::assert_snapshot!(
        "ill_typed",
        complaint("(rule a \"doc\"\n  (relu ?x) =>\n  (neg (sum axes=[0] keep=false ?x)))")
    );
    insta::assert_snapshot!("too_few_attributes", complaint("(rule a \"doc\" (sum ?a ?x) => ?x)"));
    insta::assert_snapshot!("attribute_of_another", complaint("(rule a \"doc\" (gather dims=[0] ?x ?i) => ?x)"));
    let many = |inside: String, v: &str| format!("(for {v} in (a b c d e f g h) {inside})");
    let rule = "(rule x?f?g?h?i \"doc\" (neg (neg ?x)) => ?x)".to_owned();
    let deep = ["?f", "?g", "?h", "?i"].into_iter().fold(rule, many);
    assert!(complaint(&deep).contains("writes out more than 1000 rules"));
    assert!(complaint("(for ?f in () (rule a?f \"doc\" (neg (neg ?x)) => ?x))").contains("has no words"));
    insta::assert_snapshot!("no_such_set", complaint("(for ?f in narow (rule a-?f \"doc\" (neg ?x) => ?x))"));
    insta::assert_snapshot!("unknown_operation_in_rule", complaint("(rule a \"doc\" (mull ?x 1) => ?x)"));
    insta::assert_snapshot!("rounding_passes", complaint("(rule a \"doc\" (pass ?v) ~> (pass (neg ?v)))"));
    insta::assert_snapshot!("algebra_on_edges", complaint("(rule a \"doc\" (pass (mul ?x 1)) => ?x)"));
    insta::assert_snapshot!("unclosed", complaint("(rule a \"doc\" (mul ?x 1 => ?x)"));
    insta::assert_snapshot!("wrong_sort", complaint("(rule a \"doc\" (cast ?f (mul ?x 1)) => ?x)"));
    insta::assert_snapshot!("no_doc", complaint("(rule a (mul ?x 1) => ?x)"));
}

#[test]
fn a_limit_is_reported_with_the_phase_and_the_rule() {
    let mut rules = RuleSet::builtin().unwrap();
    rules
        .load("simplify", "(rule grow \"Without end.\" (tanh ?x) => (tanh (neg (neg (add ?x 1)))))", "grow.rules")
        .unwrap();
    let g = mantissa::ir::text::parse("model m { input x: f32[4] p = tanh(x) }", "m").unwrap();
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("sm_90").unwrap());
    let limits = plan(&g, &request, &rules).unwrap().limits();
    let said = limits.first().expect("a rule that grows without end meets a limit");
    assert!(said.contains("phase `simplify` was cut short at") && said.contains("by rule `"), "{said}");
}
