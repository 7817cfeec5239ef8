//! What the agent asks its helper, and what that says. Both are lines of JSON on a pipe, between two processes of the
//! same program: unknown fields cannot occur.

use crate::agent::processes::guard::report::Destination;
use crate::wire::files::{FetchedFile, IfExists, Unpack};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct HelperJob {
    /// The server.
    pub destination: Destination,
    /// The instance of the agent.
    pub instance: String,
    /// Nothing outside of it is touched (`--files-root`).
    pub root: Option<PathBuf>,
    /// The folder of files without a path, if the owner has chosen one (`--files-dir`).
    pub folder: Option<PathBuf>,
    /// Where relative paths begin.
    pub workspace: PathBuf,
    /// The work.
    pub work: Work,
}

/// The kinds of work.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// Laying files down.
    Lay(Vec<FileJob>),
    /// Handing files of an attempt back.
    Fetch {
        /// The execution.
        execution: String,
        /// The number of its attempt.
        attempt: u32,
        /// Which ones.
        files: Vec<FetchJob>,
    },
    /// Removing what was made.
    Remove(Vec<ToRemove>),
    /// Fetching a program that is to take the place of the agent's own.
    Image(ImageJob),
}

/// A program to fetch.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageJob {
    /// The hash of its bytes.
    pub sha256: String,
    /// Where it goes: beside the agent's own.
    pub new: PathBuf,
    /// Where a copy of the agent's own goes.
    pub old: PathBuf,
}

/// A file to lay down.
#[derive(Debug, Serialize, Deserialize)]
pub struct FileJob {
    /// The hash of its bytes.
    pub sha256: String,
    /// Their number.
    pub size: u64,
    /// Its name, where it has no path.
    pub name: String,
    /// Where it goes.
    pub path: Option<String>,
    /// Its mode.
    pub mode: u32,
    /// It is an archive of this kind, and `path` is the folder that it is unpacked into.
    pub unpack: Option<Unpack>,
    /// How many leading parts of the names in the archive are left out.
    pub strip: u32,
    /// What happens if there is a file.
    pub if_exists: IfExists,
    /// It is written into the file that is there.
    pub in_place: bool,
    /// What is made anew is removed in the end.
    pub remove: bool,
}

/// A file to hand back.
#[derive(Debug, Serialize, Deserialize)]
pub struct FetchJob {
    /// Which one.
    pub path: String,
    /// How many bytes of it at most.
    pub max: u64,
    /// It need not be there.
    pub is_missing_ok: bool,
}

/// Something that was made anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Made {
    /// A file, or a link in an archive.
    File(PathBuf),
    /// A folder on the way to a file. It is removed if nothing else is in it.
    Folder(PathBuf),
    /// A folder that an archive brought. It is removed with all that is in it.
    Tree(PathBuf),
}

/// What is removed in the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToRemove {
    /// What was made.
    pub made: Made,
    /// The folder that it was made in: where another one has its path by then, nothing is removed.
    pub folder: FolderId,
}

/// Which folder: the numbers of its device and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderId(pub u64, pub u64);

/// How a file was laid down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// There was none.
    Made,
    /// There was another one.
    Replaced,
    /// The same bytes and mode were there.
    Unchanged,
    /// There was one, and the task wants to keep it.
    Kept,
    /// An archive was unpacked.
    Unpacked {
        /// How many of its entries were laid down.
        entries: u64,
    },
}

impl How {
    /// For people.
    pub fn text(self) -> String {
        match self {
            How::Made => "made".into(),
            How::Replaced => "replaced".into(),
            How::Unchanged => "unchanged".into(),
            How::Kept => "kept".into(),
            How::Unpacked { entries } => format!("unpacked, entries: {entries}"),
        }
    }
}

/// A file that was laid down.
#[derive(Debug, Serialize, Deserialize)]
pub struct LaidDown {
    /// Where.
    pub path: PathBuf,
    /// How.
    pub how: How,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// The folder of files without a path.
    Folder(PathBuf),
    /// A file is there.
    Laid(LaidDown),
    /// Something was made that is to be removed in the end.
    Made(ToRemove),
    /// A file was handed back.
    Fetched(FetchedFile),
    /// How far it is.
    At {
        /// With which file.
        path: String,
        /// So many bytes are there.
        bytes: u64,
        /// Of so many.
        size: u64,
        /// Why it does not get on.
        trouble: Option<String>,
    },
    /// It has failed.
    Failed {
        /// Why.
        why: String,
    },
    /// All is done.
    Done,
}
