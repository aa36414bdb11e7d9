//! Layers that are compressed in part, and eStargz, read as its specification says and by its reference implementation.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod images;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use cfc_oci::Digest;
use cfc_store::{Compression, DeviceKind, Encoding, LayerBlob, LayerWriter, Metadata, Store, TempDir};
use images::{layer, noise, temporary_store};

/// Files by name: what of them changes, and how large they are.
type Files = BTreeMap<String, (u8, usize)>;

fn content(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at / 3 * usize::from(seed)) >> 5) as u8).collect()
}

/// A layer of `files`, as the builder writes one.
fn write(store: &Store, earlier: Option<&LayerBlob>, encoding: Encoding, files: &Files) -> LayerBlob {
    let earlier = earlier.map(|blob| &blob.descriptor.digest);
    let mut writer = LayerWriter::new(store.layer_writer_after(earlier, encoding).expect("a writer"));
    for (name, (seed, size)) in files {
        let content = content(*seed, *size);
        let digest = Digest::of(&content);
        let digest: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&digest.hex()[2 * at..][..2], 16).expect("hexadecimal")).collect();
        let digest = digest.try_into().expect("32 bytes");
        let metadata = Metadata::root(0o644, 0);
        writer.known_file(Path::new(name), &metadata, *size as u64, digest, &mut &*content).expect("written");
    }
    writer.finish().expect("the layer ends").finish().expect("the layer is stored")
}

