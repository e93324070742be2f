//! The files by which it is deployed agree with the service, and with each other.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use marked_yaml::Node;
use serde_json::{Map, Value, json};
use spendgate::config::Config;

use crate::app::{TIERS, on_each_database};
use crate::cli::folder;

/// Who the service is in an image: the `nonroot` of distroless.
const USER: u32 = 65532;
/// What the Postgres image and libpq read.
const OF_POSTGRES: [&str; 4] = ["POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGPASSWORD"];

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn value(node: &Node) -> Value {
    match node {
        Node::Scalar(text) => Value::from(text.as_str()),
        Node::Sequence(items) => items.iter().map(value).collect(),
        Node::Mapping(fields) => {
            Value::Object(fields.iter().map(|(key, node)| (key.as_str().to_owned(), value(node))).collect::<Map<_, _>>())
        }
    }
}

/// The documents of a YAML file; every scalar is its text.
fn yaml(name: &str) -> Vec<Value> {
    let read = |text: &str| value(&marked_yaml::parse_yaml(0, text).unwrap_or_else(|error| panic!("{name}: {error}")));
    file(name).split("\n---\n").map(read).collect()
}

/// The lines of a Dockerfile that begin with `instruction`, without it; continued lines are one.
fn dockerfile(instruction: &str) -> Vec<String> {
    let text = file("Dockerfile").replace("\\\n", " ");
    text.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' ').map(str::to_owned)).collect()
}

/// Every value of a key in the unit, which may be given several times.
fn unit(key: &str) -> Vec<String> {
    file("deploy/systemd/spendgate.service")
        .lines()
        .filter_map(|line| Some(line.split_once('=').filter(|(name, _)| *name == key)?.1.to_owned()))
        .collect()
}

fn pairs(of: &Value) -> Vec<(String, String)> {
    let fields = of.as_object().unwrap().iter();
    fields.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn kubernetes(kind: &str) -> Value {
    let found = yaml("deploy/kubernetes/spendgate.yaml").into_iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("there is no {kind}"))
}

fn container() -> Value {
    kubernetes("Deployment").pointer("/spec/template/spec/containers/0").unwrap().clone()
}

/// What each way of deploying sets, where it says the value.
fn settings() -> Vec<(&'static str, Vec<(String, String)>)> {
    let split = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    let image = dockerfile("ENV").iter().flat_map(|line| line.split_whitespace().map(split).collect::<Vec<_>>()).collect();
    let compose = pairs(&yaml("deploy/compose.yaml")[0]["services"]["spendgate"]["environment"]);
    let secrets = file("deploy/secrets.env.example").lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(split).collect();
    let unit = unit("Environment").iter().map(|line| split(line)).collect();
    let container = container();
    let pod = container["env"].as_array().unwrap().iter().map(|env| {
        let text = |of: &Value| of.as_str().map(str::to_owned);
        (text(&env["name"]).unwrap(), text(&env["value"]).unwrap_or_default())
    });
    vec![
        ("Dockerfile", image),
        ("compose.yaml", compose),
        ("secrets.env.example", secrets),
        ("the unit", unit),
        ("kubernetes", pod.collect()),
    ]
}

#[test]
fn every_name_that_a_deployment_sets_is_a_setting_and_its_value_is_one() {
    let example = file(".env.example");
    let known: BTreeSet<&str> =
        example.lines().filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('=')).map(|(name, _)| name).collect();
    for (place, pairs) in settings() {
        assert!(!pairs.is_empty(), "{place}");
        for (name, _) in &pairs {
            assert!(known.contains(name.as_str()) || OF_POSTGRES.contains(&name.as_str()), "{place} sets {name}, which nobody reads");
        }
        let lookup = |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let config = Config::read(lookup).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(config.listen_addr.tcp().unwrap().port(), 8080, "{place}");
    }
}

