//! OCI layouts as base images, made to reach this machine's files, to never end or to fill it: refused by name.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use cfc_oci::Digest;
use serde_json::{Value, json};

use crate::images::output_of;
use crate::support::{Home, can_sandbox};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout in the making.
struct Layout {
    directory: PathBuf,
}

impl Layout {
    fn new(home: &Home) -> Layout {
        let directory = home.path("layout");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("blobs/sha256")).expect("writable");
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writable");
        Layout { directory }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// A blob, and its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.path(&digest), bytes).expect("writable");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn json(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// An image of one layer.
    fn image(&self, tar: &[u8]) -> (Value, Value) {
        let layer = self.blob(LAYER, tar);
        let config = json!({
            "architecture": cfc_oci::Platform::host().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(tar).to_string()]},
        });
        let config = self.json(CONFIG, &config);
        (with_platform(self.json(MANIFEST, &manifest(&config, &layer))), layer)
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let _ = fs::remove_file(self.directory.join("index.json"));
        fs::write(self.directory.join("index.json"), index.to_string()).expect("writable");
    }
}

fn with_platform(mut descriptor: Value) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": cfc_oci::Platform::host().architecture});
    descriptor
}

fn manifest(config: &Value, layer: &Value) -> Value {
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]})
}

/// A tar that a shell script makes in an empty directory.
fn tar(home: &Home, script: &str) -> Vec<u8> {
    let directory = home.path("tar");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("writable");
    output_of(Command::new("sh").args(["-euc", script]).current_dir(&directory));
    fs::read(directory.join("layer.tar")).expect("the script made it")
}

const HARMLESS: &str = "echo hello >file; tar -cf layer.tar file";

/// What is said to a build upon the layout, by a store that knows nothing of it.
fn build(home: &Home) -> (Option<i32>, String) {
    let context = format!("base=oci-layout://{}", home.path("layout").display());
    home.write("context/Dockerfile", "FROM base AS b\nFROM scratch\nCOPY --from=b / /\n");
    let _ = fs::remove_dir_all(home.data());
    let output = home.run(&["build", "context", "-t", "hostile", "--build-context", &context]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn refusal(home: &Home, name: &str) -> String {
    let (code, said) = build(home);
    assert_eq!(code, Some(1), "{name}: {said}");
    assert!(said.contains("error:") && !said.contains("panicked"), "{name}: {said}");
    said
}

#[test]
fn what_is_no_file_or_has_another_digest_or_size_is_no_blob() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let layout = Layout::new(&home);
    let (image, layer) = layout.image(&tar(&home, HARMLESS));
    layout.index(std::slice::from_ref(&image));
    assert_eq!(build(&home).0, Some(0), "{}", build(&home).1);
    let blob = layout.path(layer["digest"].as_str().expect("text"));

    let good = fs::read(&blob).expect("readable");
    fs::write(&blob, vec![0; good.len()]).expect("writable");
    assert!(refusal(&home, "other bytes").contains("but the bytes hash to"));
    fs::write(&blob, [&good[..], b"more"].concat()).expect("writable");
    let said = refusal(&home, "longer");
    assert!(said.contains(&format!("expected {} bytes, found {}", good.len(), good.len() + 1)), "{said}");
    fs::remove_file(&blob).expect("removed");
    symlink("/dev/zero", &blob).expect("made");
    assert!(refusal(&home, "endless").contains("it is no file"));
    fs::remove_file(&blob).expect("removed");
    let secret = home.write("secret", "correct-horse");
    symlink(secret, &blob).expect("made");
    let said = refusal(&home, "link");
    assert!(said.contains("bytes, found 13") && !said.contains("correct-horse"), "{said}");
    fs::remove_file(&blob).expect("removed");
    output_of(Command::new("mkfifo").arg(&blob));
    assert!(refusal(&home, "pipe").contains("it is no file"));

    let index = layout.directory.join("index.json");
    fs::remove_file(&index).expect("removed");
    output_of(Command::new("mkfifo").arg(&index));
    assert!(refusal(&home, "index is a pipe").contains("it is no file"));
    layout.index(&[json!({"mediaType": MANIFEST, "digest": format!("sha256:{}secret", "../".repeat(19)), "size": 9})]);
    assert!(refusal(&home, "digest is a path").contains("malformed index"));
    for size in [json!(u64::MAX), json!(1u64 << 62), json!(-1), json!(0)] {
        let mut lying = image.clone();
        lying["size"] = size.clone();
        layout.index(&[lying]);
        let said = refusal(&home, "absurd size");
        assert!(said.contains("bytes, found") || said.contains("malformed index"), "{size}: {said}");
    }
}

#[test]
fn indexes_are_followed_a_few_levels_and_each_once() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let layout = Layout::new(&home);
    let (image, _) = layout.image(&tar(&home, HARMLESS));
    let nested = |depth: usize, width: usize| {
        (0..depth).fold(image.clone(), |below, _| {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![below; width]});
            with_platform(layout.json(INDEX, &index))
        })
    };
    layout.index(&[nested(8, 1)]);
    let said = refusal(&home, "deep");
    assert!(said.contains("nested deeper than 4 levels"), "{said}");
    // Eight thousand million ways to the image.
    layout.index(&[nested(3, 2000)]);
    assert_eq!(build(&home).0, Some(0), "{}", build(&home).1);
    // One that names itself has another digest.
    let itself = format!("sha256:{}", "a".repeat(64));
    let loops = json!({"mediaType": INDEX, "digest": itself, "size": 300});
    let mut text = json!({"schemaVersion": 2, "manifests": [loops]}).to_string();
    text.extend(std::iter::repeat_n(' ', 300 - text.len()));
    fs::write(layout.path(&itself), text).expect("writable");
    layout.index(&[loops]);
    assert!(refusal(&home, "loop").contains("but the bytes hash to"));
    // A manifest whose config and layer it is itself.
    let config = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": vec![image.clone(); 2]}));
    layout.index(&[layout.json(MANIFEST, &manifest(&config, &image))]);
    refusal(&home, "an index for a config");
}

