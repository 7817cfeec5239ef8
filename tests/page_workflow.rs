//! The page's views of groups, tags, and tasks that wait for others, in a real browser; see page.rs.

mod browser;
mod common;
mod receiver;

use browser::{Browser, assert_quiet, url, with_browser};
use common::{Folder, Server, id, task};
use receiver::{Reaction, Receiver};
use serde_json::{Value, json};

/// A task that ends with this command once the folder has a file `open`.
fn gated(folder: &Folder, then: &str) -> Value {
    task(&format!(
        "until [ -e {} ]; do sleep 0.1; done; {then}",
        folder.file("open")
    ))
}

/// The texts of the rows about what a task has to do with.
fn related(browser: &Browser, text: &str) {
    browser.sees("#task-related", text);
}

#[test]
fn a_group_has_its_counts_its_worst_exit_code_and_its_members_and_is_canceled_after_a_question() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let member = |command: &str| {
            let mut member = task(command);
            member["group"] = json!("nightly.b");
            member["tags"] = json!({"team": "pay & \u{202e}more"});
            member
        };
        server.run(member("true"));
        server.run(member("exit 7"));
        let endless = server.submit(member("sleep 600"));
        let other = server.submit(task("sleep 601"));
        browser.open(&url(&server, &format!("#/task/{}", id(&endless))));
        browser.sees("#task-marks", "team=pay & \\u{202e}more");
        related(browser, "Group\nnightly.b\nrunning");
        browser.click("#task-related a");
        browser.sees("#group-name", "nightly.b");
        browser.sees("#group-state", "running");
        browser.sees(
            "#group-progress",
            "2 of 3 tasks ended · 1 running, 1 succeeded, 1 failed",
        );
        browser.sees(
            "#group-executions",
            "Executions: 1 succeeded, 1 failed, 1 running",
        );
        browser.sees("#group-facts", "Worst exit code\n7");
        browser.wait("document.querySelectorAll('#group-tasks li').length === 3");
        browser.pictures("group");
        browser.fits_a_phone();
        browser.click("#group-cancel");
        browser.sees(
            "#confirm-dialog",
            "1 task of it will be canceled. 1 of their executions run",
        );
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(server.task(id(&endless))["state"], "running");
        browser.click("#group-cancel");
        browser.sees("#confirm-dialog", "Cancel the group?");
        browser.click("#confirm-yes");
        browser.sees("#group-progress", "3 of 3 tasks ended");
        assert_eq!(server.finished(id(&endless))["state"], "canceled");
        assert_eq!(server.task(id(&other))["state"], "running");
        browser.wait("!document.getElementById('group-cancel').checkVisibility()");
        // The list of tasks by group and by tag; a plain link to the list shows all again.
        browser.click("#group-list");
        browser.wait("document.querySelectorAll('#tasks li').length === 3");
        browser.press("t");
        browser.wait("document.querySelectorAll('#tasks li').length === 4");
        browser.open(&url(&server, &format!("#/task/{}", id(&endless))));
        browser.sees("#task-marks", "team=pay & \\u{202e}more");
        browser.click("#task-marks a");
        browser.wait("document.querySelectorAll('#tasks li').length === 3");
        browser.reload();
        browser.wait("document.querySelectorAll('#tasks li').length === 3");
        browser.type_into("#tasks-search", "tag:team=other");
        browser.sees("#tasks-empty", "No task matches");
        browser.type_into("#tasks-search", "group:nightly.b");
        browser.wait("document.querySelectorAll('#tasks li').length === 3");
        assert!(browser.run("return location.hash") == "#/?group=nightly.b");
        browser.open(&url(&server, "#/group/none"));
        browser.sees("#gone-title", "No such group");
        assert_quiet(browser, &["status of 404"]);
    });
}

