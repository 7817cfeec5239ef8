//! Functions of the C library that behave badly, for an agent to be started with.

use std::path::PathBuf;
use std::process::Command;

/// A library for `LD_PRELOAD`, removed when it is dropped.
pub struct Shim {
    folder: PathBuf,
}

impl Shim {
    /// Compiles it. None where there is no compiler of C, or programs do not use the C library: then a test
    /// shows nothing, and says so.
    pub fn new(name: &str, source: &str) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("sidebike-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let shim = Shim { folder };
        std::fs::write(shim.path("shim.c"), source).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o", &shim.path("shim.so")])
            .args([&shim.path("shim.c"), "-ldl"])
            .status();
        if cfg!(target_env = "musl") || !compiled.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no shim can be made");
            return None;
        }
        Some(shim)
    }

    /// A file in the folder of the shim.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The variables to start the agent with; the shim sees the folder in `SHIM`.
    pub fn env(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.path("shim.so")),
            ("SHIM", self.folder.display().to_string()),
        ]
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
