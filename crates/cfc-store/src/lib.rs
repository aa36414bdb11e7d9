//! Blobs, layers and unpacked root filesystems on local disk.
