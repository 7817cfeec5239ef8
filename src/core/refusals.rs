//! The words of refusals: which task is in the way, and which part of what was posted is meant.

use super::unique::Unique;
use super::{Core, Refusal};

impl Refusal {
    /// The same about a part of what was posted: `tasks[3]`, `onEnd`, `task`.
    pub fn within(self, part: &str) -> Refusal {
        match self {
            Refusal::Taken(_) | Refusal::Duplicate(_) | Refusal::Joins(_) => self,
            Refusal::Unknown(why) => Refusal::Unknown(within(part, &why)),
            Refusal::Conflict(why) => Refusal::Conflict(within(part, &why)),
            Refusal::Wrong(why) => Refusal::Wrong(within(part, &why)),
            Refusal::Impossible(why) => Refusal::Impossible(within(part, &why)),
            Refusal::Full(why) => Refusal::Full(within(part, &why)),
        }
    }
}

/// `tasks[3].detail.command: …`, or `tasks[3]: …` where the reason names no field.
pub fn within(part: &str, why: &str) -> String {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "._-/[]".contains(c);
    let field = why.split_once(':').map_or("", |(field, _)| field);
    match !field.is_empty() && field.chars().all(is_of_a_name) {
        true => format!("{part}.{why}"),
        false => format!("{part}: {why}"),
    }
}

impl Core {
    /// A refusal for where the task that is in the way is not answered beside it: it is named.
    pub(super) fn naming(
        &self,
        wanted: Option<&str>,
        unique: Option<&Unique>,
        refusal: Refusal,
    ) -> Refusal {
        let id = |key| self.tasks.get(&key).map_or("", |task| &*task.id);
        let unique = unique.map_or("", |unique| &*unique.key);
        match refusal {
            Refusal::Taken(key) => {
                let wanted = wanted.unwrap_or_default();
                Refusal::Conflict(format!("id: {wanted:?} is taken by task {}", id(key)))
            }
            Refusal::Duplicate(key) | Refusal::Joins(key) => {
                Refusal::Conflict(format!("uniqueKey: {unique:?} is held by task {}", id(key)))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_part_and_its_field() {
        for (why, said) in [
            ("detail: needs command", "tasks[3].detail: needs command"),
            ("detail.env.A: no NUL", "tasks[3].detail.env.A: no NUL"),
            ("detail.argv[1]: no NUL", "tasks[3].detail.argv[1]: no NUL"),
            ("5 executions have: no", "tasks[3]: 5 executions have: no"),
            ("the task is gone", "tasks[3]: the task is gone"),
        ] {
            assert_eq!(within("tasks[3]", why), said);
        }
    }
}
