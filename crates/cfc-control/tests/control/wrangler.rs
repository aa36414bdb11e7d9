//! The calls that an unmodified `wrangler deploy` makes, in its order.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::server::{ACCOUNT, Server, TOKEN};

async fn upload(server: &Server) -> (u16, Value) {
    let metadata = json!({
        "main_module": "index.js",
        "bindings": [{"name": "MYC", "type": "durable_object_namespace", "class_name": "MyC"}],
        "containers": [{"class_name": "MyC"}],
        "compatibility_date": "2025-10-03",
        "compatibility_flags": [],
        "migrations": {"new_tag": "v2", "steps": [{"new_sqlite_classes": ["MyC"]}, {"new_classes": ["Other"]}]},
    });
    let module = Part::text("export default {}").file_name("index.js");
    let form = Form::new()
        .part("metadata", Part::text(metadata.to_string()))
        .part("index.js", module.mime_str("application/javascript+module").expect("a type"));
    let path = format!("/client/v4/accounts/{ACCOUNT}/workers/scripts/cw?excludeScript=true&bindings_inherit=strict");
    let request = reqwest::Client::new().put(format!("{}{path}", server.url)).bearer_auth(TOKEN).multipart(form);
    let response = request.send().await.expect("the server answers");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn wranglers_deploy_finds_every_route() {
    let server = Server::start().await;
    let (status, body) = server.call("GET", "/workers/services/cw", None).await;
    assert_eq!((status, &body["errors"][0]["code"]), (404, &json!(10007)));
    let (_, body) = server.call("GET", "/workers/scripts/cw/deployments", None).await;
    assert_eq!(body["result"], json!({"deployments": []}));
    let (_, body) = server.call("GET", "/workers/scripts", None).await;
    assert_eq!(body["result"], json!([]));
    let (status, _) = server.call("GET", "/workers/scripts/cw/settings", None).await;
    assert_eq!(status, 404);

    let (status, body) = upload(&server).await;
    assert_eq!(status, 200, "{body}");
    let deployment_id = body["result"]["deployment_id"].as_str().expect("a string");
    assert!(deployment_id.len() == 32 && deployment_id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{deployment_id}");
    let serving = server.platform.serving("cw").expect("serves");
    assert!(serving.applications.is_empty(), "wrangler makes the application later");
    let tags: Vec<_> = serving.worker.migrations.iter().map(|migration| migration["tag"].clone()).collect();
    assert_eq!(tags, [json!("v2#0"), json!("v2")]);

    let (_, body) = server.call("GET", "/containers/me", None).await;
    assert_eq!(body["result"]["limits"]["memory_mib_per_deployment"], json!(12288));
    let wanted = json!({"expiration_minutes": 15, "permissions": ["push", "pull"]});
    let (_, body) = server.call("POST", "/containers/registries/127.0.0.1:8443/credentials", Some(wanted)).await;
    assert_eq!(body["result"]["registry_host"], json!("127.0.0.1:8443"));
    assert_eq!(body["result"]["password"], json!("RegistryGrant { pull: true, push: true, lifetime: 900s }"));
    for (wanted, expected) in [
        (json!({"permissions": ["pull"]}), "RegistryGrant { pull: true, push: false, lifetime: 900s }"),
        (
            json!({"expiration_minutes": 5, "permissions": ["push", "library_push"]}),
            "RegistryGrant { pull: false, push: true, lifetime: 300s }",
        ),
    ] {
        let (_, body) = server.call("POST", "/containers/registries/r:1/credentials", Some(wanted)).await;
        assert_eq!(body["result"]["password"], json!(expected));
    }
    for wrong in [
        json!({}),
        json!({"permissions": []}),
        json!({"permissions": ["fly"]}),
        json!({"permissions": ["pull"], "expiration_minutes": 0}),
        json!({"permissions": ["pull"], "expiration_minutes": 100_000}),
        json!({"permissions": ["pull"], "expiration_minutes": -1}),
    ] {
        let (status, body) = server.call("POST", "/containers/registries/r:1/credentials", Some(wrong.clone())).await;
        assert_eq!(status, 400, "{wrong} {body}");
    }

    let uuid = uuid::Uuid::parse_str(deployment_id).expect("a UUID");
    let (_, body) = server.call("GET", &format!("/workers/scripts/cw/versions/{uuid}"), None).await;
    let namespace_id = body["result"]["resources"]["bindings"][0]["namespace_id"].clone();
    assert_eq!(namespace_id.as_str().map(str::len), Some(32));
    let (_, body) = server.call("GET", "/workers/durable_objects/namespaces?per_page=1000", None).await;
    assert_eq!(body["result"][0]["id"], namespace_id);
    assert_eq!(body["result"][0]["use_sqlite"], json!(true));

    let create = json!({
        "name": "cw-myc", "scheduling_policy": "default", "instances": 0, "max_instances": 3,
        "configuration": {"image": format!("127.0.0.1:8443/{ACCOUNT}/cw-myc:11111111"), "instance_type": "basic"},
        "constraints": {"tiers": [1, 2]}, "durable_objects": {"namespace_id": namespace_id},
        "rollout_active_grace_period": 0,
    });
    let (status, body) = server.call("POST", "/containers/applications", Some(create.clone())).await;
    assert_eq!(status, 200, "{body}");
    let serving = server.platform.serving("cw").expect("serves");
    assert_eq!(serving.application_of("MyC").expect("attached").size.memory_mib, 1024);
    let (status, _) = server.call("POST", "/containers/applications", Some(create)).await;
    assert_eq!(status, 409);
    let (_, body) = server.call("GET", "/workers/subdomain", None).await;
    assert_eq!(body["result"]["subdomain"], json!("localhost"));
    let (_, body) = server.call("POST", "/workers/scripts/cw/subdomain", Some(json!({"enabled": true}))).await;
    assert_eq!(body["result"]["enabled"], json!(true));

    change(&server, &namespace_id).await;
}

/// wrangler's second deploy: it finds its application, changes it, and rolls out.
async fn change(server: &Server, namespace_id: &Value) {
    let (_, body) = server.call("GET", "/containers/applications", None).await;
    let application = &body["result"][0];
    let configuration = &application["configuration"];
    assert_eq!(configuration["vcpu"], json!(0.25));
    assert_eq!(configuration["memory_mib"], json!(1024));
    assert_eq!(configuration["disk"]["size_mb"], json!(4000));
    assert_eq!(application["constraints"], json!({"tiers": [1, 2]}));
    assert_eq!(application["durable_objects"]["namespace_id"], *namespace_id);
    let id = application["id"].as_str().expect("an id").to_string();
    uuid::Uuid::parse_str(&id).expect("wrangler wants a UUID");

    let target = json!({"image": "127.0.0.1:8443/x/cw-myc:2", "instance_type": "standard-1"});
    let modify = json!({"configuration": target, "max_instances": 4});
    let (status, body) = server.call("PATCH", &format!("/containers/applications/{id}"), Some(modify)).await;
    assert_eq!((status, &body["result"]["version"]), (200, &json!(2)), "{body}");
    let rollout = json!({
        "description": "Progressive update", "strategy": "rolling", "kind": "full_auto", "target_configuration": target,
        "steps": [{"step_size": {"percentage": 100}, "description": "all"}],
    });
    let (status, body) = server.call("POST", &format!("/containers/applications/{id}/rollouts"), Some(rollout)).await;
    assert_eq!((status, &body["result"]["target_version"]), (200, &json!(2)), "{body}");
    let (_, body) = server.call("GET", &format!("/containers/applications/{id}/rollouts"), None).await;
    assert_eq!(body["result"][0]["description"], json!("Progressive update"));
    let serving = server.platform.serving("cw").expect("serves");
    assert_eq!(serving.applications[0].max_instances, 4);
    assert_eq!(serving.applications[0].image.reference.to_string(), "127.0.0.1:8443/x/cw-myc:2");

    upload(server).await;
    assert_eq!(server.platform.serving("cw").expect("serves").applications[0].max_instances, 4, "an upload keeps it");
    let (status, body) = server.call("DELETE", &format!("/containers/applications/{id}"), None).await;
    assert_eq!((status, &body["success"]), (200, &json!(true)));
    assert!(server.platform.serving("cw").expect("serves").applications.is_empty());
    delete(server).await;
}

/// `wrangler delete`: it asks who uses the Worker, deletes it, and looks for files of a site.
async fn delete(server: &Server) {
    let (status, body) = server.call("GET", "/workers/scripts/cw/references", None).await;
    assert_eq!((status, &body["result"]["services"]["incoming"]), (200, &json!([])), "{body}");
    let (_, body) = server.call("GET", "/workers/tails/by-consumer/cw", None).await;
    assert_eq!(body["result"], json!([]));
    let (status, body) = server.call("DELETE", "/workers/services/cw?force=false", None).await;
    assert_eq!((status, &body["success"]), (200, &json!(true)), "{body}");
    let (_, body) = server.call("GET", "/storage/kv/namespaces?per_page=100&page=1", None).await;
    assert_eq!(body["result"], json!([]));
    assert!(server.platform.serving("cw").is_none());
    let (status, body) = server.call("DELETE", "/workers/services/cw?force=false", None).await;
    assert_eq!((status, &body["errors"][0]["code"]), (404, &json!(10007)));
}

#[tokio::test]
async fn an_unknown_route_is_named() {
    let server = Server::start().await;
    let (status, body) = server.call("GET", "/queues", None).await;
    assert_eq!(status, 404);
    assert_eq!(
        body["errors"][0]["message"],
        json!(format!("cfc has no route GET /client/v4/accounts/{ACCOUNT}/queues"))
    );
    let (status, body) = server.call("DELETE", "/containers/me", None).await;
    assert_eq!((status, &body["errors"][0]["code"]), (404, &json!(7003)));
}

#[tokio::test]
async fn an_unknown_instance_type_names_the_known_ones() {
    let server = Server::start().await;
    let create = json!({"name": "x", "configuration": {"image": "localhost/x:1", "instance_type": "huge"}});
    let (status, body) = server.call("POST", "/containers/applications", Some(create)).await;
    assert_eq!(status, 400);
    assert_eq!(body["errors"][0]["message"], json!("unknown instance type `huge`"));
    assert_eq!(body["errors"][0]["cfc"]["location"], json!("configuration.instance_type"));
}

#[tokio::test]
async fn lists_for_people_have_cloudflares_shape() {
    let server = Server::start().await;
    server.client.deploy(&crate::server::starter("localhost/app:1", "one")).await.expect("deploys");
    let (_, body) = server.call("GET", "/containers/dash/applications?per_page=25", None).await;
    let application = &body["result"][0];
    assert_eq!(
        application["health"]["instances"],
        json!({"active": 1, "healthy": 1, "failed": 0, "starting": 0, "scheduling": 0})
    );
    let id = application["id"].as_str().expect("an id");
    let (_, body) = server.call("GET", &format!("/containers/dash/applications/{id}/instances"), None).await;
    let instance = &body["result"]["instances"][0];
    assert_eq!(instance["current_placement"]["status"]["container_status"], json!("running"));
    assert_eq!(body["result"]["durable_objects"][0]["deployment_id"], instance["id"]);
}
