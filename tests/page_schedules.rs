//! The page's views of schedules, in a real browser; see page.rs.

mod browser;
mod common;

use browser::{Browser, assert_quiet, url, with_browser};
use common::{Server, task, wait_for};
use serde_json::{Value, json};

/// A time as the browser shows it to its user.
fn here(browser: &Browser, utc: &Value) -> String {
    let shown = browser.run(&format!("return new Date({utc}).toLocaleString()"));
    shown.as_str().expect("a text").to_owned()
}

/// Clicks a button that asks, first with "No", which changes nothing, then with "Yes".
fn click_and_agree(
    browser: &Browser,
    button: &str,
    question: &str,
    is_unchanged: impl Fn() -> bool,
) {
    browser.click(button);
    browser.sees("#confirm-dialog", question);
    browser.click("#confirm-dialog [value=no]");
    assert!(is_unchanged(), "{button}");
    browser.click(button);
    browser.sees("#confirm-dialog", question);
    browser.click("#confirm-yes");
}

#[test]
fn schedules_are_listed_with_their_next_firings_here_and_there_and_their_past_in_cells() {
    with_browser(|browser| {
        let server = Server::start();
        browser.open(&url(&server, ""));
        browser.press("s");
        browser.sees("#schedules-empty", "No schedule yet");
        let _agent = server.agent("m");
        let plan = json!({"cron": "30 2 * * *", "timeZone": "Asia/Shanghai", "task": task("echo <b>backup</b>")});
        let night = server.put_schedule("night", &plan).data();
        // Each firing finds the one before unfinished: the third kind of cell.
        let slow = json!({"every": 1, "overlap": "skip", "task": {
            "machinePattern": "^m$", "mode": "any", "detail": {"command": "sleep 600"}}});
        server.put_schedule("busy", &slow).data();
        let refused = json!({"every": 1, "overlap": "allow", "task": {
            "machinePattern": "^m$", "expect": 7, "detail": {"command": "true"}}});
        server.put_schedule("refused", &refused).data();
        browser.sees("#schedules", "30 2 * * *, Asia/Shanghai");
        let next = &night["next"][0];
        browser.sees("#schedules", &here(browser, &next["utc"]));
        let there = next["local"].as_str().unwrap()[..19].replace('T', " ");
        browser.sees("#schedules", &format!("{there} Asia/Shanghai"));
        assert!(there.ends_with("02:30:00"), "{there}");
        browser.sees("#schedules li:nth-child(1)", "busy\nevery 1 s");
        browser.wait("document.querySelector('#schedules .cell.fired.s-running')");
        browser.wait("document.querySelector('#schedules .cell.skipped')");
        browser.wait("document.querySelector('#schedules .cell.refused')");
        let title = browser.run("return document.querySelector('.cell.refused').title");
        assert!(title.as_str().unwrap().contains("7"), "{title}");
        browser.sees("#schedules li:nth-child(3)", "due at ");
        browser.pictures("schedules");
        browser.fits_a_phone();
        // A search, and a cell as a link to its task.
        browser.type_into("#schedules-search", "shanghai");
        browser.wait("document.querySelectorAll('#schedules li').length === 1");
        browser.type_into("#schedules-search", "sleep 600");
        browser.sees("#schedules li", "busy");
        let fired = server.schedule("busy")["history"][0]["task"].clone();
        browser.press("\u{e00c}\u{e00c}");
        browser.click("#schedules .cell.fired");
        browser.sees("#task-id", fired.as_str().unwrap());
        assert_quiet(browser, &[]);
    });
}

#[test]
fn a_schedule_is_paused_resumed_run_and_deleted_after_a_question() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let plan =
            json!({"cron": "@yearly", "timeZone": "Europe/Berlin", "task": task("echo fired")});
        server.put_schedule("yearly", &plan).data();
        browser.open(&url(&server, "#/schedules"));
        browser.press("j");
        browser.wait("document.activeElement.matches('#schedules a')");
        browser.press("\u{e007}");
        browser.sees("#schedule-name", "yearly");
        browser.sees("#schedule-command", "echo fired");
        browser.sees("#schedule-facts", "When\n@yearly, Europe/Berlin");
        browser.sees("#schedule-message", "its restart forgets the schedule");
        assert_eq!(browser.count("#schedule-next li"), 5);
        browser.sees("#schedule-next", "-01-01 00:00:00 Europe/Berlin");
        browser.sees("#schedule-history-empty", "It has not fired yet");
        let state = || server.schedule("yearly")["state"].clone();
        click_and_agree(browser, "#schedule-pause", "Pause this schedule?", || {
            state() == "active"
        });
        browser.sees("#schedule-state", "paused");
        assert_eq!(state(), "paused");
        browser.wait("!document.getElementById('schedule-pause').checkVisibility()");
        click_and_agree(browser, "#schedule-resume", "Resume this schedule?", || {
            state() == "paused"
        });
        browser.sees("#schedule-state", "active");
        assert_eq!(state(), "active");
        click_and_agree(browser, "#schedule-run", "Run it now?", || {
            server.schedule("yearly")["history"] == json!([])
        });
        browser.sees("#schedule-history", "fired, succeeded");
        browser.sees("#schedule-history", "by hand");
        browser.wait("document.querySelector('#schedule-cells .fired.s-succeeded')");
        browser.pictures("schedule");
        browser.fits_a_phone();
        browser.click("#schedule-history a");
        browser.sees("#execution-output", "fired");
        browser.run("history.back()");
        browser.sees("#schedule-name", "yearly");
        click_and_agree(browser, "#schedule-delete", "Delete this schedule?", || {
            state() == "active"
        });
        browser.sees("#schedules-empty", "No schedule yet");
        assert_eq!(server.get("/api/v1/schedule/yearly").status, 404);
        browser.open(&url(&server, "#/schedule/yearly"));
        browser.sees("#gone-title", "No such schedule");
        assert_quiet(browser, &["status of 404"]);
    });
}

