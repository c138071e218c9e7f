//! The text form: what is printed reads back, and no input makes the parser panic.

mod common;

use common::MODELS;
use mantissa::ir::text::{parse, print};
use proptest::prelude::*;

#[test]
fn models_round_trip() {
    for (name, source) in MODELS {
        let graph = parse(source, name).unwrap_or_else(|e| panic!("{}", e.render(false)));
        let text = print(&graph);
        let again = parse(&text, name).unwrap_or_else(|e| panic!("{}", e.render(false)));
        assert_eq!(print(&again), text, "{name}");
        assert!(graph == again);
    }
}

#[test]
fn names_that_are_no_words_survive() {
    let source = "model `a model` { input `x/0:1`: f32[batch] param input_: f32[1] = normal(0.02) `y y` = `x/0:1` * input_ output `y y` }";
    let graph = parse(source, "names").unwrap_or_else(|e| panic!("{}", e.render(false)));
    assert!(graph == parse(&print(&graph), "names").unwrap());
}

/// The message, the position and the hint of an error.
fn complaint(source: &str) -> String {
    parse(source, "m.mir").expect_err("this must not parse").render(false)
}

#[test]
fn errors_show_the_place() {
    insta::assert_snapshot!("undefined_name", complaint("model m {\n  input labels: f32[2]\n  y = relu(lables)\n}"));
    insta::assert_snapshot!(
        "shape_error",
        complaint("model m {\n  input x: f32[2, 3]\n  param w: f32[4, 5] = ones\n  y = relu(x @ w)\n}")
    );
    insta::assert_snapshot!("syntax_error", complaint("model m {\n  input x f32[2]\n}"));
    insta::assert_snapshot!("unknown_operation", complaint("model m {\n  input x: f32[2]\n  y = frobnicate(x)\n}"));
    insta::assert_snapshot!("declared_type", complaint("model m {\n  input x: f32[2]\n  y: f32[3] = x + 1\n}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_parser_panic(text in "\\PC{0,80}") {
        let _ = parse(&text, "fuzz");
    }

    #[test]
    fn no_arrangement_of_tokens_makes_the_parser_panic(words in prop::collection::vec(prop::sample::select(vec![
        "model", "m", "{", "}", "input", "x", ":", "f32", "[", "]", "2", "batch", "param", "=", "zeros", "relu", "(", ")", ",", "+", "@", "-", "axis", "1e5", "sum", "output", "concat", "slice", "start", "stop", "softmax", "inf", "`q`", "reshape", "dims",
    ]), 0..40)) {
        let text = format!("model m {{ input x: f32[2, batch] {}", words.join(" "));
        let _ = parse(&text, "fuzz");
    }
}

/// What a model's author calls `t0` keeps that name, whatever the graph makes up beside it.
#[test]
fn a_name_that_looks_made_up_is_kept_where_it_was_given() {
    let source = "model m { input x: f32[2]  param t0: f32[2] = zeros  y = relu(x * t0) + t0  output y }";
    let graph = parse(source, "m.mir").unwrap();
    let given = graph.find("t0").expect("the parameter");
    assert!(graph.op(given).is_source() && !graph.is_auto_named(given));
    let made_up = graph.ids().filter(|&id| graph.is_auto_named(id)).count();
    assert_eq!(made_up, 2, "{}", print(&graph));
    assert_eq!(parse(&print(&graph), "again").unwrap(), graph);
}
