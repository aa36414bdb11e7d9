//! Pruning: what goes, what stays, and in which order.

mod images;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cfc_oci::{Descriptor, Reference};
use cfc_store::{LayerBlob, PrunableKind, PruneFilter, PrunePlan, Pruned, Pruner, Store};

use self::images::{file_layer, image, temporary_store};

fn everything() -> PruneFilter {
    PruneFilter { all: true, ..PruneFilter::default() }
}

/// Prunes as another process would, after all that had the store open have ended.
fn prune_alone(store: Store, filter: &PruneFilter, plan: &PrunePlan) -> (Store, Pruned) {
    let root = store.root().to_path_buf();
    drop(store);
    let pruned = Pruner::of(&root).prune(filter, plan).expect("prunes");
    (Store::open(&root).expect("a store"), pruned)
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn is_whole(store: &Store, image: &Descriptor) -> bool {
    store.blobs_of(image).is_ok_and(|blobs| blobs.iter().all(|blob| store.blobs().contains(&blob.digest)))
}

/// Remembers `layer` as the builder does, used so long ago.
fn remember(store: &Store, key: &str, layer: &LayerBlob, ago: Duration) {
    let record = serde_json::json!({ "diff_id": layer.diff_id, "blob": layer.descriptor });
    store.cache().put(key, record.to_string().as_bytes()).expect("written");
    set_age(&store.root().join("cache").join(format!("{key}.json")), ago);
}

fn set_age(path: &Path, ago: Duration) {
    File::options().append(true).open(path).expect("opens").set_modified(SystemTime::now() - ago).expect("sets");
}

fn unpack(store: &Store, layer: &LayerBlob) {
    store.layers().unpack(&layer.diff_id, &layer.descriptor).expect("unpacks");
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn what_has_no_name_goes_and_named_images_stay_whole() {
    let (_directory, store) = temporary_store();
    let [kept, lost, below] = ["kept", "lost", "below"].map(|name| file_layer(&store, name, name));
    let named = image(&store, &[below.clone(), kept.clone()]);
    let unnamed = image(&store, &[below.clone(), lost.clone()]);
    store.images().tag(&reference("app:1"), &named).expect("tags");
    for (key, layer) in [("layer-kept", &kept), ("layer-lost", &lost)] {
        remember(&store, key, layer, HOUR);
        unpack(&store, layer);
    }

    let dry = PrunePlan { dry_run: true, ..PrunePlan::default() };
    let (store, would) = prune_alone(store, &PruneFilter::default(), &dry);
    assert!(store.cache().get("layer-lost").expect("reads").is_some(), "a dry run changes nothing");
    let (store, pruned) = prune_alone(store, &PruneFilter::default(), &PrunePlan::default());
    let ids = |pruned: &Pruned| -> BTreeSet<String> { pruned.removed.iter().map(|gone| gone.id.clone()).collect() };
    assert_eq!(ids(&would), ids(&pruned));
    assert!(pruned.freed_bytes() > 0);

    assert!(is_whole(&store, &named));
    assert!(store.layers().contains(&kept.diff_id) && store.cache().get("layer-kept").expect("reads").is_some());
    assert!(!store.blobs().contains(&unnamed.digest) && !store.blobs().contains(&lost.descriptor.digest));
    assert!(!store.layers().contains(&lost.diff_id) && store.cache().get("layer-lost").expect("reads").is_none());

    // Everything: then a named image keeps what it consists of and nothing that could be made again.
    let (store, _) = prune_alone(store, &everything(), &PrunePlan::default());
    assert!(is_whole(&store, &named));
    assert!(!store.layers().contains(&kept.diff_id) && store.cache().get("layer-kept").expect("reads").is_none());
    let left = fs::read_dir(store.root().join("tmp")).expect("lists").count();
    assert_eq!(left, 1, "only our own session is left in tmp/");
}

#[test]
fn what_a_living_process_found_stays_until_it_ends() {
    let (_directory, store) = temporary_store();
    let root = store.root().to_path_buf();
    let layer = file_layer(&store, "a", "1");
    let unnamed = image(&store, std::slice::from_ref(&layer));
    drop(store);

    let user = Store::open(&root).expect("a store");
    assert!(user.images().resolve(&reference("app").with_digest(unnamed.digest.clone())).expect("reads").is_some());
    unpack(&user, &layer);
    let pruned = Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert_eq!(pruned.removed, []);
    assert!(is_whole(&user, &unnamed) && user.layers().path(&layer.diff_id).is_dir());

    // A process that lives on forgets: first what it did not find again.
    user.forget_older_uses().expect("forgets");
    let pruned = Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert_eq!(pruned.removed, [], "one call gives another while");
    assert!(user.blobs().contains(&layer.descriptor.digest));
    user.forget_older_uses().expect("forgets");
    Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert!(user.blobs().path(&layer.descriptor.digest).exists(), "it was found since");
    assert!(!user.blobs().path(&unnamed.digest).exists());
    drop(user);
    Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert_eq!(fs::read_dir(root.join("blobs/sha256")).expect("lists").count(), 0);
    assert_eq!(fs::read_dir(root.join("uses")).expect("lists").count(), 0);
}

#[test]
fn an_image_that_is_kept_needs_no_name() {
    let (_directory, store) = temporary_store();
    let layer = file_layer(&store, "a", "1");
    let [one, other] = [&[layer.clone()][..], &[]].map(|layers| image(&store, layers));
    unpack(&store, &layer);
    store.images().keep(&other).expect("keeps");
    store.images().keep_only(std::slice::from_ref(&one)).expect("keeps");
    let (store, _) = prune_alone(store, &everything(), &PrunePlan::default());
    assert!(is_whole(&store, &one) && store.layers().contains(&layer.diff_id));
    assert!(!store.blobs().contains(&other.digest));
    store.images().keep_only(&[]).expect("keeps");
    let (store, _) = prune_alone(store, &everything(), &PrunePlan::default());
    assert!(!store.blobs().contains(&one.digest));
}

#[test]
fn pulled_images_go_only_with_everything() {
    let (_directory, store) = temporary_store();
    let pulled = image(&store, &[file_layer(&store, "a", "1")]);
    store.images().tag_pulled(&reference("registry.example/base:1"), &pulled).expect("tags");
    let (store, pruned) = prune_alone(store, &PruneFilter::default(), &PrunePlan::default());
    assert_eq!(pruned.removed, []);
    assert!(is_whole(&store, &pulled));
    let (store, pruned) = prune_alone(store, &everything(), &PrunePlan::default());
    assert!(pruned.removed.iter().any(|gone| gone.kind == PrunableKind::Image), "{pruned:?}");
    assert!(!store.blobs().contains(&pulled.digest));
    assert_eq!(store.images().resolve(&reference("registry.example/base:1")).expect("reads"), None);
}

#[test]
fn a_bound_takes_the_longest_unused_first_and_no_more_than_it_must() {
    let (_directory, store) = temporary_store();
    let content = "0123456789abcdef".repeat(4096);
    let layers: Vec<LayerBlob> = (0..4).map(|n| file_layer(&store, "a", &format!("{n}{content}"))).collect();
    for (age, layer) in (1..).zip(&layers) {
        remember(&store, &format!("layer-{age}"), layer, HOUR * age);
        unpack(&store, layer);
    }
    let total = Pruner::of(store.root()).prune(&everything(), &PrunePlan { max_used: 1 << 40, ..PrunePlan::default() });
    let total = total.expect("prunes").left_bytes;
    let plan = PrunePlan { max_used: total / 2, ..PrunePlan::default() };
    let (store, pruned) = prune_alone(store, &everything(), &plan);
    let gone: Vec<&str> = pruned.removed.iter().map(|gone| gone.id.as_str()).collect();
    assert_eq!(gone, [layers[3].diff_id.hex(), layers[2].diff_id.hex()]);
    assert!(pruned.left_bytes <= total / 2);

    // What is recent stays, whatever else is asked for.
    let filter = PruneFilter { used_before: Some(SystemTime::now() - HOUR * 3 / 2), ..everything() };
    let (store, pruned) = prune_alone(store, &filter, &PrunePlan::default());
    let gone: Vec<&str> = pruned.removed.iter().map(|gone| gone.id.as_str()).collect();
    assert_eq!(gone, [layers[1].diff_id.hex()]);
    assert!(store.layers().contains(&layers[0].diff_id));
}

#[test]
fn a_cache_mount_goes_unless_somebody_uses_it() {
    let (_directory, store) = temporary_store();
    let home = store.root().join("mounts/1234");
    fs::create_dir_all(home.join("data-0/sub")).expect("mkdir");
    for (name, content) in [("id", "apt"), ("lock-0", ""), ("data-0/sub/file", "content")] {
        fs::write(home.join(name), content).expect("writes");
    }
    let lock = File::open(home.join("lock-0")).expect("opens");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).expect("locks");
    let (store, pruned) = prune_alone(store, &everything(), &PrunePlan::default());
    assert_eq!(pruned.removed, []);
    assert!(home.join("data-0/sub/file").exists());
    drop(lock);
    let only_layers = PruneFilter { kinds: vec![PrunableKind::Layer], ..everything() };
    let (store, _) = prune_alone(store, &only_layers, &PrunePlan::default());
    assert!(home.exists(), "another kind was asked for");
    let (_store, pruned) = prune_alone(store, &PruneFilter::default(), &PrunePlan::default());
    assert_eq!(pruned.removed.iter().map(|gone| gone.id.as_str()).collect::<Vec<_>>(), ["apt"]);
    assert!(!home.exists());
}

#[test]
fn a_name_waits_for_whoever_takes_names_away() {
    let (_directory, store) = temporary_store();
    let image = image(&store, &[]);
    let lock = File::options().append(true).open(store.root().join("lock")).expect("opens");
    let names = || fs::read_dir(store.root().join("refs")).expect("lists").count();
    std::thread::scope(|scope| {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locks");
        let tagger = scope.spawn(|| store.images().tag(&reference("app:1"), &image));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(names(), 0, "nothing gets a name while a pruner is at work");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).expect("unlocks");
        tagger.join().expect("no panic").expect("tags");
    });
    assert_eq!(names(), 1);
}

