//! How soon a large fleet is seen on the page, in a real browser. Runs alone: it measures time.

mod browser;
mod common;

use browser::{url, with_browser};
use common::Server;
use common::http::request;
use common::puppet::Puppet;
use serde_json::{Value, json};

#[test]
fn a_thousand_machines_and_five_thousand_tasks_are_seen_at_once() {
    with_browser(|browser| {
        let server = Server::start();
        for n in 0..1_000 {
            Puppet::new(&server, n, &format!("web-{n}"));
        }
        let mut connection = server.connect();
        for n in 0..5_000u32 {
            // One in a hundred is a broadcast to all of them.
            let pattern = if n % 100 == 0 {
                "^web-".into()
            } else {
                format!("^web-{}$", n % 1_000)
            };
            let task = json!({"name": format!("task {n}"), "machinePattern": pattern, "detail": {"command": "uname -a"}});
            connection.send(&request(
                "POST",
                "/api/v1/task",
                "",
                task.to_string().as_bytes(),
            ));
            assert_eq!(connection.read().status, 200);
        }
        browser.before_each_page(
            "const look = setInterval(() => { if (document.querySelector('#tasks li') && document.querySelector('#fleet .cell')) { window.seenAfter = performance.now(); clearInterval(look); } }, 5)",
        );
        let mut loads = Vec::new();
        for _ in 0..3 {
            browser.open("about:blank");
            browser.open(&url(&server, ""));
            browser.wait("window.seenAfter");
            loads.push(browser.run("return seenAfter").as_f64().unwrap());
        }
        browser.sees("#fleet-summary", "1,000 machines");
        browser.pictures("many");
        println!("first view after {loads:.0?} ms");
        // The best of three: the machine that tests may have other things to do.
        assert!(loads.iter().any(|ms| *ms < 1_000.0), "{loads:?}");
        browser.open(&url(&server, "#/machines"));
        browser.wait("document.querySelectorAll('#machines li').length === 200");
        for all in ["600", "1000"] {
            // Not where a finger would be: rows above may still find their height.
            browser.run("document.getElementById('machines-more').click()");
            browser.wait(&format!(
                "document.querySelectorAll('#machines li').length === {all}"
            ));
        }
        let frames = browser.run_to_its_end(
            "const frames = []; let last = performance.now(); \
             for (let n = 0; n < 120; n++) { scrollBy(0, 300); await new Promise(requestAnimationFrame); const now = performance.now(); frames.push(now - last); last = now; } \
             return frames.sort((a, b) => a - b);",
        );
        let frames: Vec<f64> = frames
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        println!(
            "scrolling: {:.0} ms a frame, the slowest {:.0} ms",
            frames[60], frames[119]
        );
        assert!(frames[60] < 40.0, "{frames:?}");
    });
}
