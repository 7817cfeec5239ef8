//! A headless Chromium, driven over ChromeDriver's WebDriver protocol: just what the tests of the
//! page need. To add a call: the protocol is JSON over HTTP, see <https://www.w3.org/TR/webdriver2>.

#![allow(dead_code, reason = "each file of tests uses its part")]

use crate::common::http::{Connection, request};
use crate::common::{Folder, Server, wait_until};
use base64::Engine as _;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// So that nothing is loaded but what a test asks for, and nothing needs a screen or a user.
const FLAGS: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// The key under which the protocol keeps the id of an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// So many browsers at a time: most of a test is waiting, but a machine with two cores has no room for more.
static PLACES: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
/// Which place the next test waits for.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Runs a test with a browser; says so and passes when there is none to be had.
pub fn with_browser(test: impl FnOnce(&Browser)) {
    if Command::new("chromedriver")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return println!(
            "skipped: chromedriver is not installed (apt-get install chromium-driver)"
        );
    }
    let place = &PLACES[NEXT.fetch_add(1, Ordering::Relaxed) % PLACES.len()];
    let _place = place.lock().unwrap_or_else(PoisonError::into_inner);
    test(&Browser::start());
}

/// The address of a view.
pub fn url(server: &Server, hash: &str) -> String {
    format!("http://{}/{hash}", server.address)
}

/// Nothing but the answers that a test expects may have been complained of.
pub fn assert_quiet(browser: &Browser, expected: &[&str]) {
    let mut complaints = browser.complaints();
    complaints.retain(|text| !expected.iter().any(|part| text.contains(part)));
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// A browser with one window.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: Folder,
}

