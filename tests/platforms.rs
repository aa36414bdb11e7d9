//! Images for other platforms: assembled here, picked from an index, and run through an emulator where there is one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cfc_oci::Platform;

use crate::flatten::flatten;
use crate::support::{Home, busybox, can_sandbox, has_program, skipped, step_output};

const ALL: &str = "linux/amd64,linux/arm64,linux/arm/v6,linux/arm/v7";

/// Says which platform it was made for, by a stage that runs here whatever that is.
const FOR_EACH: &str = r#"FROM --platform=$BUILDPLATFORM scratch AS tools
COPY busybox /bin/busybox

FROM --platform=$BUILDPLATFORM tools AS made
ARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM
RUN ["/bin/busybox", "sh", "-c", "echo $TARGETPLATFORM $TARGETARCH $TARGETVARIANT >/made"]

FROM scratch
COPY --from=made /made /platform
"#;

fn home_with_busybox() -> Home {
    let home = Home::new();
    std::fs::create_dir_all(home.path("context")).expect("writable");
    std::fs::copy(busybox().expect("checked before"), home.path("context/busybox")).expect("copied");
    home
}

fn read(home: &Home, file: &str) -> String {
    std::fs::read_to_string(home.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn one_image_is_built_for_several_platforms_and_each_is_picked_from_it() {
    if !can_sandbox() {
        return;
    }
    let home = home_with_busybox();
    home.write("context/Dockerfile", FOR_EACH);
    let arguments = ["build", "context", "-t", "multi:1", "--platform", ALL];
    let named = home.must(&[&arguments[..], &["-o", "files", "-o", "type=oci,dest=multi,tar=false"]].concat());
    for (directory, content) in [
        ("linux_amd64", "linux/amd64 amd64 \n"),
        ("linux_arm64", "linux/arm64 arm64 \n"),
        ("linux_arm_v6", "linux/arm/v6 arm v6\n"),
        ("linux_arm_v7", "linux/arm/v7 arm v7\n"),
    ] {
        let content = content.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(read(&home, &format!("files/{directory}/platform")).trim(), content);
    }
    assert_eq!(home.must(&arguments), named, "and comes out the same again");
    let error = home.must_fail(&[&arguments[..], &["-o", "type=docker,dest=x.tar"]].concat());
    assert!(error.contains("holds the image of one platform, not of 4"), "{error}");

    // The nearest that runs there is taken, and nothing else.
    home.write("context/Dockerfile", "FROM multi:1\nCOPY --from=multi:1 /platform /copied\n");
    let built = |platform: &str| {
        let _ = std::fs::remove_dir_all(home.path("layout"));
        let arguments = ["build", "context", "-t", "one", "--oci-layout", "layout", "--platform", platform];
        home.must(&arguments);
        flatten(&home.path("layout"))
    };
    for (platform, picked) in [
        ("linux/arm64", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/arm/v8", "linux/arm/v7"),
    ] {
        let image = built(platform);
        for file in ["/platform", "/copied"] {
            let line = &image.files[Path::new(file.trim_start_matches('/'))];
            assert!(line.contains(&format!("{picked} ")), "{platform}: {line}");
        }
        let wanted: Platform = platform.parse().expect("a platform");
        assert_eq!(image.config.platform().to_string(), wanted.to_string());
    }
    let error = home.must_fail(&["build", "context", "-t", "one", "--platform", "linux/s390x"]);
    assert!(error.contains("s390x"), "{error}");
    for (platform, what) in [("linux/", "malformed platform"), ("windows/amd64", "for Linux only")] {
        let error = home.must_fail(&["build", "context", "-t", "one", "--platform", platform]);
        assert!(error.contains(what), "{error}");
    }
    // Other tools read the index.
    let annotations = ["--annotation", "index:a=b", "--annotation", "c=d", "--annotation", "manifest-descriptor:e=f"];
    home.write("context/Dockerfile", FOR_EACH);
    home.must(&[&arguments[..], &annotations[..], &["-o", "type=oci,dest=multi,tar=false"]].concat());
    if has_program("skopeo") {
        let inspect = ["inspect", "--raw", &format!("oci:{}:1", home.path("multi").display())].map(str::to_string);
        let output = Command::new("skopeo").args(inspect).output().expect("skopeo runs");
        let index: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(4), "{index}");
        assert_eq!(index["manifests"][2]["platform"]["variant"], "v6");
        assert_eq!(index["annotations"], serde_json::json!({"a": "b"}));
        assert_eq!(index["manifests"][1]["annotations"], serde_json::json!({"e": "f"}));
    }
}

/// `write(1, "hello from arm64\n", 17); exit(0);` as a static program for arm64.
fn hello() -> Vec<u8> {
    const MESSAGE: &[u8] = b"hello from arm64\n";
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let code: [u32; 8] = [
        0xd280_0020,                               // mov x0, #1
        0x1000_00e1,                               // adr x1, message
        0xd280_0002 | (MESSAGE.len() as u32) << 5, // mov x2, #length
        0xd280_0808,                               // mov x8, #64
        0xd400_0001,                               // svc #0
        0xd280_0000,                               // mov x0, #0
        0xd280_0ba8,                               // mov x8, #93
        0xd400_0001,                               // svc #0
    ];
    let size = HEADERS + 32 + MESSAGE.len() as u64;
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
    for word in [ADDRESS + HEADERS, 64, 0] {
        program.extend(word.to_le_bytes());
    }
    program.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    program.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        program.extend(word.to_le_bytes());
    }
    program.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    program.extend(MESSAGE);
    program
}

const RUN_HELLO: &str = "FROM scratch\nCOPY hello /hello\nRUN [\"/hello\"]\n";

fn write_hello(home: &Home) {
    let path = home.write("context/hello", "");
    std::fs::write(&path, hello()).expect("writable");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("ours");
    home.write("context/Dockerfile", RUN_HELLO);
}

#[test]
fn a_run_for_another_processor_says_what_is_missing() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    write_hello(&home);
    if Command::new(home.path("context/hello")).output().is_ok() {
        return skipped("this machine runs programs for arm64");
    }
    let error = home.must_fail(&["build", "context", "-t", "foreign", "--platform", "linux/arm64"]);
    let host = Platform::host();
    assert!(error.contains("Dockerfile:3: `RUN [\"/hello\"]`"), "{error}");
    assert!(
        error.contains(&format!("cannot run `/hello`, which is for linux/arm64, on {host}: no emulator")),
        "{error}"
    );
    assert!(error.contains("install qemu-user-static"), "{error}");
    // What counts is the program, not what is said of it.
    let error = home.must_fail(&["build", "context", "-t", "foreign"]);
    assert!(error.contains("which is for linux/arm64"), "{error}");
}

