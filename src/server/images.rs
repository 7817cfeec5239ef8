//! The binaries that the server hands out: its own image, and those of `--binaries`.
//!
//! Its own is read from a descriptor that was opened at the start: what runs, not what lies under its name by now.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The longest name of an architecture, in bytes.
const MAX_ARCH_BYTES: usize = 32;
/// What is hashed at once, in bytes.
const HASHED_BYTES: usize = 64 * 1024;
/// Most hashes that are remembered: of each architecture one.
const MAX_KNOWN: usize = 32;

/// The binaries.
#[derive(Debug)]
pub struct Images {
    own: Result<Arc<File>, String>,
    folder: Option<PathBuf>,
    /// The hash of a file, by what changes when the file does.
    known: Mutex<BTreeMap<Identity, String>>,
}

/// Device, inode, size, and time of the last change of a file.
type Identity = (u64, u64, u64, i64, i64);

/// One binary.
#[derive(Debug)]
pub struct Image {
    /// Its bytes.
    pub file: Arc<File>,
    /// How many they are.
    pub bytes: u64,
    /// Their SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Why there is none.
#[derive(Debug)]
pub enum NoImage {
    /// The question makes no sense.
    Bad(String),
    /// There is none for this architecture.
    Unknown(String),
    /// It cannot be read.
    Broken(String),
}

impl Images {
    /// The image of this process, and those of a folder. The error is one line for the user.
    pub fn open(folder: Option<PathBuf>) -> Result<Self, String> {
        if let Some(folder) = &folder {
            let is_folder = fs::metadata(folder).is_ok_and(|found| found.is_dir());
            if !is_folder {
                return Err(format!(
                    "--binaries: expected a folder with files such as sidebike-aarch64-linux, got {}",
                    folder.display()
                ));
            }
        }
        let own = File::open("/proc/self/exe");
        Ok(Images {
            own: own.map(Arc::new).map_err(|why| {
                format!("the server cannot read its own image (/proc/self/exe): {why}")
            }),
            folder,
            known: Mutex::default(),
        })
    }

    /// The image for an architecture, or the server's own. Reads the whole file when it is new.
    pub fn find(&self, arch: Option<&str>) -> Result<Image, NoImage> {
        let arch = arch.unwrap_or(ARCH);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if arch.is_empty() || arch.len() > MAX_ARCH_BYTES || !arch.bytes().all(is_name) {
            return Err(NoImage::Bad(format!(
                "arch: expected what `uname -m` prints, such as x86_64 or aarch64, got {arch:?}"
            )));
        }
        self.of_arch(arch)
    }

    /// The image with these bytes, if it hands that out.
    pub fn with_hash(&self, sha256: &str) -> Option<Image> {
        let mut archs: Vec<String> = self.archs_in_folder().collect();
        archs.insert(0, ARCH.to_owned());
        let images = archs.iter().filter_map(|arch| self.of_arch(arch).ok());
        { images }.find(|image| image.sha256 == sha256)
    }

    /// What the binaries of the folder are compared by with those of another server.
    #[cfg(feature = "db")]
    pub fn digest(&self) -> String {
        let mut archs: Vec<String> = self.archs_in_folder().collect();
        archs.sort();
        let of = |arch: &String| match self.of_arch(arch) {
            Ok(image) => format!("{arch} {}\n", image.sha256),
            Err(_) => format!("{arch}\n"),
        };
        archs.iter().map(of).collect()
    }

    fn of_arch(&self, arch: &str) -> Result<Image, NoImage> {
        let file = match &self.folder {
            _ if arch == ARCH => self.own.clone().map_err(NoImage::Broken)?,
            None => return Err(self.unknown(arch)),
            Some(folder) => match File::open(path_of(folder, arch)) {
                Ok(file) => Arc::new(file),
                Err(why) if why.kind() == io::ErrorKind::NotFound => return Err(self.unknown(arch)),
                Err(why) => {
                    return Err(NoImage::Broken(format!(
                        "{}: {why}",
                        path_of(folder, arch).display()
                    )));
                }
            },
        };
        self.image(file)
            .map_err(|why| NoImage::Broken(format!("the image for {arch} cannot be read: {why}")))
    }

    fn unknown(&self, arch: &str) -> NoImage {
        let mut have = vec![format!("{ARCH} (the server's own)")];
        have.extend(self.archs_in_folder());
        have[1..].sort();
        NoImage::Unknown(format!(
            "arch: there is no image for {arch:?} here, there is {}; the server takes more as sidebike-{arch}-linux in the folder of its --binaries",
            have.join(", ")
        ))
    }

    /// The architectures of the folder, but this server's own.
    fn archs_in_folder(&self) -> impl Iterator<Item = String> {
        let entries = self.folder.as_ref().map(fs::read_dir);
        let entries = entries.into_iter().flatten().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| {
            let arch = name.strip_prefix("sidebike-")?.strip_suffix("-linux")?;
            (arch != ARCH).then(|| arch.to_owned())
        })
    }

    fn image(&self, file: Arc<File>) -> io::Result<Image> {
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let identity = (
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
        );
        let known = { self.known.lock() }
            .unwrap_or_else(PoisonError::into_inner)
            .get(&identity)
            .cloned();
        let sha256 = match known {
            Some(sha256) => sha256,
            None => {
                let sha256 = hash(&file, found.size())?;
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= MAX_KNOWN {
                    known.clear();
                }
                known.insert(identity, sha256.clone());
                sha256
            }
        };
        Ok(Image {
            file,
            bytes: found.size(),
            sha256,
        })
    }
}

fn path_of(folder: &Path, arch: &str) -> PathBuf {
    folder.join(format!("sidebike-{arch}-linux"))
}

/// The SHA-256 of the first `bytes` bytes of a file.
fn hash(file: &File, bytes: u64) -> io::Result<String> {
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read_at(to, self.1)?;
            self.1 += read as u64;
            Ok(read)
        }
    }
    let mut reader = At(file, 0).take(bytes);
    let (mut hash, mut part) = (Sha256::new(), vec![0; HASHED_BYTES]);
    loop {
        match reader.read(&mut part)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&part[..read]),
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_architectures_lead_nowhere_else() {
        let images = Images {
            own: Err("none".into()),
            folder: Some("/".into()),
            known: Mutex::default(),
        };
        for arch in ["", "../x", "a/b", "x86-64", &"a".repeat(33), "é", "a\0"] {
            assert!(
                matches!(images.find(Some(arch)), Err(NoImage::Bad(_))),
                "{arch:?}"
            );
        }
        assert!(matches!(
            images.find(Some("nowhere")),
            Err(NoImage::Unknown(_))
        ));
        assert!(matches!(images.find(None), Err(NoImage::Broken(_))));
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }
}
