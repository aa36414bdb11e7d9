//! Compares what two runs of the same operation made: which file differs first, and in what.

use std::io::Read;
use std::path::{Path, PathBuf};

use cfc_plan::{Node, NodeId};
use cfc_store::Store;

use crate::failure::{Failure, OnPath, Result};
use crate::layer::Layer;
use crate::tree::{FileInfo, Kind, Tree};
use crate::view::View;

/// The layer of `node` itself among those up to it; none where it makes no layer of its own.
pub(crate) fn own_layer<'l>(node: &Node, layers: &'l [Vec<Layer>], index: usize) -> Option<&'l Layer> {
    let n_below = node.base.map_or(0, |NodeId(base)| layers[base].len());
    layers[index].get(n_below..).and_then(<[Layer]>::last)
}

/// The failure that says how the layers differ that one operation made in two runs.
pub(crate) fn difference(store: &Store, first: &Layer, second: &Layer) -> Result<Failure> {
    let open = |layer: &Layer| View::for_reading(store, std::slice::from_ref(layer));
    let (one, other) = (open(first)?, open(second)?);
    let found = differ(&one, &other, Path::new("/"))?;
    let what = match found {
        Some((path, what)) => format!("`{}` differs in its {what}", path.display()),
        None => "the order or the removals in the layer differ".to_owned(),
    };
    Ok(Failure::new(format!("two runs of this step made different layers: {what}")).hint(
        "make the step independent of time, chance and the network; SOURCE_DATE_EPOCH is there for programs to use",
    ))
}

/// The first path below `directory` that is not the same in both, and what of it differs.
fn differ(one: &View, other: &View, directory: &Path) -> Result<Option<(PathBuf, &'static str)>> {
    let (mine, theirs) = (one.list(directory)?, other.list(directory)?);
    let mut names: Vec<_> = mine.iter().chain(&theirs).map(|(name, _)| name.clone()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = directory.join(&name);
        let find = |list: &[(std::ffi::OsString, FileInfo)]| {
            list.iter().find(|(known, _)| *known == name).map(|(_, info)| info.clone())
        };
        let (Some(a), Some(b)) = (find(&mine), find(&theirs)) else { return Ok(Some((path, "existence"))) };
        if let Some(what) = differ_at(one, other, &path, &a, &b)? {
            return Ok(Some((path, what)));
        }
        if a.is_directory()
            && let Some(found) = differ(one, other, &path)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn differ_at(one: &View, other: &View, path: &Path, a: &FileInfo, b: &FileInfo) -> Result<Option<&'static str>> {
    let seconds = |info: &FileInfo| info.identity.modified.div_euclid(1_000_000_000);
    let facts = [
        ("type", std::mem::discriminant(&a.kind) != std::mem::discriminant(&b.kind)),
        ("target or device number", a.kind != b.kind),
        ("mode", a.mode != b.mode),
        ("owner", (a.uid, a.gid) != (b.uid, b.gid)),
        ("size", !a.is_directory() && a.size != b.size),
        ("number of names", !a.is_directory() && a.links != b.links),
    ];
    if let Some((what, _)) = facts.iter().find(|(_, differs)| *differs) {
        return Ok(Some(what));
    }
    if a.kind == Kind::File && !is_same_content(one, other, path)? {
        return Ok(Some("content"));
    }
    if one.attributes(path)? != other.attributes(path)? {
        return Ok(Some("extended attributes"));
    }
    Ok((seconds(a) != seconds(b)).then_some("time"))
}

fn is_same_content(one: &View, other: &View, path: &Path) -> Result<bool> {
    let (mut one, mut other) = (one.open(path)?, other.open(path)?);
    let (mut mine, mut theirs) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = one.read(&mut mine).on("read", path)?;
        if count == 0 {
            return Ok(other.read(&mut theirs).on("read", path)? == 0);
        }
        let Ok(()) = other.read_exact(&mut theirs[..count]) else { return Ok(false) };
        if mine[..count] != theirs[..count] {
            return Ok(false);
        }
    }
}
