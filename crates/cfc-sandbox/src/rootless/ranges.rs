//! The subordinate ids that the machine's administrator gave to a user: `/etc/subuid` and `/etc/subgid`.

use std::fs;

use super::SANDBOX_IDS;

/// Some of a user's subordinate ids: `count` from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) count: u32,
}

/// The user's names, as the files of subordinate ids may call it: the number and the name.
///
/// `USER` counts only where `/etc/passwd` does not know the number (a directory service); `newuidmap` checks it.
pub(super) fn names(uid: u32) -> Vec<String> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_in(&users, uid).or_else(|| std::env::var("USER").ok());
    [Some(uid.to_string()), name].into_iter().flatten().collect()
}

fn name_in(users: &str, uid: u32) -> Option<String> {
    let is_it = |line: &&str| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid);
    users.lines().find(is_it)?.split(':').next().map(str::to_owned)
}

/// The first 65536 ids that `file` gives to one of `names`.
pub(super) fn read(file: &str, names: &[String]) -> Vec<Range> {
    parse(&fs::read_to_string(file).unwrap_or_default(), names)
}

fn parse(text: &str, names: &[String]) -> Vec<Range> {
    let mut left = SANDBOX_IDS;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let is_theirs = fields.next().is_some_and(|name| names.iter().any(|known| known == name));
        let mut number = || fields.next()?.parse::<u32>().ok();
        let (Some(first), Some(count), true) = (number(), number(), is_theirs) else { continue };
        let count = count.min(left);
        if count > 0 {
            ranges.push(Range { first, count });
            left -= count;
        }
    }
    ranges
}

/// `ranges` one after the other from 0 on, and the user's own id behind all that a sandbox can have; in triples of
/// inside, outside, count.
pub(super) fn lay_out(ranges: &[Range], own: u32) -> Vec<[u32; 3]> {
    let mut next = 0;
    let mut triples = Vec::new();
    for range in ranges {
        triples.push([next, range.first, range.count]);
        next += range.count;
    }
    triples.push([SANDBOX_IDS, own, 1]);
    triples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_taken_in_order_up_to_what_a_sandbox_can_have() {
        let text = "# comment\nother:1:65536\nuser:100000:1000\n1000:300000:100000\nuser:500000:7\nuser:x:1\n";
        let ranges = parse(text, &["1000".into(), "user".into()]);
        assert_eq!(ranges, [Range { first: 100_000, count: 1000 }, Range { first: 300_000, count: 64_536 }]);
        assert_eq!(lay_out(&ranges, 1000), [[0, 100_000, 1000], [1000, 300_000, 64_536], [65_536, 1000, 1]]);
        assert!(parse(text, &["us".into()]).is_empty());
    }

    #[test]
    fn a_number_has_its_name() {
        let users = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nbroken\n";
        assert_eq!(name_in(users, 1000).as_deref(), Some("user"));
        assert_eq!(name_in(users, 7), None);
    }
}
