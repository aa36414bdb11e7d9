//! JSON arrays of strings, as Go reads them.

use serde_json::Value;

/// What a text is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Array {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array that holds something else too.
    Other,
    /// Not JSON, or not an array.
    None,
}

pub(super) fn parse_array(text: &str) -> Array {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Array::None;
    }
    let Ok(items) = serde_json::from_str::<Vec<Value>>(&without_lone_surrogates(text)) else { return Array::None };
    let strings = items.into_iter().map(|item| match item {
        Value::String(string) => Some(string),
        _ => None,
    });
    strings.collect::<Option<Vec<String>>>().map_or(Array::Other, Array::Strings)
}

/// Half a surrogate pair (`\ud800`) becomes U+FFFD: Go reads it so, where our JSON parser refuses the text.
fn without_lone_surrogates(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match (surrogate(rest), rest.get(6..).and_then(surrogate)) {
            (Some(0xD800..0xDC00), Some(0xDC00..)) => 12,
            (Some(_), _) => {
                result.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            (None, _) => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        result.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    result.push_str(rest);
    result
}

/// The code of a `\uXXXX` at the start of the text, when it is half a surrogate pair.
fn surrogate(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let code = u32::from_str_radix(digits, 16).ok()?;
    (0xD800..0xE000).contains(&code).then_some(code)
}
