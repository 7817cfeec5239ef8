//! A real PostgreSQL for tests: it has its own folder and port, and ends with the value. Without an installed
//! PostgreSQL the test prints a word and is left out.
//!
//! PostgreSQL refuses to run as root, so the user `postgres` or `nobody` runs it where the test is run by root.

#![allow(dead_code, reason = "no test needs all of it")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// The longest time for a start, a promotion, a wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what a test waits for.
const PAUSE: Duration = Duration::from_millis(20);

/// Which user may connect from here, and how it proves itself. The others need nothing.
const ACCESS: &str = "\
host replication all 127.0.0.1/32 trust
host all with_scram 127.0.0.1/32 scram-sha-256
host all with_md5 127.0.0.1/32 md5
host all with_clear 127.0.0.1/32 password
host all nobody 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
local all all trust
";

/// A server of PostgreSQL.
pub struct PostgreSql {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    /// What it is started by, such as strace.
    by: Vec<String>,
    process: Mutex<Option<Child>>,
}

impl PostgreSql {
    /// One that other tests of this process use at the same time, each with a database of its own.
    pub fn shared() -> Option<Arc<PostgreSql>> {
        static SHARED: Mutex<Weak<PostgreSql>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(PostgreSql::start(&["fsync=off"])?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Starts a server with these settings.
    pub fn start(settings: &[&str]) -> Option<PostgreSql> {
        PostgreSql::wrapped(&[], settings)
    }

    /// The same, started by another program, which has to become it: `strace -D …`.
    pub fn wrapped(by: &[&str], settings: &[&str]) -> Option<PostgreSql> {
        let Some(bin) = installed() else {
            println!("left out: PostgreSQL is not installed");
            return None;
        };
        let mut server = PostgreSql::in_new_folder(bin, settings);
        server.by = by.iter().map(|it| (*it).to_owned()).collect();
        let data = server.data();
        let mut init = server.command("initdb");
        init.args([
            "--no-sync",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
        ]);
        succeed(init.arg(&data));
        fs::write(data.join("pg_hba.conf"), ACCESS).unwrap();
        server.run();
        Some(server)
    }

    fn in_new_folder(bin: PathBuf, settings: &[&str]) -> PostgreSql {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sidebike-pg-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        if let Some((user, group)) = other_user() {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        PostgreSql {
            bin,
            folder,
            port: free.local_addr().unwrap().port(),
            settings: settings.iter().map(|it| (*it).to_owned()).collect(),
            by: Vec::new(),
            process: Mutex::new(None),
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A program of PostgreSQL, as a user that may run it.
    fn command(&self, program: &str) -> Command {
        self.own(Command::new(self.bin.join(program)))
    }

    /// The command that runs the server.
    fn server_command(&self) -> Command {
        let Some((first, others)) = self.by.split_first() else {
            return self.command("postgres");
        };
        let mut command = Command::new(first);
        command.args(others).arg(self.bin.join("postgres"));
        self.own(command)
    }

    /// A command in its folder, by a user that may run PostgreSQL.
    fn own(&self, mut command: Command) -> Command {
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((user, group)) = other_user() {
            command.uid(user).gid(group);
        }
        command
    }

    /// Runs it, after [`PostgreSql::kill`] again.
    pub fn run(&self) {
        let log = fs::File::options();
        let log = { log }
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        // What a killed one leaves behind keeps the next one out, if the number of its process is used again.
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let mut command = self.server_command();
        command.arg("-D").arg(self.data());
        command.args([
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        command
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.folder.display()));
        command.args(["-c", "shared_buffers=32MB", "-c", "max_connections=60"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.process() = Some(child);
        let since = Instant::now();
        while !self
            .try_sql("postgres", "SELECT 1")
            .is_ok_and(|answer| answer == "1")
        {
            let ended = self
                .process()
                .as_mut()
                .is_none_or(|child| child.try_wait().unwrap().is_some());
            assert!(
                !ended && since.elapsed() < PATIENCE,
                "it does not start: {}",
                self.log()
            );
            thread::sleep(PAUSE);
        }
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Its port at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new, empty database; its URL.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What psql answers: a row a line, columns separated by `|`. `database` is a name or a URL.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let answer = self.try_sql(database, sql);
        answer.unwrap_or_else(|why| panic!("{sql}: {why}"))
    }

    /// The same, where it may fail.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let answer = self.psql(database).args(["-c", sql]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match answer.status.success() {
            true => Ok(text(&answer.stdout)),
            false => Err(text(&answer.stderr)),
        }
    }

    /// psql, which reads statements from its input.
    pub fn psql(&self, database: &str) -> Command {
        let url = match database.contains("://") {
            true => database.to_owned(),
            false => self.url(database),
        };
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url]);
        command.stdin(Stdio::null());
        command
    }

    /// Waits until a query answers this.
    pub fn wait_for(&self, database: &str, sql: &str, expected: &str) {
        let since = Instant::now();
        loop {
            let answer = self.try_sql(database, sql);
            if answer.as_deref() == Ok(expected) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{sql}: {answer:?}");
            thread::sleep(PAUSE);
        }
    }

    /// Changes a setting while it runs.
    pub fn set(&self, name: &str, value: &str) {
        self.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"));
        self.sql("postgres", "SELECT pg_reload_conf()");
        self.wait_for(
            "postgres",
            &format!("SELECT current_setting('{name}')"),
            value,
        );
    }

    /// Makes a copy that follows this one, waits until commits of this one wait for it.
    pub fn standby(&self) -> PostgreSql {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        let standby = PostgreSql::in_new_folder(self.bin.clone(), &settings);
        succeed(self.copy_to(&standby.data()).arg("-R"));
        standby.run();
        self.set("synchronous_standby_names", "*");
        self.wait_for(
            "postgres",
            "SELECT sync_state FROM pg_stat_replication",
            "sync",
        );
        standby
    }

    /// Copies all it has at this moment, in place of an earlier copy.
    pub fn back_up(&self) {
        let _ = fs::remove_dir_all(self.backup());
        let mut copy = self.copy_to(&self.backup());
        succeed(&mut copy);
    }

    /// Ends it, puts the last copy back in place of all it has, and runs it again.
    pub fn put_back(&self) {
        self.stop();
        fs::remove_dir_all(self.data()).unwrap();
        // The user of PostgreSQL keeps its files.
        let mut copy = Command::new("cp");
        succeed(copy.arg("-a").arg(self.backup()).arg(self.data()));
        self.run();
    }

    fn backup(&self) -> PathBuf {
        self.folder.join("backup")
    }

    /// What copies all of it while it runs.
    fn copy_to(&self, folder: &Path) -> Command {
        let mut copy = self.command("pg_basebackup");
        copy.args(["-X", "stream", "--checkpoint=fast", "--no-sync"]);
        copy.args(["-h", "127.0.0.1", "-U", "postgres"]);
        copy.args(["-p", &self.port.to_string(), "-D"]).arg(folder);
        copy
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote()");
        // It has no standby of its own.
        self.set("synchronous_standby_names", "");
    }

    /// Kills it with all its processes, as if its machine had lost power.
    pub fn kill(&self) {
        if let Some(mut child) = self.process().take() {
            // Its processes end by themselves when it is gone; the signal QUIT lets it end them at once.
            signal(child.id(), "QUIT");
            child.wait().unwrap();
        }
    }

    /// Ends it properly.
    pub fn stop(&self) {
        if let Some(mut child) = self.process().take() {
            signal(child.id(), "INT");
            child.wait().unwrap();
        }
    }
}

impl Drop for PostgreSql {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a signal to a process of PostgreSQL.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &process.to_string()])
        .status();
    assert!(sent.unwrap().success(), "signal {name} to {process}");
}

fn succeed(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// The programs of the newest version that is installed.
fn installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let numbered = versions.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path().join("bin")))
    });
    numbered
        .filter(|(_, bin)| bin.join("postgres").exists())
        .max()
        .map(|(_, bin)| bin)
}

/// Who runs it instead of root: number of the user, of the group.
fn other_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let named = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    named("postgres").or_else(|| named("nobody"))
}

/// Gives a file to the user that runs PostgreSQL, who alone may read it: it demands that of a key.
pub fn hand_over(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    if let Some((user, group)) = other_user() {
        std::os::unix::fs::chown(file, Some(user), Some(group)).unwrap();
    }
}
