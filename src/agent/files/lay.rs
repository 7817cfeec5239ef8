//! Laying one file down.

use super::archive;
use super::download::{download, hash_of, unwritten};
use super::folder;
use super::job::{FileJob, HelperJob, How, LaidDown, Made, Said, ToRemove};
use super::place::{Found, Place, Root, explain};
use super::removal;
use super::temporary::{self, Temporary};
use crate::client::Client;
use crate::wire::files::IfExists;
use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How much is copied at once, in bytes.
const BUFFER_BYTES: usize = 128 << 10;

/// Lays files down, one after the other. The error is the reason for people, which names the file.
pub fn lay(
    job: &HelperJob,
    files: &[FileJob],
    client: &Client,
    say: &dyn Fn(&Said),
) -> Result<(), String> {
    let root = Root::open(job.root.as_deref())?;
    let needs_folder = files.iter().any(|file| file.path.is_none());
    let folder = match needs_folder {
        true => {
            let chosen = folder::choose(job.folder.as_deref(), job.root.as_deref());
            let chosen = chosen.map_err(|why| format!("files: {why}"))?;
            say(&Said::Folder(chosen.clone()));
            chosen
        }
        false => PathBuf::new(),
    };
    for file in files {
        let layer = Layer {
            job,
            file,
            root: &root,
            client,
            say,
        };
        let path = match &file.path {
            Some(path) => PathBuf::from(path),
            None => folder.join(&file.name),
        };
        let laid = layer.lay(&path);
        let laid = laid.map_err(|why| format!("file {}: {why}", path.display()))?;
        say(&Said::Laid(laid));
    }
    Ok(())
}

struct Layer<'a> {
    job: &'a HelperJob,
    file: &'a FileJob,
    root: &'a Root,
    client: &'a Client,
    say: &'a dyn Fn(&Said),
}

