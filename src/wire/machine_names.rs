//! Names that tell the machines of a task apart.
//!
//! A machine is named by its label. Machines of one task that share a label are named `label@host`, and those that share
//! the host too `label/8da52e4c`, with the beginning of their instance. The command line, the answers in plain text and
//! the page name machines by this rule.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The fewest characters of an instance in a name: as many as tables show.
const MIN_INSTANCE_CHARS: usize = 8;

/// The machines of a task, and their names.
#[derive(Debug, Default)]
pub struct MachineNames {
    by_label: HashMap<String, Sharing>,
}

/// The machines that share a label.
#[derive(Debug, Default)]
struct Sharing {
    /// Their hosts by instance.
    hosts: BTreeMap<String, String>,
    /// Their names by instance; made when they are needed, because a task may have thousands of machines.
    names: Option<BTreeMap<String, String>>,
}

impl MachineNames {
    /// The names of machines, each given as label, instance and host.
    pub fn of<'a>(machines: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
        let mut names = MachineNames::default();
        for (label, instance, host) in machines {
            names.add(label, instance, host);
        }
        names
    }

    /// Adds a machine, if it is new. One without an instance is none yet.
    pub fn add(&mut self, label: &str, instance: &str, host: &str) {
        if instance.is_empty() {
            return;
        }
        if !self.by_label.contains_key(label) {
            self.by_label.insert(label.to_owned(), Sharing::default());
        }
        if let Some(sharing) = self.by_label.get_mut(label)
            && !sharing.hosts.contains_key(instance)
        {
            sharing.hosts.insert(instance.to_owned(), host.to_owned());
            sharing.names = None;
        }
    }

    /// The name of a machine.
    pub fn name<'a>(&'a mut self, label: &'a str, instance: &str) -> &'a str {
        let Some(sharing) = self.by_label.get_mut(label) else {
            return label;
        };
        if sharing.hosts.len() < 2 {
            return label;
        }
        let hosts = &sharing.hosts;
        let names = sharing.names.get_or_insert_with(|| distinct(label, hosts));
        names.get(instance).map_or(label, String::as_str)
    }
}

/// The names of machines that share a label.
fn distinct(label: &str, hosts: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut on_host: HashMap<&str, u32> = HashMap::new();
    for host in hosts.values() {
        *on_host.entry(host).or_default() += 1;
    }
    let instances: BTreeSet<&str> = hosts.keys().map(String::as_str).collect();
    let name = |instance: &str, host: &str| {
        let is_alone = !host.is_empty() && on_host.get(host) == Some(&1);
        match is_alone {
            true => format!("{label}@{host}"),
            false => format!("{label}/{}", beginning(instance, &instances)),
        }
    };
    let names = hosts
        .iter()
        .map(|(instance, host)| (instance.clone(), name(instance, host)));
    names.collect()
}

/// The shortest beginning of an instance that none of the others has.
fn beginning<'a>(instance: &'a str, all: &BTreeSet<&str>) -> &'a str {
    let before = all.range(..instance).next_back();
    let after = all.range(instance..).nth(1);
    let neighbours = before.into_iter().chain(after);
    let shared = neighbours.map(|other| common_chars(instance, other)).max();
    let chars = MIN_INSTANCE_CHARS.max(shared.unwrap_or(0) + 1);
    let end = instance.char_indices().nth(chars);
    end.map_or(instance, |(end, _)| &instance[..end])
}

fn common_chars(one: &str, other: &str) -> usize {
    let pairs = one.chars().zip(other.chars());
    pairs.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_as_long_as_it_has_to_be() {
        let machines = [
            ("web", "11111111aaaa", "h1"),
            ("dup", "22222222aaaa", "h1"),
            ("dup", "33333333aaaa", "h2"),
            ("same", "44444444aaaa", "h1"),
            ("same", "55555555aaaa", "h1"),
            ("same", "66666666aaaa", "h2"),
            ("like", "7777777777ab", ""),
            ("like", "7777777777ac", ""),
            ("like", "888", ""),
            ("", "", ""),
        ];
        let mut names = MachineNames::of(machines.into_iter());
        let shown = machines.map(|(label, instance, _)| names.name(label, instance).to_owned());
        assert_eq!(
            shown,
            [
                "web",
                "dup@h1",
                "dup@h2",
                "same/44444444",
                "same/55555555",
                "same@h2",
                "like/7777777777ab",
                "like/7777777777ac",
                "like/888",
                "",
            ]
        );
        names.add("web", "99999999", "h2");
        assert_eq!(names.name("web", "11111111aaaa"), "web@h1");
    }
}
