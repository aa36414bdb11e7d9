//! Programs of other processors: whether this machine's kernel hands them to an emulator (binfmt_misc).
//!
//! Asked by trying: what the kernel knows is often not to be seen from where a build runs, in a container say.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cfc_oci::Platform;
use cfc_plan::Run;
use cfc_store::Store;

use crate::failure::{Failure, OnPath, Result};
use crate::layer::Layer;
use crate::tree::{Kind, Last, Lookup, Tree, resolve};
use crate::view::View;

/// Where the kernel says what it hands to whom, where that is mounted.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
/// The kernel's answer to a program of a kind that it does not know.
const ENOEXEC: i32 = 8;

/// As much of a program as tells what it is for.
const HEADER_BYTES: u64 = 20;

/// What a program's first bytes say of the processor that it is for (ELF, `e_ident` and `e_machine`).
struct Machine {
    architecture: &'static str,
    is_64_bit: bool,
    is_big_endian: bool,
    number: u16,
}

const MACHINES: [Machine; 10] = [
    machine("amd64", true, false, 62),
    machine("386", false, false, 3),
    machine("arm64", true, false, 183),
    machine("arm", false, false, 40),
    machine("riscv64", true, false, 243),
    machine("ppc64le", true, false, 21),
    machine("s390x", true, true, 22),
    machine("mips64le", true, false, 8),
    machine("mips64", true, true, 8),
    machine("loong64", true, false, 258),
];

const fn machine(architecture: &'static str, is_64_bit: bool, is_big_endian: bool, number: u16) -> Machine {
    Machine { architecture, is_64_bit, is_big_endian, number }
}

/// Fails, saying what to install, when the program of `run` is for a processor that this machine neither is nor emulates.
///
/// What counts is the file itself: what an image says of its platform may be wrong, and a stage from scratch may have
/// tools of this machine's in it.
pub(crate) fn check(store: &Store, run: &Run, layers: &[Layer]) -> Result<()> {
    let view = View::for_reading(store, layers)?;
    let Some((program, machine)) = foreign_program(&view, run)? else { return Ok(()) };
    let missing = |what: String| {
        let program = program.display();
        let (own, host) = (Platform::new("linux", machine.architecture), Platform::host());
        Failure::new(format!("cannot run `{program}`, which is for {own}, on {host}: {what}")).hint(
            "install qemu-user-static and binfmt-support (Debian's names), or let the stage be of this machine's platform: \
             `FROM --platform=$BUILDPLATFORM …`",
        )
    };
    let header = machine.header();
    if !is_executed(store, &header)? {
        return Err(missing("no emulator is registered with the kernel (binfmt_misc)".to_string()));
    }
    match handler_of(Path::new(HANDLERS), &header) {
        Some(Handler { interpreter, stays_open: false, .. }) => Err(missing(format!(
            "its emulator `{interpreter}` is registered without the flag F, so it is not found in a container"
        ))),
        _ => Ok(()),
    }
}

/// The file that `run` executes, when that is a program of another processor.
fn foreign_program(view: &View, run: &Run) -> Result<Option<(PathBuf, &'static Machine)>> {
    let name = run.args.first().map_or("", String::as_str);
    let directories = match name.contains('/') {
        true => run.working_directory.as_str(),
        false => run.env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value),
    };
    for directory in directories.split(':') {
        // A circle of links somewhere in the path keeps nobody from finding it elsewhere.
        let Ok(path) = resolve(view, &Path::new("/").join(directory).join(name), Last::Followed) else { continue };
        if view.lookup(&path)?.is_none_or(|info| info.kind != Kind::File) {
            continue;
        }
        let mut header = Vec::new();
        // What only its owner may read can be executed all the same.
        let Ok(file) = view.open(&path) else { return Ok(None) };
        file.take(HEADER_BYTES).read_to_end(&mut header).on("read", &path)?;
        let machine = MACHINES.iter().find(|machine| machine.is_of(&header));
        let is_native =
            |machine: &Machine| Platform::new("linux", machine.architecture).is_native_to(&Platform::host());
        return Ok(machine.filter(|machine| !is_native(machine)).map(|machine| (path, machine)));
    }
    // Whoever starts it says that it is not there.
    Ok(None)
}

impl Machine {
    /// Whether a program that begins so is for this processor.
    fn is_of(&self, header: &[u8]) -> bool {
        let own = self.header();
        header.len() as u64 == HEADER_BYTES && header[..6] == own[..6] && header[18..20] == own[18..20]
    }

