//! What may be in an archive, and unpacking it.
//!
//! An archive is read twice. The first time everything in it is checked, so that one that is refused has left nothing;
//! the second time it is unpacked, under the same rules. Nothing in it may lead out of its folder: no absolute name, no
//! `..`, no link to the outside, no entry behind a link. Its folder may hold links of somebody else: they are not
//! followed.
//!
//! The headers with long names are read here and not by the library, which would take as much memory for a name as the
//! header says that it has.

use super::download::unwritten;
use super::job::Made;
use super::lay::set_mode;
use super::place::{Place, explain};
use super::temporary::Temporary;
use crate::wire::files::{IfExists, Unpack};
use flate2::read::MultiGzDecoder;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fchmod, linkat, mkdirat, openat, statat, symlinkat,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Archive, EntryType, PaxExtensions};

/// The most bytes that an archive may be unpacked to: more is a mistake, or meant to fill the machine.
const MAX_BYTES: u64 = 1 << 30;
/// The most entries, for the same reason.
const MAX_ENTRIES: u64 = 100_000;
/// The longest names of all entries together, in bytes: they are kept while it is checked.
const MAX_NAMES_BYTES: usize = 16 << 20;
/// The longest name, in bytes: Linux takes no longer one.
const MAX_NAME_BYTES: usize = 4_095;
/// The most folders that an entry may be in: each is open while what was unpacked is removed.
const MAX_DEPTH: usize = 100;
/// How much of a reason of the library is shown, in characters: it may quote the archive.
const SHOWN_REASON_CHARS: usize = 100;
/// The longest header with long names, in bytes.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// The most bytes of the archive itself without compression: what is in it, and its headers.
const MAX_STREAM_BYTES: u64 = MAX_BYTES + MAX_ENTRIES * 2_048;
/// How much is copied at once, in bytes.
const BUFFER_BYTES: usize = 128 << 10;

/// What is in an archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many entries it has.
    entries: u64,
    /// How many of them are laid down: those that have a name without its leading parts.
    pub laid: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// The names of its files and links.
    names: Vec<PathBuf>,
}

/// How it is unpacked.
#[derive(Debug)]
pub struct Rules {
    /// What happens if there is a file.
    pub if_exists: IfExists,
}

/// An entry, as it is unpacked.
struct Item {
    name: PathBuf,
    kind: ItemKind,
    mode: u32,
}

/// The kinds of entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    Link,
}

enum ItemKind {
    Folder,
    File {
        size: u64,
    },
    /// With its target.
    SymbolicLink(PathBuf),
    /// With the name of an earlier entry.
    HardLink(PathBuf),
}

/// Checks an archive. The error is the reason why it is refused.
pub fn check(archive: &mut (impl Read + Seek), kind: Unpack, strip: u32) -> Result<Plan, String> {
    archive
        .seek(SeekFrom::Start(0))
        .map_err(|why| format!("cannot be read again: {why}"))?;
    walk(archive, kind, strip, &mut |_, _| Ok(()))
}

/// Unpacks an archive into a folder. `made` is told what there was not before.
pub fn unpack(
    archive: &mut File,
    kind: Unpack,
    strip: u32,
    folder: &OwnedFd,
    plan: &Plan,
    rules: &Rules,
    made: &mut dyn FnMut(Made),
) -> Result<(), String> {
    if rules.if_exists == IfExists::Fail {
        for name in &plan.names {
            if exists(folder, name) {
                return Err(format!(
                    "there is {} already, and ifExists is fail",
                    name.display()
                ));
            }
        }
    }
    archive
        .seek(SeekFrom::Start(0))
        .map_err(|why| format!("cannot be read again: {why}"))?;
    let mut unpacker = Unpacker {
        folder,
        rules,
        made,
        fresh: BTreeSet::new(),
    };
    walk(archive, kind, strip, &mut |item, data| {
        let unpacked = unpacker.unpack(item, data);
        unpacked.map_err(|why| format!("{}: {why}", item.name.display()))
    })?;
    // One call for all files.
    let _ = rustix::fs::syncfs(folder);
    Ok(())
}

