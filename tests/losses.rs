//! Losses with their options against PyTorch's, values and gradients, and against the score on the host.

mod common;

use common::noise;
use mantissa::autodiff::gradients;
use mantissa::ir::{Graph, Op, Role, Tensor, evaluate, text};
use mantissa::model::Weights;
use mantissa::train::{Objective, Task};

const LABELS: [i64; 6] = [1, -100, 3, 0, 4, 2];
const WEIGHTS: [f64; 5] = [0.5, 1.0, 2.0, 0.25, 1.0];

/// The loss of logits [6, 5] (or of [2, 5, 3] with classes on axis 1): its value, and the norm of its gradient.
fn value_and_gradient(name: &str, options: &Objective) -> (f64, f64) {
    let dims: &[usize] = if options.class_axis == Some(1) { &[2, 5, 3] } else { &[6, 5] };
    let source = format!("model m {{ param x: f32{dims:?} = zeros y = x * 1 output y }}");
    let graph = text::parse(&source, "losses").unwrap_or_else(|e| panic!("{}", e.render(false)));
    let mut weights = Weights::new();
    let task = Task::new(graph, Some(name), options, &mut weights).unwrap();
    let mut graph = task.graph.clone();
    let x = graph.find("x").unwrap();
    let one = graph.constant(1.0).unwrap();
    let dx = gradients(&mut graph, task.loss, one, &[x]).unwrap()[&x];
    let n: usize = dims.iter().product();
    let logits: Vec<f64> = (0..n).map(|i| f64::from(noise(3, i)) * 2.0 - 1.0).collect();
    let ignored = options.ignore_index.is_some();
    let classes = |i: usize| if ignored { LABELS[i] } else { LABELS[i].max(0) };
    let targets: Vec<f64> = (0..n).map(|i| f64::from(noise(7, i)) * 2.0 - 1.0).collect();
    let targets = match name {
        "cross_entropy" | "nll" => (0..6).map(|i| classes(i) as f64).collect(),
        "bce" => targets.iter().map(|t| (t + 1.0) / 2.0).collect(),
        _ => targets,
    };
    let values = evaluate(&graph, |id| {
        let data = match graph.name_of(id) {
            "x" => logits.clone(),
            "label" => targets.clone(),
            other => weights[other].values::<f64>(),
        };
        Tensor::new(&graph.ty(id).dims(), data)
    });
    let loss = values[task.loss.index()].data[0];
    // The host scores batches sample by sample; here one sample is the whole batch.
    let head = task.head.unwrap();
    let row: Vec<f32> = logits.iter().map(|&v| v as f32).collect();
    let mut total = mantissa::train::Score::default();
    let per = row.len() / dims[0];
    for (s, row) in row.chunks(per).enumerate() {
        let labels = targets.len() / dims[0];
        total += head.criterion.score(row, &dims[1..], |p| targets[s * labels + p]);
    }
    let scored = total.loss / total.weight;
    assert!((scored - loss).abs() < 1e-6, "{name} {options:?}: {scored} on the host, {loss} in the graph");
    (loss, values[dx.index()].data.iter().map(|v| v * v).sum::<f64>().sqrt())
}

#[test]
fn losses_are_pytorchs() {
    let none = Objective::default;
    let weighted = || Objective { class_weights: WEIGHTS.to_vec(), ..none() };
    let ignoring = || Objective { ignore_index: Some(-100), ..none() };
    let all = || Objective { ignore_index: Some(-100), label_smoothing: 0.1, ..weighted() };
    // torch.nn.functional in f64 on the same numbers: the loss, and the norm of its gradient.
    let cases = [
        ("cross_entropy", none(), 1.83749053196471, 0.390772326677264),
        ("cross_entropy", ignoring(), 1.78783310427124, 0.423782627893842),
        ("cross_entropy", all(), 1.80833712186255, 0.455052448569145),
        ("cross_entropy", weighted(), 1.83101520447535, 0.460580469156318),
        ("cross_entropy", Objective { label_smoothing: 0.2, ..none() }, 1.81598024324935, 0.319765119444078),
        ("nll", Objective { label_smoothing: 0.0, ..all() }, 0.141593242946424, 0.528940822164257),
        ("cross_entropy", Objective { class_axis: Some(1), ..all() }, 1.53446067535125, 0.396002247008548),
        ("l1", none(), 0.595932686328888, 0.182574185835055),
        ("huber", Objective { huber_delta: 0.3, ..none() }, 0.141001016958284, 0.0466145377727031),
        ("mse", none(), 0.54732663350668, 0.270142341123263),
        ("bce", none(), 0.703693067736788, 0.0547623158007896),
    ];
    for (name, options, loss, gradient) in cases {
        let got = value_and_gradient(name, &options);
        assert!((got.0 - loss).abs() < 1e-9, "{name} {options:?}: {} instead of {loss}", got.0);
        assert!((got.1 - gradient).abs() < 1e-9, "{name} {options:?}: gradient {} instead of {gradient}", got.1);
    }
}

#[test]
fn the_loss_of_a_sigmoid_is_taken_of_its_logits() {
    let source = "model m { input x: f32[3] param w: f32[3] = zeros p = sigmoid(x * w) output p }";
    let graph = text::parse(source, "losses").unwrap();
    let task = Task::new(graph, Some("bce"), &Objective::default(), &mut Weights::new()).unwrap();
    let used: Graph =
        task.graph.prune(&[mantissa::ir::Output { name: "l".into(), role: Role::Output, node: task.loss }]).unwrap();
    assert!(!used.ids().any(|id| matches!(used.op(id), Op::Unary(mantissa::ir::Unary::Sigmoid))));
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_choices() {
    let two =
        "model m { input x: f32[3] label t: f32[3] param w: f32[3] = zeros a = x * w b = a * 2 output a output b }";
    let refused = |loss: &str, options: Objective| {
        let graph = text::parse(two, "losses").unwrap_or_else(|e| panic!("{}", e.render(false)));
        Task::new(graph, Some(loss), &options, &mut Weights::new()).unwrap_err().to_string()
    };
    let none = Objective::default;
    let said = refused("mse", none());
    assert!(said.contains("a: f32[3], b: f32[3]") && said.contains("--prediction"), "{said}");
    let said = refused("mse", Objective { prediction: Some("c".into()), ..none() });
    assert!(said.contains("no output `c`") && said.contains("b: f32[3]"), "{said}");
    let whole = text::parse("model m { input x: i64[3] y = x + x output y }", "losses").unwrap();
    let said = Task::new(whole, Some("mse"), &none(), &mut Weights::new()).unwrap_err().to_string();
    assert!(said.contains("`y` is i64[3]"), "{said}");
    let said = refused("huberr", none());
    assert!(said.contains("is `huber` meant?"), "{said}");
    let one = || Objective { prediction: Some("a".into()), ..none() };
    let said = refused("l1", Objective { label: Some("w".into()), ..one() });
    assert!(said.contains("no input `w`") && said.contains("x, t"), "{said}");
    let said = refused("l1", Objective { ignore_index: Some(3), ..one() });
    assert!(said.contains("`ignore_index`"), "{said}");
    let said = refused("a", Objective { ignore_index: Some(3), ..none() });
    assert!(said.contains("the model's own"), "{said}");
    let said = refused("cross_entropy", Objective { class_weights: vec![1.0], ..one() });
    assert!(said.contains("1 class_weights for 3 classes"), "{said}");
}
