//! What a refused deployment says, and that it leaves nothing changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cfc_control::*;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;

use crate::server::{ACCOUNT, Server, starter};

/// The messages of an error and its causes, then the hint.
fn report(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!("\n  caused by: {error}"));
        cause = error.source();
    }
    let location = error.location().map(|location| format!("\n  at: {location}")).unwrap_or_default();
    let hint = error.hint().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    format!("{text}{location}{hint}")
}

async fn refused(step: &'static str, expected: &str) {
    let server = Server::start().await;
    let before = server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    server.platform.fail_next(step);
    let error = server.client.deploy(&starter("localhost/app:2", "two")).await.expect_err("refused");
    assert_eq!(report(&error), expected);

    let serving = server.platform.serving("starter").expect("the previous version serves");
    assert_eq!(serving.worker, before.worker);
    let recorded = server.control.restore().await.expect("readable").remove(0).expect("readable");
    assert_eq!((recorded.worker, recorded.applications), (before.worker, before.applications));
}

#[tokio::test]
async fn a_missing_image_is_refused() {
    refused(
        "prepare",
        "cannot deploy Worker `starter`\n  \
         caused by: container `starter-mycontainer` was not deployed: cannot prepare image `localhost/app:2`: there is no such image\n  \
         at: metadata.containers[0].configuration.image\n  \
         hint: push it first: `cfc push` in the project's directory",
    )
    .await;
}

#[tokio::test]
async fn an_image_that_ends_at_once_is_refused() {
    refused(
        "try",
        "cannot deploy Worker `starter`\n  \
         caused by: container `starter-mycontainer` was not deployed: a trial start of the image failed: it ended after 3ms with status exit code 127, after it wrote:\nexec: /server: not found\n  \
         at: metadata.containers[0].configuration.image\n  \
         hint: is the entrypoint in the image?",
    )
    .await;
}

#[tokio::test]
async fn a_worker_that_does_not_start_is_refused() {
    refused(
        "activate",
        "cannot deploy Worker `starter`\n  \
         caused by: nothing was deployed, the previous version keeps serving: cannot put Worker `starter` into service: workerd does not accept it: SyntaxError: Unexpected token",
    )
    .await;
}

#[tokio::test]
async fn another_workers_container_is_not_taken() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let other = DeployRequest { name: "other".to_string(), ..starter("localhost/app:1", "one") };
    let error = server.client.deploy(&other).await.expect_err("refused");
    assert_eq!(error.code(), Some(Code::Exists));
    assert!(report(&error).contains("container `starter-mycontainer` belongs to Worker `starter` already"));
}

#[tokio::test]
async fn an_upload_that_makes_no_sense_says_where() {
    let server = Server::start().await;
    let no_main = DeployRequest { main_module: "main.js".to_string(), ..starter("localhost/app:1", "one") };
    let error = server.client.deploy(&no_main).await.expect_err("refused");
    assert_eq!(error.location(), Some("metadata.main_module"));
    assert!(report(&error).contains("the main module `main.js` is not among the uploaded modules `index.js`"));

    let bad_name = DeployRequest { name: "Not A Name".to_string(), ..starter("localhost/app:1", "one") };
    let error = server.client.deploy(&bad_name).await.expect_err("refused");
    assert!(report(&error).contains("`Not A Name` cannot be the name of a Worker"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let client = Client::new("http://127.0.0.1:1", "x", ACCOUNT).expect("a client");
    let error = client.applications().await.expect_err("nobody listens");
    assert!(report(&error).contains("no server answers at http://127.0.0.1:1"), "{}", report(&error));
    assert_eq!(error.hint(), Some("start one with `cfc serve`"));
}

#[tokio::test]
async fn a_wrong_token_is_refused() {
    let server = Server::start().await;
    for token in ["", "secre", "secret2", "Secret"] {
        let client = Client::new(&server.url, token, ACCOUNT).expect("a client");
        let error = client.applications().await.expect_err("refused");
        assert_eq!(error.code(), Some(Code::Unauthenticated), "{token}");
    }
}

#[tokio::test]
async fn of_two_servers_on_one_bucket_one_wins_a_race_and_the_other_says_so() {
    let bucket = Arc::new(InMemory::new());
    let (one, two) = (Server::start_on(bucket.clone()).await, Server::start_on(bucket.clone()).await);
    for round in 0..10 {
        let request = |server: usize| starter(&format!("localhost/app:{round}-{server}"), &format!("{round}-{server}"));
        let (first, second) = (request(1), request(2));
        let (first, second) = tokio::join!(one.client.deploy(&first), two.client.deploy(&second));
        for result in [&first, &second] {
            let is_clear = result.as_ref().err().is_none_or(|error| error.code() == Some(Code::Conflict));
            assert!(is_clear, "{result:?}");
        }
        let winners: Vec<_> = [&first, &second].into_iter().flatten().map(|deployed| deployed.worker.clone()).collect();
        let recorded = one.control.restore().await.expect("readable").remove(0).expect("whole");
        assert!(winners.contains(&recorded.worker), "round {round}");
        assert_eq!(recorded.worker.applications[0].image, recorded.applications[0].image, "round {round}");
    }
}

/// A bucket whose calls fail from the nth on, for as many as are asked for.
#[derive(Debug)]
struct FailingBucket {
    bucket: InMemory,
    calls_left: AtomicUsize,
}

const NEVER: usize = usize::MAX / 2;

impl FailingBucket {
    fn call(&self) -> object_store::Result<()> {
        let left = self.calls_left.load(Ordering::SeqCst);
        if left == 0 {
            return Err(Error::Generic { store: "failing", source: "injected failure".into() });
        }
        self.calls_left.store(left - 1, Ordering::SeqCst);
        Ok(())
    }
}

impl std::fmt::Display for FailingBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failing")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FailingBucket {
    async fn put_opts(&self, path: &Path, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.call()?;
        self.bucket.put_opts(path, bytes, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.bucket.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.call()?;
        self.bucket.get_opts(path, options).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.bucket.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.call() {
            Ok(()) => self.bucket.list(prefix),
            Err(error) => Box::pin(futures::stream::iter([Err(error)])),
        }
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.call()?;
        self.bucket.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.bucket.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn whichever_call_of_the_bucket_fails_worker_and_container_stay_together() {
    let mut outcomes = Vec::new();
    for calls in 0.. {
        let bucket = Arc::new(FailingBucket { bucket: InMemory::new(), calls_left: AtomicUsize::new(NEVER) });
        let server = Server::start_on(bucket.clone()).await;
        server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
        bucket.calls_left.store(calls, Ordering::SeqCst);
        let result = server.client.deploy(&starter("localhost/app:2", "two")).await;
        let ran_out = bucket.calls_left.swap(NEVER, Ordering::SeqCst) == 0;

        let recorded = server.control.restore().await.expect("readable").remove(0).expect("whole");
        let serving = server.platform.serving("starter").expect("something serves");
        assert_eq!(serving.worker, recorded.worker, "after {calls} calls");
        assert_eq!(serving.applications, recorded.applications, "after {calls} calls");
        let expected = if result.is_ok() { ("app:2", "\"two\"") } else { ("app:1", "\"one\"") };
        assert!(recorded.applications[0].image.reference.to_string().ends_with(expected.0), "after {calls} calls");
        assert!(String::from_utf8_lossy(&recorded.modules[0].bytes).contains(expected.1), "after {calls} calls");
        outcomes.push(result.is_ok());
        if !ran_out {
            break;
        }
    }
    assert!(outcomes.contains(&false) && outcomes.ends_with(&[true]), "{outcomes:?}");
}