#[test]
fn a_schedule_is_made_and_changed_by_the_form() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        browser.open(&url(&server, "#/schedules"));
        browser.click("#view-schedules .primary");
        browser.wait("document.activeElement.name === 'scheduleId'");
        browser.type_into("[name=command]", "echo $SIDEBIKE_SCHEDULED_FOR");
        browser.type_into("[name=cron]", "99 2 * * *");
        browser.sees("#schedule-preview", "cron: ");
        // Without a name it would run at once.
        browser.click("#submit-button");
        browser.sees("#submit-error", "As a schedule: give it a name");
        assert_eq!(server.get("/api/v1/task").data(), json!([]));
        browser.type_into("[name=cron]", "30 2 * * *");
        browser.type_into("[name=timeZone]", "Asia/Shanghai");
        browser.sees("#schedule-preview", "02:30:00 Asia/Shanghai");
        assert!(browser.count("#zones option") > 300);
        browser.type_into("[name=scheduleId]", "night");
        browser.sees("#submit-button", "Save the schedule");
        browser.click("[name=overlap] [value=queueOne]");
        browser.click("[name=catchUp] [value=all]");
        browser.type_into("[name=startDeadline]", "90m");
        browser.type_into("[name=times]", "7");
        browser.pictures("submit-schedule");
        browser.click("#submit-button");
        browser.sees("#schedule-name", "night");
        let made = server.schedule("night");
        let is = |schedule: &Value, name: &str, value: Value| {
            assert_eq!(schedule[name], value, "{schedule}")
        };
        for (name, value) in [
            ("cron", json!("30 2 * * *")),
            ("timeZone", json!("Asia/Shanghai")),
            ("overlap", json!("queueOne")),
            ("catchUp", json!("all")),
            ("startDeadline", json!(5_400)),
            ("times", json!(7)),
        ] {
            is(&made, name, value);
        }
        let command = &made["task"]["detail"]["command"];
        assert_eq!(command, "echo $SIDEBIKE_SCHEDULED_FOR");
        // Another task is none of it.
        browser.press("n");
        browser.wait("document.querySelector('[name=scheduleId]').value === ''");
        browser.sees("#submit-button", "Run on 1 machine");
        // Changed: the form has all of it, and what is not changed stays.
        browser.open(&url(&server, "#/schedule/night"));
        browser.click("#schedule-edit");
        browser.wait("document.querySelector('[name=times]').value === '7'");
        browser.sees("#submit-button", "Save the schedule");
        browser.type_into("[name=cron]", "");
        browser.type_into("[name=every]", "5m");
        browser.click("#submit-button");
        browser.sees("#schedule-facts", "every 5 min");
        let changed = server.schedule("night");
        is(&changed, "every", json!(300));
        is(&changed, "cron", Value::Null);
        browser.click("#schedule-edit");
        browser.wait("document.querySelector('[name=every]').value === '300'");
        browser.wait("document.querySelector('[name=overlap]').selectedIndex === 1");
        is(&changed, "startDeadline", json!(5_400));
        is(&changed, "incarnation", made["incarnation"].clone());
        is(&changed, "task", made["task"].clone());
        // The name of another schedule is not taken over by accident.
        browser.open(&url(&server, "#/submit?schedule="));
        browser.type_into("[name=command]", "echo other");
        browser.type_into("[name=scheduleId]", "night");
        browser.type_into("[name=every]", "1h");
        browser.sees("#submit-button", "Save the schedule");
        browser.click("#submit-button");
        browser.sees("#confirm-dialog", "Replace the schedule?");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(server.schedule("night")["every"], 300);
        wait_for("the button", || {
            browser.run("return document.getElementById('submit-button').disabled") == false
        });
        browser.click("#submit-button");
        browser.click("#confirm-yes");
        browser.sees("#schedule-facts", "every 1 h");
        browser.sees("#schedule-command", "echo other");
        // A task that was fired is no schedule when it is edited.
        server.post("/api/v1/schedule/night/run", &json!({})).data();
        browser.sees("#schedule-history", "by hand");
        browser.click("#schedule-history a");
        browser.sees("#task-state", "succeeded");
        browser.click("#task-edit");
        browser.wait("document.querySelector('[name=command]').value === 'echo other'");
        browser.sees("#submit-button", "Run on 1 machine");
        assert_quiet(browser, &["status of 400", "status of 404"]);
    });
}
