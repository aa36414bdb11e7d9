//! The part of [`Client`] that looks after instances.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::Method;

use super::{Client, ClientError, decode, segment};
use crate::{EventRequest, Inspection, InstanceStats, InstanceView, Stopped};

impl Client {
    /// Everything that is known of an instance.
    pub async fn inspect(&self, instance: &str) -> Result<Inspection, ClientError> {
        let operation = format!("look at instance `{instance}`");
        let request = self.request(Method::GET, &format!("/containers/instances/{}", segment(instance)));
        decode(&operation, &self.result(&operation, request).await?, "")
    }

    /// Asks an instance to end, and returns when it has.
    pub async fn stop(&self, instance: &str, grace: Option<Duration>) -> Result<Stopped, ClientError> {
        let operation = format!("stop instance `{instance}`");
        let request = self.request(Method::POST, &path(instance, "stop", grace));
        decode(&operation, &self.result(&operation, request).await?, "")
    }

    /// Asks an instance to end and starts it again, and returns when it runs.
    pub async fn restart(&self, instance: &str, grace: Option<Duration>) -> Result<InstanceView, ClientError> {
        let operation = format!("restart instance `{instance}`");
        let request = self.request(Method::POST, &path(instance, "restart", grace));
        decode(&operation, &self.result(&operation, request).await?, "")
    }

    /// What the live instances use: of one application or of all.
    pub async fn stats(&self, application: Option<&str>) -> Result<Vec<InstanceStats>, ClientError> {
        let operation = "measure the instances";
        let query = application.map_or(String::new(), |name| format!("?application={}", segment(name)));
        let result = self.result(operation, self.request(Method::GET, &format!("/containers/stats{query}"))).await?;
        decode(operation, &result, "")
    }

    /// What happened to instances: bytes of lines, each a JSON object.
    pub async fn events(
        &self,
        request: &EventRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let operation = "read the events";
        let since = request.since.map_or(String::new(), |since| format!("&since_ms={}", since.as_millis()));
        let path = format!("/containers/events?follow={}{since}", request.follow);
        let response = self.send(operation, self.request(Method::GET, &path)).await?;
        Ok(response.bytes_stream().map(move |part| part.map_err(|error| ClientError::cut_off(operation.into(), error))))
    }
}

fn path(instance: &str, verb: &str, grace: Option<Duration>) -> String {
    let query = grace.map_or(String::new(), |grace| format!("?grace_ms={}", grace.as_millis()));
    format!("/containers/instances/{}/{verb}{query}", segment(instance))
}
