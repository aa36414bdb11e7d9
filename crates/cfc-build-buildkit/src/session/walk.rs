//! [`LocalFiles`]: a build context as the daemon sees it, in the order in which it wants to hear of files.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use bollard_buildkit_proto::fsutil::types::Stat;
use cfc_dockerfile::IgnoreFile;
use cfc_dockerfile::ignore::DirectoryMatches;
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// More links in a row are a circle.
const MAX_LINKS: usize = 40;
/// Bits of Go's `os.FileMode`, which is not Unix's.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const PIPE: u32 = 1 << 25;
const SET_UID: u32 = 1 << 23;
const SET_GID: u32 = 1 << 22;
const CHARACTER: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;

/// A directory whose files the daemon may have, without those that are ignored.
#[derive(Clone, Debug)]
pub(crate) struct LocalFiles {
    /// The directory.
    pub(crate) directory: PathBuf,
    /// What is left out.
    pub(crate) ignore: Option<IgnoreFile>,
}

/// Which of a directory's files the daemon wants: patterns as in a `.dockerignore`; all when there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Paths, and where links among them lead to.
    pub(crate) follow: Vec<String>,
    /// Further paths, links not followed.
    pub(crate) include: Vec<String>,
    /// What of them is not wanted.
    pub(crate) exclude: Vec<String>,
}

impl LocalFiles {
    /// Tells `each` of every file that is `wanted`: a directory before what is in it, siblings by name. Stops when `each`
    /// says no.
    pub(crate) fn walk(&self, wanted: &Wanted, each: &mut dyn FnMut(Stat) -> bool) -> io::Result<()> {
        let root = fs::canonicalize(&self.directory).map_err(|error| at(&self.directory, error))?;
        let mut walk = Walk {
            includes: Includes::new(&root, wanted)?,
            ignores: [self.ignore.clone(), patterns(&wanted.exclude)?].into_iter().flatten().collect(),
            root,
            pending: Vec::new(),
            first_names: HashMap::new(),
            each,
            is_stopped: false,
        };
        let matches = vec![DirectoryMatches::default(); walk.ignores.len()];
        walk.directory(Path::new(""), &matches)
    }

    /// Opens the file at `path`, which a walk named. Who put a link in its place gets an error and not a file of the machine.
    pub(crate) fn open(&self, path: &str) -> io::Result<File> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(&self.directory, directory, Mode::empty())
            .map_err(|error| at(&self.directory, error.into()))?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
        Ok(File::from(file.map_err(|error| at(&self.directory.join(path), error.into()))?))
    }
}

