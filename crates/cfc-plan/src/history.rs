//! What an instruction leaves in the image's history, byte for byte as BuildKit writes it.

use cfc_oci::{History, ImageConfig};

const COMMENT: &str = "buildkit.dockerfile.v0";

/// Notes an instruction that changed the config only.
pub(crate) fn commit_config(config: &mut ImageConfig, created: &str, created_by: String) {
    commit(config, created, created_by, true);
}

/// Notes an instruction that changed the filesystem.
pub(crate) fn commit_layer(config: &mut ImageConfig, created: &str, created_by: String) {
    commit(config, created, created_by, false);
}

fn commit(config: &mut ImageConfig, created: &str, created_by: String, empty_layer: bool) {
    config.history.push(History {
        created: Some(created.to_string()),
        created_by: Some(created_by),
        author: None,
        comment: Some(COMMENT.to_string()),
        empty_layer,
    });
}

/// A list as Go's `%q` prints it: `["sh" "-c" "a \"b\""]`.
pub(crate) fn quote_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// A text as Go's `strconv.Quote` prints it.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                quoted.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_quoted_as_go_quotes_them() {
        let words = ["/bin/sh".to_string(), "a \"b\"\n\u{1}ü".to_string()];
        assert_eq!(quote_list(&words), r#"["/bin/sh" "a \"b\"\n\x01ü"]"#);
        assert_eq!(quote_list(&[]), "[]");
    }
}
