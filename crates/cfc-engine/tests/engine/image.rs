//! An image for the tests: busybox, and a page for its web server.

use std::path::Path;

use cfc_oci::{ContainerConfig, Descriptor, ImageConfig, Manifest, Platform, RootFs, media_type};
use cfc_store::{Compression, LayerWriter, Metadata, Store};

pub const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 12] = ["cat", "date", "env", "httpd", "id", "ls", "pwd", "sh", "sleep", "tail", "touch", "true"];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nada:x:1815:1815:Ada:/home/ada:/bin/sh\n";

/// Puts an image into the store that runs `sh -c SCRIPT`.
pub fn busybox(store: &Store, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> Descriptor {
    let mut layer = LayerWriter::new(store.layer_writer(Compression::None).expect("a writer"));
    let binary = std::fs::read(BUSYBOX).expect("busybox is there");
    let executable = Metadata::root(0o755, 0);
    let mut file = |path: &str, metadata: &Metadata, bytes: &[u8]| {
        layer.file(Path::new(path), metadata, bytes.len() as u64, &mut &bytes[..]).expect("writes");
    };
    file("bin/busybox", &executable, &binary);
    file("etc/passwd", &Metadata::root(0o644, 0), PASSWD.as_bytes());
    file("www/index.html", &Metadata::root(0o644, 0), b"hello from the container\n");
    for applet in APPLETS {
        let link = Path::new("bin").join(applet);
        layer.symlink(&link, Path::new("busybox"), &executable).expect("writes");
    }
    layer.directory(Path::new("tmp"), &Metadata::root(0o1777, 0)).expect("writes");
    let blob = layer.finish().expect("writes").finish().expect("commits");
    let Platform { os, architecture, .. } = Platform::host();
    let mut config = ImageConfig {
        os,
        architecture,
        rootfs: RootFs { diff_ids: vec![blob.diff_id.clone()], ..RootFs::default() },
        ..ImageConfig::default()
    };
    config.config.cmd = Some(["/bin/sh", "-c", script].map(str::to_string).to_vec());
    change(&mut config.config);
    let config = put(store, media_type::CONFIG, &config.to_bytes());
    put(store, media_type::MANIFEST, &Manifest::new(config, vec![blob.descriptor]).to_bytes())
}

fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = store.blobs().put(bytes).expect("stores");
    Descriptor::new(media_type, digest, bytes.len() as u64)
}
