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

/// Seconds since 1970 as RFC 3339 in UTC, for example `1970-01-01T00:00:00Z`.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    // Days to a civil date, counting years from 1 March so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn lists_are_quoted_as_go_quotes_them() {
        let words = ["/bin/sh".to_string(), "a \"b\"\n\u{1}ü".to_string()];
        assert_eq!(quote_list(&words), r#"["/bin/sh" "a \"b\"\n\x01ü"]"#);
        assert_eq!(quote_list(&[]), "[]");
    }
}
