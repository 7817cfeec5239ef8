//! The recipes for chaosblade in the page of experiments, word for word: they run, end, and leave nothing.
//!
//! chaosblade itself is in no registry of packages. In its place is a stand-in, shell scripts with the answers of 1.8.0
//! as its source has them: `create` answers a line of JSON, errors are JSON on standard error with exit code 1, a
//! missing yaml makes it print its help with exit code 0, a network fault is a rule of tc, any other is a process that
//! `destroy` finds by its command line. To have a further recipe tested: a block in the page, a line in [`RECIPES`].
//!
//! Real tools are used where they are: tc in a network namespace of the test, stress-ng. Elsewhere these tests say so,
//! and pass.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::{Agent, Folder, SIDEBIKE, Server, wait_for, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

/// The files that the page says to write.
const RECIPES: [&str; 3] = ["cpu", "delay", "memory"];
/// Where the page has chaosblade.
const PAGES_FOLDER: &str = "/opt/chaosblade";
/// How long the faults of the page last.
const PAGES_HOLD: &str = "sleep 300";

/// A stand-in for `blade`. Files beside it say how it fails: `broken`, and no yaml. `kind` is the qdisc of its network fault.
const BLADE: &str = r#"#!/bin/sh
echo "blade $*" >> calls
if ! [ -e yaml/chaosblade-os-spec-1.8.0.yaml ]; then
    echo 'An easy to use and powerful chaos engineering experiment toolkit'
    exit 0
fi
succeed() { printf '{"code":200,"success":true,"result":"%s"}\n' "$1"; exit 0; }
fail() { printf '{"code":%s,"success":false,"error":"%s"}\n' "$1" "$2" >&2; exit 1; }
case $1 in
create)
    target=$2 action=$3 interface=-
    shift 3
    while [ $# -gt 0 ]; do
        case $1 in --uid) uid=$2 ;; --interface) interface=$2 ;; esac
        shift 2
    done
    [ -e broken ] && fail 63061 'command exec failed'
    case $target in
    network) tc qdisc add dev "$interface" root $(cat kind) || fail 63061 'command exec failed' ;;
    *) bin/chaos_os create "$target" "$action" --uid="$uid" < /dev/null > /dev/null 2>&1 & ;;
    esac
    echo "$target $interface Success" > "record.$uid"
    succeed "$uid" ;;
destroy)
    [ -e "record.$2" ] || fail 46000 "$2: data not found"
    read -r target interface status < "record.$2"
    [ "$status" = Destroyed ] && succeed "$2"
    case $target in
    network) tc qdisc del dev "$interface" root || fail 63063 'command exec failed' ;;
    *)
        found=$(grep -ls "u[i]d=$2" /proc/[0-9]*/cmdline | cut -d / -f 3)
        { [ -n "$found" ] && kill -9 $found; } || fail 63063 'command exec failed' ;;
    esac
    echo "$target $interface Destroyed" > "record.$2"
    succeed "$2" ;;
esac
"#;

/// A stand-in for `chaos_os`: a process that is there. A file `dies` beside blade says that it is not.
const CHAOS_OS: &str = r#"#!/bin/sh
echo "chaos_os $*" >> calls
[ -e dies ] && exit 1
while sleep 0.1; do :; done
"#;

/// A stand-in for `tc`, with a file for each interface in place of the kernel.
const TC: &str = r#"#!/bin/sh
state="$(dirname "$0")/qdisc.$4"
case $2 in
show)
    if [ -e "$state" ]; then cat "$state"; else echo 'qdisc noqueue 0: root refcnt 2'; fi ;;
add)
    shift 5
    [ -e "$state" ] && { echo 'Error: Exclusivity flag on, cannot modify.' >&2; exit 2; }
    echo "qdisc $1 8001: root refcnt 2 limit 1000" > "$state" ;;
del) rm "$state" ;;
esac
"#;

/// A server, an agent, and a folder with the stand-ins.
struct Place {
    folder: Folder,
    server: Server,
    agent: Agent,
}

impl Place {
    /// With a stand-in for tc, too.
    fn new() -> Place {
        Place::with(&[], true)
    }