fn exists(folder: &OwnedFd, name: &Path) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Reads an archive, and passes on its entries, each with its bytes.
fn walk(
    archive: &mut impl Read,
    kind: Unpack,
    strip: u32,
    each: &mut dyn FnMut(&Item, &mut dyn Read) -> Result<(), String>,
) -> Result<Plan, String> {
    let mut plain;
    let mut zipped;
    let stream: &mut dyn Read = match kind {
        Unpack::Tar => {
            plain = archive;
            &mut plain
        }
        Unpack::TarGz => {
            zipped = MultiGzDecoder::new(archive);
            &mut zipped
        }
    };
    // What is longer ends too early, which is an error.
    let mut archive = Archive::new(stream.take(MAX_STREAM_BYTES));
    let unreadable = |why: std::io::Error| {
        let why = why.to_string();
        let shown: String = why.chars().take(SHOWN_REASON_CHARS).collect();
        let shown = shown.escape_debug();
        format!("cannot be read as {}: {shown}", kind.word())
    };
    let entries = archive.entries().map_err(unreadable)?.raw(true);
    let mut checker = Checker::new(strip);
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        checker.count()?;
        let header = entry.header();
        let entry_type = header.entry_type();
        let size = entry.size();
        if entry_type.is_gnu_longname() || entry_type.is_gnu_longlink() || is_extended(entry_type) {
            if size > MAX_HEADER_BYTES {
                return Err(format!(
                    "a header of it has more than {MAX_HEADER_BYTES} bytes"
                ));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(unreadable)?;
            checker.extend(entry_type, bytes)?;
            continue;
        }
        let name = match checker.name.take() {
            Some(name) => name,
            None => entry.path_bytes().into_owned(),
        };
        let link = match checker.link.take() {
            Some(link) => Some(link),
            None => entry.link_name_bytes().map(|link| link.into_owned()),
        };
        let mode = entry.header().mode().map_err(unreadable)?;
        if checker.size.take().is_some_and(|other| other != size) {
            return Err(format!("{}: has two sizes", shown(&name)));
        }
        let item = checker.item(entry_type, &name, link, size, mode);
        if let Some(item) = item.map_err(|why| format!("{}: {why}", shown(&name)))? {
            each(&item, &mut entry)?;
        }
    }
    // The sum of what was compressed is at its end, and a broken archive is not unpacked.
    let mut stream = archive.into_inner();
    std::io::copy(&mut stream, &mut std::io::sink()).map_err(unreadable)?;
    match checker.plan.entries {
        0 => Err(format!(
            "there is nothing in it; is it a {} archive?",
            kind.word()
        )),
        _ => Ok(checker.plan),
    }
}

fn is_extended(entry_type: EntryType) -> bool {
    entry_type.is_pax_local_extensions() || entry_type.is_pax_global_extensions()
}

fn shown(name: &[u8]) -> String {
    let name = &name[..name.len().min(MAX_NAME_BYTES)];
    String::from_utf8_lossy(name).escape_debug().to_string()
}

