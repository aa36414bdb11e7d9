//! [`Flights`]: work that all who want the same wait for together, and that goes on when they go away.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::lock;

/// What is under way, each thing once.
pub(super) struct Flights<Key, Outcome>(Arc<Mutex<HashMap<Key, Flight<Outcome>>>>);

/// Ends with `None` when the work has panicked.
pub(super) type Flight<Outcome> = Shared<BoxFuture<'static, Option<Outcome>>>;

impl<Key, Outcome> Default for Flights<Key, Outcome> {
    fn default() -> Flights<Key, Outcome> {
        Flights(Arc::default())
    }
}

impl<Key, Outcome> Flights<Key, Outcome>
where
    Key: Clone + Eq + Hash + Send + 'static,
    Outcome: Clone + Send + Sync + 'static,
{
    /// What is under way for `key`, or `begin`, which nobody else has begun; `None` when `limit` others are under way.
    pub(super) fn join<Work>(&self, key: &Key, limit: usize, begin: impl FnOnce() -> Work) -> Option<Flight<Outcome>>
    where
        Work: Future<Output = Outcome> + Send + 'static,
    {
        let mut all = lock(&self.0);
        if let Some(flight) = all.get(key) {
            return Some(flight.clone());
        }
        if all.len() >= limit {
            return None;
        }
        let (landing, work) = (Landing { flights: self.0.clone(), key: key.clone() }, begin());
        let task = tokio::spawn(async move {
            let _landing = landing;
            work.await
        });
        let flight = async { task.await.ok() }.boxed().shared();
        all.insert(key.clone(), flight.clone());
        Some(flight)
    }
}

/// Takes the entry away however the work ends, so that whoever comes later begins anew.
struct Landing<Key: Eq + Hash, Outcome> {
    flights: Arc<Mutex<HashMap<Key, Flight<Outcome>>>>,
    key: Key,
}

impl<Key: Eq + Hash, Outcome> Drop for Landing<Key, Outcome> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_in_nobodys_way() {
        let flights: Flights<u32, u32> = Flights::default();
        let panicked = flights.join(&1, 10, || async { panic!("on purpose") }).expect("there is room");
        assert_eq!(panicked.await, None);
        assert_eq!(flights.join(&1, 10, || async { 7 }).expect("there is room").await, Some(7));
        assert!(lock(&flights.0).is_empty());
    }

    #[tokio::test]
    async fn work_is_begun_once_and_goes_on_by_itself() {
        let flights: Flights<u32, u32> = Flights::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let first = flights.join(&1, 1, || async { receiver.await.expect("sent") }).expect("there is room");
        let second = flights.join(&1, 1, || async { unreachable!("it is under way") }).expect("the same");
        assert!(flights.join(&2, 1, || async { 2 }).is_none(), "there is no room for another");
        drop(first);
        sender.send(5).expect("it goes on");
        assert_eq!(second.await, Some(5));
        assert_eq!(flights.join(&2, 1, || async { 2 }).expect("there is room again").await, Some(2));
    }
}