impl Layer<'_> {
    fn lay(&self, path: &Path) -> Result<LaidDown, String> {
        match self.file.unpack {
            Some(kind) => self.unpack(path, kind),
            None => self.write(path),
        }
    }

    /// Says at once what is to be removed in the end: the next step may fail.
    fn note(&self, made: impl IntoIterator<Item = Made>) {
        if !self.file.remove {
            return;
        }
        for made in made {
            // Where its folder is gone by now, there is nothing to remove.
            if let Some(folder) = removal::folder_of(self.root, &made) {
                (self.say)(&Said::Made(ToRemove { made, folder }));
            }
        }
    }

    fn write(&self, path: &Path) -> Result<LaidDown, String> {
        let file = self.file;
        let place = self.root.place(path, &self.job.workspace)?;
        self.note(place.made.iter().cloned().map(Made::Folder));
        let laid = |how| LaidDown {
            path: place.path.clone(),
            how,
        };
        let found = place.look()?;
        if let Some(found) = found {
            if self.is_same(&place, found) {
                return Ok(laid(How::Unchanged));
            }
            match file.if_exists {
                IfExists::Keep => return Ok(laid(How::Kept)),
                IfExists::Fail => {
                    return Err("there is another file of that name, and ifExists is fail".into());
                }
                IfExists::Replace => {}
            }
        }
        if file.in_place
            && let Some(found) = found
        {
            self.write_into(&place, found)?;
            return Ok(laid(How::Replaced));
        }
        temporary::check_space(&place.folder, file.size)?;
        let mut written = Temporary::new(&place.folder)
            .map_err(|why| explain(why, "its folder cannot be written"))?;
        self.download(&place.path, &mut written.file)?;
        set_mode(&written.file, file.mode)?;
        temporary::sync(&written.file)?;
        let is_new = found.is_none() && file.if_exists == IfExists::Fail;
        written
            .rename(&place.name, is_new)
            .map_err(|why| match why {
                Errno::BUSY => {
                    "it cannot be replaced, because it is mounted there; inPlace writes into it"
                        .into()
                }
                Errno::EXIST => {
                    "there is another file of that name by now, and ifExists is fail".into()
                }
                Errno::ISDIR => "there is a folder of that name".into(),
                why => explain(why, "it cannot get its name"),
            })?;
        temporary::sync_folder(&place.folder);
        if found.is_none() {
            self.note([Made::File(place.path.clone())]);
        }
        Ok(laid(if found.is_some() {
            How::Replaced
        } else {
            How::Made
        }))
    }

    /// Whether the same bytes and mode are there.
    fn is_same(&self, place: &Place, found: Found) -> bool {
        found.size == self.file.size
            && found.mode == self.file.mode
            && place
                .open(OFlags::RDONLY)
                .is_ok_and(|mut file| hash_of(&mut file).is_ok_and(|hash| hash == self.file.sha256))
    }

    /// Writes into the file that is there, when all bytes have come.
    fn write_into(&self, place: &Place, found: Found) -> Result<(), String> {
        let mut target = place.open(OFlags::WRONLY)?;
        let mut written = self.temporary_near(place)?;
        self.download(&place.path, &mut written.file)?;
        temporary::check_space(&target, self.file.size.saturating_sub(found.size))?;
        written
            .file
            .seek(SeekFrom::Start(0))
            .map_err(|why| unwritten(&why))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = std::io::Read::read(&mut written.file, &mut buffer);
            let read = read.map_err(|why| format!("cannot be read again: {why}"))?;
            if read == 0 {
                break;
            }
            target
                .write_all(&buffer[..read])
                .map_err(|why| unwritten(&why))?;
        }
        target
            .set_len(self.file.size)
            .map_err(|why| unwritten(&why))?;
        set_mode(&target, self.file.mode)?;
        temporary::sync(&target)
    }

    /// A temporary file beside the place; where that is impossible, in the folder for files without a path.
    fn temporary_near(&self, place: &Place) -> Result<Temporary, String> {
        if temporary::check_space(&place.folder, self.file.size).is_ok()
            && let Ok(written) = Temporary::new(&place.folder)
        {
            return Ok(written);
        }
        let chosen = folder::choose(self.job.folder.as_deref(), self.job.root.as_deref())?;
        let chosen = File::open(&chosen).map_err(|why| format!("{}: {why}", chosen.display()))?;
        temporary::check_space(&chosen, self.file.size)?;
        Temporary::new(&chosen).map_err(|why| explain(why, "a temporary file cannot be made"))
    }

    fn download(&self, path: &Path, file: &mut File) -> Result<(), String> {
        let path = path.display().to_string();
        let mut tell = |bytes, trouble| {
            (self.say)(&Said::At {
                path: path.clone(),
                bytes,
                size: self.file.size,
                trouble,
            });
        };
        download(self.client, &self.job.instance, self.file, file, &mut tell)
    }

    fn unpack(&self, path: &Path, kind: crate::wire::files::Unpack) -> Result<LaidDown, String> {
        let place = self.root.folder(path, &self.job.workspace)?;
        let is_made = place.made.last() == Some(&place.path);
        self.note(place.made.iter().map(|made| match *made == place.path {
            true => Made::Tree(made.clone()),
            false => Made::Folder(made.clone()),
        }));
        temporary::check_space(&place.folder, self.file.size)?;
        let mut written = Temporary::new(&place.folder)
            .map_err(|why| explain(why, "the folder cannot be written"))?;
        self.download(&place.path, &mut written.file)?;
        let plan = archive::check(&mut written.file, kind, self.file.strip)?;
        temporary::check_space(&place.folder, plan.bytes)?;
        let rules = archive::Rules {
            if_exists: self.file.if_exists,
        };
        let entries = plan.laid;
        archive::unpack(
            &mut written.file,
            kind,
            self.file.strip,
            &place.folder,
            &plan,
            &rules,
            &mut |made| {
                if is_made {
                    return;
                }
                let full = |name: &Path| place.path.join(name);
                self.note([match made {
                    Made::File(name) => Made::File(full(&name)),
                    Made::Folder(name) => Made::Folder(full(&name)),
                    Made::Tree(name) => Made::Tree(full(&name)),
                }]);
            },
        )?;
        temporary::sync_folder(&place.folder);
        Ok(LaidDown {
            path: place.path.clone(),
            how: How::Unpacked { entries },
        })
    }
}

/// Sets a mode. The umask of the agent does not count.
pub fn set_mode(file: &File, mode: u32) -> Result<(), String> {
    let mode = Mode::from_raw_mode(mode);
    fchmod(file, mode).map_err(|why| explain(why, "its mode cannot be set"))
}