struct Walk<'a> {
    root: PathBuf,
    includes: Includes,
    ignores: Vec<IgnoreFile>,
    /// Directories that are told of as soon as something in them is.
    pending: Vec<Stat>,
    /// Where files with several names were met first.
    first_names: HashMap<(u64, u64), String>,
    each: &'a mut dyn FnMut(Stat) -> bool,
    is_stopped: bool,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, above: &[DirectoryMatches]) -> io::Result<()> {
        let real = self.root.join(directory);
        let entries = fs::read_dir(&real).map_err(|error| at(&real, error))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        let mut names = names.map_err(|error| at(&real, error))?;
        names.sort();
        for name in names {
            if self.is_stopped {
                break;
            }
            self.entry(&directory.join(name), above)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, above: &[DirectoryMatches]) -> io::Result<()> {
        let place = self.includes.place(path);
        if place == Place::Outside {
            return Ok(());
        }
        let real = self.root.join(path);
        let metadata = match real.symlink_metadata() {
            // One that disappeared in the meantime was never there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| at(&real, error))?,
        };
        let name = path.to_string_lossy().into_owned();
        let asked = self.ignores.iter().zip(above).map(|(ignore, above)| ignore.is_ignored_below(&name, above));
        let (ignored, matches): (Vec<bool>, Vec<DirectoryMatches>) = asked.unzip();
        let is_ignored = ignored.contains(&true);
        let is_shown = !is_ignored && place == Place::Inside;
        if is_shown {
            utf8(path.as_os_str(), &real, "its name")?;
        }
        if !metadata.is_dir() {
            if is_shown && !metadata.file_type().is_socket() {
                let stat = self.stat(name, &real, &metadata)?;
                self.tell(stat);
            }
            return Ok(());
        }
        let may_hold = |(ignore, is_ignored): (&IgnoreFile, &bool)| !is_ignored || ignore.may_contain_reincluded(&name);
        if !self.ignores.iter().zip(&ignored).all(may_hold) {
            return Ok(());
        }
        let stat = self.stat(name, &real, &metadata)?;
        let n_pending = self.pending.len();
        match is_shown {
            true => self.tell(stat),
            false => self.pending.push(stat),
        }
        self.directory(path, &matches)?;
        self.pending.truncate(n_pending);
        Ok(())
    }

    fn tell(&mut self, stat: Stat) {
        let told = self.pending.drain(..).chain([stat]);
        for stat in told {
            self.is_stopped |= !(self.each)(stat);
        }
    }

    fn stat(&mut self, path: String, real: &Path, metadata: &Metadata) -> io::Result<Stat> {
        let kind = metadata.file_type();
        let mut stat = Stat {
            mode: go_mode(metadata),
            // Whose a file is on this machine is no property of the context.
            uid: 0,
            gid: 0,
            size: if kind.is_file() { metadata.size() as i64 } else { 0 },
            mod_time: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            xattrs: attributes(real)?,
            path,
            ..Stat::default()
        };
        if kind.is_symlink() {
            let target = fs::read_link(real).map_err(|error| at(real, error))?;
            stat.linkname = utf8(target.as_os_str(), real, "what it links to")?.to_string();
        }
        if kind.is_char_device() || kind.is_block_device() {
            stat.devmajor = rustix::fs::major(metadata.rdev()).into();
            stat.devminor = rustix::fs::minor(metadata.rdev()).into();
        }
        if kind.is_file() && metadata.nlink() > 1 {
            match self.first_names.get(&(metadata.dev(), metadata.ino())) {
                Some(first) => (stat.linkname, stat.size) = (first.clone(), 0),
                None => drop(self.first_names.insert((metadata.dev(), metadata.ino()), stat.path.clone())),
            }
        }
        Ok(stat)
    }
}

/// What the daemon asked for, relative and resolved.
#[derive(Debug, Default)]
struct Includes(Option<Vec<Include>>);

#[derive(Debug)]
struct Include {
    /// The part without wildcards.
    prefix: PathBuf,
    /// The whole, where it has some.
    pattern: Option<IgnoreFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Outside,
    /// Something that is wanted may be below it.
    Above,
    Inside,
}

impl Includes {
    fn new(root: &Path, wanted: &Wanted) -> io::Result<Includes> {
        if wanted.follow.is_empty() && wanted.include.is_empty() {
            return Ok(Includes(None));
        }
        let mut includes = Vec::new();
        for path in &wanted.include {
            includes.push(Include::of(path)?);
        }
        for path in &wanted.follow {
            let (literal, rest) = split(path);
            let (links, end) = links_on(root, &literal);
            includes.extend(links.into_iter().map(|prefix| Include { prefix, pattern: None }));
            includes.push(Include::of(&end.join(rest).to_string_lossy())?);
        }
        Ok(Includes(Some(includes)))
    }

    fn place(&self, path: &Path) -> Place {
        let Some(includes) = &self.0 else { return Place::Inside };
        includes.iter().map(|include| include.place(path)).max().unwrap_or(Place::Outside)
    }
}

impl Include {
    fn of(text: &str) -> io::Result<Include> {
        let (prefix, rest) = split(text);
        let whole = || prefix.join(&rest).to_string_lossy().into_owned();
        let pattern = if rest.as_os_str().is_empty() { None } else { patterns(&[whole()])? };
        Ok(Include { prefix, pattern })
    }