/// The same layer in another store, where nothing is known.
fn from_scratch(encoding: Encoding, files: &Files) -> LayerBlob {
    let (_directory, store) = temporary_store();
    write(&store, None, encoding, files)
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

fn edit(files: &mut Files, random: &mut Random) {
    let chosen = files.keys().nth(random.below(files.len())).expect("there are some").clone();
    match random.below(5) {
        0 => drop(files.remove(&chosen)),
        1 => drop(files.insert(format!("new-{:04}", random.below(5000)), (7, random.below(400_000)))),
        2 => drop(files.insert(format!("{chosen}-large"), (random.below(200) as u8, 4_000_000))),
        3 => files.get_mut(&chosen).expect("it is there").1 += random.below(5000),
        _ => files.get_mut(&chosen).expect("it is there").0 ^= 1,
    }
}

#[test]
fn what_an_earlier_layer_has_is_not_compressed_again_and_no_byte_differs() {
    for (number, compression) in [Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let encoding = Encoding::from(compression);
        let (_directory, store) = temporary_store();
        let mut random = Random(4711 + number as u64);
        let mut files: Files =
            (0..150).map(|n| (format!("dir/file-{n:04}"), (n as u8, random.below(160_000)))).collect();
        let mut earlier = write(&store, None, encoding, &files);
        assert_eq!(earlier.reused_size, 0);
        for round in 0..6 {
            edit(&mut files, &mut random);
            let next = write(&store, Some(&earlier), encoding, &files);
            let fresh = from_scratch(encoding, &files);
            assert_eq!(next.descriptor, fresh.descriptor, "round {round} of {compression:?}");
            assert_eq!((&next.diff_id, next.uncompressed_size), (&fresh.diff_id, fresh.uncompressed_size));
            assert!(next.reused_size > 0, "round {round} of {compression:?} made everything again");
            store.layers().unpack(&next.diff_id, &next.descriptor).expect("it holds what it says");
            earlier = next;
        }
    }
}

#[test]
fn damaged_knowledge_of_blocks_does_no_harm() {
    let encoding = Encoding::default();
    let mut files: Files = (0..100).map(|n| (format!("file-{n:04}"), (n as u8, 40_000))).collect();
    let (_directory, store) = temporary_store();
    let earlier = write(&store, None, encoding, &files);
    files.insert("added".to_string(), (1, 10));
    let fresh = from_scratch(encoding, &files);
    let record = format!("blocks-{}", earlier.descriptor.digest.hex());
    let known = store.cache().get(&record).expect("read").expect("there");
    let cut = known[..known.len() / 2].to_vec();
    let swapped = String::from_utf8(known.clone()).expect("text").replace("\"crc\":", "\"crc\":1").into_bytes();
    for damaged in [Vec::new(), cut, vec![0; known.len()], swapped] {
        store.cache().put(&record, &damaged).expect("written");
        let next = write(&store, Some(&earlier), encoding, &files);
        assert_eq!((next.descriptor, next.reused_size), (fresh.descriptor.clone(), 0));
    }
    // An earlier layer that was pruned, or was in another encoding.
    store.cache().put(&record, &known).expect("written");
    let zstd = write(&store, Some(&earlier), Compression::Zstd.into(), &files);
    assert_eq!(zstd.reused_size, 0);
    fs::remove_file(store.blobs().path(&earlier.descriptor.digest)).expect("removed");
    let next = write(&store, Some(&earlier), encoding, &files);
    assert_eq!((next.descriptor, next.reused_size), (fresh.descriptor, 0));
}

#[test]
fn an_encoding_does_not_depend_on_the_way_to_it() {
    let files: Files = (0..120).map(|n| (format!("file-{n:04}"), (n as u8, 45_000))).collect();
    let (_directory, store) = temporary_store();
    let gzip = write(&store, None, Encoding::default(), &files);
    let zstd = store.encode_layer(&gzip.diff_id, &gzip.descriptor, Compression::Zstd.into()).expect("encoded");
    assert_eq!(zstd.descriptor, write(&store, None, Compression::Zstd.into(), &files).descriptor);
    let again = store.encode_layer(&zstd.diff_id, &zstd.descriptor, Encoding::default()).expect("encoded");
    assert_eq!(again.descriptor, gzip.descriptor);
    let other = Digest::of(b"another layer");
    let error = store.encode_layer(&other, &gzip.descriptor, Compression::Zstd.into()).expect_err("refused");
    assert!(error.to_string().contains("cannot encode the layer"), "{error}");
}

const LARGE_BYTES: usize = 9_000_000;

/// A layer with everything that a layer can have, as eStargz.
fn stargz(store: &Store) -> (LayerBlob, LayerBlob) {
    let plain = layer(store, Compression::Gzip, |writer| {
        let metadata = Metadata::root(0o755, 1_600_000_000);
        let capability =
            (OsString::from("security.capability"), vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let with_xattr = Metadata { xattrs: [capability].into(), uid: 7, gid: 3_000_000, ..metadata.clone() };
        writer.directory(Path::new("bin"), &metadata)?;
        writer.file(Path::new("bin/large"), &metadata, LARGE_BYTES as u64, &mut noise(LARGE_BYTES))?;
        writer.file(Path::new("bin/small"), &with_xattr, 5, &mut &b"small"[..])?;
        writer.file(Path::new("bin/empty"), &metadata, 0, &mut &b""[..])?;
        writer.hard_link(Path::new("bin/twin"), Path::new("bin/small"), &with_xattr)?;
        writer.symlink(Path::new("sbin"), Path::new("bin"), &metadata)?;
        writer.device(Path::new("null"), &metadata, DeviceKind::Character, 1, 3)?;
        writer.fifo(Path::new("pipe"), &metadata)?;
        writer.whiteout(Path::new("gone"), 0)?;
        let long = format!("{}/ünïcode", "directory/".repeat(15));
        writer.file(Path::new(&long), &metadata, 4, &mut &b"long"[..])
    });
    let encoding = Encoding::from(Compression::Estargz);
    let stargz = store.encode_layer(&plain.diff_id, &plain.descriptor, encoding).expect("encoded");
    (plain, stargz)
}

fn toc_digest(blob: &LayerBlob) -> &str {
    &blob.descriptor.annotations["containerd.io/snapshot/stargz/toc.digest"]
}

/// The content of the gzip member at the beginning of `bytes`, as far as it is wanted.
fn member(bytes: &[u8], wanted: usize) -> Vec<u8> {
    let mut content = Vec::new();
    let decoder = flate2::read::GzDecoder::new(bytes);
    decoder.take(wanted as u64).read_to_end(&mut content).expect("a member begins here");
    content
}

/// Follows the specification, from the footer over the table of contents to each chunk.
#[test]
fn an_estargz_gives_each_file_by_itself() {
    let (_directory, store) = temporary_store();
    let (_, stargz) = stargz(&store);
    let blob = fs::read(store.blobs().path(&stargz.descriptor.digest)).expect("read");
    let (before, footer) = blob.split_at(blob.len() - 51);
    assert_eq!((&footer[12..14], &footer[32..38]), (&b"SG"[..], &b"STARGZ"[..]));
    let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).expect("text"), 16).expect("a number");
    let tar = member(&before[offset..], usize::MAX);
    assert_eq!(&tar[..18], b"stargz.index.json\0");
    let size = usize::from_str_radix(std::str::from_utf8(&tar[124..135]).expect("text"), 8).expect("a number");
    let toc = &tar[512..512 + size];
    assert_eq!(Digest::of(toc).to_string(), toc_digest(&stargz));
    assert_eq!(tar.len(), 512 + size.next_multiple_of(512) + 1024, "the table is the archive's last entry");
    let toc: serde_json::Value = serde_json::from_slice(toc).expect("JSON");
    assert_eq!(toc["version"], 1);

    let entries = toc["entries"].as_array().expect("a list");
    let named =
        |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{name} in {toc}"));
    assert_eq!(entries[0]["name"], ".no.prefetch.landmark");
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0) as usize;
    let mut files: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let name = entry["name"].as_str().expect("a name");
        if entry["type"] == "reg" {
            files.insert(name, Vec::new());
        }
        let Some(digest) = entry["chunkDigest"].as_str() else { continue };
        let file = files.get_mut(name).expect("chunks come after their file");
        let whole = entries[..=at].iter().rev().find(|entry| entry["type"] == "reg").expect("a file");
        assert_eq!(number(&entry["chunkOffset"]), file.len());
        let rest = number(&whole["size"]) - file.len();
        let length = match number(&entry["chunkSize"]) {
            0 => rest,
            length => length,
        };
        let chunk = member(&blob[number(&entry["offset"])..], length);
        assert_eq!((chunk.len(), Digest::of(&chunk).to_string().as_str()), (length, digest), "{name}");
        file.extend(chunk);
    }
    for (name, content) in &files {
        assert_eq!(named(name)["digest"], Digest::of(content).to_string(), "{name}");
    }
    assert_eq!((files[".no.prefetch.landmark"].as_slice(), files["bin/small"].as_slice()), (&[0xf][..], &b"small"[..]));
    assert_eq!(files["bin/large"].len(), LARGE_BYTES);
    assert_eq!(entries.iter().filter(|entry| entry["type"] == "chunk").count(), 2);
    assert_eq!(
        (&named("bin/")["type"], &named("sbin")["linkName"], &named("bin/twin")["linkName"]),
        (&"dir".into(), &"bin".into(), &"bin/small".into())
    );
    assert_eq!(
        (&named("null")["devMajor"], &named("null")["devMinor"], &named("pipe")["type"]),
        (&1.into(), &3.into(), &"fifo".into())
    );
    assert_eq!(named("bin/small")["xattrs"]["security.capability"], "AQAAAgAEAAAAAAAAAAAAAAAAAAA=");
    assert_eq!(
        (&named("bin/small")["gid"], &named("bin/small")["modtime"]),
        (&3_000_000.into(), &"2020-09-13T12:26:40Z".into())
    );
    assert_eq!(named(".wh.gone")["type"], "reg");
}