    fn with(env: &[(&str, &str)], with_tc: bool) -> Place {
        let folder = Folder::new();
        for name in ["bin", "yaml", "sbin"] {
            fs::create_dir(folder.file(name)).unwrap();
        }
        folder.program("blade", BLADE);
        folder.program("bin/chaos_os", CHAOS_OS);
        if with_tc {
            folder.program("sbin/tc", TC);
        }
        std::os::unix::fs::symlink(SIDEBIKE, folder.file("sbin/sidebike")).unwrap();
        fs::write(folder.file("yaml/chaosblade-os-spec-1.8.0.yaml"), "").unwrap();
        fs::write(folder.file("kind"), "netem delay 3000ms").unwrap();
        let path = path_in(&folder);
        let mut variables = vec![("PATH", &*path)];
        variables.extend(env);
        let server = Server::start();
        let agent = Agent::start(server.address, "shop-1", &variables);
        server.expect(&[&agent]);
        Place {
            folder,
            server,
            agent,
        }
    }

    /// A recipe of the page, with chaosblade in this folder.
    fn recipe(&self, name: &str) -> String {
        replaced(&recipe(name), PAGES_FOLDER, self.folder.path())
    }

    /// The same with a fault that does not last.
    fn short_recipe(&self, name: &str) -> String {
        replaced(&self.recipe(name), PAGES_HOLD, "sleep 1")
    }

    /// Does what the page says: writes the file, and runs its command.
    fn follow(&self, name: &str, text: &str) -> Output {
        fs::write(self.folder.file(&format!("{name}.json")), text).unwrap();
        Command::new("sh")
            .args(["-c", &command_line(name)])
            .current_dir(self.folder.path())
            .env("PATH", path_in(&self.folder))
            .env("SIDEBIKE_REGISTRY_ADDRESS", self.server.address.to_string())
            .output()
            .unwrap()
    }

    /// Submits a recipe under an id.
    fn submit(&self, id: &str, text: &str) {
        let mut task: Value = serde_json::from_str(text).expect(text);
        task["id"] = id.into();
        self.server.submit(task);
    }

    /// The id of the fault that the stand-ins were asked for.
    fn uid(&self) -> String {
        let calls = self.folder.lines("calls");
        let mut uids = calls.iter().filter_map(|call| {
            let (_, rest) = { call.split_once("--uid=") }.or_else(|| call.split_once("--uid "))?;
            Some(rest.split(' ').next()?.to_owned())
        });
        let uid = uids.next_back().expect("a call");
        assert!(
            uid.len() == 32 && uid.bytes().all(|c| c.is_ascii_hexdigit()),
            "{uid}"
        );
        uid
    }

    /// Whether the fault that was asked for last is there.
    fn is_there(&self, name: &str) -> bool {
        match name {
            "delay" => fs::exists(self.folder.file("sbin/qdisc.eth0")).unwrap(),
            _ => !self.folder.lines("calls").is_empty() && !processes_with(&self.uid()).is_empty(),
        }
    }

    /// Waits until the fault of a recipe is there.
    fn until_there(&self, name: &str) {
        wait_for("the fault", || self.is_there(name));
    }
}

/// The PATH with the stand-ins.
fn path_in(folder: &Folder) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}", folder.file("sbin"))
}

/// The page as it is in the binary.
fn page() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        let page = sidebike::docs::find("experiments");
        page.expect("the page of experiments").markdown.text()
    });
    &PAGE
}

/// What the page writes into `NAME.json`.
fn recipe(name: &str) -> String {
    let begin = format!("$ cat > {name}.json <<'END'\n");
    let (_, rest) = page().split_once(&begin).expect("a recipe of this name");
    rest.split_once("\nEND\n").expect("its end").0.to_owned()
}

/// How the page runs it.
fn command_line(name: &str) -> String {
    let ends = format!("{name}.json");
    let mut lines = page().lines().filter_map(|line| line.strip_prefix("$ "));
    let line = lines.find(|line| line.starts_with("sidebike ") && line.ends_with(&ends));
    line.expect("a command").to_owned()
}

/// The page says it once, and it is different here.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    text.replace(from, to)
}

/// The processes that have this id in their command line.
fn processes_with(uid: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("there is /proc").flatten();
    let lines = processes.filter_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    let mark = format!("uid={uid}");
    lines.filter(|line| line.contains(&mark)).collect()
}

/// The undo of a task on its only machine.
fn undo_of(task: &Value) -> &Value {
    assert_eq!(task["result"].as_array().map(Vec::len), Some(1), "{task}");
    &task["result"][0]["undo"]
}

/// Whether a task has ended so, and is undone at the first try.
fn assert_undone(task: &Value, state: &str, reason: &str) {
    assert_eq!(
        (&task["state"], &task["clean"]),
        (&json!(state), &json!(true)),
        "{task}"
    );
    let undo = undo_of(task);
    let got = (&undo["state"], &undo["reason"], &undo["tries"]);
    assert_eq!(got, (&json!("done"), &json!(reason), &json!(1)), "{task}");
}

