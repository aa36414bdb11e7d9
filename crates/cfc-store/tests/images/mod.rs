//! Small images for tests.
#![allow(dead_code, reason = "not every test file needs everything")]

use std::io::Read;
use std::path::Path;

use cfc_oci::{Descriptor, ImageConfig, Manifest, RootFs, media_type};
use cfc_store::{Compression, LayerBlob, LayerBlobWriter, LayerWriter, Metadata, Store, TempDir};

/// A store in a temporary directory.
pub fn temporary_store() -> (TempDir, Store) {
    let directory = TempDir::new().expect("a temporary directory");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    (directory, store)
}

/// A layer that `write` fills.
pub fn layer(
    store: &Store,
    compression: Compression,
    write: impl FnOnce(&mut LayerWriter<LayerBlobWriter>) -> std::io::Result<()>,
) -> LayerBlob {
    let mut writer = LayerWriter::new(store.layer_writer(compression).expect("a writer"));
    write(&mut writer).expect("the layer is written");
    writer.finish().expect("the layer ends").finish().expect("the layer is stored")
}

/// A layer with one file.
pub fn file_layer(store: &Store, path: &str, content: &str) -> LayerBlob {
    layer(store, Compression::Gzip, |writer| file(writer, path, content))
}

/// One file of root's.
pub fn file(writer: &mut LayerWriter<LayerBlobWriter>, path: &str, content: &str) -> std::io::Result<()> {
    writer.file(Path::new(path), &Metadata::root(0o644, 0), content.len() as u64, &mut content.as_bytes())
}

/// An image of `layers`, lowest first.
pub fn image(store: &Store, layers: &[LayerBlob]) -> Descriptor {
    let platform = cfc_oci::Platform::host();
    let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let config = ImageConfig {
        architecture: platform.architecture,
        os: platform.os,
        rootfs: RootFs { diff_ids, ..RootFs::default() },
        ..ImageConfig::default()
    };
    let config = put(store, media_type::CONFIG, &config.to_bytes());
    let manifest = Manifest::new(config, layers.iter().map(|layer| layer.descriptor.clone()).collect());
    put(store, media_type::MANIFEST, &manifest.to_bytes())
}

fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, store.blobs().put(bytes).expect("stored"), bytes.len() as u64)
}

/// Bytes that do not compress to nothing.
pub fn noise(size: usize) -> impl Read {
    let mut state: u64 = 42;
    let byte = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 60) as u8
    };
    std::io::Cursor::new(std::iter::repeat_with(byte).take(size).collect::<Vec<u8>>())
}