/// The rules.
struct Checker {
    strip: u32,
    plan: Plan,
    /// Entries and headers with long names.
    headers: u64,
    kinds: BTreeMap<PathBuf, Kind>,
    names_bytes: usize,
    /// What headers say of the next entry.
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Checker {
    fn new(strip: u32) -> Self {
        Checker {
            strip,
            plan: Plan {
                entries: 0,
                laid: 0,
                bytes: 0,
                names: Vec::new(),
            },
            headers: 0,
            kinds: BTreeMap::new(),
            names_bytes: 0,
            name: None,
            link: None,
            size: None,
        }
    }

    fn count(&mut self) -> Result<(), String> {
        self.headers += 1;
        match self.headers > 2 * MAX_ENTRIES {
            true => Err(format!("it has more than {MAX_ENTRIES} entries")),
            false => Ok(()),
        }
    }

    /// Takes a header that belongs to the next entry.
    fn extend(&mut self, entry_type: EntryType, mut bytes: Vec<u8>) -> Result<(), String> {
        if entry_type.is_gnu_longname() || entry_type.is_gnu_longlink() {
            if bytes.last() == Some(&0) {
                bytes.pop();
            }
            match entry_type.is_gnu_longname() {
                true => self.name = Some(bytes),
                false => self.link = Some(bytes),
            }
            return Ok(());
        }
        for extension in PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|why| format!("a header of it is wrong: {why}"))?;
            let value = extension.value_bytes();
            let key = extension.key_bytes();
            if key.starts_with(b"GNU.sparse") {
                return Err("it has files with holes, which are not supported".into());
            }
            let is_meant = matches!(key, b"path" | b"linkpath" | b"size");
            if is_meant && entry_type.is_pax_global_extensions() {
                return Err("a header of it names all entries at once".into());
            }
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or("a header of it has a wrong size")?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What an entry is unpacked as; none if nothing is left of its name.
    fn item(
        &mut self,
        entry_type: EntryType,
        name: &[u8],
        link: Option<Vec<u8>>,
        size: u64,
        mode: u32,
    ) -> Result<Option<Item>, String> {
        let name = parts(name)?;
        let name: PathBuf = name.iter().skip(self.strip as usize).collect();
        let target = || {
            link.as_deref()
                .filter(|link| !link.is_empty())
                .ok_or("the link has no target")
        };
        let depth = name.components().count().saturating_sub(1);
        if depth > MAX_DEPTH {
            return Err(format!("it is in more than {MAX_DEPTH} folders"));
        }
        let kind = match entry_type {
            EntryType::Regular | EntryType::Continuous => ItemKind::File { size },
            EntryType::Directory => ItemKind::Folder,
            EntryType::Symlink => ItemKind::SymbolicLink(inner_target(target()?, depth)?),
            EntryType::Link => {
                let earlier = parts(target()?)?;
                let earlier: PathBuf = earlier.iter().skip(self.strip as usize).collect();
                match self.kinds.get(&earlier) {
                    Some(Kind::File) => ItemKind::HardLink(earlier),
                    _ => {
                        return Err(
                            "the link is to something that is no earlier file of the archive"
                                .into(),
                        );
                    }
                }
            }
            EntryType::Char | EntryType::Block => return Err("it is a device".into()),
            EntryType::Fifo => return Err("it is a fifo".into()),
            _ => return Err("it is neither a file nor a folder nor a link".into()),
        };
        if mode & 0o7000 != 0 && !matches!(kind, ItemKind::SymbolicLink(_)) {
            return Err("its mode has the bit for setuid, setgid or sticky".into());
        }
        self.plan.entries += 1;
        if let ItemKind::File { size } = kind {
            self.plan.bytes = self.plan.bytes.saturating_add(size);
        }
        if self.plan.entries > MAX_ENTRIES {
            return Err(format!("the archive has more than {MAX_ENTRIES} entries"));
        }
        if self.plan.bytes > MAX_BYTES {
            return Err(format!(
                "the archive is unpacked to more than {MAX_BYTES} bytes"
            ));
        }
        if name.as_os_str().is_empty() {
            return Ok(None);
        }
        self.plan.laid += 1;
        self.take_name(&name, &kind)?;
        Ok(Some(Item {
            name,
            kind,
            mode: mode & 0o777,
        }))
    }

    /// Takes a name. It must not be behind a link or a file, and not be taken.
    fn take_name(&mut self, name: &Path, kind: &ItemKind) -> Result<(), String> {
        self.names_bytes += name.as_os_str().len();
        if self.names_bytes > MAX_NAMES_BYTES {
            return Err(format!(
                "the names in the archive have more than {MAX_NAMES_BYTES} bytes"
            ));
        }
        let kind = match kind {
            ItemKind::Folder => Kind::Folder,
            ItemKind::File { .. } => Kind::File,
            ItemKind::SymbolicLink(_) => Kind::Link,
            // It is a file as good as the first.
            ItemKind::HardLink(_) => Kind::File,
        };
        for folder in name
            .ancestors()
            .skip(1)
            .take_while(|it| !it.as_os_str().is_empty())
        {
            match self.kinds.get(folder) {
                Some(Kind::Folder) => break,
                Some(_) => {
                    return Err("it is behind a link, or in something that is no folder".into());
                }
                None => {
                    self.names_bytes += folder.as_os_str().len();
                    self.kinds.insert(folder.to_owned(), Kind::Folder);
                }
            }
        }
        match self.kinds.insert(name.to_owned(), kind) {
            None => {}
            Some(Kind::Folder) if kind == Kind::Folder => {}
            Some(_) => return Err("the archive has it twice".into()),
        }
        if kind != Kind::Folder {
            self.plan.names.push(name.to_owned());
        }
        Ok(())
    }
}

/// The parts of a name. It has to stay inside.
fn parts(name: &[u8]) -> Result<Vec<&OsStr>, String> {
    if name.starts_with(b"/") {
        return Err("it is an absolute name".into());
    }
    if name.is_empty() || name.contains(&0) || name.len() > MAX_NAME_BYTES {
        return Err("it is no name".into());
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("it has a .. in it".into()),
            part if part.len() > 255 => return Err("a part of it has more than 255 bytes".into()),
            part => parts.push(OsStr::from_bytes(part)),
        }
    }
    Ok(parts)
}

