//! "Did you mean": the known name nearest to a misspelt one.

/// The candidate within a third of `word`'s length in edits, the nearest first; ties go to the first candidate.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (edit_distance(word, c), c))
        .filter(|(d, _)| *d <= word.len().div_ceil(3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// "; is `x` meant?", or nothing where no candidate is near.
pub fn is_meant<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or(String::new(), |n| format!("; is `{n}` meant?"))
}

/// Levenshtein distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_a_slip_but_not_a_stranger() {
        assert_eq!(super::nearest("lables", ["labels", "logits"].into_iter()), Some("labels"));
        assert_eq!(super::nearest("zebra", ["labels", "logits"].into_iter()), None);
    }
}
