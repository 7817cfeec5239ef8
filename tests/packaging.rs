//! The recipes of `src/docs/recipes`: what the page of operations shows is what the files say, and each is tried as far
//! as a machine without Docker, Kubernetes and a running systemd allows. What is missing here is said, and left out.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use clap::Parser;
use common::{Folder, Process, SIDEBIKE, Server, wait_for};
use serde_json::Value;
use sidebike::command_line::CommandLine;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The one that users do not need: `make release` runs it.
const OWN: &str = "package.sh";

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs/recipes")
}

fn recipe(name: &str) -> String {
    fs::read_to_string(recipes().join(name)).expect("a recipe")
}

/// The names of all recipes, in alphabetical order.
fn names() -> Vec<String> {
    let entries = fs::read_dir(recipes()).expect("the recipes");
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != OWN).collect();
    names.sort();
    names
}

/// What a program says; none, with a word, where it is missing.
fn said_by(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(why) => {
            eprintln!("left out: {command:?}: {why}");
            None
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn the_page_shows_each_recipe_as_it_is() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs/operations.md");
    let page = fs::read_to_string(page).unwrap();
    let names = names();
    assert_eq!(names.len(), 7, "{names:?}");
    for name in names {
        let block = format!("\n```console\n{}```\n", recipe(&name));
        assert!(page.contains(&block), "{name}: the page shows another text");
    }
}

#[test]
fn systemd_takes_the_units_and_finds_the_servers_hardened() {
    let folder = Folder::new();
    // The most exposed, of 10, as systemd counts. The agent runs what people want to run.
    for (unit, exposure) in [
        ("sidebike-server.service", "20"),
        ("sidebike-agent.service", "80"),
    ] {
        let installed = "/usr/local/bin/sidebike ";
        let text_of_unit = recipe(unit);
        assert!(text_of_unit.contains("\nLimitNOFILE=65536\n"), "{unit}");
        let here = text_of_unit.replace(installed, &format!("{SIDEBIKE} "));
        assert_ne!(here, text_of_unit);
        fs::write(folder.file(unit), here).unwrap();
        let verify = Command::new("systemd-analyze")
            .args(["verify", &folder.file(unit)])
            .output();
        let Ok(verified) = verify else {
            eprintln!("left out: there is no systemd-analyze");
            return;
        };
        assert!(verified.status.success(), "{}", text(&verified));
        assert_eq!(text(&verified), "", "{unit}");
        let threshold = format!("--threshold={exposure}");
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", &threshold, &folder.file(unit)]);
        let security = said_by(&mut security).expect("it was there");
        // Before systemd 250 it only looks at units that are loaded.
        if text(&security).contains("unrecognized option") {
            eprintln!("left out: systemd-analyze is too old to look at a file");
            return;
        }
        assert!(security.status.success(), "{unit}: {}", text(&security));
    }
}

/// The documents of a manifest, as python's parser reads them.
fn manifest(name: &str) -> Option<Vec<Value>> {
    const READ: &str =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let mut python = Command::new("python3");
    python.args(["-c", READ]);
    python.stdin(fs::File::open(recipes().join(name)).unwrap());
    let said = said_by(&mut python)?;
    if !said.status.success() && text(&said).contains("No module named") {
        eprintln!("left out: python3 has no yaml");
        return None;
    }
    assert!(said.status.success(), "{name}: {}", text(&said));
    Some(serde_json::from_slice(&said.stdout).unwrap())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[test]
fn the_manifests_fit_together_and_name_what_there_is() {
    let files = ["server", "sidecar", "daemonset"];
    let files = files.map(|name| manifest(&format!("kubernetes-{name}.yaml")));
    let [Some(server), Some(sidecar), Some(daemon_set)] = files else {
        return;
    };
    let kinds: Vec<&Value> = server.iter().map(|it| &it["kind"]).collect();
    let expected = ["Secret", "PersistentVolumeClaim", "Deployment", "Service"];
    assert_eq!(kinds, expected);
    let keys = server[0]["stringData"].as_object().expect("texts");
    let deployment = &server[2];
    assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
    let pod = &deployment["spec"]["template"];
    assert_eq!(server[3]["spec"]["selector"], pod["metadata"]["labels"]);
    let claim = &pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"];
    assert_eq!(*claim, server[1]["metadata"]["name"]);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        container["volumeMounts"][0]["name"],
        pod["spec"]["volumes"][0]["name"]
    );
    let running = Server::start();
    for probe in ["livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], container["ports"][0]["name"]);
        assert_eq!(running.get(get["path"].as_str().unwrap()).status, 200);
    }
    assert_eq!(
        sidecar[0]["spec"]["template"]["spec"]["shareProcessNamespace"],
        true
    );
    assert_eq!(daemon_set[0]["kind"], "DaemonSet");
    let page = fs::read_to_string("src/docs/operations.md").unwrap();
    let settings = page.split("## systemd").next().unwrap();
    let mut programs = 0;
    for workload in [deployment, &sidecar[0], &daemon_set[0]] {
        let pod = &workload["spec"]["template"];
        let wanted = &workload["spec"]["selector"]["matchLabels"];
        assert_eq!(*wanted, pod["metadata"]["labels"]);
        let containers = list(&pod["spec"]["containers"]);
        for container in containers.filter(|it| it["name"] == "sidebike") {
            programs += 1;
            let words = list(&container["command"])
                .skip(1)
                .chain(list(&container["args"]));
            let words = words.map(|word| word.as_str().expect("a text"));
            let words: Vec<&str> = ["sidebike"].into_iter().chain(words).collect();
            let read = CommandLine::try_parse_from(&words);
            assert!(read.is_ok(), "{words:?}: {}", read.unwrap_err());
            for variable in list(&container["env"]) {
                let name = format!("`{}`", variable["name"].as_str().unwrap());
                assert!(settings.contains(&name), "{name} is no setting");
                let secret = &variable["valueFrom"]["secretKeyRef"];
                if !secret.is_null() {
                    assert_eq!(secret["name"], server[0]["metadata"]["name"]);
                    assert!(
                        keys.contains_key(secret["key"].as_str().unwrap()),
                        "{secret}"
                    );
                }
            }
        }
    }
    assert_eq!(programs, 3);
}

/// Copies what the binary of the tests needs, which is not static as the released one is.
fn copy_libraries(root: &str) {
    let listed = Command::new("ldd").arg(SIDEBIKE).output().expect("ldd");
    let listed = text(&listed);
    for path in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = format!("{root}{path}");
        fs::create_dir_all(Path::new(&to).parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

#[test]
fn the_image_of_the_dockerfile_serves_and_runs_commands() {
    let can = Command::new("chroot").args(["/", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("left out: this user may not chroot");
        return;
    }
    let folder = Folder::new();
    let root = folder.file("root");
    copy_libraries(&root);
    // The volume of `docker run`, or of Kubernetes.
    fs::create_dir_all(format!("{root}/data")).unwrap();
    let mut start: Vec<String> = Vec::new();
    for line in recipe("Dockerfile").lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "#" | "EXPOSE" => {}
            "FROM" => assert_eq!(rest, "scratch"),
            "COPY" => {
                let (from, to) = rest.split_once(' ').unwrap();
                assert_eq!(from, "dist/sidebike-x86_64-linux");
                fs::copy(SIDEBIKE, format!("{root}{to}")).unwrap();
            }
            "ENTRYPOINT" | "CMD" => {
                start.extend(serde_json::from_str::<Vec<String>>(rest).unwrap());
            }
            _ => panic!("{line}: not known to this test"),
        }
    }
    let mut command = Command::new("chroot");
    command.arg(&root).args(&start);
    command.env("SIDEBIKE_LISTEN", "127.0.0.1:0");
    let server = Server::from_command(command);
    let mut agent = Command::new("chroot");
    agent.args([&*root, &*start[0], "agent", "--machine-label", "bare"]);
    agent.env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    let _agent = Process::start(agent);
    let argv = [&*start[0], "--version"];
    let task = serde_json::json!({"machinePattern": "^bare$", "detail": {"argv": argv}});
    let task = server.run(task);
    let version = format!("sidebike {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(task["detail"]["result"][0], *version, "{task}");
    assert_eq!(server.request("PUT", "/api/v1/file/x", b"x").status, 200);
    assert!(Path::new(&format!("{root}/data/sidebike.db")).is_file());
}

#[test]
fn an_agent_is_copied_into_a_running_pod() {
    let server = Server::start();
    let folder = Folder::new();
    let script = recipe("copy-into-pod.sh").replace("/tmp/", &format!("{}/", folder.path()));
    fs::write(folder.file("copy.sh"), script).unwrap();
    fs::create_dir(folder.file("bin")).unwrap();
    // The pod is this machine.
    let kubectl = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n";
    folder.program("bin/kubectl", kubectl);
    std::os::unix::fs::symlink(SIDEBIKE, folder.file("sidebike-x86_64-linux")).unwrap();
    let mut copy = Command::new("sh");
    copy.args(["copy.sh", "web-0", &server.address.to_string()]);
    copy.current_dir(folder.path());
    let path = std::env::var("PATH").unwrap();
    copy.env("PATH", format!("{}:{path}", folder.file("bin")));
    // The agent stays in the process group, which ends with this.
    let mut copy = Process::start(copy);
    assert!(copy.ended().success());
    wait_for("the agent is there", || server.machines().len() == 1);
}

#[test]
fn the_archive_has_what_it_promises_and_is_the_same_twice() {
    let folder = Folder::new();
    // Of the tests' size, packing takes half a minute.
    let binary = folder.program("binary", format!("#!/bin/sh\nexec {SIDEBIKE} \"$@\"\n"));
    let pack = |to: &str| {
        fs::create_dir(folder.file(to)).unwrap();
        let mut pack = Command::new("sh");
        pack.arg(recipes().join(OWN));
        pack.args([&*binary, "x86_64", &*binary, &*folder.file(to)]);
        let packed = pack.output().unwrap();
        assert!(packed.status.success(), "{}", text(&packed));
        let name = format!("sidebike-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
        (folder.file(&format!("{to}/{name}.tar.gz")), name)
    };
    let (archive, name) = pack("first");
    assert!(fs::read(&archive).unwrap() == fs::read(pack("second").0).unwrap());
    let unpacked = Command::new("tar")
        .args(["-xzf", &archive, "-C", folder.path()])
        .status();
    assert!(unpacked.unwrap().success());
    let inside = PathBuf::from(folder.file(&name));
    let mut expected: Vec<String> = ["sidebike", "LICENSE", "README.md", "completions/_sidebike"]
        .map(str::to_owned)
        .into();
    expected.extend(["bash", "fish"].map(|shell| format!("completions/sidebike.{shell}")));
    expected.extend(names().iter().map(|name| format!("recipes/{name}")));
    expected.extend(["", "-server", "-agent", "-run"].map(|it| format!("man/sidebike{it}.1")));
    for file in expected {
        let bytes = fs::read(inside.join(&file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        assert!(!bytes.is_empty(), "{file}");
    }
    let sums = Command::new("sha256sum")
        .args(["-c", "--quiet", "SHA256SUMS"])
        .current_dir(&inside)
        .output();
    let sums = sums.unwrap();
    assert!(sums.status.success(), "{}", text(&sums));
    let listed = fs::read_to_string(inside.join("SHA256SUMS")).unwrap();
    assert!(listed.lines().count() > 30, "{listed}");
}
