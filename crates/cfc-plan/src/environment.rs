//! [`Environment`]: variables in the order they were set.

/// Variables in the order they were set; setting one again moves it to the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment(Vec<(String, String)>);

impl Environment {
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.0.retain(|(existing, _)| existing != key);
        self.0.push((key.to_string(), value.to_string()));
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(existing, _)| existing == key).map(|(_, value)| value.as_str())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.0.clone()
    }
}

/// Sets `key` in the environment of an image config, where a variable keeps its place.
pub(crate) fn set_in_config(env: &mut Option<Vec<String>>, key: &str, value: &str) {
    let entries = env.get_or_insert_default();
    let entry = format!("{key}={value}");
    match entries.iter_mut().find(|existing| split(existing).0 == key) {
        Some(existing) => *existing = entry,
        None => entries.push(entry),
    }
}

/// `KEY=value` in two; a text without `=` has an empty value.
pub(crate) fn split(entry: &str) -> (&str, &str) {
    entry.split_once('=').unwrap_or((entry, ""))
}
