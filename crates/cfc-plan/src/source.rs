//! What `ADD` takes from elsewhere: addresses of files, and of Git repositories.

use serde::Serialize;

/// A Git repository's state to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GitSource {
    /// Where it is, as `git fetch` takes it.
    pub remote: String,
    /// A branch, a tag, or a commit; the remote's `HEAD` when empty.
    pub reference: String,
    /// The directory to add; all of it when empty.
    pub subdirectory: String,
    /// Whether `.git` is added, too.
    pub keeps_git_directory: bool,
    /// Whether submodules are left out.
    pub skips_submodules: bool,
    /// What the commit's name must begin with.
    pub checksum: Option<String>,
}

/// A file on the network to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UrlSource {
    /// The address, `http` or `https`.
    pub url: String,
    /// What the file is called where the destination is a directory.
    pub name: String,
    /// What its content must be.
    pub checksum: Option<cfc_oci::Digest>,
}

/// Whether `source` is an address of the network and not a path.
pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

impl UrlSource {
    /// The file at `url`, called by the last part of its path.
    pub fn new(url: &str, checksum: Option<cfc_oci::Digest>) -> UrlSource {
        let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
        let path = after_scheme.split(['?', '#']).next().unwrap_or_default();
        let (_, path) = path.split_once('/').unwrap_or_default();
        let last = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty());
        let name = last.unwrap_or("__unnamed__").to_string();
        UrlSource { url: url.to_string(), name, checksum }
    }
}

impl GitSource {
    /// The repository that `source` names; none when it names none. `git://`, `ssh://`, `user@host:path`, and `http` or
    /// `https` with a path that ends in `.git`; behind it `#reference:directory`, or `?ref=…&subdir=…`.
    pub fn parse(source: &str) -> Option<Result<GitSource, String>> {
        let (address, fragment) = source.split_once('#').map_or((source, None), |(a, f)| (a, Some(f)));
        let (address, query) = address.split_once('?').map_or((address, None), |(a, q)| (a, Some(q)));
        let is_git = (is_url(address) && address.ends_with(".git"))
            || address.starts_with("git://")
            || address.starts_with("ssh://")
            || is_scp_like(address);
        is_git.then(|| GitSource { remote: address.to_string(), ..GitSource::default() }.with(fragment, query))
    }

    fn with(mut self, fragment: Option<&str>, query: Option<&str>) -> Result<GitSource, String> {
        if let Some(fragment) = fragment {
            let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
            self.reference = reference.to_string();
            self.subdirectory = directory.trim_matches('/').to_string();
        }
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_true = matches!(value, "" | "1" | "true");
            match key {
                "ref" | "tag" | "branch" if self.reference.is_empty() => self.reference = value.to_string(),
                "commit" | "checksum" => self.checksum = Some(value.to_string()),
                "subdir" => self.subdirectory = value.trim_matches('/').to_string(),
                "keep-git-dir" => self.keeps_git_directory = is_true,
                "submodules" => self.skips_submodules = !is_true,
                _ => return Err(format!("unexpected `{pair}` in the address of a repository")),
            }
        }
        // It becomes an argument of git, and a path.
        if self.reference.starts_with('-') || self.remote.starts_with('-') {
            return Err("a reference or address cannot begin with `-`".to_string());
        }
        if self.subdirectory.split('/').any(|part| part == "..") {
            return Err(format!("the directory `{}` leads out of the repository", self.subdirectory));
        }
        Ok(self)
    }
}

/// `git@host:path`: somebody at some host, and a path that is no `//`.
fn is_scp_like(address: &str) -> bool {
    let Some((user, rest)) = address.split_once('@') else { return false };
    let is_word = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    let Some((host, path)) = rest.split_once(':') else { return false };
    is_word(user) && is_word(host) && !path.is_empty() && !path.starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_files() {
        for source in
            ["https://a/b.git", "git://a/b", "ssh://git@a/b", "git@example.org:a/b.git", "https://a/b.git#v1:sub"]
        {
            assert!(GitSource::parse(source).is_some(), "{source}");
        }
        for source in ["https://a/b.tar.gz", "github.com/a/b", "a@b", "./x:y", "a.git", "http://a/b"] {
            assert!(GitSource::parse(source).is_none(), "{source}");
        }
    }

    #[test]
    fn references_and_directories_are_read_in_both_forms() {
        let of = |source: &str| GitSource::parse(source).expect("a repository").expect("well-formed");
        let source = of("https://a/b.git#v1:/sub/dir/");
        assert_eq!((source.reference.as_str(), source.subdirectory.as_str()), ("v1", "sub/dir"));
        let source = of("https://a/b.git?branch=main&subdir=x&submodules=false&keep-git-dir=1");
        assert_eq!((source.reference.as_str(), source.subdirectory.as_str()), ("main", "x"));
        assert!(source.skips_submodules && source.keeps_git_directory);
        assert!(GitSource::parse("https://a/b.git?x=y").is_some_and(|parsed| parsed.is_err()));
        assert!(GitSource::parse("https://a/b.git#--upload-pack=x").is_some_and(|parsed| parsed.is_err()));
        assert!(GitSource::parse("https://a/b.git#v1:../..").is_some_and(|parsed| parsed.is_err()));
    }

    #[test]
    fn a_file_is_called_by_the_last_part_of_its_address() {
        for (url, name) in [
            ("https://a/b/c.txt?x=/y", "c.txt"),
            ("https://a", "__unnamed__"),
            ("https://a/", "__unnamed__"),
            ("http://a/b/", "b"),
        ] {
            assert_eq!(UrlSource::new(url, None).name, name, "{url}");
        }
    }
}
