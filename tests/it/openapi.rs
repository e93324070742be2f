//! The description of the doors, and the page to read it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spendgate::fake_stripe::Options;
use spendgate::fake_stripe::delivery::Weather;

use crate::app::{ADMIN_KEY, TIERS, TestApp, on_each_database};
use crate::asking::on_each_story;
use crate::auth::keys;
use crate::described::{Description, Door, SEEN};
use crate::upgrade::{ask, blocked};

/// The OpenAPI Initiative's own schema of OpenAPI 3.1 (Apache-2.0).
const OPENAPI: &str = include_str!("../openapi-3.1.schema.json");

async fn description(app: &TestApp) -> &'static Description {
    Description::of(&app.url("/openapi.json"), &app.client).await
}

/// A path with something in each part that varies.
fn filled(template: &str) -> String {
    let part = |part: &str| match part {
        "{part}" => "start.js".to_owned(),
        varies if varies.starts_with('{') => "none".to_owned(),
        fixed => fixed.to_owned(),
    };
    template.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn sources() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = [src.join("http"), src.join("http/openapi")].into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path()).chain([src.join("http.rs")]);
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

#[tokio::test]
async fn every_door_that_is_described_is_there() {
    on_each_database(TIERS, async |app| {
        for ((method, path), _) in description(app).await.doors() {
            let request = app.client.request(method.to_uppercase().parse().unwrap(), app.url(&filled(path))).bearer_auth(ADMIN_KEY);
            let answer = app.send(request).await;
            assert_ne!(answer.status, 405, "{method} {path}");
            let nothing = answer.status == 404 && answer.text.contains("\"code\":\"not_found\"");
            assert!(!nothing, "{method} {path}: {}", answer.text);
        }
        app.get("/v1/nothing").await.problem(404, "not_found");
    })
    .await;
}

/// The router takes handlers by their description, so that a door without one can only be made beside it.
#[tokio::test]
async fn every_door_that_is_there_is_described() {
    on_each_database(TIERS, async |app| {
        let description = description(app).await;
        let mut missing = Vec::new();
        for (file, text) in sources() {
            let file = file.file_name().unwrap().to_str().unwrap().to_owned();
            for call in [".route(\"", ".nest(\"", ".route_service(\""] {
                let paths = text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap());
                // Those of `METRICS_ADDR` are described as the doors that they are on the other address.
                let paths = paths.filter(|path| !description.doors().any(|((_, door), _)| door == *path));
                missing.extend(paths.map(|path| format!("{path} ({file}: {call}…): src/http/openapi.rs says how a door is described")));
            }
            for annotation in text.split("#[utoipa::path(\n").skip(1) {
                let method = annotation.trim_start().split(',').next().unwrap();
                let path = annotation.split("path = \"").nth(1).unwrap().split('"').next().unwrap();
                if !description.doors().any(|(door, _)| *door == (method.to_owned(), path.to_owned())) {
                    missing.push(format!("{method} {path} ({file}): it is described, and not in http::doors"));
                }
            }
        }
        assert!(missing.is_empty(), "{missing:#?}");
    })
    .await;
}

