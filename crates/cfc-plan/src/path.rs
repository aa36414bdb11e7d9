//! Paths inside images, by Go's `path` rules: `/`-separated text, not looked up anywhere.

/// `path` made absolute below `/` and clean: no `.`, no `..`, no double or trailing slash.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `path` seen from `directory`, clean.
pub(crate) fn join(directory: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{directory}/{path}")) }
}

/// Like [`join`]; when `path` names a directory (`dir/`, `dir/.`, `.`) the result ends in `/`.
pub(crate) fn join_keeping_slash(directory: &str, path: &str) -> String {
    let mut joined = join(directory, path);
    let names_directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    if names_directory && joined != "/" {
        joined.push('/');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_leave_the_root() {
        assert_eq!(clean("../../etc/./passwd"), "/etc/passwd");
        assert_eq!(clean(""), "/");
        assert_eq!(join("/srv", "../a//b/"), "/a/b");
        assert_eq!(join("/srv", "/a/.."), "/");
    }

    #[test]
    fn a_directory_keeps_its_slash() {
        for (path, joined) in
            [(".", "/srv/"), ("", "/srv/"), ("a/", "/srv/a/"), ("/a/.", "/a/"), ("a", "/srv/a"), ("/", "/")]
        {
            assert_eq!(join_keeping_slash("/srv", path), joined, "{path}");
        }
    }
}
