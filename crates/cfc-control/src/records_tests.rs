//! Racing writers, on every store the machine has.

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use super::*;

const WRITERS: u64 = 8;
const INCREMENTS: u64 = 12;

/// Adds one to `counter`, trying again whenever another writer was first.
async fn increment(records: &Records) {
    loop {
        let newest: Revision<u64> = records.newest("counter").await.expect("readable");
        let next = newest.value.unwrap_or(0) + 1;
        match records.create("counter", newest.number + 1, Some(&next)).await {
            Ok(()) => return,
            Err(RecordError { kind: RecordErrorKind::Conflict, .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn racing_writers_lose_no_increment(bucket: Arc<dyn ObjectStore>) {
    let records = Records::new(bucket, "control/test");
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let records = records.clone();
            tokio::spawn(async move {
                for _ in 0..INCREMENTS {
                    increment(&records).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no writer panics");
    }
    let total = WRITERS * INCREMENTS;
    assert_eq!(records.newest("counter").await.expect("readable"), Revision { number: total, value: Some(total) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_in_memory_lose_no_increment() {
    racing_writers_lose_no_increment(Arc::new(InMemory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_on_a_local_disk_lose_no_increment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bucket = LocalFileSystem::new_with_prefix(directory.path()).expect("the directory exists");
    racing_writers_lose_no_increment(Arc::new(bucket)).await;
}

#[tokio::test]
async fn what_was_never_written_is_revision_zero() {
    let records = Records::new(Arc::new(InMemory::new()), "control/test");
    assert_eq!(records.newest::<u64>("x").await.expect("readable"), Revision { number: 0, value: None });
    assert!(records.keys().await.expect("readable").is_empty());
}

#[tokio::test]
async fn a_deleted_value_is_gone_and_its_numbers_go_on() {
    let records = Records::new(Arc::new(InMemory::new()), "control/test");
    records.create("x", 1, Some(&7u64)).await.expect("written");
    records.create::<u64>("x", 2, None).await.expect("deleted");
    assert_eq!(records.newest::<u64>("x").await.expect("readable"), Revision { number: 2, value: None });
    assert_eq!(records.keys().await.expect("readable"), ["x"]);
}

#[tokio::test]
async fn a_record_that_is_not_json_is_named() {
    let bucket = Arc::new(InMemory::new());
    let path = Path::from("control/test/x/00000000000000000003.json");
    bucket.put(&path, Bytes::from_static(b"{").into()).await.expect("written");
    let error = Records::new(bucket, "control/test").newest::<u64>("x").await.expect_err("malformed");
    assert_eq!(error.to_string(), format!("record `{path}` of the bucket"));
    assert!(matches!(error.kind, RecordErrorKind::Malformed(_)));
}
