//! How far from the best plan the search lands: small graphs are solved by trying every choice.
//!
//! Every combination of members that a plan can reach is costed by the same cost model, whole, and the best of those
//! within the budget is what the search is measured by.

use super::alike::Alike;
use super::extract::{cheapest, members};
use super::live::Live;
use super::members::{Choice, Members};
use super::saturated::Saturated;
use super::search::Search;
use super::sketch::{Key, Sketch};
use crate::cost::Target;
use crate::format::{Format, Formats, Spread};
use crate::ir::{Graph, text};
use crate::plan::evidence::Evidence;
use crate::plan::evidence::{Budget, Calibration, Shares};
use crate::plan::{Policy, Request, paint};
use crate::rewrite::{RuleSet, Sort};
use egg::Id;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Graphs with more combinations than this are left out.
const COMBINATIONS: usize = 8_000;
const GRAPHS: usize = 40;

/// A part of a step: products, pointwise arithmetic, reductions and transposes with shared results, on tensors large enough
/// that memory costs as much as launches.
fn random_graph(rng: &mut ChaCha8Rng) -> Graph {
    let mut text = "model random {\n  input x: f32[512, 512]\n".to_owned();
    let mut values = vec!["x".to_owned()];
    for i in 0..rng.random_range(3..14) {
        let recent = values.len().saturating_sub(3);
        let a = &values[rng.random_range(recent..values.len())];
        let b = &values[rng.random_range(0..values.len())];
        let made = match rng.random_range(0..10) {
            0 | 1 => {
                text += &format!("  param w{i}: f32[512, 512] = zeros\n");
                format!("{a} @ w{i}")
            }
            2 => format!("{a} - sum({a}, axes=[1], keep=true)"),
            3 => format!("transpose({a}, perm=[1, 0])"),
            4 | 5 => format!("exp({a})"),
            6 => format!("tanh({a})"),
            7 => format!("{a} * {b}"),
            _ => format!("{a} + {b}"),
        };
        text += &format!("  v{i} = {made}\n");
        values.push(format!("v{i}"));
    }
    text::parse(&(text + "}"), "random").unwrap()
}

/// Ranges that every format holds, and noise drawn at random: some values may be rounded as one likes, some not at all.
fn random_calibration(g: &Graph, formats: Formats, rng: &mut ChaCha8Rng) -> Calibration {
    let mut evidence = Evidence::default();
    let (mut values, mut operands) = (BTreeMap::new(), BTreeMap::new());
    let mut shares = || -> Shares {
        let share = 10f64.powf(rng.random_range(-4.0..0.5));
        formats.iter().map(|f| (f, share * if f == Format::Bf16 { 64.0 } else { 1.0 })).collect()
    };
    for id in g.ids() {
        evidence.add(g.name_of(id), &Spread::of(&[1.0]));
        values.insert(g.name_of(id).to_owned(), shares());
        if g.op(id).is_product() {
            let of = g.inputs(id).iter().copied().map(|x| (g.name_of(x).to_owned(), shares()));
            operands.insert(g.name_of(id).to_owned(), of.collect());
        }
    }
    Calibration { batches: 1, budget: Budget::default(), loss_scale: 1.0, evidence, values, operands }
}

/// Every choice that differs in what it reaches, none if there are too many.
fn choices(m: &Members) -> Option<Vec<Choice>> {
    let mut out = Vec::new();
    let mut stack = vec![(m.cheapest(), Vec::<Id>::new())];
    while let Some((choice, decided)) = stack.pop() {
        let live = m.reachable(&choice);
        let open = |c: &&Id| m.of(**c).len() > 1 && m.sort(**c) != Sort::Word && !decided.contains(*c);
        // From the root down, so that a choice decides what is left to choose.
        match live.iter().rev().find(open) {
            None => out.push(choice),
            Some(&class) => {
                for member in 0..m.of(class).len() {
                    let (mut next, mut decided) = (choice.clone(), decided.clone());
                    next.set(class, member);
                    decided.push(class);
                    stack.push((next, decided));
                }
            }
        }
        if out.len() > COMBINATIONS || stack.len() > COMBINATIONS {
            return None;
        }
    }
    Some(out)
}

/// Seconds of the best choice within the budget, and of the one that the search finds; none if the graph is too large.
fn solved(g: &Graph, request: &Request) -> Option<(f64, f64)> {
    let saturated = Saturated::new(g.clone(), &paint(g, request), request, &RuleSet::builtin().unwrap()).unwrap();
    let m = members(&saturated, request);
    let all = choices(&m)?;
    let mut search = Search::new(&m, request, Alike::default());
    let mut known: HashMap<Key, Option<f64>> = HashMap::new();
    let mut best = f64::INFINITY;
    for choice in all {
        // Cyclic choices and those that no kernels can run have no cost.
        let Ok(sketch) = Sketch::whole(&m, &choice) else { continue };
        let key = sketch.key().clone();
        let seconds = *known
            .entry(key)
            .or_insert_with(|| search.whole(choice.clone()).ok().map(|costed| costed.estimate.seconds));
        if let Some(s) = seconds
            && s < best
            && (m.noise.is_none() || Live::new(&m, choice).noise() <= 1.0)
        {
            best = s;
        }
    }
    let found = cheapest(&mut Search::new(&m, request, Alike::default())).unwrap();
    assert!(m.noise.is_none() || Live::new(&m, found.choice.clone()).noise() <= 1.0 + 1e-9, "over the budget");
    Some((best, found.estimate.seconds))
}

#[test]
fn the_search_lands_near_the_best_choice_there_is() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let target = Target::named("sm_90").unwrap();
    let formats = Formats::from_iter([Format::F16]);
    let (mut gaps, mut largest) = (Vec::new(), 0);
    while gaps.len() < GRAPHS {
        let g = random_graph(&mut rng);
        let mut request = Request::by_lists(Policy::O3, Format::F16, target.clone());
        if gaps.len() % 2 == 1 {
            let calibration = random_calibration(&g, formats, &mut rng);
            request = Request { policy: Policy::Auto, calibration: Some(Arc::new(calibration)), ..request };
        }
        let Some((best, found)) = solved(&g, &request) else { continue };
        let gap = found / best - 1.0;
        assert!(gap > -1e-9, "the search found what trying everything did not: {found} and {best}");
        if gap > 0.03 {
            println!("{} {} {gap}", request.policy, text::print(&g));
        }
        largest = largest.max(g.len());
        gaps.push(gap);
    }
    gaps.sort_by(f64::total_cmp);
    let (median, worst) = (gaps[GRAPHS / 2], gaps[GRAPHS - 1]);
    println!(
        "{GRAPHS} graphs of up to {largest} nodes: median gap {:.2} %, worst {:.2} %",
        100.0 * median,
        100.0 * worst
    );
    assert!(median <= 0.01 && worst <= 0.05, "median gap {median}, worst {worst}");
}
