//! What the owner of this machine allows to be run on it.
//!
//! Patterns over shell text prevent mistakes, not attacks. The wrapper is what enforces a policy: it gets
//! the command as its arguments and decides. To add a rule: a setting in [`CommandPolicy`], a check in [`check`],
//! and an error that names the setting.

use crate::config::CommandPolicy;
use crate::wire::task::Detail;

/// Whether a command may be run. The error names the setting that forbids it.
pub fn check(policy: &CommandPolicy, detail: &Detail) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("refused by this machine's owner: {why}"));
    let setting = match (policy.allow.is_empty(), &policy.wrapper) {
        (true, None) => return Ok(()),
        (false, _) => "--allow",
        (true, Some(_)) => "--wrapper",
    };
    // PATH, LD_PRELOAD, BASH_ENV, BASH_FUNC_ls%%: variables can turn any command, and the wrapper, into
    // another one. A list of the dangerous ones would never be complete, so none is accepted.
    if detail.env.as_ref().is_some_and(|env| !env.is_empty()) {
        return refuse(&format!(
            "with {setting} a task cannot set variables (detail.env), they could change what a command does"
        ));
    }
    if detail.script.is_some() {
        return refuse(&format!(
            "with {setting} a task cannot bring a script (detail.script)"
        ));
    }
    // A wrapper such as `nice` or `sudo` would take these as its own option or variable.
    let first = detail.argv.as_ref().and_then(|argv| argv.first());
    if policy.wrapper.is_some() && first.is_some_and(|f| f.starts_with('-') || f.contains('=')) {
        return refuse("with --wrapper a program's name cannot begin with - or contain =");
    }
    if policy.allow.is_empty() {
        return Ok(());
    }
    let text = text(detail)?;
    if policy.allow.iter().any(|pattern| pattern.is_match(&text)) {
        return Ok(());
    }
    refuse("no --allow pattern matches the command from its first to its last character")
}

/// Whether a command may be run as this user.
pub fn check_user(policy: &CommandPolicy, user: &str) -> Result<(), String> {
    let (is_allowed, setting) = match &policy.allow_user {
        Some(allowed) => (allowed.is_match(user), "--allow-user does not match it"),
        None => (
            policy.allow.is_empty() && policy.wrapper.is_none(),
            "with --allow or --wrapper commands run as another user only with --allow-user",
        ),
    };
    is_allowed
        .then_some(())
        .ok_or_else(|| format!("refused by this machine's owner: detail.user {user:?}: {setting}"))
}

/// What the owner allows, for the log; none when everything is allowed.
pub fn summary(policy: &CommandPolicy) -> Option<String> {
    let allow = policy
        .allow
        .iter()
        .map(|pattern| format!("--allow {}", pattern.as_str()));
    let wrapper = policy
        .wrapper
        .iter()
        .map(|path| format!("--wrapper {}", path.display()));
    let user = policy
        .allow_user
        .iter()
        .map(|pattern| format!("--allow-user {}", pattern.as_str()));
    let settings: Vec<String> = allow.chain(wrapper).chain(user).collect();
    let is_empty = settings.is_empty();
    (!is_empty).then(|| format!("this machine's owner allows only: {}", settings.join(", ")))
}

/// The text of a command that patterns are matched with.
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
        let policy = CommandPolicy {
            allow: allow
                .iter()
                .map(|pattern| regex::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap())
                .collect(),
            ..CommandPolicy::default()
        };
        check(&policy, &serde_json::from_value(detail).unwrap()).err()
    }

    #[test]
    fn one_pattern_must_match() {
        assert_eq!(refusal(&[], json!({"command": "reboot"})), None);
        assert_eq!(refusal(&["ls", "pwd"], json!({"command": "pwd"})), None);
        let why = refusal(&["ls", "pwd"], json!({"command": "reboot"})).unwrap();
        assert!(why.contains("owner") && why.contains("--allow"), "{why}");
    }

    #[test]
    fn arguments_are_matched_quoted() {
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
    fn a_wrapper_gets_no_options_of_its_own() {
        let policy = CommandPolicy {
            wrapper: Some("/usr/bin/nice".into()),
            ..CommandPolicy::default()
        };
        for (argv, good) in [
            (json!(["ls", "-l", "a=b"]), true),
            (json!(["-n", "ls"]), false),
            (json!(["PATH=/tmp", "ls"]), false),
        ] {
            let detail = serde_json::from_value(json!({"argv": argv})).unwrap();
            assert_eq!(check(&policy, &detail).is_ok(), good, "{argv}");
        }
    }

    #[test]
    fn a_script_is_not_what_was_allowed() {
        let script = json!({"script": "ls"});
        assert!(
            refusal(&["ls"], script.clone())
                .unwrap()
                .contains("detail.script")
        );
        assert_eq!(refusal(&[], script), None);
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