#[test]
fn a_task_shows_whom_it_waits_for_its_children_and_whom_it_tells() {
    with_browser(|browser| {
        let receiver = Receiver::new(|n| match n {
            0 => Reaction::Answer(500),
            _ => Reaction::Answer(200),
        });
        let server = Server::with(&["--webhook-allow", r"^http://127\.0\.0\.1:\d+$"]);
        let _agent = server.agent("m");
        let folder = Folder::new();
        let mut build = gated(&folder, "echo built");
        build["name"] = json!("build <b>");
        let build = server.submit(build);
        let mut deploy = task("exit 3");
        for (name, value) in [
            ("name", json!("deploy")),
            (
                "description",
                json!("Brings the shop\nto the \u{202e}world <b>"),
            ),
            ("after", json!([{"task": id(&build)}])),
            ("priority", json!(5)),
            ("uniqueKey", json!("shop")),
            ("onDuplicate", json!("join")),
            ("spread", json!("1s")),
            (
                "onFailure",
                json!({"name": "clean up", "detail": {"command": "echo cleaned"}}),
            ),
            (
                "notify",
                json!([{"url": receiver.url(), "on": ["started", "failed"]}]),
            ),
        ] {
            deploy[name] = value;
        }
        let deploy = server.submit(deploy);
        browser.open(&url(&server, &format!("#/task/{}", id(&deploy))));
        browser.sees("#task-state", "blocked");
        browser.sees(
            "#task-description",
            "Brings the shop\nto the \\u{202e}world <b>",
        );
        related(browser, "After\nbuild <b>\nrunning\nif it succeeds");
        related(browser, "On failure\nclean up\nblocked");
        related(
            browser,
            &format!("Tells of failed\n{}\nnot yet", receiver.url()),
        );
        for (name, value) in [
            ("Priority", "5"),
            ("Unique key", "shop"),
            ("If another has the key", "join"),
            ("Spread over", "1 s"),
            ("Waits for others at most", "7 d"),
        ] {
            browser.sees("#task-facts", &format!("{name}\n{value}"));
        }
        browser.pictures("related");
        folder.write("open");
        browser.sees("#task-state", "failed");
        related(browser, "After\nbuild <b>\nsucceeded\nif it succeeds · met");
        // The task has ended: its child and its notifications are followed to their ends.
        related(browser, "On failure\nclean up\nsucceeded");
        related(
            browser,
            &format!("Tells of started\n{}\ndelivered\n2 tries", receiver.url()),
        );
        related(
            browser,
            &format!("Tells of failed\n{}\ndelivered", receiver.url()),
        );
        browser.fits_a_phone();
        browser.click("#task-related li:nth-child(2) a");
        browser.sees("#task-name", "clean up");
        related(browser, "Child of\ndeploy\nfailed");
        browser.sees("#execution-output", "cleaned");
        let check = server.run(json!({
            "after": [{"task": id(&build), "on": "ended", "perMachine": true}], "detail": {"command": "true"},
        }));
        browser.open(&url(&server, &format!("#/task/{}", id(&check))));
        related(
            browser,
            "After\nbuild <b>\nsucceeded\nhowever it ends · on each machine",
        );
        browser.click("#task-edit");
        let line = format!("{}:ended:perMachine", id(&build));
        browser.wait(&format!(
            "document.querySelector('[name=after]').value === {line:?}"
        ));
        browser.sees("#preview-title", "1 machine");
        browser.click("#submit-button");
        let again = server.task(&browser.made_task(id(&check)));
        assert_eq!(again["after"], check["after"], "{again}");
        assert_quiet(browser, &[]);
    });
}

