//! What the page says of several servers, in a real browser; see page.rs.
#![cfg(feature = "pg")]

mod browser;
mod common;
mod postgresql;
mod several;

use browser::{assert_quiet, url, with_browser};
use common::{Folder, SIDEBIKE};
use postgresql::PostgreSql;
use several::Servers;
use std::fs;

/// Looked at by way of the standby, which forwards all of it: other binaries are noticed by their bytes.
#[test]
fn the_servers_are_shown_and_whose_binaries_differ() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    with_browser(|browser| {
        let folders = [Folder::new(), Folder::new()];
        for folder in &folders {
            fs::copy(SIDEBIKE, folder.file("sidebike-aarch64-linux")).unwrap();
        }
        let flags = |folder: &Folder| vec!["--binaries".to_owned(), folder.path().to_owned()];
        let urls = vec![postgres.database(); 2];
        let mut servers = Servers::with_flags(urls, folders.iter().map(flags).collect());
        let leader = servers.leader();
        let standby = 1 - leader;
        let address = |n: usize| format!("http://{}", servers.addresses[n]);
        let (leads, stands_by) = (address(leader), address(standby));
        browser.open(&url(&servers.servers[standby], ""));
        browser.press("o");
        browser.sees("#overview-facts", &format!("Servers\n{leads} leads"));
        browser.sees("#overview-facts", &format!("; {stands_by} stands by"));
        browser.fits_a_phone();
        let facts = "return document.getElementById('overview-facts').textContent";
        let facts = browser.run(facts).as_str().unwrap().to_owned();
        assert!(!facts.contains("OTHER"), "{facts}");
        assert_quiet(browser, &[]);

        servers.servers[standby].process.kill_9();
        let mut image = fs::read(SIDEBIKE).unwrap();
        image.push(0);
        fs::write(folders[standby].file("sidebike-aarch64-linux"), image).unwrap();
        servers.restart(standby);
        let process = &servers.servers[standby].process;
        process.logged(&format!("OTHER BINARIES THAN THOSE OF {leads}"));
        browser.open(&url(&servers.servers[leader], "#/overview"));
        browser.sees("#overview-facts", "OTHER binaries");
    });
}