/// The target of a link that is in so many folders. Each `..` leads out of one of them; one after another name could
/// lead anywhere if that is a link itself.
fn inner_target(target: &[u8], depth: usize) -> Result<PathBuf, String> {
    let out = || Err("it is a link to the outside".into());
    if target.starts_with(b"/") || target.contains(&0) || target.len() > MAX_NAME_BYTES {
        return out();
    }
    let mut upward = 0;
    let mut is_leading = true;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if is_leading && upward < depth => upward += 1,
            b".." => return out(),
            _ => is_leading = false,
        }
    }
    Ok(PathBuf::from(OsStr::from_bytes(target)))
}

struct Unpacker<'a> {
    folder: &'a OwnedFd,
    rules: &'a Rules,
    made: &'a mut dyn FnMut(Made),
    /// Folders that were made, without those in them.
    fresh: BTreeSet<PathBuf>,
}

impl Unpacker<'_> {
    fn unpack(&mut self, item: &Item, data: &mut dyn Read) -> Result<(), String> {
        let parent = item.name.parent().unwrap_or(Path::new(""));
        let parent_fd = self.enter(parent)?;
        let Some(name) = item.name.file_name() else {
            return Ok(());
        };
        if matches!(item.kind, ItemKind::Folder) {
            let folder = self.enter(&item.name)?;
            if self.is_fresh(&item.name) {
                // Without these bits of the owner nothing can be unpacked into it.
                let _ = fchmod(&folder, Mode::from_raw_mode(item.mode | 0o700));
            }
            return Ok(());
        }
        let place = Place {
            folder: parent_fd,
            name: name.to_owned(),
            path: item.name.clone(),
            made: Vec::new(),
        };
        let found = statat(&place.folder, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_new = match found {
            Err(Errno::NOENT) => true,
            Err(why) => return Err(explain(why, "cannot be looked at")),
            Ok(_) if self.rules.if_exists == IfExists::Keep => return Ok(()),
            Ok(found) => match FileType::from_raw_mode(found.st_mode) {
                FileType::RegularFile | FileType::Symlink => false,
                _ => return Err("there is something of that name that is no ordinary file".into()),
            },
        };
        match &item.kind {
            ItemKind::File { size } => write(&place, data, *size, item.mode)?,
            ItemKind::SymbolicLink(target) => {
                remove_old(&place, is_new)?;
                symlinkat(target, &place.folder, name)
                    .map_err(|why| explain(why, "the link cannot be made"))?;
            }
            ItemKind::HardLink(earlier) => {
                let from = self.enter(earlier.parent().unwrap_or(Path::new("")))?;
                remove_old(&place, is_new)?;
                let earlier = earlier.file_name().unwrap_or_default();
                linkat(&from, earlier, &place.folder, name, AtFlags::empty())
                    .map_err(|why| explain(why, "the link cannot be made"))?;
            }
            ItemKind::Folder => {}
        }
        if is_new && !self.is_fresh(parent) {
            (self.made)(Made::File(item.name.clone()));
        }
        Ok(())
    }

    fn is_fresh(&self, folder: &Path) -> bool {
        folder.ancestors().any(|folder| self.fresh.contains(folder))
    }

    /// Opens a folder of the archive, and makes what is missing of it. Links are not followed: those that are there are
    /// not the archive's.
    fn enter(&mut self, path: &Path) -> Result<OwnedFd, String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = openat(self.folder, ".", flags, Mode::empty())
            .map_err(|why| explain(why, "its folder cannot be used"))?;
        let mut sofar = PathBuf::new();
        for part in path.components() {
            let part = part.as_os_str();
            sofar.push(part);
            let cannot = |why| {
                explain(
                    why,
                    &format!("the folder {} cannot be used", sofar.display()),
                )
            };
            let is_new = match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(why) => return Err(cannot(why)),
            };
            folder = match openat(&folder, part, flags, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(format!("{} is a link or no folder there", sofar.display()));
                }
                Err(why) => return Err(cannot(why)),
            };
            if is_new {
                let _ = fchmod(&folder, Mode::from_raw_mode(0o755));
                if !self.is_fresh(&sofar) {
                    self.fresh.insert(sofar.clone());
                    (self.made)(Made::Tree(sofar.clone()));
                }
            }
        }
        Ok(folder)
    }
}