#[test]
fn what_vanishes_while_it_is_read_is_no_error() {
    let (_directory, store) = temporary_store();
    let root = store.root();
    let notes = fs::read_dir(root.join("uses")).expect("lists").flatten().next().expect("our notes").file_name();
    let session = notes.to_string_lossy().replace("+0", "+7");
    // Listed, but not there when it is opened.
    for path in [root.join("uses").join(session), root.join("kept/sha256-0.json")] {
        std::os::unix::fs::symlink("nowhere", path).expect("links");
    }
    Pruner::of(root).prune(&everything(), &PrunePlan::default()).expect("prunes");
}

#[test]
fn a_store_of_an_earlier_version_is_pruned() {
    let (_directory, store) = temporary_store();
    let root = store.root().to_path_buf();
    let layer = file_layer(&store, "a", "1");
    drop(store);
    for name in ["uses", "kept"] {
        fs::remove_dir(root.join(name)).expect("removes");
    }
    let pruned = Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert_eq!(pruned.removed.iter().map(|gone| gone.id.as_str()).collect::<Vec<_>>(), [layer.descriptor.digest.hex()]);
}

/// Lives in the store's `tmp/` under `name`, as any process does; an earlier version does no more than that.
fn live_in(root: &Path, name: &str) -> File {
    fs::create_dir(root.join("tmp").join(name)).expect("mkdir");
    let lock = File::open(root.join("tmp").join(name)).expect("opens");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    lock
}