#[test]
fn the_page_has_these_recipes_and_no_others() {
    let named = page()
        .lines()
        .filter_map(|line| line.strip_prefix("$ cat > "));
    let named: Vec<&str> = named
        .filter_map(|rest| Some(rest.split_once(".json")?.0))
        .collect();
    assert_eq!(named, RECIPES);
}

#[test]
fn each_ends_by_itself_and_leaves_nothing() {
    for name in RECIPES {
        let place = Place::new();
        let output = place.follow(name, &place.short_recipe(name));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        let task = place.server.newest();
        assert_undone(&task, "succeeded", "ended");
        assert!(!place.is_there(name), "{name}");
        let calls = place.folder.lines("calls");
        let uid = place.uid();
        let undo = undo_of(&task);
        assert_eq!(undo["checkExitCode"], 0, "{name}");
        if name == "cpu" {
            assert_eq!(calls.len(), 1, "{calls:?}");
            continue;
        }
        assert_eq!(
            calls.last(),
            Some(&format!("blade destroy {uid}")),
            "{calls:?}"
        );
        let answer = json!({"code": 200, "success": true, "result": uid}).to_string();
        let answer: Value = answer.parse().unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            answer
        );
        // What destroy would have killed has ended with the command.
        let code = if name == "memory" { 1 } else { 0 };
        assert_eq!(undo["exitCode"], code, "{task}");
        let says_so = undo["output"].as_str().unwrap().contains("63063");
        assert_eq!(says_so, name == "memory", "{task}");
    }
}

#[test]
fn each_is_undone_when_it_is_canceled() {
    for name in RECIPES {
        let place = Place::new();
        place.submit("canceled", &place.recipe(name));
        place.until_there(name);
        place
            .server
            .post("/api/v1/task/canceled/cancel", &json!({}))
            .data();
        assert_undone(&place.server.finished("canceled"), "canceled", "canceled");
        assert!(!place.is_there(name), "{name}");
    }
}

#[test]
fn each_is_undone_when_the_agent_is_killed() {
    for name in RECIPES {
        let mut place = Place::new();
        place.submit("killed", &place.recipe(name));
        place.until_there(name);
        place.agent.0.kill_9();
        let task = place.server.finished("killed");
        assert_undone(&task, "failed", "agentLost");
        assert_eq!(undo_of(&task)["by"], "guard", "{task}");
        assert!(!place.is_there(name), "{name}");
    }
}

