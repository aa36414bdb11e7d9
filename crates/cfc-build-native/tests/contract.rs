//! The suite of the seam, run against this executor.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cfc_build_native::{NativeBuilder, NativeOptions};
use cfc_plan::BuiltImage;
use cfc_plan::contract::{Subject, check};
use cfc_store::Store;
use common::{Fixture, can_run, launcher};

#[test]
fn the_native_executor_keeps_the_promises_of_the_seam() {
    let fixture = Fixture::new();
    let mut builder = NativeBuilder::with_program(fixture.store.clone(), &launcher(), NativeOptions::default());
    let busybox = can_run().then_some(Path::new("/bin/busybox"));
    let files = |built: &BuiltImage| files(&fixture.store, built);
    check(Subject { builder: &mut builder, directory: &fixture.context(), busybox, files: &files });
}

/// The regular files of the layers, upper ones over lower ones; nothing in the suite is removed.
fn files(store: &Store, built: &BuiltImage) -> BTreeMap<PathBuf, Vec<u8>> {
    let image = store.images().load(&built.manifest).expect("loads");
    let mut files = BTreeMap::new();
    for layer in store.unpack_image(&image).expect("unpacks").iter().rev() {
        let mut pending = vec![layer.clone()];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(&directory).expect("lists") {
                let path = entry.expect("an entry").path();
                let kind = path.symlink_metadata().expect("is there").file_type();
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() {
                    let name = path.strip_prefix(layer).expect("is below").to_path_buf();
                    files.insert(name, std::fs::read(&path).expect("reads"));
                }
            }
        }
    }
    files
}