#[test]
fn layers_of_a_base_stay_in_their_place() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let secret = home.write("secret", "correct-horse").display().to_string();
    for (name, script, reason) in [
        ("above", ": >x; tar -P --transform 's,^x,../../x,' -cf layer.tar x".to_string(), "`..`"),
        (
            "through",
            format!(
                "ln -s {} l; tar -cf layer.tar l; : >x; tar -P --transform 's,^x,l/x,' -rf layer.tar x",
                home.path("").display()
            ),
            "not a directory",
        ),
        ("hard", format!(": >x; ln x y; tar -P --transform 's,^x$,{secret},RS' -cf layer.tar x y"), "not in the layer"),
        ("cut", "head -c 100000 /dev/zero >x; tar -cf layer.tar x; truncate -s 5000 layer.tar".to_string(), "layer"),
    ] {
        let layout = Layout::new(&home);
        let (image, _) = layout.image(&tar(&home, &script));
        layout.index(&[image]);
        let said = refusal(&home, name);
        assert!(said.contains(reason), "{name}: {said}");
        assert_eq!(fs::read_to_string(&secret).expect("there"), "correct-horse");
        assert!(!home.path("x").exists(), "{name} wrote outside");
    }
    // A config that promises other layers than there are.
    let layout = Layout::new(&home);
    let bytes = tar(&home, HARMLESS);
    let layer = layout.blob(LAYER, &bytes);
    for diff_ids in
        [json!([Digest::of(b"other").to_string()]), json!([]), json!(vec![Digest::of(&bytes).to_string(); 2])]
    {
        let config = json!({
            "architecture": cfc_oci::Platform::host().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = layout.json(CONFIG, &config);
        layout.index(&[layout.json(MANIFEST, &manifest(&config, &layer))]);
        refusal(&home, &format!("diff ids {diff_ids}"));
    }
}
