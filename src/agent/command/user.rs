//! The user that a command runs as: `detail.user`.
//!
//! Users and groups are read from /etc/passwd and /etc/group, as a static program can do no more. Only an agent that
//! runs as root can start commands as another user.

use super::program::UserIds;
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The users of this machine.
const USERS: &str = "/etc/passwd";
/// The groups of this machine, with their members.
const GROUPS: &str = "/etc/group";
/// The most groups of a user: Linux takes no more (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// A user of this machine.
#[derive(Debug, PartialEq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its home.
    pub home: String,
    /// Its numbers.
    pub ids: UserIds,
}

impl User {
    /// The user with this name or number. The error is the reason why no command can run as it.
    pub fn find(wanted: &str) -> Result<User, String> {
        if !geteuid().is_root() {
            return Err(format!(
                "detail.user: this agent does not run as root, so it cannot run a command as {wanted:?}"
            ));
        }
        let read = |file: &str| {
            std::fs::read_to_string(file)
                .map_err(|why| format!("detail.user: {file} cannot be read: {why}"))
        };
        let groups = std::fs::read_to_string(GROUPS).unwrap_or_default();
        parse(&read(USERS)?, &groups, wanted)
            .ok_or_else(|| format!("detail.user: there is no user {wanted:?} on this machine"))
    }

    /// Whom its files belong to.
    pub fn owner(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.ids.uid), Gid::from_raw(self.ids.gid))
    }

    /// The variables that name it.
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("HOME", &self.home),
            ("USER", &self.name),
            ("LOGNAME", &self.name),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .into()
    }
}

/// Has a command start as the user with these numbers.
#[allow(
    unsafe_code,
    reason = "std has no stable call for supplementary groups"
)]
pub fn apply(ids: &UserIds, command: &mut Command) {
    let groups: Vec<Gid> = ids.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    let change = move || -> io::Result<()> {
        // The user last: after that the others are not permitted.
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on values that were made before; nothing is
    // allocated and no lock is taken. The new process has one thread, so the calls for a thread change all of it.
    unsafe { command.pre_exec(change) };
}

fn parse(users: &str, groups: &str, wanted: &str) -> Option<User> {
    let lines = || {
        users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
    };
    let by_name = lines().find(|fields| fields.first() == Some(&wanted));
    // A name may be a number; without such a name it is the number of a user.
    let by_number = || {
        let number: u32 = wanted.parse().ok()?;
        lines().find(|fields| fields.get(2).and_then(|uid| uid.parse().ok()) == Some(number))
    };
    let fields = by_name.or_else(by_number)?;
    let [name, _, uid, gid, _, home, ..] = fields[..] else {
        return None;
    };
    let gid: u32 = gid.parse().ok()?;
    let mut all = vec![gid];
    for line in groups.lines() {
        let mut fields = line.split(':');
        let (number, members) = (fields.nth(2), fields.next().unwrap_or_default());
        if members.split(',').any(|member| member == name)
            && let Some(number) = number.and_then(|number| number.parse().ok())
            && !all.contains(&number)
            && all.len() < MAX_GROUPS
        {
            all.push(number);
        }
    }
    Some(User {
        name: name.to_owned(),
        home: home.to_owned(),
        ids: UserIds {
            uid: uid.parse().ok()?,
            gid,
            groups: all,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_all_groups() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken:x\n7:x:100:100::/seven:\napp:x:7:70:App:/srv/app:/bin/sh\n";
        let groups = "root:x:0:\napps:x:70:\nlog:x:80:other,app\ndocker:x:90:app\nno:x:91:app2\n";
        let app = parse(users, groups, "app").unwrap();
        assert_eq!(
            app,
            User {
                name: "app".into(),
                home: "/srv/app".into(),
                ids: UserIds {
                    uid: 7,
                    gid: 70,
                    groups: vec![70, 80, 90],
                },
            }
        );
        assert_eq!(parse(users, groups, "7").unwrap().home, "/seven");
        assert_eq!(parse(users, groups, "100").unwrap().name, "7");
        for nobody in ["", "broken", "x", "70", "-1", "app2"] {
            assert_eq!(parse(users, groups, nobody), None, "{nobody}");
        }
    }
}