#[test]
fn the_form_says_what_a_task_waits_for_and_edit_as_new_loses_nothing() {
    with_browser(|browser| {
        let server = Server::with(&["--webhook-allow", r"^http://127\.0\.0\.1:\d+$"]);
        let _agent = server.agent("m");
        server
            .put("/api/v1/limit/db", &json!({"running": 2}))
            .data();
        let mut parent = task("true");
        parent["id"] = json!("build-1");
        parent["group"] = json!("builds");
        server.run(parent);
        browser.open(&url(&server, "#/submit"));
        browser.sees("#preview-title", "1 machine");
        browser.click("#submit-workflow summary");
        for (name, text) in [
            ("command", "echo one\necho two"),
            ("description", "what it is for"),
            ("after", "build-1\nbuild-1:ended"),
            ("afterGroups", "builds:min=50%"),
            ("blockedTtl", "2d"),
            ("group", "nightly"),
            ("tags", "team=pay\nkind=a=b"),
            ("limits", "db"),
            ("priority", "-3"),
            ("spread", "1s"),
            ("uniqueKey", "key"),
            (
                "notify",
                "http://127.0.0.1:1/a?x=y\nhttp://127.0.0.1:1/b=failed,stopped",
            ),
        ] {
            browser.type_into(&format!("[name={name}]"), text);
        }
        browser.click("[name=onDuplicate] [value=join]");
        browser.pictures("submit-workflow");
        browser.click("#submit-button");
        let first = server.task(&browser.made_task(""));
        let expected = json!({
            "description": "what it is for", "group": "nightly", "tags": {"team": "pay", "kind": "a=b"},
            "limits": ["db"], "priority": -3, "spread": 1, "uniqueKey": "key", "onDuplicate": "join",
            "blockedTtl": 172_800,
            "after": [
                {"task": "build-1", "on": "succeeded", "met": true},
                {"task": "build-1", "on": "ended", "met": true},
                {"group": "builds", "on": "succeeded", "minSucceeded": "50%", "members": 1, "met": true},
            ],
            "notify": [
                {"url": "http://127.0.0.1:1/a?x=y", "on": ["ended"]},
                {"url": "http://127.0.0.1:1/b", "on": ["failed", "stopped"]},
            ],
        });
        let has_all = |task: &Value| {
            for (name, value) in expected.as_object().unwrap() {
                assert_eq!(task[name], *value, "{name}: {task}");
            }
        };
        has_all(&first);
        browser.sees("#task-state", "succeeded");
        browser.click("#task-edit");
        browser.wait("document.querySelector('[name=uniqueKey]').value === 'key'");
        browser.click("#submit-button");
        let again = server.task(&browser.made_task(id(&first)));
        has_all(&again);
        // A task that joins another one shows that one.
        let mut other = task("sleep 600");
        other["uniqueKey"] = json!("other");
        let other = server.submit(other);
        browser.open(&url(&server, &format!("#/submit?from={}", id(&other))));
        browser.wait("document.querySelector('[name=uniqueKey]').value === 'other'");
        browser.click("[name=onDuplicate] [value=join]");
        browser.click("#submit-button");
        browser.sees("#task-id", id(&other));
        // What the form has no fields for is taken over, too, unless it is told otherwise.
        let rest = json!({
            "machinePattern": "^m$", "retry": {"max": 2, "interval": [7], "on": ["lost"]},
            "detail": {"script": "#!/bin/sh\necho \"$1\"", "scriptArgs": ["a b"], "mergeOutput": true},
            "onFailure": {"name": "then", "detail": {"command": "true"}},
        });
        let rest = server.run(rest);
        let copy = |tells: &dyn Fn()| {
            browser.open("about:blank");
            browser.open(&url(&server, &format!("#/submit?from={}", id(&rest))));
            browser.sees(
                "#submit-rest",
                "With its onFailure, scriptArgs, mergeOutput",
            );
            browser.wait("document.querySelector('[name=script]').checked");
            browser.sees("#preview-title", "1 machine");
            tells();
            browser.click("#submit-button");
            server.finished(&browser.made_task(id(&rest)))
        };
        let copied = copy(&|| ());
        assert_eq!(
            copied["detail"]["script"], rest["detail"]["script"],
            "{copied}"
        );
        assert_eq!(copied["detail"]["mergeOutput"], true, "{copied}");
        assert_eq!(copied["retry"], rest["retry"], "{copied}");
        assert_eq!(copied["onFailure"], rest["onFailure"], "{copied}");
        assert_eq!(copied["result"][0]["stdout"], "a b\n", "{copied}");
        let without = copy(&|| browser.click("[name=rest]"));
        assert_eq!(without["onFailure"], Value::Null, "{without}");
        assert_eq!(without["result"][0]["stdout"], "\n", "{without}");
        // A schedule keeps it, as well.
        let plan = json!({"every": "1h", "task": {
            "machinePattern": "^m$", "detail": {"command": "true"}, "onEnd": {"detail": {"command": "echo end"}}}});
        server.put_schedule("hourly", &plan).data();
        browser.open(&url(&server, "#/submit?schedule=hourly"));
        browser.sees("#submit-rest", "With its onEnd");
        browser.type_into("[name=every]", "2h");
        browser.click("#submit-button");
        browser.sees("#schedule-facts", "every 2 h");
        let schedule = server.get("/api/v1/schedule/hourly").data();
        assert_eq!(
            schedule["task"]["onEnd"], plan["task"]["onEnd"],
            "{schedule}"
        );
        assert_quiet(browser, &[]);
    });
}
