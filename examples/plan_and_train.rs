//! Plan, look at the plan, train: the library in a few lines.
//!
//! `cargo run --release --example plan_and_train`

use mantissa::data::{self, Source};
use mantissa::model::Model;
use mantissa::plan::print_table;
use mantissa::rewrite::RuleSet;
use mantissa::run::DeviceKind;
use mantissa::train::{Session, Settings};
use std::path::Path;

fn main() -> mantissa::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let train = data::load(&Source::find(&dir, "train")?, 1.0 / 16.0)?;
    let test = data::load(&Source::find(&dir, "test")?, 1.0 / 16.0)?;

    // Autocast's lists in f16, planned for an H200, with AdamW and dynamic loss scaling: the defaults.
    let settings = Settings::default();
    let model = Model::read(&dir.join("mlp.mir"))?;
    let compiled = settings.compile(&model, &RuleSet::builtin()?, None)?;
    println!("{}", print_table(&compiled.planned, &settings.request()?)?);

    let backend = DeviceKind::Auto.backend();
    let mut session = Session::new(compiled, 0, &*backend)?;
    for _ in 0..20 {
        let epoch = session.train_epoch(&train, |_| {})?;
        let accuracy = session.evaluate(&test)?.and_then(|e| e.accuracy).unwrap_or(0.0);
        println!(
            "epoch {:2}  loss {:.4}  accuracy {:.1} %  scale {}",
            epoch.epoch,
            epoch.loss,
            100.0 * accuracy,
            epoch.scale
        );
    }
    Ok(())
}