#[tokio::test]
async fn the_description_is_openapi_3_1() {
    on_each_database(TIERS, async |app| {
        let description = description(app).await;
        let document = &description.document;
        assert_eq!(document["openapi"], "3.1.0");
        let official = jsonschema::draft202012::options().build(&serde_json::from_str(OPENAPI).unwrap()).unwrap();
        let faults: Vec<String> = official.iter_errors(document).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{faults:#?}");
        // The control: it is a schema that refuses something.
        assert!(!official.is_valid(&json!({"openapi": "3.1.0", "paths": {}})));
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            drop(description.compiled(schema));
        }
        let tags: BTreeSet<&str> = document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
        let mut ids = BTreeSet::new();
        for (door, operation) in description.doors() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{door:?}: its operationId is another one's too");
            assert!(tags.contains(operation["tags"][0].as_str().unwrap()), "{door:?}: its tag is not told of");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{door:?}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                for content in response["content"].as_object().into_iter().flat_map(|content| content.values()) {
                    drop(description.compiled(&content["schema"]));
                }
                assert!(response["description"].as_str().is_some_and(|told| !told.is_empty()), "{door:?} {status}");
            }
            let body = &operation["requestBody"]["content"]["application/json"];
            if let Some(example) = body.get("example") {
                let fits = description.compiled(&body["schema"]);
                assert!(fits.is_valid(example), "{door:?}: its example is not what it takes");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn every_code_of_an_error_is_described_and_told_of() {
    on_each_database(TIERS, async |app| {
        let description = description(app).await;
        let codes = description.document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
        assert!(30 < codes.len());
        let told = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/API.md")).unwrap();
        let mut used: BTreeSet<&str> = BTreeSet::from(["method_not_allowed"]);
        for (_, operation) in description.doors() {
            used.extend(operation["x-problem-codes"].as_array().into_iter().flatten().map(|code| code.as_str().unwrap()));
        }
        for code in codes.iter().map(|code| code.as_str().unwrap()) {
            assert!(told.contains(&format!("`{code}`")), "docs/API.md does not tell of {code}");
            assert!(used.contains(code), "no door lists {code}");
        }
    })
    .await;
}

#[tokio::test]
async fn every_door_asks_for_the_scope_that_is_described_and_for_no_other() {
    on_each_database(TIERS, async |app| {
        let made = ["check", "write", "admin"].map(|scope| (scope, keys(app, &["create", "--name", scope, "--scopes", scope])));
        for ((method, path), operation) in description(app).await.doors() {
            let status = async |key: Option<&str>| {
                let request = app.client.request(method.to_uppercase().parse().unwrap(), app.url(&filled(path)));
                app.send(key.into_iter().fold(request, |request, key| request.bearer_auth(key))).await.status
            };
            let needs = operation["security"][0]["bearer"][0].as_str();
            assert_eq!(status(None).await == 401, needs.is_some(), "{method} {path} without a key");
            for (scope, output) in &made {
                let refused = status(output.lines().next()).await == 403;
                let allowed = needs.is_none_or(|needs| needs == *scope || *scope == "admin");
                assert_eq!(refused, !allowed, "{method} {path} with {scope}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_of_a_caller_is_refused_by_the_same_words_in_the_description() {
    on_each_database(TIERS, async |app| {
        let description = description(app).await;
        let record = description.compiled(&json!({"$ref": "#/components/schemas/Record"}));
        let body = |change: Value| {
            let mut body = json!({"id": "a", "user_id": "u", "cost": 0.1});
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            body
        };
        for good in [
            json!({}),
            json!({"cost": "0.1"}),
            json!({"cost": 1_000_000_000}),
            json!({"time": "2026-01-12T09:00:00Z"}),
            json!({"model": null}),
        ] {
            assert!(record.is_valid(&body(good.clone())), "{good}");
            app.post("/v1/usage", body(good)).await;
        }
        for bad in [
            json!({"cost": -1}),
            json!({"cost": "a"}),
            json!({"cost": 1_000_000_001}),
            json!({"user_id": ""}),
            json!({"user_id": "a\u{7f}"}),
            json!({"more": 1}),
            json!({"input_tokens": -1}),
        ] {
            assert!(!record.is_valid(&body(bad.clone())), "{bad}");
            assert_eq!(app.post("/v1/usage", body(bad.clone())).await.status, 422, "{bad}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_description_is_sent_once_to_who_keeps_it() {
    on_each_database(TIERS, async |app| {
        for path in ["/openapi.json", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"] {
            let first = app.send(app.client.get(app.url(path))).await;
            assert!(first.status == 200 && 50 < first.text.len(), "{path}");
            let etag = first.headers["etag"].to_str().unwrap().to_owned();
            let ask = async |known: &str| app.send(app.client.get(app.url(path)).header("if-none-match", known)).await;
            let again = ask(&format!("\"other\", W/{etag}")).await;
            assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
            assert_eq!(again.headers["etag"], etag.as_str());
            assert_eq!(ask("\"other\"").await.status, 200, "{path}");
        }
        app.get("/openapi.json?a=b").await.problem(422, "unknown_field");
        app.get("/docs/index.html").await.problem(404, "not_found");
    })
    .await;
}

#[tokio::test]
async fn the_page_to_read_it_loads_nothing_from_elsewhere_and_has_no_secret_in_it() {
    on_each_database(TIERS, async |app| {
        let page = app.send(app.client.get(app.url("/docs"))).await;
        let policy = page.headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'self'; ") && !policy.contains("http") && !policy.contains('*') && !policy.contains("eval")
        );
        let loads = |text: &str, before: &str| -> Vec<String> {
            text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
        };
        let mut loaded = [loads(&page.text, "href=\""), loads(&page.text, "src=\"")].concat();
        loaded.retain(|address| address != "data:,");
        assert_eq!(loaded, ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"]);
        let elsewhere = ["http:", "https:", "//"];
        let mut all = page.text.clone();
        for address in &loaded {
            let part = app.send(app.client.get(app.url(&format!("/{address}")))).await;
            assert_eq!(part.status, 200, "{address}");
            for load in
                ["url(", "url('", "url(\"", "import(\"", "import '", "import \"", "fetch(\"", "importScripts(\"", ".src=\"", "src='"]
            {
                for outside in elsewhere {
                    assert!(!part.text.contains(&format!("{load}{outside}")), "{address}: {load}{outside}");
                }
            }
            // Swagger UI sends the description to a validator of its makers', unless it is told not to.
            if address.ends_with("start.js") {
                assert!(part.text.contains("validatorUrl: null") && !elsewhere.iter().any(|outside| part.text.contains(outside)));
            } else {
                assert!(100_000 < part.text.len(), "{address}");
            }
            all += &part.text;
        }
        all += &app.get("/openapi.json").await.text;
        for secret in [ADMIN_KEY, crate::app::WEBHOOK_SECRET, app.folder.path().to_str().unwrap()] {
            assert!(!all.contains(secret));
        }
    })
    .await;
}

/// Each answer is held to its description as it comes (`TestApp::send`); here every door gives a good one and a problem.
#[tokio::test(flavor = "multi_thread")]
async fn every_door_answers_as_it_is_described() {
    on_each_story(Options::default(), async |story| {
        let app = &story.app;
        let delete = async |path: &str| app.send(app.client.delete(app.url(path)).bearer_auth(ADMIN_KEY)).await;
        let link = blocked(app, "u").await;
        let signed = story.fake.create_customer(&[("user_id", "payer")]);
        story.fake.subscribe(&signed, &[("price_pro", Some(1))], "active");
        story.deliver(Weather::default(), 1).await;
        story.settle().await;
        app.put("/v1/accounts/acme", json!({"stripe_customer": "cus_acme"})).await.ok();
        app.put("/v1/accounts/acme/users/a%20b", "").await.ok();
        app.get("/v1/accounts/acme?limit=1").await.ok();
        delete("/v1/accounts/acme/users/a%20b").await.ok();
        for id in ["h1", "h2", "h3"] {
            app.post("/v1/holds", json!({"id": id, "user_id": "v", "estimated_cost": "0.01", "metadata": {"a": 1}})).await.ok();
        }
        app.post("/v1/holds", json!({"id": "h4", "user_id": "u", "estimated_cost": "0.01"})).await.ok();
        app.get("/v1/users/v/explain?model=gpt-4o&input_tokens=100&output_tokens=100").await.ok();
        app.post("/v1/holds/h1/extend", json!({"ttl_seconds": 900})).await.ok();
        app.post("/v1/holds/h1/capture", json!({"cost": 0.02})).await.ok();
        app.post("/v1/holds/h2/release", "").await.ok();
        app.get("/v1/holds?state=open&user_id=v").await.ok();
        app.get("/v1/holds/h1").await.ok();
        let tokens =
            json!({"id": "t1", "user_id": "v", "model": "gpt-4o", "input_tokens": 900, "cached_input_tokens": 100, "output_tokens": 9});
        app.post("/v1/usage", json!([tokens, {"id": "t2", "user_id": "v", "cost": 0, "metadata": {"b": {"c": []}}}])).await.ok();
        app.post("/v1/corrections", json!({"id": "c1", "user_id": "v", "amount": "0.01", "reason": "r", "time": app.now().to_rfc3339()}))
            .await
            .ok();
        for query in ["", "?group_by=day,model", "?group_by=model", "?group_by=day&limit=1", "?limit=1"] {
            app.get(&format!("/v1/users/v/usage{query}")).await.ok();
        }
        app.check("v").await;
        app.post("/v1/enforcement", json!({"user_id": "v"})).await.ok();
        app.post("/v1/enforcement", json!([{"user_id": "payer"}, {"user_id": "v", "hold": true, "id": "h5", "estimated_cost": "0.01"}]))
            .await
            .ok();
        app.put("/v1/users/v/caps", json!({"daily": "0.05", "total": 3})).await.ok();
        app.get("/v1/users/v/caps").await.ok();
        let grant = json!({"id": "g/1", "amount": 1, "period": "daily", "ends_at": "2026-02-01T00:00:00Z", "reason": "goodwill"});
        app.post("/v1/users/v/grants", &grant).await.ok();
        app.get("/v1/users/v/grants").await.ok();
        for path in
            ["/v1/users/v/explain", "/v1/users/payer/explain", "/v1/users/v", "/v1/users/payer", "/v1/users/nobody", "/v1/users?limit=2"]
        {
            app.get(path).await.ok();
        }
        delete("/v1/users/v/grants/g%2F1").await.ok();
        app.put("/v1/users/v", json!({"tier": "pro", "reason": "r", "ends_at": "2026-03-01T00:00:00Z"})).await.ok();
        app.get("/v1/users/v/explain").await.ok();
        for path in [
            "/v1/tiers",
            "/v1/prices",
            "/v1/prices?model=gpt-4o",
            "/upgrade",
            "/healthz",
            "/readyz",
            "/openapi.json",
            "/docs",
            "/docs/start.js",
        ] {
            assert_eq!(app.get(path).await.status, 200, "{path}");
        }
        let call = app.client.get(app.url("/v1/gate")).bearer_auth(ADMIN_KEY).header("x-user-id", "v");
        assert_eq!(app.send(call).await.status, 200);
        assert_eq!(app.get("/metrics").await.status, 200);
        app.get("/v1/alerts").await.ok();
        let made = app.post("/v1/keys", json!({"name": "n", "scopes": ["check"]})).await.ok();
        let key_id = made["key_id"].as_str().unwrap();
        app.post(&format!("/v1/keys/{key_id}/rotate"), "").await.ok();
        app.get("/v1/keys?limit=1").await.ok();
        delete(&format!("/v1/keys/{key_id}")).await.ok();
        app.post("/v1/simulate", json!({"user_id": "v", "tiers": TIERS})).await.ok();
        app.post("/v1/admin/reload", "").await.ok();
        let event = app.get("/v1/events?limit=1").await.ok()["events"][0]["event_id"].as_str().unwrap().to_owned();
        app.get(&format!("/v1/events/{event}")).await.ok();
        app.post(&format!("/v1/events/{event}/replay"), "").await.ok();
        app.post("/v1/reconciliation", "").await.ok();
        app.reconciler().once().await.unwrap();
        app.get("/v1/reconciliation").await.ok();
        assert_eq!(ask(app, reqwest::Method::GET, &link, Some(("purpose", "prefetch"))).await.status, 200);

        let description = description(app).await;
        let answered = |door: &Door| SEEN.answers(&app.url(""), door);
        for (door, operation) in description.doors() {
            let (method, path) = &door;
            // Whoever has no key, and who says what is not known, is refused everywhere.
            let request = app.client.request(method.to_uppercase().parse().unwrap(), app.url(&format!("{}?unknown=%00", filled(path))));
            app.send(request).await;
            let [well, problem] = answered(door);
            // Who comes back has a link that only Stripe's pages know; that is told in upgrade.rs.
            // Of alerts one needs somebody to tell, which telling.rs has.
            let elsewhere = path == "/billing/return/{token}" || path.starts_with("/v1/alerts/");
            assert!(well || elsewhere, "{door:?} gave no good answer");
            let has_problems = operation["x-problem-codes"].as_array().is_some_and(|codes| codes.iter().any(|code| code != "busy"));
            assert!(problem || !has_problems || path == "/readyz" || path == "/docs/{part}", "{door:?} gave no problem");
        }
    })
    .await;
}
