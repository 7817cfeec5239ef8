//! What the owner of this machine allows to be run on it.
//!
//! Patterns over shell text are a seat belt: they keep honest people from mistakes. The lock is the
//! wrapper, which gets the command as its arguments and decides. To add a rule: a setting in
//! [`CommandPolicy`], a line in [`check`], and a reason that names the setting.

use crate::config::CommandPolicy;
use crate::wire::task::Detail;

/// Whether a command may be run; the error says which rule forbids it.
pub fn check(rules: &CommandPolicy, detail: &Detail) -> Result<(), String> {
    let no = |why: &str| Err(format!("refused by this machine's owner: {why}"));
    let rule = match (rules.allow.is_empty(), &rules.wrapper) {
        (true, None) => return Ok(()),
        (false, _) => "--allow",
        (true, Some(_)) => "--wrapper",
    };
    // PATH, LD_PRELOAD, BASH_ENV, BASH_FUNC_ls%%: with a variable any command can be made another,
    // and so can the wrapper. There is no end to that list, so none is accepted.
    if detail.env.as_ref().is_some_and(|env| !env.is_empty()) {
        return no(&format!(
            "with {rule} a task cannot set variables (detail.env), they could change what a command does"
        ));
    }
    // What a wrapper such as `nice` or `sudo` would take as its own option or variable.
    let first = detail.argv.as_ref().and_then(|argv| argv.first());
    if rules.wrapper.is_some() && first.is_some_and(|f| f.starts_with('-') || f.contains('=')) {
        return no("with --wrapper a program's name cannot begin with - or contain =");
    }
    if rules.allow.is_empty() {
        return Ok(());
    }
    let text = text(detail)?;
    if rules.allow.iter().any(|pattern| pattern.is_match(&text)) {
        return Ok(());
    }
    no("no --allow pattern matches the command from its first to its last character")
}

/// What the owner allows, for the log; nothing when that is everything.
pub fn in_words(rules: &CommandPolicy) -> Option<String> {
    let allow = { rules.allow.iter() }.map(|pattern| format!("--allow {}", pattern.as_str()));
    let wrapper = { rules.wrapper.iter() }.map(|path| format!("--wrapper {}", path.display()));
    let rules: Vec<String> = allow.chain(wrapper).collect();
    (!rules.is_empty()).then(|| format!("this machine's owner allows only: {}", rules.join(", ")))
}

/// The command as patterns see it.
fn text(detail: &Detail) -> Result<String, String> {
    match (&detail.command, &detail.argv) {
        (Some(line), None) => Ok(line.clone()),
        (None, Some(argv)) => shlex::try_join(argv.iter().map(String::as_str))
            .map_err(|_| "detail.argv: must not contain a NUL".into()),
        _ => Err("detail: must have either command or argv".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn refusal(allow: &[&str], detail: Value) -> Option<String> {
        let rules = CommandPolicy {
            allow: allow
                .iter()
                .map(|pattern| regex::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap())
                .collect(),
            wrapper: None,
        };
        check(&rules, &serde_json::from_value(detail).unwrap()).err()
    }

    #[test]
    fn one_pattern_must_match() {
        assert_eq!(refusal(&[], json!({"command": "reboot"})), None);
        assert_eq!(refusal(&["ls", "pwd"], json!({"command": "pwd"})), None);
        let why = refusal(&["ls", "pwd"], json!({"command": "reboot"})).unwrap();
        assert!(why.contains("owner") && why.contains("--allow"), "{why}");
    }

    #[test]
    fn arguments_are_seen_quoted() {
        let allow = ["echo [a-z ]+"];
        assert_eq!(refusal(&allow, json!({"argv": ["echo", "a", "b"]})), None);
        for argv in [
            json!(["echo", "a; reboot"]),
            json!(["echo", "a b"]),
            json!(["echo a"]),
            json!(["echo", "a", ""]),
            json!(["echo", "a\nb"]),
        ] {
            assert!(refusal(&allow, json!({"argv": argv})).is_some(), "{argv}");
        }
        assert_eq!(
            refusal(&["echo 'a b'"], json!({"argv": ["echo", "a b"]})),
            None
        );
        assert!(refusal(&[".*"], json!({"argv": ["echo", "a\0b"]})).is_some());
    }

    #[test]
    fn a_wrapper_gets_no_options() {
        let rules = CommandPolicy {
            allow: Vec::new(),
            wrapper: Some("/usr/bin/nice".into()),
        };
        for (argv, good) in [
            (json!(["ls", "-l", "a=b"]), true),
            (json!(["-n", "ls"]), false),
            (json!(["PATH=/tmp", "ls"]), false),
        ] {
            let detail = serde_json::from_value(json!({"argv": argv})).unwrap();
            assert_eq!(check(&rules, &detail).is_ok(), good, "{argv}");
        }
    }

    #[test]
    fn variables_cannot_change_what_is_allowed() {
        let with = |env: Value| refusal(&["ls"], json!({"command": "ls", "env": env}));
        assert!(
            with(json!({"PATH": "/tmp"}))
                .unwrap()
                .contains("detail.env")
        );
        assert_eq!(with(json!({})), None);
    }
}