#[test]
fn every_deployment_reaches_the_port_where_the_service_listens() {
    assert_eq!(dockerfile("EXPOSE"), ["8080"]);
    assert_eq!(yaml("deploy/compose.yaml")[0]["services"]["spendgate"]["ports"], json!(["127.0.0.1:8080:8080"]));
    assert_eq!(container()["ports"], json!([{"name": "http", "containerPort": "8080"}]));
    assert_eq!(kubernetes("Service").pointer("/spec/ports/0/targetPort").unwrap(), "http");
    let wanted = kubernetes("Deployment").pointer("/spec/template/metadata/labels").cloned();
    for (kind, path) in
        [("Service", "/spec/selector"), ("Deployment", "/spec/selector/matchLabels"), ("PodDisruptionBudget", "/spec/selector/matchLabels")]
    {
        assert_eq!(kubernetes(kind).pointer(path).cloned(), wanted, "{kind}");
    }
}

#[tokio::test]
async fn every_probe_asks_a_door_that_answers() {
    let container = container();
    on_each_database(TIERS, async |app| {
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let asked = &container[probe]["httpGet"];
            assert_eq!(asked["port"], "http", "{probe}");
            app.send(app.client.get(app.url(asked["path"].as_str().unwrap()))).await.ok();
        }
    })
    .await;
    // A database that is away is nothing that a restart mends.
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
}

/// How long the service itself waits for what is in flight, in seconds.
fn shutdown_seconds() -> u64 {
    let needle = "shutdown: Duration::from_secs(";
    let text = file("src/http/serve.rs");
    let told = text.split_once(needle).unwrap_or_else(|| panic!("src/http/serve.rs has no {needle}")).1;
    told.split_once(')').unwrap().0.parse().unwrap()
}

#[test]
fn nobody_kills_the_service_before_it_has_finished_what_is_in_flight() {
    let own = shutdown_seconds();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let pod = kubernetes("Deployment");
    let pause = seconds(container().pointer("/lifecycle/preStop/sleep/seconds").unwrap().as_str().unwrap());
    assert!(own < seconds(&unit("TimeoutStopSec")[0]), "the unit");
    assert!(own < seconds(yaml("deploy/compose.yaml")[0]["services"]["spendgate"]["stop_grace_period"].as_str().unwrap()), "compose");
    assert!(
        own + pause < seconds(pod.pointer("/spec/template/spec/terminationGracePeriodSeconds").unwrap().as_str().unwrap()),
        "kubernetes"
    );
}