#[test]
fn an_estargz_is_an_ordinary_layer_with_two_files_more() {
    let (_directory, store) = temporary_store();
    let (plain, stargz) = stargz(&store);
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to make devices");
        return;
    }
    let names = |blob: &LayerBlob| {
        let root = store.layers().unpack(&blob.diff_id, &blob.descriptor).expect("unpacked");
        let entries = fs::read_dir(&root).expect("read").map(|entry| entry.expect("read").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        (root, names)
    };
    let ((one, mut expected), (other, found)) = (names(&plain), names(&stargz));
    expected.extend([".no.prefetch.landmark".to_string(), "stargz.index.json".to_string()]);
    expected.sort();
    assert_eq!(found, expected);
    for name in ["bin/large", "bin/small", "bin/empty"] {
        assert_eq!(fs::read(one.join(name)).expect("read"), fs::read(other.join(name)).expect("read"));
    }
    // One that becomes an eStargz again stays what it is, and so does it on any number of processors.
    let again = store.encode_layer(&stargz.diff_id, &stargz.descriptor, Compression::Estargz.into()).expect("encoded");
    assert_eq!(again, stargz);
    let file = store.blobs().path(&stargz.descriptor.digest);
    let listed = Command::new("tar").arg("-tzf").arg(file).output().expect("tar runs");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert!(String::from_utf8_lossy(&listed.stdout).ends_with("stargz.index.json\n"));
}

