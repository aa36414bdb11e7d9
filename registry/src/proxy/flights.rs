//! [`Flights`]: work that all who want the same wait for together, and that goes on when they go away.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;

use super::lock;

/// What is under way, each thing once.
pub(super) struct Flights<Key, Outcome, News>(Arc<Mutex<HashMap<Key, Flight<Outcome, News>>>>);

/// Work that is under way.
#[derive(Clone)]
pub(super) struct Flight<Outcome, News> {
    landing: Shared<BoxFuture<'static, Option<Outcome>>>,
    news: watch::Receiver<Option<News>>,
}

/// By which the work tells what it has to tell before it ends.
pub(super) type Teller<News> = watch::Sender<Option<News>>;

impl<Outcome: Clone, News: Clone> Flight<Outcome, News> {
    /// How the work ends; `None` when it has panicked.
    pub(super) async fn landed(self) -> Option<Outcome> {
        self.landing.await
    }

    /// What the work has told so far.
    pub(super) fn told(&self) -> Option<News> {
        self.news.borrow().clone()
    }

    /// What the work tells before it ends; `None` when it ends without.
    pub(super) async fn news(&mut self) -> Option<News> {
        let told = async { self.news.wait_for(Option::is_some).await.ok().and_then(|news| news.clone()) };
        tokio::select! {
            biased;
            _ = self.landing.clone() => None,
            told = told => told,
        }
    }
}

impl<Key, Outcome, News> Default for Flights<Key, Outcome, News> {
    fn default() -> Flights<Key, Outcome, News> {
        Flights(Arc::default())
    }
}

impl<Key, Outcome, News> Flights<Key, Outcome, News>
where
    Key: Clone + Eq + Hash + Send + 'static,
    Outcome: Clone + Send + Sync + 'static,
    News: Clone + Send + Sync + 'static,
{
    /// What is under way for `key`, or `begin`, which nobody else has begun; `None` when `limit` others are under way.
    pub(super) fn join<Work>(
        &self,
        key: &Key,
        limit: usize,
        begin: impl FnOnce(Teller<News>) -> Work,
    ) -> Option<Flight<Outcome, News>>
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
        let (teller, news) = watch::channel(None);
        let (landing, work) = (Landing { flights: self.0.clone(), key: key.clone() }, begin(teller));
        let task = tokio::spawn(async move {
            let _landing = landing;
            work.await
        });
        let flight = Flight { landing: async { task.await.ok() }.boxed().shared(), news };
        all.insert(key.clone(), flight.clone());
        Some(flight)
    }
}

/// Takes the entry away however the work ends, so that whoever comes later begins anew.
struct Landing<Key: Eq + Hash, Outcome, News> {
    flights: Arc<Mutex<HashMap<Key, Flight<Outcome, News>>>>,
    key: Key,
}

impl<Key: Eq + Hash, Outcome, News> Drop for Landing<Key, Outcome, News> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_in_nobodys_way() {
        let flights: Flights<u32, u32, ()> = Flights::default();
        let mut panicked = flights.join(&1, 10, |_| async { panic!("on purpose") }).expect("there is room");
        assert_eq!(panicked.news().await, None);
        assert_eq!(panicked.landed().await, None);
        assert_eq!(flights.join(&1, 10, |_| async { 7 }).expect("there is room").landed().await, Some(7));
        assert!(lock(&flights.0).is_empty());
    }

    #[tokio::test]
    async fn work_is_begun_once_and_goes_on_by_itself() {
        let flights: Flights<u32, u32, ()> = Flights::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let first = flights.join(&1, 1, |_| async { receiver.await.expect("sent") }).expect("there is room");
        let second = flights.join(&1, 1, |_| async { unreachable!("it is under way") }).expect("the same");
        assert!(flights.join(&2, 1, |_| async { 2 }).is_none(), "there is no room for another");
        drop(first);
        sender.send(5).expect("it goes on");
        assert_eq!(second.landed().await, Some(5));
        assert_eq!(flights.join(&2, 1, |_| async { 2 }).expect("there is room again").landed().await, Some(2));
    }

    #[tokio::test]
    async fn what_work_tells_is_heard_by_all_who_join_it() {
        let flights: Flights<u32, (), &str> = Flights::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let work = |teller: Teller<&'static str>| async move {
            teller.send_replace(Some("begun"));
            let _ = receiver.await;
        };
        let mut first = flights.join(&1, 1, work).expect("there is room");
        assert_eq!(first.news().await, Some("begun"));
        let mut second = flights.join(&1, 1, |_| async { unreachable!("it is under way") }).expect("the same");
        assert_eq!((second.told(), second.news().await), (Some("begun"), Some("begun")));
        drop(sender);
        assert_eq!(second.landed().await, Some(()));
        assert_eq!(first.news().await, None, "it is over");
    }
}
