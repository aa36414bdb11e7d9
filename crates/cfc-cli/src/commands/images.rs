//! `cfc images`: the names of images in the store. What they name goes with `cfc prune`, once nobody needs it.

use std::process::ExitCode;

use cfc_oci::{Descriptor, Reference};
use cfc_store::Store;
use serde_json::json;

use crate::args::{Images, ImagesList, ImagesRemove};
use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;
use crate::size;

/// Enough of a digest's hexadecimal digits to tell it from others.
const DIGEST_DIGITS: usize = 12;

pub fn run(settings: &Settings, command: &Images) -> Result<ExitCode, Failure> {
    match command {
        Images::List(arguments) => list(settings, arguments),
        Images::Remove(arguments) => remove(settings, arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn list(settings: &Settings, arguments: &ImagesList) -> Result<(), Failure> {
    let store = settings.open_store()?;
    let images = store.images().list()?;
    if arguments.json {
        let entry = |(name, image): &(Reference, Descriptor)| json!({ "name": name.to_string(), "digest": image.digest, "size_bytes": size_of(&store, image) });
        output::data(serde_json::to_string_pretty(&images.iter().map(entry).collect::<Vec<_>>())?);
        return Ok(());
    }
    let row = |(name, image): &(Reference, Descriptor)| {
        let digits = image.digest.hex().chars().take(DIGEST_DIGITS).collect();
        let size = size_of(&store, image).map_or("damaged".to_string(), size::show);
        vec![name.name(), name.manifest_name(), digits, size]
    };
    output::table(&["NAME", "TAG", "DIGEST", "SIZE"], &images.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

/// What the image takes, as it is stored: compressed, and what it shares with others counted for each. None where the store
/// lost some of it.
fn size_of(store: &Store, image: &Descriptor) -> Option<u64> {
    let blobs = store.blobs_of(image).ok()?;
    Some(blobs.iter().map(|blob| blob.size).sum())
}

/// All of them or, where there is no such name, none.
fn remove(settings: &Settings, arguments: &ImagesRemove) -> Result<(), Failure> {
    let store = settings.open_store()?;
    let names = arguments.names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>, _>>()?;
    for name in &names {
        if name.digest.is_some() {
            return Err(Failure::new(format!("`{name}` is a digest, and only names are removed"))
                .hint("`cfc images list` shows what names it; `cfc prune` removes what has no name"));
        }
        if store.images().resolve(name)?.is_none() {
            return Err(Failure::new(format!("there is no image `{name}` in the store `{}`", store.root().display()))
                .hint("`cfc images list` shows those that there are"));
        }
    }
    for name in &names {
        // Another may have been faster, to the same end.
        store.images().untag(name)?;
        output::data(format!("{}:{}", name.name(), name.manifest_name()));
    }
    output::tell("what no other name, application or instance needs goes with `cfc prune`");
    Ok(())
}
