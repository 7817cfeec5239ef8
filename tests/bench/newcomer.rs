//! What a newcomer does first: a package from a laptop, onto containers that have nothing but the binary.

use crate::files::content;
use crate::http::request;
use crate::process::{Process, Server, wait_until};
use crate::setting::Setting;
use crate::table::{Row, time};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// How many containers there are.
const CONTAINERS: usize = 10;
/// The package, in bytes. It does not get smaller by compression.
const PACKAGE: usize = 50_000_000;
/// What is in the package: it needs no library, as nothing is there, and leaves a file.
const TOOL: &str = r#"
fn main() {
    let data = std::fs::read("data").expect("data");
    std::fs::write("report", format!("{} bytes\n", data.len())).expect("report");
}
"#;

/// The containers come up with the server's own binary; a package is pushed, its tool run, and what that has written
/// pulled back: a line each.
pub fn story(setting: &Setting) -> Result<Vec<Row>, String> {
    const WHAT: &str = "ten containers with nothing but the binary";
    if let Err(why) = run(Command::new("chroot").args(["/", "true"])) {
        return Ok(vec![Row::not_measured(WHAT, &why)]);
    }
    let laptop = setting.fresh("laptop");
    pack(&laptop).map_err(|why| format!("the package: {why}"))?;
    let server = Server::start(setting, &[])?;

    let begin = Instant::now();
    let roots: Vec<PathBuf> = (0..CONTAINERS).map(|_| setting.fresh("root")).collect();
    let mut agents = Vec::new();
    for (n, root) in roots.iter().enumerate() {
        agents.push(container(setting, &server, root, &format!("c{n}"))?);
    }
    let mut api = server.api();
    wait_until("all are online", || {
        let online: usize = api.metric("sidebike_held_requests")?;
        Ok((online == CONTAINERS).then_some(()))
    })?;
    let up = begin.elapsed().as_secs_f64();

    let sidebike = |line: &str| -> Result<f64, String> {
        let mut command = Command::new(&setting.binary);
        command
            .args(line.split(' '))
            .current_dir(&laptop)
            .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
        let begin = Instant::now();
        run(&mut command)?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let pushed = sidebike("push package.tgz --unpack --to /opt -m ^c")?;
    let ran = sidebike(
        "run --name measure -m ^c --workspace /opt --fetch /opt/report --exec -- /opt/tool",
    )?;
    let pulled = sidebike("pull measure reports")?;

    for n in 0..CONTAINERS {
        let report = laptop.join(format!("reports/c{n}/opt/report"));
        let report = fs::read_to_string(&report).map_err(|why| format!("{report:?}: {why}"))?;
        if report != format!("{PACKAGE} bytes\n") {
            return Err(format!("c{n} has reported {report:?}"));
        }
    }
    drop(agents);
    for root in roots {
        let _ = fs::remove_dir_all(root);
    }
    let what = format!("{WHAT}: `push` of a package of 50 MB, unpacked");
    let (up, ran, pulled) = (time(up), time(ran), time(pulled));
    Ok(vec![Row::new(what, time(pushed)).beside(format!(
        "they are up after {up}; `run` of its tool {ran}, `pull` {pulled}"
    ))])
}

/// Makes the package.
fn pack(laptop: &Path) -> Result<(), String> {
    let write = || -> io::Result<()> {
        fs::create_dir(laptop)?;
        fs::write(laptop.join("tool.rs"), TOOL)?;
        fs::write(laptop.join("data"), &content(PACKAGE)[..PACKAGE])
    };
    write().map_err(|why| why.to_string())?;
    let rustc = ["-O", "-C", "target-feature=+crt-static", "tool.rs"];
    run(Command::new("rustc").args(rustc).current_dir(laptop))?;
    let tar = ["-czf", "package.tgz", "tool", "data"];
    run(Command::new("tar").args(tar).current_dir(laptop))
}

/// An agent in a folder of its own, in which there is nothing but what the server hands out.
fn container(
    setting: &Setting,
    server: &Server,
    root: &Path,
    label: &str,
) -> Result<Process, String> {
    let binary = root.join("sidebike");
    let image = server.api().raw(&request("GET", "/sidebike", "", b""))?;
    let make = || -> io::Result<()> {
        fs::create_dir_all(root)?;
        fs::write(&binary, &image.body)?;
        fs::set_permissions(&binary, Permissions::from_mode(0o755))
    };
    make().map_err(|why| format!("{}: {why}", root.display()))?;
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .args(["/sidebike", "agent", "--machine-label", label])
        .env_remove("RUST_LOG")
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    Process::start(setting, command)
}

/// Runs it to its end.
fn run(command: &mut Command) -> Result<(), String> {
    let line = format!("{command:?}");
    let done = command.output().map_err(|why| format!("{line}: {why}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&done.stderr))),
    }
}