const VERIFIER: &str = r#"package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
)

func main() {
	file, err := os.Open(os.Args[1])
	check(err)
	info, err := file.Stat()
	check(err)
	reader, err := estargz.Open(io.NewSectionReader(file, 0, info.Size()))
	check(err)
	verifier, err := reader.VerifyTOC(digest.Digest(os.Args[2]))
	check(err)
	root, ok := reader.Lookup("")
	if !ok {
		panic("no root")
	}
	walk(reader, verifier, "", root)
}

func walk(reader *estargz.Reader, verifier estargz.TOCEntryVerifier, path string, entry *estargz.TOCEntry) {
	entry.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
		name := path + base
		fmt.Printf("%s %s %d\n", name, child.Type, child.Size)
		if child.Type == "reg" && child.Size > 0 {
			file, err := reader.OpenFile(name)
			check(err)
			content, err := io.ReadAll(file)
			check(err)
			for offset := int64(0); offset < child.Size; {
				chunk, ok := reader.ChunkEntryForOffset(name, offset)
				if !ok {
					panic("no chunk of " + name)
				}
				v, err := verifier.Verifier(chunk)
				check(err)
				v.Write(content[chunk.ChunkOffset : chunk.ChunkOffset+chunk.ChunkSize])
				if !v.Verified() {
					panic("wrong digest in " + name)
				}
				offset = chunk.ChunkOffset + chunk.ChunkSize
			}
		}
		walk(reader, verifier, name+"/", child)
		return true
	})
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
"#;

#[test]
fn the_reference_implementation_reads_and_verifies_an_estargz() {
    let sources = Path::new("/usr/share/gocode");
    let is_there = sources.join("src/github.com/containerd/stargz-snapshotter/estargz").is_dir();
    if !is_there || Command::new("go").arg("version").output().is_err() {
        println!("skipped: golang-github-containerd-stargz-snapshotter-dev or golang-go is not installed");
        return;
    }
    let (directory, store) = temporary_store();
    let (_, stargz) = stargz(&store);
    let program = go_program(&directory, sources);
    let blob = store.blobs().path(&stargz.descriptor.digest);
    let read = Command::new(program).arg(blob).arg(toc_digest(&stargz)).output().expect("it runs");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let listed = String::from_utf8(read.stdout).expect("text");
    for line in [&format!("bin/large reg {LARGE_BYTES}"), "bin/small reg 5", "sbin symlink 0", "null char 0"] {
        assert!(listed.lines().any(|found| found == line), "no `{line}` in {listed}");
    }
}

fn go_program(directory: &TempDir, sources: &Path) -> PathBuf {
    let source = directory.path().join("verify.go");
    fs::File::create(&source).and_then(|mut file| file.write_all(VERIFIER.as_bytes())).expect("written");
    let program = directory.path().join("verify");
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &source])
        .env("GO111MODULE", "off")
        .env("GOPATH", sources)
        .env("GOCACHE", directory.path().join("go-cache"))
        .env("CGO_ENABLED", "0")
        .output()
        .expect("it runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}