/// Has its own list of emulators (Linux 6.7), with one for arm64 in it, and runs a command.
const WITH_EMULATOR: &str = r#"set -e
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":arm64:M::$magic:$mask:$EMULATOR:$FLAGS" >/proc/sys/fs/binfmt_misc/register
exec "$@"
"#;

#[test]
fn a_run_for_another_processor_goes_through_the_machines_emulator() {
    if !can_sandbox() || !has_program("unshare") || !has_program("qemu-aarch64-static") {
        return;
    }
    let through = |flags: &str| {
        let variables = ["EMULATOR=/usr/bin/qemu-aarch64-static".to_string(), format!("FLAGS={flags}")];
        let unshare = ["unshare", "--user", "--map-root-user", "--mount", "env", &variables[0], &variables[1]];
        [&unshare[..], &["sh", "-c", WITH_EMULATOR, "sh"]].concat().into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let with_flag: Vec<String> = through("F");
    let words: Vec<&str> = with_flag.iter().map(String::as_str).collect();
    let probe = Command::new(words[0]).args(&words[1..]).arg("true").output().expect("unshare runs");
    if !probe.status.success() {
        return skipped(&format!(
            "no list of emulators of one's own: {}",
            String::from_utf8_lossy(&probe.stderr).trim()
        ));
    }
    let home = Home::through(&words);
    write_hello(&home);
    let arguments = ["build", "context", "-t", "foreign", "--platform", "linux/arm64"];
    let output = home.run(&arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && step_output(&said).contains(&"hello from arm64"), "{said}");

    let without = through("");
    let home = Home::through(&without.iter().map(String::as_str).collect::<Vec<_>>());
    write_hello(&home);
    let error = home.must_fail(&arguments);
    assert!(error.contains("is registered without the flag F"), "{error}");
}
