//! Records of other machines: what follows from them, and what does not when they lie.

mod common;

use std::fs;

use cfc_build_native::{CacheRecords, CacheSource, NativeOptions};
use cfc_oci::Descriptor;
use cfc_store::Store;
use common::{Fixture, busybox, can_run, report};
use serde_json::{Value, json};

/// Another machine.
struct Other {
    records: CacheRecords,
    store: Store,
}

impl CacheSource for Other {
    fn name(&self) -> &str {
        "other"
    }

    fn records(&self) -> &CacheRecords {
        &self.records
    }

    fn fetch(&self, store: &Store, blob: &Descriptor) -> Result<(), String> {
        let bytes = self.store.blobs().read(&blob.digest).map_err(|error| error.to_string())?;
        store.blobs().put(&bytes).map(drop).map_err(|error| error.to_string())
    }
}

fn records(layers: Value) -> CacheRecords {
    CacheRecords::parse(json!({"version": 1, "layers": layers}).to_string().as_bytes()).expect("records")
}

/// The layers of the store, by the keys of what made them.
fn layers(store: &Store) -> Vec<(String, Value)> {
    let names = fs::read_dir(store.root().join("cache")).expect("lists").flatten().map(|entry| entry.file_name());
    let keys = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_string()));
    let is_key = |key: &String| key.strip_prefix("layer-").is_some_and(|hex| hex.len() == 64);
    let layer = |key: &str| store.cache().get(key).expect("readable").expect("there");
    keys.filter(is_key).map(|key| (key.clone(), serde_json::from_slice(&layer(&key)).expect("JSON"))).collect()
}

#[test]
fn a_record_that_lies_of_a_blob_that_is_here_is_found_out_and_remembered_nowhere() {
    const DOCKERFILE: &str = "FROM scratch AS one\nCOPY d /d\nFROM scratch\nCOPY --from=one /d /e\nCOPY f /f\n";
    let fixture = || {
        let fixture = Fixture::new();
        fixture.file("f", "1").file("d/a", "2");
        fixture
    };
    let honest = fixture();
    let expected = honest.build(DOCKERFILE).expect("builds").manifest;
    let known = layers(&honest.store);
    assert!(known.len() >= 4, "{known:?}");
    for (key, layer) in &known {
        let another = known.iter().find(|(_, another)| another["blob"] != layer["blob"]).expect("two layers");
        let mut lie = layer.clone();
        lie["blob"] = another.1["blob"].clone();
        let victim = fixture();
        for (_, layer) in &known {
            let blob: Descriptor = serde_json::from_value(layer["blob"].clone()).expect("a descriptor");
            victim.store.blobs().put(&honest.store.blobs().read(&blob.digest).expect("there")).expect("written");
        }
        let liar = Other { records: records(json!({key.as_str(): lie})), store: honest.store.clone() };
        let request = victim.request(DOCKERFILE);
        let ((built, _), _) = victim.build_from(&request, NativeOptions::default(), vec![Box::new(liar)]);
        let built = built.unwrap_or_else(|error| panic!("{}", report(&error)));
        assert_eq!(built.manifest, expected, "{key}");
        assert_eq!(victim.build(DOCKERFILE).expect("builds").manifest, expected, "{key} later");
    }
}

#[test]
fn copied_files_of_another_machine_are_newer_than_what_is_in_a_cache_here() {
    if !can_run() {
        return;
    }
    // As `make` does it; but busybox compares whole seconds.
    const MAKE: &str = "if [ ! -e /c/out ] || [ /w/src/source -nt /c/out ]; then cp /w/src/source /c/out; fi; sleep 1";
    for (copy, mount) in [("WORKDIR /w\nCOPY source src/\n", ""), ("", "--mount=target=/w/src ")] {
        let (here, there) = (Fixture::new(), Fixture::new());
        let base = busybox(&there);
        busybox(&here);
        let make = format!("{base}FROM base\n{copy}RUN --mount=type=cache,id=c,target=/c {mount}{MAKE}; cat /c/out\n");
        here.file("source", "one\n").build(&make).unwrap_or_else(|error| panic!("{}", report(&error)));

        // The other machine has made everything but the last step.
        let before = match mount {
            "" => format!("{base}FROM base\n{copy}"),
            _ => format!("{base}FROM base\nRUN --mount=target=/w/src true\n"),
        };
        there.file("source", "two\n").build(&before).unwrap_or_else(|error| panic!("{}", report(&error)));
        let shared = layers(&there.store).into_iter().collect::<serde_json::Map<_, _>>();
        let other = Other { records: records(shared.into()), store: there.store.clone() };
        let request = here.file("source", "two\n").request(&make);
        let ((built, record), _) = here.build_from(&request, NativeOptions::default(), vec![Box::new(other)]);
        built.unwrap_or_else(|error| panic!("{}", report(&error)));
        assert_eq!(record.built().len(), 1, "{:?}", record.built());
        assert_eq!(record.output.into_inner().expect("no panic"), "two\n", "{make}");
    }
}
