//! Pages of names with slashes that are kept as a tree of directories: in the order of the names, which is not the order
//! of the tree (`a-b` comes between `a` and `a/b`), and without reading the rest of the tree.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::StorageError;

/// At most `limit` names after `after`, sorted bytewise, that have an entry `leaf`. `entries` lists a directory of the
/// tree, the root being the empty name; parts of names do not begin with `_`.
pub(super) fn page(
    leaf: &str,
    after: Option<&str>,
    limit: usize,
    entries: impl Fn(&str) -> Result<Vec<String>, StorageError>,
) -> Result<Vec<String>, StorageError> {
    let mut page = Vec::new();
    let below = |name: &str, entries: Vec<String>| {
        let parent = if name.is_empty() { String::new() } else { format!("{name}/") };
        entries
            .into_iter()
            .filter(|entry| !entry.starts_with('_'))
            .map(move |entry| Reverse(format!("{parent}{entry}")))
    };
    // What is below a name comes after it, so the smallest that is known is the smallest that is left.
    let mut pending: BinaryHeap<Reverse<String>> = below("", entries("")?).collect();
    while page.len() < limit
        && let Some(Reverse(name)) = pending.pop()
    {
        let is_after = after.is_none_or(|after| name.as_str() > after);
        let first_below = format!("{name}/");
        let leads_on = after.is_some_and(|after| first_below.as_str() > after || after.starts_with(&first_below));
        if !is_after && !leads_on {
            continue;
        }
        let found = entries(&name)?;
        let is_one = is_after && found.iter().any(|entry| entry == leaf);
        pending.extend(below(&name, found));
        if is_one {
            page.push(name);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    const NAMES: [&str; 12] =
        ["a", "a-b", "a-b/c", "a.c/d", "a/b", "a/b/c", "a/b-c", "a0", "b/c/d/e", "b/c-d", "c", "c/c/c"];

    /// The entries of a directory of the tree with `NAMES` in it.
    fn entries(directory: &str) -> Vec<String> {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let leaves = NAMES.map(|name| format!("{name}/_leaf"));
        let rests = leaves.iter().filter_map(|leaf| leaf.strip_prefix(&prefix));
        let entries: BTreeSet<String> = rests.filter_map(|rest| rest.split('/').next()).map(str::to_string).collect();
        entries.into_iter().collect()
    }

    #[test]
    fn pages_are_cuts_of_the_sorted_names() {
        let mut sorted = NAMES.map(str::to_string).to_vec();
        sorted.sort();
        let between = ["", "a,", "a-", "a/", "a/b.", "a/zz", "b", "b/c", "zz", "a-b/c/d"];
        for after in NAMES.iter().chain(&between).map(|after| Some(*after)).chain([None]) {
            for limit in [0, 1, 2, 3, 100] {
                let expected: Vec<String> = sorted
                    .iter()
                    .filter(|name| after.is_none_or(|after| name.as_str() > after))
                    .take(limit)
                    .cloned()
                    .collect();
                let found = page("_leaf", after, limit, |directory| Ok(entries(directory))).expect("reads");
                assert_eq!(found, expected, "{limit} after {after:?}");
            }
        }
    }

    #[test]
    fn a_page_reads_no_more_than_it_needs() {
        let read = RefCell::new(Vec::new());
        let noting = |directory: &str| {
            read.borrow_mut().push(directory.to_string());
            Ok(entries(directory))
        };
        assert_eq!(page("_leaf", Some("a0"), 1, noting).expect("reads"), ["b/c-d"]);
        // Not what is below `a`, nor `c`.
        assert_eq!(*read.borrow(), ["", "a0", "b", "b/c", "b/c-d"]);
    }
}