impl Browser {
    fn start() -> Browser {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("chromedriver starts");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = { &mut lines }
            .map_while(Result::ok)
            .find_map(|line| {
                line.rsplit_once(" successfully on port ")?
                    .1
                    .trim_matches('.')
                    .parse()
                    .ok()
            })
            .expect("chromedriver says its port");
        // What it says later is read, too: a closed pipe would end it.
        thread::spawn(move || lines.for_each(drop));
        let profile = Folder::new();
        let mut browser = Browser {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            _profile: profile,
        };
        let mut flags: Vec<String> = FLAGS.map(String::from).to_vec();
        flags.push(format!("--user-data-dir={}", browser._profile.path()));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.ask("POST", "/session", &wanted)["sessionId"].take();
        browser.session = format!("/session/{}", session.as_str().expect("a session"));
        browser.size(1280, 900);
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path} {body}: {error}"))
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut connection = Connection::open(self.address);
        let body = match method {
            "POST" => body.to_string(),
            _ => String::new(),
        };
        let headers = "Connection: close\r\nContent-Type: application/json\r\n";
        let target = format!("{}{path}", self.session);
        connection.send(&request(method, &target, headers, body.as_bytes()));
        let reply = connection.read();
        let value = reply.json()["value"].take();
        match reply.status {
            200 => Ok(value),
            _ => Err(value["message"].to_string()),
        }
    }

    fn devtools(&self, command: &str, params: Value) -> Value {
        let call = json!({"cmd": command, "params": params});
        self.ask("POST", "/goog/cdp/execute", &call)
    }

    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// Runs a function body in the page and gives what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.ask(
            "POST",
            "/execute/sync",
            &json!({"script": script, "args": []}),
        )
    }

    /// The same, for one that returns a promise.
    pub fn run_to_its_end(&self, script: &str) -> Value {
        let script =
            format!("const done = arguments[0]; (async () => {{ {script} }})().then(done);");
        self.ask(
            "POST",
            "/execute/async",
            &json!({"script": script, "args": []}),
        )
    }

    /// Lets the browser save files into a folder.
    pub fn saves_to(&self, folder: &str) {
        let params = json!({"behavior": "allow", "downloadPath": folder});
        self.devtools("Browser.setDownloadBehavior", params);
    }

    /// Lets the page send so many bytes a second, or as many as it can.
    pub fn throttle_uploads(&self, bytes_per_second: Option<u32>) {
        let params = json!({"offline": false, "latency": 0, "downloadThroughput": -1,
            "uploadThroughput": bytes_per_second.map_or(-1, i64::from)});
        self.devtools("Network.enable", json!({}));
        self.devtools("Network.emulateNetworkConditions", params);
    }

    /// Runs a script before any of the page's own, from the next page on.
    pub fn before_each_page(&self, script: &str) {
        self.devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": script}),
        );
    }

    /// Waits until an expression is true in the page.
    pub fn wait(&self, expression: &str) {
        let script = format!("return !!({expression})");
        wait_until(expression, || (self.run(&script) == true).then_some(()));
    }

    /// The text of an element, as it is seen.
    pub fn text(&self, css: &str) -> String {
        let script = format!("return document.querySelector({css:?}).innerText");
        self.run(&script).as_str().expect("a text").to_owned()
    }

    /// Waits until an element shows a text.
    pub fn sees(&self, css: &str, text: &str) {
        self.wait(&format!(
            "document.querySelector({css:?})?.checkVisibility() && document.querySelector({css:?}).innerText.includes({text:?})"
        ));
    }

    pub fn count(&self, css: &str) -> u64 {
        let script = format!("return document.querySelectorAll({css:?}).length");
        self.run(&script).as_u64().expect("a number")
    }

    fn element(&self, css: &str) -> String {
        let by = json!({"using": "css selector", "value": css});
        let found = self.ask("POST", "/element", &by);
        format!("/element/{}", found[ELEMENT].as_str().expect("an element"))
    }

    /// Clicks as a user would: what is covered or hidden cannot be clicked.
    pub fn click(&self, css: &str) {
        wait_until(css, || {
            let click = format!("{}/click", self.element(css));
            self.try_ask("POST", &click, &json!({})).ok()
        });
    }

    /// Types into a field, in place of what it had.
    pub fn type_into(&self, css: &str, text: &str) {
        let element = self.element(css);
        self.ask("POST", &format!("{element}/clear"), &json!({}));
        self.ask("POST", &format!("{element}/value"), &json!({"text": text}));
    }

    /// Presses keys wherever the focus is.
    pub fn press(&self, keys: &str) {
        let key = |kind: &str, key: char| json!({"type": kind, "value": key});
        let presses: Vec<Value> = keys
            .chars()
            .flat_map(|c| [key("keyDown", c), key("keyUp", c)])
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keys", "actions": presses}]});
        self.ask("POST", "/actions", &actions);
    }

    pub fn reload(&self) {
        self.ask("POST", "/refresh", &json!({}));
    }

    /// Opens another tab and goes on in that.
    pub fn open_tab(&self) {
        let tab = self.ask("POST", "/window/new", &json!({"type": "tab"}));
        self.ask("POST", "/window", &json!({"handle": tab["handle"]}));
    }

    /// Hides the page, as when the user works with another window.
    pub fn minimize(&self) {
        self.ask("POST", "/window/minimize", &json!({}));
    }

    /// Shows it again.
    pub fn restore(&self) {
        self.ask(
            "POST",
            "/window/rect",
            &json!({"width": 1280, "height": 900}),
        );
    }

    pub fn size(&self, width: u32, height: u32) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.devtools("Emulation.setDeviceMetricsOverride", params);
    }

    /// Waits until nothing is wider than a phone. Not compared with the window's width: that grows with what is too wide.
    pub fn fits_a_phone(&self) {
        self.size(390, 844);
        self.wait("document.documentElement.scrollWidth <= 390");
        self.size(1280, 900);
    }

    /// The id of the task that the form has made, once its view is shown instead of that of the task before, if any.
    pub fn made_task(&self, before: &str) -> String {
        let id = "location.hash.split('/')[2]";
        self.wait(&format!(
            "location.hash.startsWith('#/task/') && {id} !== {before:?}"
        ));
        let id = self.run(&format!("return {id}"));
        id.as_str().expect("an id").to_owned()
    }

    /// Pictures of the page as it is, wide and narrow, light and dark: into the folder that
    /// `PAGE_SHOTS` names, if it does.
    pub fn pictures(&self, name: &str) {
        let Ok(folder) = std::env::var("PAGE_SHOTS") else {
            return;
        };
        std::fs::create_dir_all(&folder).expect("a folder for pictures");
        for (width, height) in [(1280, 900), (390, 844)] {
            for scheme in ["light", "dark"] {
                self.size(width, height);
                let feature = json!({"name": "prefers-color-scheme", "value": scheme});
                self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]}));
                let png = self.ask("GET", "/screenshot", &Value::Null);
                let png = base64::engine::general_purpose::STANDARD
                    .decode(png.as_str().expect("a picture"))
                    .expect("a picture in base64");
                std::fs::write(format!("{folder}/{name}-{width}-{scheme}.png"), png).unwrap();
            }
        }
        self.devtools("Emulation.setEmulatedMedia", json!({"features": []}));
        self.size(1280, 900);
    }

    /// A picture of the page as it is, as WebP, light and so many pixels wide and high.
    pub fn picture(&self, width: u32, height: u32) -> Vec<u8> {
        self.size(width, height);
        let feature = json!({"name": "prefers-color-scheme", "value": "light"});
        self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]}));
        let params = json!({"format": "webp", "quality": 85});
        let picture = self.devtools("Page.captureScreenshot", params);
        base64::engine::general_purpose::STANDARD
            .decode(picture["data"].as_str().expect("a picture"))
            .expect("a picture in base64")
    }

    /// What the browser complained of since the last time: errors, refusals by the policy.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().expect("a list").iter();
        entries
            .filter(|entry| entry["level"] != "INFO" && entry["level"] != "DEBUG")
            .map(|entry| entry["message"].to_string())
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A test that has failed may find it gone; then there is nothing to close.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.try_ask("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
