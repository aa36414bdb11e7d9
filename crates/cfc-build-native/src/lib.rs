//! Executes a plan on this machine.
//!
//! `COPY` from the context streams file, tar and encoder without a root filesystem; a root filesystem is an overlay of
//! unpacked layers, made when a `RUN` or a `COPY --from` needs one. Results are remembered by their content in the
//! store's cache. Leaves the meaning of instructions to `cfc-plan`, blobs and layers to `cfc-store`, processes to
//! `cfc-sandbox`.

mod image;

mod native;

mod assemble;

mod copy;

mod run;

mod mount;

mod remote;

mod bytecode;
mod cache;
mod context;
mod contexts;
mod emulation;
mod entry;
mod export;
mod failure;
mod given;
mod glob;
mod hash;
mod images;
mod layer;
mod output;
mod owner;
mod publisher;
mod renewal;
mod schedule;
mod shared_cache;
mod stat_cache;
mod target;
mod tree;
mod upper;
mod verify;
mod view;
mod write;

pub use export::{ExportError, export_root, export_root_for};
pub use given::GivenContext;
pub use image::{ImageError, ImageRequest, build_image, describe_image, read_dockerfile};
pub use images::{KnownImages, StoreImages};
pub use native::{NativeBuilder, NativeOptions, Stopper};
pub use shared_cache::{CACHE_CONFIG_TYPE, CacheRecords, CacheSource, INLINE_ANNOTATION};