    fn place(&self, path: &Path) -> Place {
        let is_near = path.starts_with(&self.prefix) || self.prefix.starts_with(path);
        match &self.pattern {
            _ if !is_near => Place::Outside,
            Some(pattern) if pattern.is_ignored(&path.to_string_lossy()) => Place::Inside,
            None if path.starts_with(&self.prefix) => Place::Inside,
            _ => Place::Above,
        }
    }
}

/// A path, relative, in two: up to its first part with a wildcard, and from there on.
fn split(text: &str) -> (PathBuf, PathBuf) {
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let has_wildcard = |part: &&str| part.contains(['*', '?', '[', '\\']);
    let literal = parts.iter().position(has_wildcard).unwrap_or(parts.len());
    (parts[..literal].iter().collect(), parts[literal..].iter().collect())
}

/// The links on the way to `path`, and where it is in the end: relative to `root`, which nothing leads out of.
pub(crate) fn links_on(root: &Path, path: &Path) -> (Vec<PathBuf>, PathBuf) {
    let mut met = Vec::new();
    let mut at = PathBuf::new();
    let mut rest: Vec<std::ffi::OsString> = path.iter().rev().map(OsStr::to_os_string).collect();
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let Ok(target) = fs::read_link(root.join(&at)) else { continue };
        met.push(at.clone());
        if met.len() > MAX_LINKS {
            return (met, at);
        }
        at.pop();
        if target.has_root() {
            at = PathBuf::new();
        }
        let parts = target.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        rest.extend(parts.map(|part| part.as_os_str().to_os_string()).collect::<Vec<_>>().into_iter().rev());
    }
    (met, at)
}

/// Patterns as what an ignore file of them says; none when there are none.
fn patterns(patterns: &[String]) -> io::Result<Option<IgnoreFile>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    // A `#` at the beginning of a pattern is part of a name here.
    let lines = patterns.iter().map(|pattern| match pattern.starts_with('#') {
        true => format!("./{pattern}\n"),
        false => format!("{pattern}\n"),
    });
    let parsed = IgnoreFile::parse(lines.collect::<String>().as_bytes());
    parsed.map(Some).map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem.message))
}

fn go_mode(metadata: &Metadata) -> u32 {
    let kind = metadata.file_type();
    let mode = metadata.mode();
    let kind = match () {
        () if kind.is_dir() => DIRECTORY,
        () if kind.is_symlink() => SYMLINK,
        () if kind.is_char_device() => DEVICE | CHARACTER,
        () if kind.is_block_device() => DEVICE,
        () if kind.is_fifo() => PIPE,
        () => 0,
    };
    let special = [(0o4000, SET_UID), (0o2000, SET_GID), (0o1000, STICKY)];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0).fold(0, |bits, (_, go)| bits | go);
    kind | special | (mode & 0o777)
}

/// Labels of this machine's security modules and of overlayfs itself say nothing about the image.
fn attributes(path: &Path) -> io::Result<HashMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other.map_err(|error| at(path, error.into()))?,
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let is_own = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !is_own && name != b"security.capability" {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value).map_err(|error| at(path, error.into()))?;
        value.truncate(length);
        found.insert(utf8(name, path, "the name of an attribute")?.to_string(), value);
    }
    Ok(found.into_iter().collect())
}