#[test]
fn every_deployment_runs_it_without_rights_and_on_a_disk_that_it_cannot_write() {
    assert_eq!(dockerfile("USER"), [format!("{USER}:{USER}")]);
    assert!(dockerfile("FROM").last().unwrap().ends_with(":nonroot"), "{:?}", dockerfile("FROM"));
    let compose = &yaml("deploy/compose.yaml")[0]["services"]["spendgate"];
    assert_eq!(
        (&compose["read_only"], &compose["cap_drop"], &compose["security_opt"], &compose["user"]),
        (&json!("true"), &json!(["ALL"]), &json!(["no-new-privileges:true"]), &json!(format!("{USER}:{USER}")))
    );
    // Pod Security Standards, profile "restricted".
    let pod = kubernetes("Deployment");
    let of_pod = pod.pointer("/spec/template/spec/securityContext").unwrap();
    assert_eq!(
        (&of_pod["runAsNonRoot"], &of_pod["runAsUser"], &of_pod["seccompProfile"]["type"]),
        (&json!("true"), &json!(USER.to_string()), &json!("RuntimeDefault"))
    );
    let expected = json!({"allowPrivilegeEscalation": "false", "readOnlyRootFilesystem": "true", "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container()["securityContext"], expected);
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
    ] {
        assert_eq!(unit(key), [value], "{key}");
    }
    let state = unit("StateDirectory");
    assert_eq!(unit("Environment"), [format!("DATA_DIR=/var/lib/{}", state[0])], "the one folder that the unit may write");
}

#[test]
fn the_image_is_built_by_the_pinned_compiler_from_all_that_is_built_in() {
    let toolchain = file("rust-toolchain.toml");
    let pinned = toolchain.split_once("channel = \"").unwrap().1.split('"').next().unwrap();
    assert!(
        dockerfile("FROM")[0].starts_with(&format!("rust:{}-", pinned.trim_end_matches(".0"))),
        "{:?} for {pinned}",
        dockerfile("FROM")
    );
    let copied: Vec<String> = dockerfile("COPY")
        .iter()
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            words.pop();
            words
        })
        .collect();
    let ignored = file(".dockerignore");
    for path in &copied {
        assert!(ignored.lines().any(|line| line == format!("!{path}")), ".dockerignore keeps {path} from the image");
    }
    let mut built_in = BTreeSet::from(["migrations".to_owned(), "README.md".to_owned()]);
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if !entry.to_str().unwrap().ends_with("tests.rs") {
                let text = fs::read_to_string(&entry).unwrap();
                built_in
                    .extend(text.split("\"../../").skip(1).map(|rest| rest.split('"').next().unwrap().trim_end_matches('/').to_owned()));
            }
        }
    }
    assert!(built_in.contains("tiers.yaml") && built_in.contains("fixtures/demo"), "{built_in:?}");
    for path in built_in {
        let covered = copied.iter().any(|copied| path == *copied || path.starts_with(&format!("{copied}/")));
        assert!(covered, "the Dockerfile does not copy {path}, which is built in");
    }
}

#[test]
fn systemd_understands_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("not tested: systemd-analyze is not installed");
        return;
    }
    let folder = folder();
    let path = folder.path().join("spendgate.service");
    // It looks whether the program is there.
    fs::write(&path, file("deploy/systemd/spendgate.service").replace("/usr/local/bin/spendgate", env!("CARGO_BIN_EXE_spendgate")))
        .unwrap();
    let verify = |path: &Path| Command::new("systemd-analyze").arg("verify").arg(path).output().unwrap();
    let told = verify(&path);
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success() && !said.contains("spendgate.service:"), "{said}");
    // The control: a misspelt key is told.
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("ProtectHome=", "ProtectHomes=")).unwrap();
    assert!(String::from_utf8_lossy(&verify(&path).stderr).contains("ProtectHomes"));
}

/// As in an image: nobody's rights, a working folder and everything else of somebody else, and one folder to write.
#[test]
fn the_service_writes_nowhere_but_in_its_data_folder() {
    let folder = folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (program, root, data) = (folder.path().join("spendgate"), folder.path().join("root"), folder.path().join("data"));
    // Where tests are built, others may not even look.
    fs::copy(env!("CARGO_BIN_EXE_spendgate"), &program).unwrap();
    fs::create_dir(&root).unwrap();
    fs::create_dir(&data).unwrap();
    let mut command = Command::new(&program);
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        chown(&data, Some(USER), Some(USER)).unwrap();
        command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--no-new-privs"]).arg(&program);
    }
    fs::set_permissions(&root, Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    let environment =
        [("LISTEN_ADDR", "127.0.0.1:0"), ("DATA_DIR", data.to_str().unwrap()), ("RUST_LOG", "warn"), ("PATH", "/usr/bin:/bin")];
    command.current_dir(&root).env_clear().envs(environment).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut service = command.spawn().unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines().map(Result::unwrap);
    let listens = lines.by_ref().find(|line| line.contains("listens on"));
    assert!(Command::new("kill").arg(service.id().to_string()).status().unwrap().success());
    let told = service.wait_with_output().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    assert!(listens.is_some() && told.status.success(), "{:?}: {}", told.status, String::from_utf8_lossy(&told.stderr));
    let written: Vec<_> = fs::read_dir(&data).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(written.iter().any(|name| name == "spendgate.db"), "{written:?}");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "the program and two folders");
}