fn remove_old(place: &Place, is_new: bool) -> Result<(), String> {
    if is_new {
        return Ok(());
    }
    rustix::fs::unlinkat(&place.folder, &*place.name, AtFlags::empty())
        .map_err(|why| explain(why, "the old file cannot be removed"))
}

fn write(place: &Place, data: &mut dyn Read, size: u64, mode: u32) -> Result<(), String> {
    let mut written = Temporary::in_looked_at(&place.folder.as_fd())
        .map_err(|why| explain(why, "its folder cannot be written"))?;
    let mut buffer =
        vec![0; BUFFER_BYTES.min(usize::try_from(size.max(1)).unwrap_or(BUFFER_BYTES))];
    let mut left = size;
    while left > 0 {
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(buffer.len()));
        let read = data
            .read(&mut buffer[..most])
            .map_err(|why| format!("cannot be read again: {why}"))?;
        if read == 0 {
            return Err("the archive ends too early".into());
        }
        written
            .file
            .write_all(&buffer[..read])
            .map_err(|why| unwritten(&why))?;
        left -= read as u64;
    }
    set_mode(&written.file, mode)?;
    written
        .rename(&place.name, false)
        .map_err(|why| explain(why, "it cannot get its name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tar::{Builder, Header};

    /// An archive of entries: type, name, target, mode, bytes.
    fn archive(entries: &[(EntryType, &str, &str, u32, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, target, mode, bytes) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(bytes.len() as u64);
            // The library would refuse to write what is tried here.
            let field = &mut header.as_mut_bytes()[..100];
            field[..name.len()].copy_from_slice(name.as_bytes());
            let field = &mut header.as_mut_bytes()[157..257];
            field[..target.len()].copy_from_slice(target.as_bytes());
            header.set_cksum();
            builder.append(&header, bytes.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn checked(entries: &[(EntryType, &str, &str, u32, &str)]) -> Result<Plan, String> {
        check(&mut Cursor::new(archive(entries)), Unpack::Tar, 0)
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    #[test]
    fn what_leads_out_is_refused() {
        for (entry, word) in [
            ((FILE, "../x", "", 0o644, "x"), ".."),
            ((FILE, "a/../../x", "", 0o644, "x"), ".."),
            ((FILE, "/etc/x", "", 0o644, "x"), "absolute"),
            ((LINK, "a", "/etc/passwd", 0o777, ""), "outside"),
            ((LINK, "a/b", "../../x", 0o777, ""), "outside"),
            ((LINK, "a", "b/../../x", 0o777, ""), "outside"),
            ((EntryType::Link, "a", "/etc/passwd", 0o644, ""), "absolute"),
            ((EntryType::Link, "a", "b", 0o644, ""), "no earlier file"),
            ((EntryType::Char, "a", "", 0o644, ""), "device"),
            ((EntryType::Block, "a", "", 0o644, ""), "device"),
            ((EntryType::Fifo, "a", "", 0o644, ""), "fifo"),
            ((FILE, "a", "", 0o4755, "x"), "setuid"),
            ((FILE, "a", "", 0o2755, "x"), "setgid"),
            ((EntryType::Directory, "a", "", 0o1777, ""), "sticky"),
            ((EntryType::GNUSparse, "a", "", 0o644, ""), "neither"),
        ] {
            let why = checked(&[(FILE, "good", "", 0o644, "x"), entry]).unwrap_err();
            assert!(why.contains(word), "{}: {why}", entry.1);
        }
    }

    #[test]
    fn nothing_is_behind_a_link_or_there_twice() {
        let way = (LINK, "way", ".", 0o777, "");
        for (entries, word) in [
            (vec![way, (FILE, "way/x", "", 0o644, "x")], "behind"),
            (
                vec![(FILE, "a", "", 0o644, "x"), (FILE, "a/b", "", 0o644, "x")],
                "behind",
            ),
            (
                vec![(FILE, "a/b", "", 0o644, "x"), (LINK, "a", "c", 0o777, "")],
                "twice",
            ),
            (
                vec![(FILE, "a", "", 0o644, "x"), (FILE, "./a", "", 0o644, "y")],
                "twice",
            ),
            // Lexically it stays inside; the kernel would leave by way of the first link.
            (vec![way, (LINK, "b", "way/../x", 0o777, "")], "outside"),
        ] {
            let why = checked(&entries).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        let good = [
            (EntryType::Directory, "a/", "", 0o755, ""),
            (FILE, "a/b", "", 0o755, "x"),
            (EntryType::Directory, "a", "", 0o755, ""),
            (LINK, "a/c", "../a/b", 0o777, ""),
            (EntryType::Link, "d", "a/b", 0o755, ""),
        ];
        let plan = checked(&good).unwrap();
        assert_eq!((plan.entries, plan.laid, plan.bytes), (5, 5, 1));
        // What has no name without its leading parts is checked, and not laid down.
        for (strip, laid) in [(1, 1), (2, 0)] {
            let plan = check(&mut Cursor::new(archive(&good[..3])), Unpack::Tar, strip).unwrap();
            assert_eq!((plan.entries, plan.laid), (3, laid), "{strip}");
        }
        assert!(
            check(
                &mut Cursor::new(b"no archive at all".to_vec()),
                Unpack::Tar,
                0
            )
            .is_err()
        );
        assert!(check(&mut Cursor::new(vec![0; 1024]), Unpack::Tar, 0).is_err());
    }

    #[test]
    fn long_names_are_read_and_bounded() {
        let long = "d/".repeat(100) + "x";
        let mut builder = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        assert_eq!(
            check(&mut Cursor::new(bytes.clone()), Unpack::Tar, 0)
                .unwrap()
                .names,
            [PathBuf::from(&long)]
        );
        let stripped = check(&mut Cursor::new(bytes), Unpack::Tar, 100).unwrap();
        assert_eq!(stripped.names, [PathBuf::from("x")]);

        let long = "x".repeat(MAX_HEADER_BYTES as usize + 1);
        let why = checked(&[(EntryType::GNULongName, "x", "", 0o644, &long)]).unwrap_err();
        assert!(why.contains("header"), "{why}");
        let why = checked(&[
            (EntryType::GNULongName, "x", "", 0o644, "../x"),
            (FILE, "good", "", 0o644, "x"),
        ]);
        assert!(why.unwrap_err().contains(".."));
        let pax = "11 path=/x\n";
        let why = checked(&[
            (EntryType::XHeader, "x", "", 0o644, pax),
            (FILE, "good", "", 0o644, "x"),
        ]);
        assert!(why.unwrap_err().contains("absolute"));
    }
}
