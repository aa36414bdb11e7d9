//! [`ImageSource`]: what `containers[].image` names.

use std::path::{Path, PathBuf};

use cfc_oci::Reference;
use serde::{Deserialize, Serialize};

use crate::table::Table;

/// Where a container's image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// Built from a Dockerfile.
    Dockerfile {
        /// The file, absolute.
        path: PathBuf,
        /// The build context, absolute.
        context: PathBuf,
    },
    /// An image that exists.
    Reference(Reference),
}

/// Reads `image` (or the deprecated `configuration.image`) with `image_build_context`, as wrangler does: a path that is
/// there is a Dockerfile, everything else is a reference, which must have a tag or a digest.
pub(crate) fn read(table: &Table, deprecated: Option<&str>, directory: &Path) -> Option<ImageSource> {
    let context = table.string("image_build_context");
    let Some(image) = table.string("image").or(deprecated) else {
        if table.value("image").is_none() {
            table.problem(
                "image",
                "the container has no image",
                "name a Dockerfile or an image, for example `\"./Dockerfile\"`",
            );
        }
        return None;
    };
    let path = clean(&directory.join(image));
    if path.is_dir() {
        let dockerfile = Path::new(image).join("Dockerfile");
        let has_dockerfile = path.join("Dockerfile").is_file();
        let hint = if has_dockerfile {
            format!("write `\"{}\"`", dockerfile.display())
        } else {
            String::from("name the Dockerfile itself")
        };
        table.problem("image", format!("`{image}` is a directory"), hint);
        return None;
    }
    if path.is_file() {
        return Some(ImageSource::Dockerfile { context: build_context(table, context, &path, directory)?, path });
    }
    if looks_like_path(image) {
        table.problem(
            "image",
            format!("there is no Dockerfile at `{}`", path.display()),
            "paths are relative to the config",
        );
        return None;
    }
    if context.is_some() {
        table.warning("image_build_context", format!("has no effect: `{image}` is no Dockerfile but an image"));
    }
    reference(table, image).map(ImageSource::Reference)
}

fn looks_like_path(image: &str) -> bool {
    let file = image.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_dockerfile_name = ["dockerfile", "containerfile"].iter().any(|name| file.contains(name));
    image.starts_with(['.', '/']) || (is_dockerfile_name && !file.contains([':', '@']))
}

fn build_context(table: &Table, context: Option<&str>, dockerfile: &Path, directory: &Path) -> Option<PathBuf> {
    let Some(context) = context else {
        return Some(dockerfile.parent().unwrap_or(directory).to_path_buf());
    };
    let path = clean(&directory.join(context));
    if !path.is_dir() {
        let what = if path.exists() { "is not a directory" } else { "does not exist" };
        table.problem(
            "image_build_context",
            format!("`{context}` {what} (looked at `{}`)", path.display()),
            "paths are relative to the config",
        );
        return None;
    }
    Some(path)
}

/// The path without its `.` components.
fn clean(path: &Path) -> PathBuf {
    path.components().filter(|component| !matches!(component, std::path::Component::CurDir)).collect()
}

fn reference(table: &Table, image: &str) -> Option<Reference> {
    if let Some((scheme, rest)) = image.split_once("://") {
        table.problem("image", format!("`{image}` begins with `{scheme}://`"), format!("write `\"{rest}\"`"));
        return None;
    }
    match Reference::parse(image) {
        Ok(reference) if reference.tag.is_none() && reference.digest.is_none() => {
            let hint = format!(
                "if an image is meant, write its tag (`\"{image}:TAG\"`); if a Dockerfile is meant, there is none at that path"
            );
            table.problem("image", format!("`{image}` is neither a file nor an image with a tag"), hint);
            None
        }
        Ok(reference) => Some(reference),
        Err(error) => {
            let message = format!("`{image}` is neither a file nor the name of an image: {error}");
            table.problem("image", message, "paths are relative to the config");
            None
        }
    }
}
