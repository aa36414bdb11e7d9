//! OCI image layouts: images as directories that other tools read and write.

use std::path::Path;

use cfc_oci::{Descriptor, Reference};

use crate::{Result, Store};

impl Store {
    /// Writes `image`, with everything it consists of, to the OCI layout `directory`, making it or adding to it. There
    /// it is called by the tag of `reference`.
    pub fn export_oci_layout(
        &self,
        _image: &Descriptor,
        _reference: Option<&Reference>,
        _directory: &Path,
    ) -> Result<()> {
        todo!()
    }

    /// Takes in the image that the OCI layout `directory` calls `name` (its only one, for `None`), verifying every
    /// digest.
    pub fn import_oci_layout(&self, _directory: &Path, _name: Option<&str>) -> Result<Descriptor> {
        todo!()
    }
}
