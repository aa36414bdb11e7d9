//! [`Table`]: an object of the config that is read field by field; what is wrong with it becomes [`Problem`]s.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::Problem;
use crate::keys;

/// Where findings are collected while a config is read.
#[derive(Default)]
pub(crate) struct Findings {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl Findings {
    pub fn problem(&self, field: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) {
        let hint: String = hint.into();
        let hint = (!hint.is_empty()).then_some(hint);
        self.problems.borrow_mut().push(Problem { field: field.into(), message: message.into(), hint });
    }

    pub fn warning(&self, field: &str, message: impl std::fmt::Display) {
        self.warnings.borrow_mut().push(format!("`{field}`: {message}"));
    }

    pub fn into_parts(self) -> (Vec<Problem>, Vec<String>) {
        (self.problems.into_inner(), self.warnings.into_inner())
    }
}

/// An object of the config. Every field is asked for once; the rest is refused by [`Table::refuse_others`].
pub(crate) struct Table<'a> {
    path: String,
    object: &'a Map<String, Value>,
    findings: &'a Findings,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    pub fn top(object: &'a Map<String, Value>, findings: &'a Findings) -> Table<'a> {
        Table { path: String::new(), object, findings, asked: RefCell::default() }
    }

    /// The place of a field, as messages name it.
    pub fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    pub fn problem(&self, name: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.problem(self.field(name), message, hint);
    }

    pub fn warning(&self, name: &str, message: impl std::fmt::Display) {
        self.findings.warning(&self.field(name), message);
    }

    /// The field as it is.
    pub fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().push(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn string(&self, name: &'static str) -> Option<&'a str> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn boolean(&self, name: &'static str) -> Option<bool> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A whole number, zero or more.
    pub fn whole_number(&self, name: &'static str) -> Option<u64> {
        self.typed(name, "a whole number, zero or more", whole)
    }

    /// A number above zero.
    pub fn positive_number(&self, name: &'static str) -> Option<f64> {
        let positive = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        self.typed(name, "a number above zero", positive)
    }

    pub fn object(&self, name: &'static str) -> Option<Table<'a>> {
        let object = self.typed(name, "an object", Value::as_object)?;
        Some(Table { path: self.field(name), object, findings: self.findings, asked: RefCell::default() })
    }

    /// A list of objects.
    pub fn objects(&self, name: &'static str) -> Vec<Table<'a>> {
        let items = self.typed(name, "a list of objects", Value::as_array).into_iter().flatten();
        let table = |(index, item): (usize, &'a Value)| {
            let path = format!("{}[{index}]", self.field(name));
            let object = self.checked(&path, item, "an object", Value::as_object)?;
            Some(Table { path, object, findings: self.findings, asked: RefCell::default() })
        };
        items.enumerate().filter_map(table).collect()
    }

    /// A list of strings.
    pub fn strings(&self, name: &'static str) -> Vec<String> {
        let items = self.typed(name, "a list of strings", Value::as_array).into_iter().flatten();
        let string = |(index, item): (usize, &'a Value)| {
            self.checked(&format!("{}[{index}]", self.field(name)), item, "a string", Value::as_str)
        };
        items.enumerate().filter_map(string).map(str::to_string).collect()
    }

    /// An object of strings.
    pub fn string_map(&self, name: &'static str) -> BTreeMap<String, String> {
        let items = self.typed(name, "an object of strings", Value::as_object).into_iter().flatten();
        let entry = |(key, value): (&String, &'a Value)| {
            let path = format!("{}.{key}", self.field(name));
            Some((key.clone(), self.checked(&path, value, "a string", Value::as_str)?.to_string()))
        };
        items.filter_map(entry).collect()
    }

    /// One of these words.
    pub fn one_of(&self, name: &'static str, words: &[&str]) -> Option<&'a str> {
        let word = self.string(name)?;
        if words.contains(&word) {
            return Some(word);
        }
        self.problem(name, format!("expected one of {}, found `{word}`", list(words)), suggestion(word, words));
        None
    }

    /// Finds fault with every field that nobody asked for.
    pub fn refuse_others(&self) {
        let asked = self.asked.borrow();
        for name in self.object.keys().filter(|name| !asked.contains(&name.as_str())) {
            let known = format!("known here: {}", list(&asked));
            let hint = keys::similar(name, asked.iter().copied())
                .map_or(known, |similar| format!("did you mean `{similar}`?"));
            self.problem(name, "there is no such field", hint);
        }
    }

    fn typed<T>(&self, name: &'static str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(name)?;
        self.checked(&self.field(name), value, expected, read)
    }

    fn checked<T>(
        &self,
        path: &str,
        value: &'a Value,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let read = read(value);
        if read.is_none() {
            self.findings.problem(path, format!("expected {expected}, found {}", described(value)), "");
        }
        read
    }
}

/// A whole number, zero or more. TOML and JSON may write `5` as `5.0`.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    let from_float = |number: f64| (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

/// `` `a`, `b` `` for messages.
pub(crate) fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn suggestion(word: &str, words: &[&str]) -> String {
    keys::similar(word, words.iter().copied()).map(|similar| format!("did you mean `{similar}`?")).unwrap_or_default()
}

/// A value for messages, cut short.
pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "an empty list".to_string(),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
        value => {
            let text = value.to_string();
            let short: String = text.chars().take(40).collect();
            if short.len() < text.len() { format!("{short}…") } else { short }
        }
    }
}
