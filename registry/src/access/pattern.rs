//! Patterns of repository names.

/// Whether `name` is one that `pattern` means: `*` stands for anything within one component, `**` for anything, and
/// everything else for itself.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // Which prefixes of the name the pattern so far can mean; a line of a table instead of trying again and again.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    let mut position = 0;
    while position < pattern.len() {
        let is_deep = pattern[position..].starts_with(b"**");
        if pattern[position] == b'*' {
            for end in 0..name.len() {
                reached[end + 1] |= reached[end] && (is_deep || name[end] != b'/');
            }
        } else {
            for end in (0..name.len()).rev() {
                reached[end + 1] = reached[end] && name[end] == pattern[position];
            }
            reached[0] = false;
        }
        position += if is_deep { 2 } else { 1 };
    }
    reached[name.len()]
}

/// Says what is wrong with a pattern that no name of a repository could ever match.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let is_odd = |character: char| {
        let is_known = character.is_ascii_lowercase() || character.is_ascii_digit() || "._-/*".contains(character);
        !is_known
    };
    match pattern.find(is_odd) {
        _ if pattern.is_empty() => Err("an empty pattern is of no repository".to_string()),
        Some(place) => {
            let odd = pattern[place..].chars().next().unwrap_or_default();
            Err(format!("the pattern `{pattern}` is of no repository: no name has a `{odd}`"))
        }
        None if pattern.split('/').any(str::is_empty) => {
            Err(format!("the pattern `{pattern}` is of no repository: a slash stands between two parts of a name"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_nothing_are_told_from_others() {
        for good in ["**", "a/*", "team-1/app_x.y", "*a*/**"] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in ["", "Team/*", "a b", "/a", "a/", "a//b", "a:v1", "https://r.example/a", "é"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_mean_what_they_say() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "a/b", false),
            ("a", "ab", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/*", "a", false),
            ("a/**", "a/b/c", true),
            ("**", "a/b/c", true),
            ("*", "a/b", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a*-x", "abc-x", true),
            ("a*-x", "a/b-x", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        // No pattern takes longer than its length times the name's.
        assert!(!matches(&"*a".repeat(100), &"a".repeat(200).replace("aaaa", "aaab")));
    }
}
