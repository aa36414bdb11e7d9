//! What is built again and what is not, and that the same input makes the same image.

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use cfc_build_native::{ImageRequest, NativeOptions};
use cfc_oci::Reference;
use common::{Fixture, args};

const DOCKERFILE: &str = "FROM scratch AS one\nCOPY d /d\nWORKDIR /w\nFROM scratch\nCOPY --from=one /d /e\nCOPY f /f\n";

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.file("f", "1").file("d/a", "2").file("d/b", "3");
    fixture
}

#[test]
fn a_second_build_carries_nothing_out() {
    let fixture = fixture();
    let request = fixture.request(DOCKERFILE);
    let (first, record) = fixture.build_request(&request);
    assert_eq!(record.built(), ["COPY d /d", "WORKDIR /w", "COPY --from=one /d /e", "COPY f /f"]);
    let (second, record) = fixture.build_request(&request);
    assert_eq!(record.built(), Vec::<String>::new());
    assert_eq!(first.expect("builds"), second.expect("builds"));
    assert_eq!(fixture.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn content_decides_and_times_do_not() {
    let fixture = fixture();
    let request = fixture.request(DOCKERFILE);
    let (first, _) = fixture.build_request(&request);
    let file = fs::File::options().write(true).open(fixture.context().join("f")).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).expect("sets");
    let (touched, record) = fixture.build_request(&request);
    assert_eq!(record.built(), Vec::<String>::new());
    assert_eq!(first.expect("builds").manifest, touched.expect("builds").manifest);

    // The same size and the same time, but not the same content.
    let path = fixture.context().join("f");
    let modified = path.metadata().expect("there").modified().expect("a time");
    fs::write(&path, "9").expect("write");
    fs::File::options().write(true).open(&path).expect("opens").set_modified(modified).expect("sets");
    let (_, record) = fixture.build_request(&request);
    assert_eq!(record.built(), ["COPY f /f"]);
}

#[test]
fn a_stage_that_changed_elsewhere_costs_nothing_where_files_are_the_same() {
    let fixture = fixture();
    fixture.build(DOCKERFILE).expect("builds");
    let request = fixture.request(&DOCKERFILE.replace("WORKDIR /w", "WORKDIR /v"));
    let (_, record) = fixture.build_request(&request);
    assert_eq!(record.built(), ["WORKDIR /v"]);
}

#[test]
fn without_the_cache_everything_is_carried_out_and_nothing_changes() {
    let fixture = fixture();
    let request = fixture.request(DOCKERFILE);
    let (first, _) = fixture.build_request(&request);
    let (second, record) = fixture.build_with(&request, NativeOptions { no_cache: true, ..NativeOptions::default() });
    assert_eq!(record.built().len(), 4);
    assert_eq!(first.expect("builds"), second.expect("builds"));
}

#[test]
fn a_changed_file_makes_the_layer_that_a_build_from_nothing_makes() {
    let here = Fixture::new();
    let text = |number: usize, size: usize| -> String {
        (0..size).map(|at| char::from(b'a' + (at * (number + 3) / 7 % 26) as u8)).collect()
    };
    for number in 0..60 {
        here.file(&format!("d/{}/{number}", number % 4), &text(number, number * 2311));
    }
    let dockerfile = "FROM scratch\nCOPY d /d\n";
    here.build(dockerfile).expect("builds");
    let edits: [&dyn Fn(&Fixture); 5] = [
        &|fixture| _ = fixture.file("d/1/5", "shorter"),
        &|fixture| _ = fixture.file("d/0/new", &text(1, 100_000)),
        &|fixture| fs::remove_file(fixture.context().join("d/3/7")).expect("removed"),
        &|fixture| _ = fixture.file_with_mode("d/2/2", "program", 0o755),
        &|fixture| fs::rename(fixture.context().join("d/2"), fixture.context().join("d/9")).expect("renamed"),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        edit(&here);
        let changed = here.build(dockerfile).expect("builds");
        let there = Fixture::new();
        let copied = Command::new("cp").arg("-a").arg(here.context().join("d")).arg(there.context()).status();
        assert!(copied.expect("cp runs").success());
        assert_eq!(changed.manifest, there.build(dockerfile).expect("builds").manifest, "edit {number}");
        let layer = here.store.images().load(&changed.manifest).expect("loads").manifest.layers.remove(0);
        let blocks = here.store.cache().get(&format!("blocks-{}", layer.digest.hex())).expect("read");
        assert!(blocks.is_some(), "the next build knows nothing of this one's blocks");
    }
}

#[test]
fn the_same_files_elsewhere_make_the_same_image() {
    let (here, there) = (fixture(), fixture());
    let first = here.build(DOCKERFILE).expect("builds");
    // Another directory, another store, later times, names made in another order.
    for name in ["d/b", "d/a", "f"] {
        let path = there.context().join(name);
        let text = fs::read(&path).expect("reads");
        fs::remove_file(&path).expect("removes");
        fs::write(&path, text).expect("writes");
        let file = fs::File::options().write(true).open(&path).expect("opens");
        file.set_modified(SystemTime::now() + Duration::from_secs(5000)).expect("sets");
    }
    assert_eq!(first.manifest, there.build(DOCKERFILE).expect("builds").manifest);
}

#[test]
fn the_epoch_is_every_time_in_the_image() {
    let fixture = fixture();
    let epoch = ImageRequest { source_date_epoch: Some("1000000000".into()), ..fixture.request(DOCKERFILE) };
    let (built, _) = fixture.build_request(&epoch);
    let built = built.expect("builds");
    assert_eq!(built.config.created.as_deref(), Some("2001-09-09T01:46:40Z"));
    let image = fixture.store.images().load(&built.manifest).expect("loads");
    let blob = fixture.store.blobs().path(&image.manifest.layers[0].digest);
    let listed = Command::new("tar").args(["--utc", "--full-time", "-tvzf"]).arg(blob).output().expect("tar runs");
    let text = String::from_utf8(listed.stdout).expect("text");
    assert!(!text.is_empty() && text.lines().all(|line| line.contains("2001-09-09 01:46:40")), "{text}");

    // The build argument wins over the environment.
    let build_args = args(&[("SOURCE_DATE_EPOCH", "5")]);
    let (built, _) = fixture.build_request(&ImageRequest { build_args, ..epoch });
    assert_eq!(built.expect("builds").config.created.as_deref(), Some("1970-01-01T00:00:05Z"));
}

#[test]
fn other_tools_accept_the_image() {
    let fixture = fixture();
    let image = fixture.build(&format!("{DOCKERFILE}ENV A=b\nCMD [\"/f\"]\nLABEL l=m\n")).expect("builds");
    let layout = fixture.root.path().join("layout");
    let reference = Reference::parse("test:latest").expect("a reference");
    fixture.store.export_oci_layout(&image.manifest, Some(&reference), &layout).expect("exports");
    let source = format!("oci:{}", layout.display());
    let bundle = fixture.root.path().join("bundle").display().to_string();
    let umoci_image = format!("{}:latest", layout.display());
    let commands: [(&str, &[&str]); 3] = [
        ("skopeo", &["inspect", &source]),
        ("skopeo", &["inspect", "--config", &source]),
        ("umoci", &["unpack", "--image", &umoci_image, &bundle]),
    ];
    for (program, arguments) in commands {
        let output = match Command::new(program).args(arguments).output() {
            Ok(output) => output,
            Err(error) => {
                eprintln!("skipped: {program} is not installed ({error})");
                continue;
            }
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(program != "skopeo" || text.contains("A=b"), "{text}");
    }
}
