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

#[cfg(test)]
mod tests {
    use super::*;

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