/// A daemon is told of names in UTF-8 only; anything else would arrive as another name.
fn utf8<'a>(name: &'a OsStr, path: &Path, what: &str) -> io::Result<&'a str> {
    let problem = || {
        let hint = "rename it, list it in `.dockerignore`, or build without `--builder buildkit`";
        let said = format!("{path:?}: {what} is not UTF-8, and a BuildKit daemon knows no other names: {hint}");
        io::Error::new(io::ErrorKind::InvalidData, said)
    };
    name.to_str().ok_or_else(problem)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The paths that are told of, those that are directories with a slash behind.
    fn told(files: &LocalFiles, wanted: &Wanted) -> Vec<String> {
        let mut told = Vec::new();
        let walked = files.walk(wanted, &mut |stat| {
            told.push(if stat.mode & DIRECTORY != 0 { stat.path + "/" } else { stat.path });
            true
        });
        walked.expect("walks");
        told
    }

    fn context(files: &[&str], ignore: &str) -> (tempfile::TempDir, LocalFiles) {
        let home = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = home.path().join(file);
            fs::create_dir_all(path.parent().expect("is below")).expect("writable");
            fs::write(path, file).expect("writable");
        }
        let ignore = Some(IgnoreFile::parse(ignore.as_bytes()).expect("patterns"));
        let files = LocalFiles { directory: home.path().to_path_buf(), ignore };
        (home, files)
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_siblings_by_name() {
        let (_home, files) = context(&["a/b", "a-c", "a.d", "z/y/x"], "");
        assert_eq!(told(&files, &Wanted::default()), ["a/", "a/b", "a-c", "a.d", "z/", "z/y/", "z/y/x"]);
    }

    #[test]
    fn what_is_ignored_is_not_told_of_but_what_is_taken_back_in_is() {
        let (_home, files) = context(&["a/b/c", "a/b/d", "a/e", "f"], "a\n!a/b/c\n");
        assert_eq!(told(&files, &Wanted::default()), ["a/", "a/b/", "a/b/c", "f"]);
        let exclude = Wanted { exclude: vec!["f".into(), "**/c".into()], ..Wanted::default() };
        assert_eq!(told(&files, &exclude), [""; 0]);
    }

    #[test]
    fn paths_are_followed_through_links_that_lead_nowhere_outside() {
        let (home, files) = context(&["real/deep/file", "other", "etc/x1", "etc/y"], "");
        symlink("real/deep", home.path().join("link")).expect("a link");
        symlink("/../etc", home.path().join("out")).expect("a link");
        let follow = |paths: &[&str]| Wanted {
            follow: paths.iter().map(|path| path.to_string()).collect(),
            ..Wanted::default()
        };
        assert_eq!(told(&files, &follow(&["/link/file"])), ["link", "real/", "real/deep/", "real/deep/file"]);
        assert_eq!(told(&files, &follow(&["out/x1"])), ["etc/", "etc/x1", "out"]);
        assert_eq!(told(&files, &follow(&["etc/x*", "missing"])), ["etc/", "etc/x1"]);
        assert_eq!(told(&files, &follow(&["/"])).len(), 9);
    }

    #[test]
    fn modes_are_gos_and_names_of_one_file_are_links() {
        let (home, files) = context(&["a"], "");
        fs::hard_link(home.path().join("a"), home.path().join("b")).expect("a link");
        fs::set_permissions(home.path().join("a"), fs::Permissions::from_mode(0o4751)).expect("ours");
        let mut stats = Vec::new();
        files
            .walk(&Wanted::default(), &mut |stat| {
                stats.push(stat);
                true
            })
            .expect("walks");
        assert_eq!((stats[0].mode, stats[0].size, stats[0].linkname.as_str()), (SET_UID | 0o751, 1, ""));
        assert_eq!((stats[1].size, stats[1].linkname.as_str()), (0, "a"));
        assert!(files.open("a").is_ok());
        symlink("/etc/passwd", home.path().join("c")).expect("a link");
        assert!(files.open("c").is_err() && files.open("../x").is_err());
    }

    #[test]
    fn names_that_a_daemon_cannot_be_told_are_refused() {
        let (home, mut files) = context(&["a"], "");
        let fails =
            |files: &LocalFiles| files.walk(&Wanted::default(), &mut |_| true).map_err(|error| error.to_string());
        let odd = home.path().join(OsStr::from_bytes(b"b\xff"));
        fs::write(&odd, "").expect("writable");
        let error = fails(&files).expect_err("it has no name");
        assert!(error.contains(r"/b\xFF"), "{error}");
        assert!(error.contains("its name is not UTF-8"), "{error}");
        files.ignore = Some(IgnoreFile::parse(b"b*\n").expect("patterns"));
        assert_eq!(fails(&files), Ok(()), "what is ignored is not told of");
        symlink(&odd, home.path().join("c")).expect("a link");
        let error = fails(&files).expect_err("it leads to what has no name");
        assert!(error.contains("/c\": what it links to is not UTF-8"), "{error}");
    }
}
