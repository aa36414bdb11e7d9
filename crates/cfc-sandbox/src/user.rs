//! Resolves an image's `USER` against the passwd and group files of its root filesystem.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// A user of the sandbox, as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// Further groups, the primary one included.
    pub additional_gids: Vec<u32>,
    /// The home directory, `/` when the user has no entry.
    pub home: String,
}

/// These files hold a few kilobytes; an image could put anything in their place.
const FILE_LENGTH_MAX: u64 = 4 << 20;

/// Resolves `user[:group]`, names or numbers, against `lowers` (topmost first; an overlay upper may lead).
///
/// As Docker does it: an empty user is root; a number needs no entry, and without one its group is 0; a name needs one. The
/// further groups are those whose members name the user, unless a group was given. Files are read below each directory
/// without ever following a link out of it.
pub fn resolve_user(lowers: &[PathBuf], user: &str) -> Result<ResolvedUser> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let fail = |message: String| Error::new(format!("resolve the user `{user}`"), ErrorKind::Invalid(message));
    let passwd = read_file(lowers, "passwd").map_err(fail)?;
    let groups = read_file(lowers, "group").map_err(fail)?;
    // As in BuildKit, `root` needs no entry: an image from scratch has no /etc/passwd.
    let number = if name == "root" { Some(0) } else { name.parse::<u32>().ok() };
    let entries = || passwd.lines().filter_map(PasswdEntry::parse);
    let entry = entries().find(|e| e.name == name).or_else(|| entries().find(|e| Some(e.uid) == number));
    let mut resolved = match (&entry, number) {
        (Some(entry), _) => {
            ResolvedUser { uid: entry.uid, gid: entry.gid, additional_gids: vec![], home: entry.home.into() }
        }
        (None, Some(uid)) => ResolvedUser { uid, gid: 0, additional_gids: vec![], home: "/".into() },
        (None, None) => return Err(fail(format!("the image's /etc/passwd has no user `{name}`"))),
    };
    let group_entries = || groups.lines().filter_map(GroupEntry::parse);
    match group.filter(|group| !group.is_empty()) {
        Some(group) => {
            let named = group_entries().find(|e| e.name == group).map(|e| e.gid);
            resolved.gid = named
                .or_else(|| group.parse().ok())
                .ok_or_else(|| fail(format!("the image's /etc/group has no group `{group}`")))?;
            resolved.additional_gids = vec![resolved.gid];
        }
        None => {
            resolved.additional_gids = vec![resolved.gid];
            if let Some(entry) = entry {
                resolved.additional_gids.extend(group_entries().filter(|g| g.has_member(entry.name)).map(|g| g.gid));
            }
            resolved.additional_gids.sort_unstable();
            resolved.additional_gids.dedup();
        }
    }
    // To the kernel this number means "leave it as it is".
    if resolved.uid == u32::MAX || resolved.gid == u32::MAX {
        return Err(fail(format!("{} is no user or group", u32::MAX)));
    }
    Ok(resolved)
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<PasswdEntry<'a>> {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        let home = rest.get(1).copied().filter(|home| !home.is_empty()).unwrap_or("/");
        Some(PasswdEntry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<GroupEntry<'a>> {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, rest @ ..] = fields.as_slice() else { return None };
        Some(GroupEntry { name, gid: gid.parse().ok()?, members: rest.first().copied().unwrap_or("") })
    }

    fn has_member(&self, name: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == name)
    }
}

/// The text of `/etc/<name>` as the overlay would show it; empty when there is none.
fn read_file(lowers: &[PathBuf], name: &str) -> std::result::Result<String, String> {
    for lower in lowers {
        match read_in_layer(lower, name) {
            Ok(Layer::Text(text)) => return Ok(text),
            Ok(Layer::Hides) => return Ok(String::new()),
            Ok(Layer::Lacks) => {}
            Err(errno) => return Err(format!("cannot read etc/{name} in {}: {errno}", lower.display())),
        }
    }
    Ok(String::new())
}

/// What one layer says about a file.
enum Layer {
    Text(String),
    /// Neither this layer nor, for the overlay, any below has it.
    Hides,
    Lacks,
}

fn read_in_layer(layer: &Path, name: &str) -> rustix::io::Result<Layer> {
    let root = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let open = |path: &str, flags: OFlags| -> rustix::io::Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match crate::inside::open_inside(&root, path, flags, resolve) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            result => result.map(Some),
        }
    };
    let Some(place) = open(&format!("etc/{name}"), OFlags::PATH)? else { return Ok(absent(&root)) };
    let stat = rustix::fs::fstat(&place)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        // A whiteout, or something from which no name can be read.
        _ => return Ok(Layer::Hides),
    }
    // A running sandbox may have put something else there meanwhile, which must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Some(file) = open(&format!("etc/{name}"), flags)? else { return Ok(Layer::Hides) };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(Layer::Hides);
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(FILE_LENGTH_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    if bytes.len() as u64 > FILE_LENGTH_MAX {
        return Err(Errno::FBIG);
    }
    Ok(Layer::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

/// A layer without the file hides those below when its `etc` is opaque or is no directory.
fn absent(root: &OwnedFd) -> Layer {
    let Ok(stat) = rustix::fs::statat(root, "etc", AtFlags::SYMLINK_NOFOLLOW) else { return Layer::Lacks };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Layer::Hides;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let is_opaque = rustix::fs::openat(root, "etc", flags, Mode::empty()).is_ok_and(|etc| {
        let mut value = [0; 1];
        rustix::fs::fgetxattr(&etc, "user.overlay.opaque", &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
    });
    if is_opaque { Layer::Hides } else { Layer::Lacks }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
