//! Passwords that were taken back, in a bucket that several registries share.

use std::sync::Arc;
use std::time::Duration;

use cfc_registry::{AccessRules, BucketLocation, Grant, Loan, LoanRequest, Options, Permission};
use tempfile::TempDir;

use crate::access::write_users;
use crate::bucket::{store, through};
use crate::faults::{Manners, Proxy};
use crate::harness::{Server, send};
use crate::store::place;

async fn start(directory: &TempDir, place: &BucketLocation) -> Server {
    let users = write_users(directory.path(), &[("ann", "secret")]);
    let key = place.token_key().await.expect("a key");
    let access = AccessRules::new(&users, Vec::new()).expect("opens").with_shared_tokens(&key).expect("a key");
    Server::start_on(place, Options { authorizer: Some(Arc::new(access)), ..Options::default() }).await
}

async fn lend(server: &Server) -> Loan {
    let grant = Grant { permissions: vec![Permission::Pull], repositories: vec!["**".to_string()] };
    let request = LoanRequest { username: "ci".to_string(), grant, seconds: 600 };
    server.registry.lend(&request).await.expect("lends")
}

async fn status(server: &Server, loan: &Loan) -> u16 {
    send(server.request("GET", "/v2/").basic_auth("ci", Some(&loan.password))).await.status().as_u16()
}

#[tokio::test]
async fn all_registries_of_a_bucket_hear_that_a_password_was_taken_back() {
    let Some((endpoint, _store)) = store().await else { return };
    let (directory, place) = (TempDir::new().expect("temporary directory"), place(&endpoint));
    let (one, two) = (start(&directory, &place).await, start(&directory, &place).await);
    let (lost, kept) = (lend(&one).await, lend(&two).await);
    for (server, loan) in [(&one, &lost), (&one, &kept), (&two, &lost), (&two, &kept)] {
        assert_eq!(status(server, loan).await, 200);
    }
    // It may be any of them that takes it back.
    assert!(one.registry.revoke(&lost.id).await.expect("takes back").is_some());
    assert_eq!(status(&one, &lost).await, 401);
    let heard = async {
        while status(&two, &lost).await != 401 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), heard).await.expect("it hears of it");
    for server in [&one, &two] {
        assert_eq!(status(server, &kept).await, 200);
        let listed = server.registry.loans().await.expect("lists");
        let revoked: Vec<&str> =
            listed.iter().filter(|loan| loan.revoked.is_some()).map(|loan| loan.id.as_str()).collect();
        assert_eq!((listed.len(), revoked), (2, vec![lost.id.as_str()]));
    }
}

/// What a registry has taken back itself is not forgotten for a list that was made before.
#[tokio::test]
async fn a_list_that_comes_late_gives_no_password_back() {
    let Some((endpoint, _store)) = store().await else { return };
    let (directory, place) = (TempDir::new().expect("temporary directory"), place(&endpoint));
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let server = start(&directory, &through(&proxy, &place)).await;
    let loan = lend(&server).await;
    let mut list = proxy.hold_answer("GET _revoked");
    let (first, ()) = tokio::join!(status(&server, &loan), async {
        list.arrives().await;
        assert!(server.registry.revoke(&loan.id).await.expect("takes back").is_some());
        drop(list);
    });
    assert_eq!((first, status(&server, &loan).await), (401, 401));
}
