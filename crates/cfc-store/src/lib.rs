//! Blobs, layers and unpacked root filesystems on local disk.
//!
//! The store owns one directory (see [`Store::open`]) that several processes may use at once. Everything in it is
//! published by a rename of something finished, so a reader sees all of it or nothing, and a crash leaves only files
//! below `tmp/`, which the next [`Store::open`] sweeps. The crate does no networking and starts no processes.

pub mod layer_tar;

mod archive;
mod blob;
mod blocks;
mod borders;
mod cache;
mod changing;
mod compression;
mod decompress;
mod error;
mod foreign;
mod hashed_file;
mod image;
mod layer;
mod layout;
mod layout_blob;
mod parallel;
mod prune;
mod stargz;
mod store;
mod unpack;
mod upper;
mod uses;

pub use archive::ArchiveKind;
pub use blob::{BlobStore, BlobWriter};
pub use cache::{Cache, KeyLock, is_at};
pub use compression::{Compression, Encoding, LayerBlob, LayerBlobWriter, SealedLayer};
pub use error::{Result, StoreError, StoreErrorKind};
pub use foreign::{ArchiveFile, ForeignLayer, ReadLayer, read_archive};
pub use image::{Image, ImageStore};
pub use layer::LayerStore;
pub use layer_tar::{DeviceKind, LayerWriter, Metadata};
pub use layout::{describe_layout_blob, find_in_oci_layout, name_in_oci_layout, open_layout_blob};
pub use layout_blob::LayoutBlobWriter;
pub use parallel::{Codec, ParallelEncoder};
pub use prune::{Prunable, PrunableKind, PruneFilter, PrunePlan, Pruned, Pruner};
pub use store::Store;
pub use tempfile::TempDir;
pub use unpack::{UnpackLimits, is_tar, unpack_archive, unpack_layer};
pub use upper::{UpperOptions, write_upper_as_layer};