    /// The header of a program that has nothing in it.
    fn header(&self) -> Vec<u8> {
        let half = |value: u16| if self.is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let word = |value: u32| if self.is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let size: u16 = if self.is_64_bit { 64 } else { 52 };
        let mut header = b"\x7fELF".to_vec();
        header.extend([1 + u8::from(self.is_64_bit), 1 + u8::from(self.is_big_endian), 1, 0]);
        header.extend([0; 8]);
        // An executable; of version 1.
        header.extend([half(2), half(self.number)].concat());
        header.extend(word(1));
        header.resize(usize::from(size), 0);
        // Where it says how long it is itself.
        let at = usize::from(size) - 12;
        header[at..at + 2].copy_from_slice(&half(size));
        header
    }
}

/// Whether the kernel finds somebody for a program that begins so.
fn is_executed(store: &Store, header: &[u8]) -> Result<bool> {
    let workspace = store.temp_dir()?;
    let path = workspace.path().join("program");
    let mut file = File::options().write(true).create_new(true).mode(0o755).open(&path).on("make", &path)?;
    file.write_all(header).on("write", &path)?;
    drop(file);
    loop {
        let mut command = Command::new(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            // The emulator may make of it what it likes.
            Ok(mut child) => {
                child.wait().on("wait for", &path)?;
                return Ok(true);
            }
            Err(error) if error.raw_os_error() == Some(ENOEXEC) => return Ok(false),
            // A program that another thread is just starting has our file open for writing for a moment.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            // Whatever it is, it says nothing of emulators: the step will tell.
            Err(_) => return Ok(true),
        }
    }
}

/// Whom the kernel hands programs to.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    interpreter: String,
    /// Whether it was opened when it was registered (flag F), so that it need not be in the program's own root.
    stays_open: bool,
}

/// The handler in `directory` that takes a program that begins so; none where that cannot be seen.
fn handler_of(directory: &Path, header: &[u8]) -> Option<Handler> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.into_iter().find_map(|text| parse(&text, header))
}

/// `enabled`, `interpreter PATH`, `flags: OCF`, `offset 0`, `magic HEX`, `mask HEX`, a line each.
fn parse(text: &str, header: &[u8]) -> Option<Handler> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', ':']));
    let bytes = |name: &str| decode_hex(field(name)?.trim());
    let (magic, offset) = (bytes("magic")?, field("offset")?.trim().parse::<usize>().ok()?);
    let mask = bytes("mask").unwrap_or_else(|| vec![0xff; magic.len()]);
    let is_same = |(index, (magic, mask)): (usize, (&u8, &u8))| {
        header.get(offset + index).is_some_and(|byte| (byte ^ magic) & mask == 0)
    };
    let takes_it = text.starts_with("enabled") && magic.iter().zip(&mask).enumerate().all(is_same);
    takes_it.then(|| Handler {
        interpreter: field("interpreter").unwrap_or_default().trim().to_string(),
        stays_open: field("flags").is_some_and(|flags| flags.contains('F')),
    })
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AARCH64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn header(architecture: &str) -> Vec<u8> {
        MACHINES.iter().find(|machine| machine.architecture == architecture).expect(architecture).header()
    }

    #[test]
    fn what_debian_registers_is_understood() {
        let handler = parse(AARCH64, &header("arm64")).expect("it is for it");
        assert_eq!(handler.interpreter, "/usr/libexec/qemu-binfmt/aarch64-binfmt-P");
        assert!(handler.stays_open);
        assert!(!parse(&AARCH64.replace("POCF", "POC"), &header("arm64")).expect("it is for it").stays_open);
        for other in ["amd64", "arm", "riscv64", "s390x"] {
            assert_eq!(parse(AARCH64, &header(other)), None, "{other}");
        }
        assert_eq!(parse(&AARCH64.replace("enabled", "disabled"), &header("arm64")), None);
        assert_eq!(parse("enabled\n", &header("arm64")), None, "the kernel's own `status`");
    }

    #[test]
    fn programs_are_told_by_their_first_bytes() {
        let own = std::fs::read("/proc/self/exe").expect("readable");
        let of =
            |header: &[u8]| MACHINES.iter().find(|machine| machine.is_of(header)).map(|machine| machine.architecture);
        assert_eq!(of(&own[..20]), Some(Platform::host().architecture.as_str()));
        for machine in &MACHINES {
            assert_eq!(of(&machine.header()[..20]), Some(machine.architecture));
        }
        assert_eq!(of(b"#!/bin/sh\necho hello to you all"), None);
        assert_eq!(of(b""), None);
    }

    #[test]
    fn the_kernel_runs_our_own_and_knows_no_other_processor_by_nature() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let mut nobodys = header("arm64");
        nobodys[18..20].copy_from_slice(&[0xfe, 0xfe]);
        assert!(!is_executed(&store, &nobodys).expect("tried"));
    }
}