#[test]
fn an_injection_that_fails_is_no_success() {
    // blade says no; it prints its help and says nothing; the process of the load dies.
    let cases = [
        ("delay", "broken", "63061"),
        ("memory", "broken", "63061"),
        ("delay", "no yaml", ""),
        ("memory", "no yaml", ""),
        ("cpu", "dies", ""),
    ];
    for (name, fault, says) in cases {
        let place = Place::new();
        match fault {
            "no yaml" => fs::remove_dir_all(place.folder.file("yaml")).unwrap(),
            fault => fs::write(place.folder.file(fault), "").unwrap(),
        }
        let output = place.follow(name, &place.short_recipe(name));
        assert_eq!(output.status.code(), Some(1), "{name}, {fault}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(says), "{name}, {fault}: {stderr}");
        assert_undone(&place.server.newest(), "failed", "ended");
        assert!(!place.is_there(name), "{name}, {fault}");
    }
}

#[test]
fn a_rule_that_is_left_is_noticed_and_taken_away_later() {
    let place = Place::new();
    let mut task: Value = serde_json::from_str(&place.recipe("delay")).unwrap();
    (task["id"], task["detail"]["undo"]["patience"]) = (json!("left"), json!(0));
    place.server.submit(task);
    place.until_there("delay");
    // tc is gone, and with it what destroy calls: nobody can say that there is no rule.
    let (tc, away) = (place.folder.file("sbin/tc"), place.folder.file("sbin/away"));
    fs::rename(&tc, &away).unwrap();
    place.folder.program("sbin/tc", "#!/bin/sh\nexit 1\n");
    let cancel = "/api/v1/task/left/cancel";
    place.server.post(cancel, &json!({})).data();
    let task = place.server.finished("left");
    assert_eq!(undo_of(&task)["state"], "failed", "{task}");
    // The lock keeps the next one away from the interface.
    place.submit("next", &place.short_recipe("delay"));
    let next = place.server.finished("next");
    let msg = next["result"][0]["msg"].as_str().unwrap();
    assert!(
        msg.contains("\"eth0\" is held on this machine by task left"),
        "{msg}"
    );
    fs::rename(&away, &tc).unwrap();
    place
        .server
        .post("/api/v1/task/left/undo", &json!({}))
        .data();
    let task = wait_until("another undo", || {
        let task = place.server.task("left");
        (undo_of(&task)["state"] == "done").then_some(task)
    });
    assert_undone(&task, "canceled", "byHand");
    assert!(!place.is_there("delay"));
}

/// A network namespace, which is there as long as its process is.
struct Namespace {
    holder: Child,
    /// What runs a program in it.
    enter: Vec<String>,
}

impl Namespace {
    /// None, with a word, where that is not permitted or its kernel has no such qdisc.
    fn new() -> Option<Namespace> {
        let own = fs::read_link("/proc/self/ns/net").ok()?;
        for (flags, more) in [
            (&["-n"][..], &[][..]),
            (&["-rn"], &["-U", "--preserve-credentials"]),
        ] {
            let started = Command::new("unshare")
                .args(flags)
                .args(["sleep", "600"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let Ok(mut holder) = started else {
                break;
            };
            let link = format!("/proc/{}/ns/net", holder.id());
            let is_ready = wait_until("a namespace, or its refusal", || {
                let has_ended = holder.try_wait().unwrap().is_some();
                let is_other = fs::read_link(&link).is_ok_and(|its| its != own);
                (has_ended || is_other).then_some(!has_ended)
            });
            let target = holder.id().to_string();
            let words = ["nsenter", "-t", &target, "-n"];
            let words = words.into_iter().chain(more.iter().copied());
            let namespace = Namespace {
                enter: words.map(str::to_owned).collect(),
                holder,
            };
            if is_ready && namespace.can_limit() {
                return Some(namespace);
            }
        }
        println!("left out: no network namespace with tc's tbf is to be had here");
        None
    }

    fn run(&self, words: &[&str]) -> Option<String> {
        let output = Command::new(&self.enter[0])
            .args(&self.enter[1..])
            .args(words)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn can_limit(&self) -> bool {
        let words: Vec<&str> = "tc qdisc add dev lo root"
            .split(' ')
            .chain(TBF.split(' '))
            .collect();
        let can = self.run(&words).is_some() && self.is_limited();
        can && self
            .run(&["tc", "qdisc", "del", "dev", "lo", "root"])
            .is_some()
    }

    /// Whether there is a rule.
    fn is_limited(&self) -> bool {
        let shown = self.run(&["tc", "qdisc", "show", "dev", "lo"]);
        shown.expect("tc works").contains("tbf")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A qdisc that more kernels have than netem.
const TBF: &str = "tbf rate 1mbit burst 32kbit latency 400ms";

#[test]
fn a_real_rule_of_the_kernel_is_taken_away() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let wrapper = Folder::new();
    let line = format!("#!/bin/sh\nexec {} -- \"$@\"\n", namespace.enter.join(" "));
    wrapper.program("enter", &line);
    let mut place = Place::with(&[("SIDEBIKE_WRAPPER", &wrapper.file("enter"))], false);
    fs::write(place.folder.file("kind"), TBF).unwrap();
    let here = |text: &str| replaced(text, "netem", "tbf").replace("eth0", "lo");

    let output = place.follow("delay", &here(&place.short_recipe("delay")));
    assert!(output.status.success(), "{output:?}");
    assert_undone(&place.server.newest(), "succeeded", "ended");
    assert!(!namespace.is_limited());

    place.submit("killed", &here(&place.recipe("delay")));
    wait_for("the rule", || namespace.is_limited());
    place.agent.0.kill_9();
    assert_undone(&place.server.finished("killed"), "failed", "agentLost");
    assert!(!namespace.is_limited());
}

#[test]
fn a_real_load_ends() {
    if Command::new("stress-ng").arg("--version").output().is_err() {
        return println!("left out: there is no stress-ng");
    }
    let place = Place::new();
    let detail = json!({
        "command": "echo $$; exec stress-ng --cpu 1 --vm 1 --vm-bytes 1m", "timeout": 2,
        "undo": {"argv": ["true"]},
    });
    let task = json!({"id": "load", "machinePattern": "^shop-", "detail": detail});
    place.server.submit(task);
    let task = place.server.finished("load");
    assert_undone(&task, "failed", "timedOut");
    let group = task["result"][0]["stdout"].as_str().unwrap();
    let group = group.lines().next().unwrap().parse().unwrap();
    assert!(common::is_gone(group), "{task}");
}
