//! Pages of names that are parts of keys, `<prefix>/<name>/<leaf>`: in the order of the names, which is not the order of
//! the keys (`a-b/_leaf` comes before `a/_leaf`), and without listing the rest.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};

use super::objects::BucketObjects;
use crate::StorageError;

/// Names of which it is asked at the same time whether they are there.
const QUESTIONS_IN_FLIGHT: usize = 16;

impl BucketObjects {
    /// At most `limit` names after `after`, sorted bytewise. `leaf` begins with `_`, parts of names do not.
    ///
    /// Where a name comes before another, and its key comes after the other's, it is what the other begins with. So what a
    /// list of keys has not come to yet is found by asking for what the names on it begin with.
    pub(super) async fn page_of_names_with(
        &self,
        leaf: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        let is_after = |name: &str| after.is_none_or(|after| name > after);
        let (mut names, mut asked) = (BTreeSet::new(), BTreeSet::new());
        // Whatever begins with the last name comes after it.
        let mut start = after.map(|after| format!("{prefix}/{after}"));
        while names.len() < limit {
            let wanted = limit - names.len();
            let listed = self.store.list_some(&format!("{prefix}/"), start.as_deref(), wanted).await?;
            let found = listed.iter().filter_map(|listed| {
                listed.key.strip_prefix(prefix)?.strip_prefix('/')?.strip_suffix(leaf)?.strip_suffix('/')
            });
            let found: Vec<&str> = found.filter(|name| is_after(name)).collect();
            let unsure: Vec<String> = found
                .iter()
                .flat_map(|name| listed_later(name))
                .filter(|name| is_after(name) && asked.insert(name.to_string()))
                .map(str::to_string)
                .collect();
            names.extend(found.into_iter().map(str::to_string));
            let ask = |name: String| async move {
                let is_there = self.store.size(&format!("{prefix}/{name}/{leaf}")).await?.is_some();
                Ok::<_, StorageError>(is_there.then_some(name))
            };
            let there = futures::stream::iter(unsure).map(ask).buffer_unordered(QUESTIONS_IN_FLIGHT);
            names.extend(there.try_filter_map(|name| async { Ok(name) }).try_collect::<Vec<_>>().await?);
            match listed.last().filter(|_| listed.len() >= wanted) {
                Some(last) => start = Some(last.key.clone()),
                None => break,
            }
        }
        Ok(names.into_iter().take(limit).collect())
    }
}

/// What a name begins with and what would be a name whose key comes after this name's: what is followed by something that
/// sorts before `/_`.
fn listed_later(name: &str) -> impl Iterator<Item = &str> {
    let sorts_before = |rest: &str| rest < "/_";
    (1..name.len()).filter(move |end| sorts_before(&name[*end..])).map(|end| &name[..end]).filter(|name| {
        // A name ends with a letter or a digit.
        name.ends_with(|last: char| last.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_later_is_asked_for() {
        let later = |name: &'static str| listed_later(name).collect::<Vec<_>>();
        assert_eq!(later("team/app"), [""; 0]);
        assert_eq!(later("team/my-app.x"), ["team/my", "team/my-app"]);
        assert_eq!(later("a/0/b--c"), ["a", "a/0/b"]);
        assert_eq!(later("a_b/c"), [""; 0]);
        for (name, other) in [("a", "a-b"), ("a", "a/0"), ("a", "a.b/c"), ("a/b", "a/b-c")] {
            assert!(name < other && format!("{name}/_leaf") > format!("{other}/_leaf"));
        }
        assert!("a/_leaf" < "a/b/_leaf" && "a/_leaf" < "a_b/_leaf" && "a/_leaf" < "a0/_leaf");
    }
}
