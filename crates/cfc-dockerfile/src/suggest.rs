//! "Did you mean": the candidate nearest to a mistyped word.

/// Words further apart than this are not taken for each other.
const MAX_DISTANCE: usize = 2;

/// The nearest of `candidates`, if any is near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate));
    let near =
        distances.filter(|(distance, candidate)| *distance <= MAX_DISTANCE.min(candidate.len().saturating_sub(1)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// A hint naming the nearest candidate, or else all of them.
pub(crate) fn hint(word: &str, candidates: &[&str]) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if candidates.is_empty() => "none is known here".to_owned(),
        None => format!("known here: {}", candidates.join(", ")),
    }
}

/// How many characters must be put in, left out or changed: Levenshtein's distance.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_word_is_recognised() {
        assert_eq!(nearest("RUM", ["ADD", "RUN", "FROM"]), Some("RUN"));
        assert_eq!(nearest("COPPY", ["ADD", "COPY"]), Some("COPY"));
        assert_eq!(nearest("INSTALL", ["ADD", "COPY"]), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
