//! A control API that listens, with everything a test looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cfc_control::*;
use cfc_oci::Reference;
use cfc_project::DurableObjectBinding;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use serde_json::{Value, json};

use crate::platform::MemoryPlatform;

pub const TOKEN: &str = "secret";
pub const ACCOUNT: &str = "00000000000000000000000000000001";

pub struct Server {
    pub platform: Arc<MemoryPlatform>,
    pub control: Control,
    pub url: String,
    pub client: Client,
}

impl Server {
    pub async fn start() -> Server {
        Server::start_on(Arc::new(InMemory::new())).await
    }

    pub async fn start_on(bucket: Arc<dyn ObjectStore>) -> Server {
        let platform = Arc::new(MemoryPlatform::default());
        let options = ControlOptions {
            token: TOKEN.to_string(),
            account_id: ACCOUNT.to_string(),
            gateway_url: "http://127.0.0.1:8787".to_string(),
            registry_host: "127.0.0.1:5000".to_string(),
            registry_passwords: Some(Arc::new(|grant| Box::pin(async move { Ok(format!("{grant:?}")) }))),
        };
        let control = Control::open(bucket, platform.clone(), options).await.expect("an empty bucket opens");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = control.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::new(&url, TOKEN, ACCOUNT).expect("a client");
        Server { platform, control, url, client }
    }

    /// One request as wrangler sends it: status and body.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}/client/v4/accounts/{ACCOUNT}{path}", self.url);
        let method = method.parse().expect("a method");
        let mut request = reqwest::Client::new().request(method, url).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the server answers");
        (response.status().as_u16(), response.json().await.expect("every answer is JSON"))
    }
}

/// The starter project, with `image` and a module that says `code`.
pub fn starter(image: &str, code: &str) -> DeployRequest {
    let bytes = Bytes::from(format!("export default {{ fetch() {{ return new Response({code:?}) }} }}"));
    DeployRequest {
        name: "starter".to_string(),
        main_module: "index.js".to_string(),
        modules: vec![Module {
            name: "index.js".to_string(),
            content_type: "application/javascript+module".to_string(),
            bytes,
        }],
        compatibility_date: "2025-10-03".to_string(),
        compatibility_flags: vec!["nodejs_compat".to_string()],
        vars: BTreeMap::from([("A".to_string(), json!("text")), ("B".to_string(), json!({"x": 1}))]),
        durable_objects: vec![DurableObjectBinding {
            name: "MY_CONTAINER".to_string(),
            class_name: "MyContainer".to_string(),
            script_name: None,
        }],
        migrations: vec![json!({"tag": "v1", "new_sqlite_classes": ["MyContainer"]})],
        containers: vec![ApplicationRequest {
            name: "starter-mycontainer".to_string(),
            class_name: "MyContainer".to_string(),
            image: Reference::parse(image).expect("well-formed"),
            size: InstanceSize { vcpu: 0.0625, memory_mib: 256, disk_mb: 2000 },
            max_instances: 5,
            more: serde_json::Map::new(),
        }],
        more: BTreeMap::new(),
        skip_trial: false,
    }
}