#[test]
fn nothing_goes_while_a_process_of_an_earlier_version_lives() {
    let (_directory, store) = temporary_store();
    let root = store.root().to_path_buf();
    file_layer(&store, "a", "1");
    drop(store);
    let lock = live_in(&root, "earlier");
    let error = Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect_err("refuses");
    let said = error.kind.to_string();
    assert!(said.contains(&format!("process {} ", std::process::id())) && said.contains("earlier cfc"), "{said}");
    assert_eq!(fs::read_dir(root.join("blobs/sha256")).expect("lists").count(), 1);
    drop(lock);
    let pruned = Pruner::of(&root).prune(&everything(), &PrunePlan::default()).expect("prunes");
    assert_eq!(pruned.removed.len(), 1);
}

#[test]
fn who_notes_nothing_or_sweeps_is_not_taken_for_an_earlier_version() {
    let (_directory, store) = temporary_store();
    let prune = || Pruner::of(store.root()).prune(&everything(), &PrunePlan::default()).expect("prunes");
    let _sweeper = live_in(store.root(), "gone-1");
    for _ in 0..3 {
        prune();
        store.forget_older_uses().expect("forgets");
    }
    prune();
    // Sessions end at any time.
    let root = store.root();
    std::thread::scope(|scope| {
        let others = scope.spawn(|| (0..200).for_each(|_| drop(Store::open(root).expect("a store"))));
        while !others.is_finished() {
            prune();
        }
    });
}

#[test]
fn what_is_kept_does_not_count_for_a_bound() {
    let (_directory, store) = temporary_store();
    let large = file_layer(&store, "a", &"0123456789abcdef".repeat(1 << 16));
    let deployed = image(&store, std::slice::from_ref(&large));
    store.images().keep(&deployed).expect("keeps");
    let small = file_layer(&store, "a", "small");
    for (key, layer) in [("layer-large", &large), ("layer-small", &small)] {
        remember(&store, key, layer, HOUR);
        unpack(&store, layer);
    }
    let plan = PrunePlan { max_used: 512 << 10, ..PrunePlan::default() };
    let (store, pruned) = prune_alone(store, &everything(), &plan);
    assert_eq!(pruned.removed, []);
    assert!(pruned.left_bytes < 512 << 10, "{} bytes", pruned.left_bytes);
    assert!(store.layers().contains(&small.diff_id));
}
