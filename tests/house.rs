//! The structure of the source: who imports whom.

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by path, as `lower::merge`, with the text of each without comments and tests.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut stack, mut out) = (vec![root.clone()], BTreeMap::new());
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let lines = text.lines().map(|l| l.split("//").next().unwrap());
                let parts = path.strip_prefix(&root).unwrap().with_extension("");
                let parts: Vec<&str> = parts.iter().map(|p| p.to_str().unwrap()).filter(|p| *p != "mod").collect();
                out.insert(parts.join("::"), lines.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    out
}

/// The modules that a module's text names, by `crate::` or `super::`.
fn imports(modules: &BTreeMap<String, String>, module: &str) -> BTreeSet<String> {
    let text = &modules[module];
    let starts = text.match_indices("crate::").chain(text.match_indices("super::"));
    let mut out = BTreeSet::new();
    for (at, word) in starts {
        let before = text[..at].trim_end_matches("super::");
        let ups = (text[..at].len() - before.len()) / "super::".len() + 1;
        let parts: Vec<&str> = module.split("::").collect();
        let base = if word == "crate::" { &[][..] } else { &parts[..parts.len().saturating_sub(ups)] };
        let rest = text[at + word.len()..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next();
        let named = rest.unwrap().split("::").filter(|p| !p.is_empty());
        let mut path: Vec<&str> = base.iter().copied().chain(named).collect();
        while !path.is_empty() && !modules.contains_key(&path.join("::")) {
            path.pop();
        }
        let found = path.join("::");
        if !found.is_empty() && found != module {
            out.insert(found);
        }
    }
    out
}

fn circles(links: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let graph: DiGraphMap<&str, ()> =
        links.iter().flat_map(|(a, of)| of.iter().map(move |b| (a.as_str(), b.as_str()))).collect();
    let circles = tarjan_scc(&graph).into_iter().filter(|c| c.len() > 1);
    circles.map(|c| c.into_iter().map(str::to_owned).collect()).collect()
}

/// A newcomer reads downwards: what a folder imports does not import it back.
#[test]
fn folders_import_downwards_only() {
    let modules = modules();
    let folder = |m: &str| m.split("::").next().unwrap().to_owned();
    let mut links: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for module in modules.keys() {
        let own = folder(module);
        let others = imports(&modules, module).iter().map(|i| folder(i)).filter(|f| *f != own).collect::<Vec<_>>();
        links.entry(own).or_default().extend(others);
    }
    assert!(links["plan"].contains("rewrite") && links["lower"].contains("ir"), "imports are found: {links:?}");
    assert_eq!(circles(&links), Vec::<BTreeSet<String>>::new());
}

/// Inside a folder too, but where two files are one thing: an operation's rules read and build graphs, and an importer's
/// operations import what is inside of them.
#[test]
fn files_import_downwards_only() {
    let modules = modules();
    let links = modules.keys().map(|m| (m.clone(), imports(&modules, m))).collect();
    let one_thing = |c: &BTreeSet<String>| {
        let all = |start: &str| c.iter().all(|m| m.starts_with(start));
        c.contains("ir::graph") && all("ir::") || c.contains("model::onnx::importer") && all("model::onnx::")
    };
    let others: Vec<_> = circles(&links).into_iter().filter(|c| !one_thing(c)).collect();
    assert_eq!(others, Vec::<BTreeSet<String>>::new());
}
