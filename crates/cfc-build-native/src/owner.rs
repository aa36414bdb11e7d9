//! [`Owner`]: `user[:group]` looked up in the image's `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::Path;

use crate::failure::{Failure, OnPath, Result};
use crate::tree::{Last, Tree, resolve};

/// The largest file of users that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A user and a group, as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Finds `spec`. Names are looked up in `tree()`, which is asked for only when there is one. A number without a group
/// is the group, too, and a name without a group has the group of its entry.
pub(crate) fn find<T: Tree>(spec: &str, tree: impl FnOnce() -> Result<T>) -> Result<Owner> {
    let (user, group) = split(spec);
    if let Some(owner) = of_numbers(user, group) {
        return Ok(owner);
    }
    let tree = tree()?;
    let mut owner = match number(user) {
        Some(uid) => Owner { uid, gid: uid },
        None => find_user(&tree, user)?,
    };
    if let Some(group) = group {
        owner.gid = match number(group) {
            Some(gid) => gid,
            None => find_group(&tree, group)?,
        };
    }
    Ok(owner)
}

/// Whether `spec` means another owner in another image.
pub(crate) fn has_name(spec: &str) -> bool {
    let (user, group) = split(spec);
    !spec.is_empty() && of_numbers(user, group).is_none()
}

fn split(spec: &str) -> (&str, Option<&str>) {
    match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    }
}

/// The owner, if nothing has to be looked up.
fn of_numbers(user: &str, group: Option<&str>) -> Option<Owner> {
    let uid = number(user)?;
    let gid = group.map_or(Some(uid), number)?;
    Some(Owner { uid, gid })
}

/// `root` is 0 in every image, with or without an `/etc/passwd` that says so.
fn number(text: &str) -> Option<u32> {
    if text == "root" {
        return Some(0);
    }
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `name:password:uid:gid:…`
fn find_user(tree: &dyn Tree, name: &str) -> Result<Owner> {
    if name.is_empty() {
        return Ok(Owner::default());
    }
    let path = Path::new("/etc/passwd");
    let fields = find_line(tree, path, name)?;
    let malformed = || Failure::new(format!("the entry of user `{name}` in the image's `/etc/passwd` has no numbers"));
    let field = |index: usize| fields.get(index).and_then(|field| number(field)).ok_or_else(malformed);
    Ok(Owner { uid: field(2)?, gid: field(3)? })
}

/// `name:password:gid:…`
fn find_group(tree: &dyn Tree, name: &str) -> Result<u32> {
    let fields = find_line(tree, Path::new("/etc/group"), name)?;
    let gid = fields.get(2).and_then(|field| number(field));
    gid.ok_or_else(|| Failure::new(format!("the entry of group `{name}` in the image's `/etc/group` has no number")))
}

fn find_line(tree: &dyn Tree, path: &Path, name: &str) -> Result<Vec<String>> {
    let text = read(tree, path)?;
    let line = text.lines().map(|line| line.split(':').map(str::to_string).collect::<Vec<_>>());
    let line = line.into_iter().find(|fields| fields.first().is_some_and(|first| first == name));
    line.ok_or_else(|| {
        let failure = Failure::new(format!("there is no `{name}` in the image's `{}`", path.display()));
        failure.hint("make it in a RUN before, or use a number")
    })
}

fn read(tree: &dyn Tree, path: &Path) -> Result<String> {
    let path = resolve(tree, path, Last::Followed)?;
    if tree.lookup(&path)?.is_none_or(|info| info.kind != crate::tree::Kind::File) {
        return Ok(String::new());
    }
    let mut text = Vec::new();
    tree.open(&path)?.take(MAX_FILE_BYTES).read_to_end(&mut text).on("read", &path)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
