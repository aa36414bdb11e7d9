//! Base images as projects use them, made of what this machine can get: a Debian by `debootstrap`, and on it Node.js,
//! Python and Rust (`testdata/services/bases`, a folder each). They are OCI layouts, remembered beside the tools:
//!
//! ```text
//! bases/lock                 held while bases are made or used
//! bases/<name>-<key>/        the layout; the key is of all that it was made of
//! bases/engine/              images and cache of the Docker engine that builds on them
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use cfc_oci::Digest;

use crate::images::output_of;
use crate::support::{Home, can_sandbox, has_program, repository, skipped};

/// Name and tag as projects write them; each may build on those before it.
const BASES: [(&str, &str); 4] = [("debian", "bookworm"), ("node", "20"), ("python", "3"), ("rust", "1")];

/// Where the machine has the certificates that it trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

pub struct Base {
    /// `name:tag`
    pub reference: String,
    pub layout: PathBuf,
}

/// All bases, ours alone until this is dropped.
pub struct Bases {
    pub all: Vec<Base>,
    /// Where an engine may keep what it knows of them.
    pub engine: PathBuf,
    _lock: File,
}

impl Bases {
    /// The bases, made where they are not remembered. `None`, with the reason, where they cannot be.
    pub fn get() -> Option<Bases> {
        let can_make = can_sandbox() && ["debootstrap", "npm", "node"].into_iter().all(has_program);
        if !can_make || !has_registries() {
            return None;
        }
        let directory = directory();
        fs::create_dir_all(&directory).expect("writable");
        let lock = File::create(directory.join("lock")).expect("writable");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locks");
        let mut all: Vec<Base> = Vec::new();
        for (name, tag) in BASES {
            let layout = match remembered(&directory, name, &all) {
                Ok(layout) => layout,
                Err(layout) => make(name, tag, &all, layout)?,
            };
            all.push(Base { reference: format!("{name}:{tag}"), layout });
        }
        Some(Bases { all, engine: directory.join("engine"), _lock: lock })
    }

    /// Puts the bases into the store of `home`.
    pub fn import(&self, home: &Home) {
        let store = cfc_store::Store::open(&home.data().join("store")).expect("a store");
        for base in &self.all {
            take_in(&store, base);
        }
    }
}

fn take_in(store: &cfc_store::Store, base: &Base) {
    let image = store.import_oci_layout(&base.layout, None).expect("imports");
    let reference = cfc_oci::Reference::parse(&base.reference).expect("a reference");
    store.images().tag(&reference, &image).expect("tags");
}

fn directory() -> PathBuf {
    let cache = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cfc/tools");
    let tools = std::env::var_os("CFC_TOOLS_DIR").map_or_else(cache, PathBuf::from);
    tools.with_file_name("bases")
}

/// Where the layout of a base is, or where it should be.
fn remembered(directory: &Path, name: &str, before: &[Base]) -> Result<PathBuf, PathBuf> {
    let dockerfile = fs::read_to_string(folder(name).join("Dockerfile")).expect("readable");
    let node = Command::new("node").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let certificates = fs::read(CERTIFICATES).unwrap_or_default();
    let below = before.first().map(|base| base.layout.display().to_string()).unwrap_or_default();
    let inputs = [dockerfile.as_bytes(), &node, &certificates, below.as_bytes()];
    let key = Digest::of(&inputs.join(&b"\0"[..])).hex()[..12].to_string();
    let layout = directory.join(format!("{name}-{key}"));
    if layout.join("index.json").exists() { Ok(layout) } else { Err(layout) }
}

fn folder(name: &str) -> PathBuf {
    repository().join("testdata/services/bases").join(name)
}

/// Builds a base with a cfc of its own, and forgets the one before it.
fn make(name: &str, tag: &str, before: &[Base], layout: PathBuf) -> Option<PathBuf> {
    for entry in fs::read_dir(layout.parent()?).expect("lists").flatten() {
        let is_old = entry.file_name().to_string_lossy().starts_with(&format!("{name}-"));
        if is_old {
            fs::remove_dir_all(entry.path()).expect("removed");
        }
    }
    let home = Home::new();
    let context = home.path("context");
    fs::create_dir_all(&context).expect("writable");
    match name {
        "debian" => debootstrap(&context)?,
        "node" => copy_node(&context),
        _ => {}
    }
    let certificates = fs::read(CERTIFICATES).unwrap_or_default();
    fs::write(context.join("certificates.crt"), certificates).expect("writable");
    let store = cfc_store::Store::open(&home.data().join("store")).expect("a store");
    before.iter().for_each(|base| take_in(&store, base));
    let mut command = home.cfc();
    command.arg("build").arg(&context).arg("-f").arg(folder(name).join("Dockerfile"));
    command.args(["-t", &format!("{name}:{tag}"), "--oci-layout"]).arg(&layout);
    output_of(&mut command);
    Some(layout)
}

/// Whether packages can be had here; says so if not. Who reaches npm's is taken to reach the others.
fn has_registries() -> bool {
    let output = Command::new("npm").arg("ping").output().expect("npm runs");
    if !output.status.success() {
        skipped("no packages can be had here: `npm ping` fails");
    }
    output.status.success()
}

/// A root filesystem of Debian as `rootfs.tar`, without packages and lists.
fn debootstrap(context: &Path) -> Option<()> {
    let root = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "bookworm"]).arg(root.path());
    let output = command.output().expect("debootstrap runs");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        skipped(&format!("debootstrap fails: {}", said.lines().last().unwrap_or_default()));
        return None;
    }
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--one-file-system", "--xattrs"]);
    command.args(["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*_*", "-cf"]);
    command.arg(context.join("rootfs.tar")).arg("-C").arg(root.path()).arg(".");
    output_of(&mut command);
    Some(())
}

/// Node.js and npm of this machine, laid out as below `/usr/local`.
fn copy_node(context: &Path) {
    const SCRIPT: &str = r#"
        mkdir -p bin lib/node_modules
        cp -L "$(node -p process.execPath)" bin/node
        cp -RL "$(npm root -g)/npm" lib/node_modules/npm
        for name in npm npx; do ln -s "../lib/node_modules/npm/bin/$name-cli.js" "bin/$name"; done"#;
    let directory = context.join("node");
    fs::create_dir_all(&directory).expect("writable");
    output_of(Command::new("sh").args(["-euc", SCRIPT]).current_dir(directory));
}
