//! Getting the new program, and asking it who it is.

use super::NotUpdated;
use super::marker::OWN_IMAGE;
use crate::agent::attempt::{Attempt, Waker};
use crate::agent::backoff::Backoff;
use crate::agent::command::launch::{self, Asked};
use crate::agent::files::download::{download, unwritten};
use crate::agent::files::job::{FileJob, HelperJob, ImageJob, Said, Work};
use crate::agent::files::lay::set_mode;
use crate::agent::files::supervise::supervise;
use crate::agent::files::temporary::{self, Temporary};
use crate::agent::shared::Agent;
use crate::agent::token;
use crate::client::Client;
use crate::config::AgentConfig;
use crate::wire::files::IfExists;
use crate::wire::update::Version;
use log::debug;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The hidden program of the command line that says whether the agent would start with the arguments that follow.
pub const TRIAL: &str = "agent-trial";
/// What it says then. The number is that of the marker's format.
const READY: &str = "ready for updates 1";
/// The longest image, in bytes: this is far above what the program ever was.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// How long the new program may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Agent {
    /// Has a helper lay the new program down beside the one that runs, and keep a copy of that.
    pub(super) fn fetch_image(
        &self,
        attempt: &Attempt,
        sha256: &str,
        new: &Path,
        waker: &Waker,
        deadline: Instant,
    ) -> Result<(), NotUpdated> {
        let files = super::Files::of_this_process();
        let old = files.map(|files| files.old_program()).unwrap_or_default();
        let work = Work::Image(ImageJob {
            sha256: sha256.to_owned(),
            new: new.to_owned(),
            old,
        });
        let job = self.helper_job(work, "/".into());
        let mut trouble = None;
        let done = supervise(&job, Some(attempt), waker, Some(deadline), |said| {
            if let Said::At { trouble: now, .. } = said {
                trouble = now;
            }
        });
        done.map_err(|why| match (NotUpdated::from(why), trouble) {
            (NotUpdated::Failed(why), Some(trouble)) => {
                NotUpdated::Failed(format!("{why}; {trouble}"))
            }
            (why, _) => why,
        })
    }
}

/// The helper's part: the new program, with its mode, and a copy of the one that runs.
pub fn lay(
    job: &HelperJob,
    image: &ImageJob,
    client: &Client,
    say: &dyn Fn(&Said),
) -> Result<(), String> {
    let unwritable = |what: &dyn std::fmt::Display| {
        format!(
            "{} cannot be written to, where this program lies: {what}",
            folder_of(image).display()
        )
    };
    let folder = File::open(folder_of(image)).map_err(|why| unwritable(&why))?;
    // Before anything is fetched.
    let mut new = Temporary::new(&folder).map_err(|why| unwritable(&why))?;
    let own = File::open(OWN_IMAGE).map_err(|why| format!("this program cannot be read: {why}"))?;
    let own = (own.metadata().map_err(|why| why.to_string())?, own);
    let size = size_of(client, &image.sha256, &job.instance, say)?;
    if size > MAX_IMAGE_BYTES {
        return Err(format!(
            "the image has {size} bytes, more than a program has"
        ));
    }
    temporary::check_space(&folder, size.saturating_add(own.0.len()))?;
    let bytes = FileJob {
        sha256: image.sha256.clone(),
        size,
        name: "image".into(),
        path: None,
        mode: 0,
        unpack: None,
        strip: 0,
        if_exists: IfExists::Replace,
        in_place: false,
        remove: false,
    };
    let mut tell = |at: u64, trouble: Option<String>| {
        say(&Said::At {
            path: bytes.name.clone(),
            bytes: at,
            size,
            trouble,
        });
    };
    download(client, &job.instance, &bytes, &mut new.file, &mut tell)
        .map_err(|why| format!("the image: {why}"))?;
    // Who may execute the old one may execute the new one.
    let mode = own.0.mode() & 0o777;
    let mut old = Temporary::in_looked_at(&folder).map_err(|why| unwritable(&why))?;
    let mut from = own.1;
    std::io::copy(&mut from, &mut old.file).map_err(|why| unwritten(&why))?;
    for (file, path) in [(new, &image.new), (old, &image.old)] {
        set_mode(&file.file, mode)?;
        temporary::sync(&file.file)?;
        let name = path.file_name().ok_or("this program has no name")?;
        { file.rename(name, false) }.map_err(|why| unwritable(&why))?;
    }
    Ok(())
}

fn folder_of(image: &ImageJob) -> &Path {
    image.new.parent().unwrap_or(Path::new("/"))
}

/// How many bytes an image has. Tries until the server says so.
fn size_of(
    client: &Client,
    sha256: &str,
    instance: &str,
    say: &dyn Fn(&Said),
) -> Result<u64, String> {
    let mut backoff = Backoff::new();
    loop {
        match client.blob_size_for_agent(sha256, instance) {
            Ok(size) => return Ok(size),
            Err(why) if why.is_temporary() => {
                say(&Said::At {
                    path: "image".into(),
                    bytes: 0,
                    size: 0,
                    trouble: Some(why.to_string()),
                });
                std::thread::sleep(backoff.next());
            }
            Err(why) if why.status() == Some(404) => {
                return Err("the server does not have the image any more".into());
            }
            Err(why) => return Err(why.to_string()),
        }
    }
}

/// Asks a program for its version, and whether it would start as this agent was started. The error is why it is refused.
pub fn ask(program: &Path, version: &str) -> Result<(), String> {
    let said = answer(program, &["--version".into()], "--version")?;
    let own: Version = env!("CARGO_PKG_VERSION").parse()?;
    let found = said.trim().strip_prefix("sidebike ").unwrap_or_default();
    let parsed: Version = { found.parse() }
        .map_err(|_| format!("the image answers --version with {:?}", first_line(&said)))?;
    if found != version {
        return Err(format!(
            "the image says that it is {found}, the task says {version}"
        ));
    }
    if parsed < own {
        return Err(format!("the image is {found}, older than this agent"));
    }
    let args = std::env::args_os().skip(2);
    let args: Vec<OsString> = [TRIAL.into()].into_iter().chain(args).collect();
    let said = answer(program, &args, "a trial of its start")?;
    match said.trim() == READY {
        true => Ok(()),
        false => Err(format!(
            "the image answers a trial of its start with {:?}: it cannot take the place of this agent",
            first_line(&said)
        )),
    }
}

fn answer(program: &Path, args: &[OsString], what: &str) -> Result<String, String> {
    match launch::ask(program, args, ANSWER_TIMEOUT) {
        Ok(Asked::Answered(said)) => Ok(said),
        Ok(Asked::Failed(status, said)) => Err(format!(
            "the image does not answer {what}: {status}{}",
            match first_line(&said) {
                "" => String::new(),
                line => format!(", {line:?}"),
            }
        )),
        Ok(Asked::TimedOut) => Err(format!(
            "the image does not answer {what} within {} s",
            ANSWER_TIMEOUT.as_secs()
        )),
        Err(why) => Err(format!("the image cannot be executed: {why}")),
    }
}

fn first_line(text: &str) -> &str {
    /// Of a line in a message, in bytes.
    const MAX_LINE_BYTES: usize = 200;
    let line = text.trim().lines().next().unwrap_or_default();
    &line[..line.floor_char_boundary(MAX_LINE_BYTES)]
}

/// The trial: does what can be done of a start without being seen, and says that it would work.
pub fn try_start(config: &AgentConfig) -> Result<(), String> {
    let token = token::load()?;
    Client::new(&config.registry)?.set_token(token);
    debug!("the start would work");
    println!("{READY}");
    Ok(())
}
