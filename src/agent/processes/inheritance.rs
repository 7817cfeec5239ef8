//! What the agent inherited from the process that started it, and its commands must not inherit: ignored
//! and blocked signals, open files, the terminal. Settled once, at the start of the agent: the commands pay
//! nothing for it.

use log::warn;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// The limit on open files that this process had before it raised it.
static FILE_LIMIT: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit on open files as far as allowed, for this process alone. How many there may be.
pub fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let limit = FILE_LIMIT.get_or_init(|| limit);
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    })
}

/// The limit on open files that commands are to have, if that of this process was raised.
pub fn own_file_limit() -> Option<Rlimit> {
    FILE_LIMIT.get().copied()
}

/// Prepares this process for starting commands.
pub fn clear() {
    reset_signals();
    close_files_on_exec();
    give_up_terminal();
}

/// Whether commands could open the terminal of this process. [`clear`] gives it up, but a session leader
/// cannot: its terminal would send HUP to everyone, and no Ctrl-C afterwards.
pub fn has_terminal() -> bool {
    open_terminal().is_some()
}

fn open_terminal() -> Option<rustix::fd::OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()
}

/// Has no signal ignored or blocked in commands. A handler that does nothing becomes the default
/// disposition in a program that is started, and lets this process ignore the signal as before.
#[allow(
    unsafe_code,
    reason = "there is no safe call for dispositions and masks"
)]
fn reset_signals() {
    extern "C" fn do_nothing(_signal: libc::c_int) {}
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: all bits zero are a valid `sigaction`, which is a C structure of numbers and an optional
        // function.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null pointer means that nothing is changed, and `action` may be written to.
        let known = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) } == 0;
        // SIGPIPE is ignored by Rust's start, which restores it in commands.
        if !known || action.sa_sigaction != libc::SIG_IGN || signal == libc::SIGPIPE {
            continue;
        }
        action.sa_flags = libc::SA_RESTART;
        action.sa_sigaction = match signal {
            // Ignored, it would make the system discard the exit codes of commands.
            libc::SIGCHLD => libc::SIG_DFL,
            _ => do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t,
        };
        // SAFETY: the handler is a function of the type that `sa_flags` asks for, and does nothing.
        let done = unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } == 0;
        if !done {
            warn!("signal {signal} stays ignored in commands");
        }
    }
    // SAFETY: `sigset_t` is a C structure of numbers, and `sigemptyset` initializes it. The mask of this
    // thread is all that changes; later threads inherit it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Has every file but the three standard streams closed when a program is started.
#[allow(unsafe_code, reason = "descriptors are named by their numbers")]
fn close_files_on_exec() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: it sets a flag of descriptors, which this process does not rely on being unset.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return;
    }
    // Linux before 5.11: one by one. Without /proc they are inherited.
    let names = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let names = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for fd in names
        .filter(|fd| *fd >= FIRST as libc::c_int)
        .collect::<Vec<_>>()
    {
        // SAFETY: as above. A descriptor that was closed meanwhile is an error without consequences.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Takes the terminal from this process and its future children, unless it is a session leader. A command
/// that asked the terminal for a password would be stopped until its time-out. Signals of the terminal,
/// such as that of Ctrl-C, still arrive: they go to the process group.
#[allow(
    unsafe_code,
    reason = "there is no safe call for TIOCNOTTY, and none for a session of another container"
)]
fn give_up_terminal() {
    // Zero where a container's own process numbers begin below the session: not leading it, and no `Pid`.
    // SAFETY: it takes and gives numbers.
    let session = unsafe { libc::getsid(0) };
    let is_leader = session == rustix::process::getpid().as_raw_nonzero().get();
    let Some(terminal) = open_terminal().filter(|_| !is_leader) else {
        return;
    };
    // SAFETY: this request has no argument. It only detaches the process from the terminal.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY as _) } == 0;
    if !done {
        let why = std::io::Error::last_os_error();
        warn!("commands can use the terminal of this agent: cannot give it up ({why})");
    }
}
