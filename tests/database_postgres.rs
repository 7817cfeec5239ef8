//! `sidebike db …` with PostgreSQL, and a server on what it has filled.

mod common;
mod postgresql;

use common::{Folder, SIDEBIKE, Server, id, task, wait_for};
use postgresql::PostgreSql;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(SIDEBIKE);
    command.args(arguments).env("RUST_LOG", "off");
    command.env_remove("SIDEBIKE_DB_PASSWORD");
    command.output().expect("the binary starts")
}

fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("words in UTF-8");
    assert!(output.status.success(), "{}", text(output.stderr));
    text(output.stdout)
}

fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).expect("words in UTF-8")
}

#[test]
fn a_file_moves_into_postgresql_and_a_server_goes_on_with_it() {
    let Some(database) = PostgreSql::shared() else {
        return;
    };
    let folder = Folder::new();
    let (file, url) = (folder.file("db"), database.database());
    std::fs::copy("tests/data/v1.db", &file).expect("the file is in the repository");
    let why = refused(&["db", "check", &url]);
    assert!(why.contains("there is nothing of sidebike in it"), "{why}");
    assert_eq!(database.sql(&url, "SELECT to_regclass('sb_leader')"), "");

    let moved = said(&["db", "copy", &file, &url]);
    assert!(
        moved.starts_with(&format!("{file} was copied to {url}: ")),
        "{moved}"
    );
    let (_, amount) = moved.split_once(": ").expect("it says how much");
    let checked = said(&["db", "check", &url]);
    assert_eq!(checked, format!("{url} is whole: {amount}"));
    assert_eq!(
        said(&["db", "export", &url]),
        said(&["db", "export", &file])
    );
    let why = refused(&["db", "copy", &file, &url]);
    assert!(why.contains("only an empty one is filled"), "{why}");

    // What is there is served, and more comes to it.
    let advertise = "http://127.0.0.1:1";
    let server = Server::with(&[
        "--db",
        &url,
        "--advertise",
        advertise,
        "--max-tasks",
        "1000",
    ]);
    wait_for("it leads", || server.get("/leader").status == 200);
    assert_eq!(server.metric("sidebike_db_synchronous"), 0);
    let task = server.submit(task("true"));
    let exported = said(&["db", "export", &url]);
    assert!(exported.contains(id(&task)), "{exported}");
    said(&["db", "check", &url]);
    drop(server);

    // What does not fit together is no file to start with.
    database.sql(
        &url,
        "DELETE FROM sb_task WHERE task = (SELECT max(task) FROM sb_execution)",
    );
    let why = refused(&["db", "check", &url]);
    assert!(why.contains("contradicts itself"), "{why}");
}

#[test]
fn the_schema_can_be_made_by_somebody_else() {
    let Some(database) = PostgreSql::shared() else {
        return;
    };
    let url = database.database();
    let schema = said(&["db", "schema"]);
    database.sql(&url, &schema);
    database.sql(&url, &schema);
    let of = |columns: &str| database.sql(&url, &format!("SELECT {columns} FROM sb_leader"));
    assert_eq!(of("count(*), min(term), min(length(secret))"), "1|0|32");
    assert_eq!(
        said(&["db", "check", &url]),
        format!("{url} is whole: 0 tasks, 0 executions, 0 machines\n")
    );
}

#[test]
fn a_wrong_place_is_refused_without_its_password() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["db", "check", "postgres://u:S3CRET@h"],
            "the name of the database",
        ),
        (
            &["db", "export", "postgres://u:S3CRET@127.0.0.1:1/d"],
            "127.0.0.1:1: cannot connect",
        ),
        (
            &["db", "copy", "none", "postgres://u:S3CRET@127.0.0.1:1/d"],
            "cannot open none",
        ),
        (
            &["db", "copy", "postgres://u:S3CRET@h/d", "postgres://u@h/d"],
            "must be a file",
        ),
        (&["db", "copy", "a", "b"], "must be postgres://"),
    ];
    for (arguments, words) in cases {
        let why = refused(arguments);
        assert!(why.contains(words), "{why}");
        assert!(!why.contains("S3CRET"), "{why}");
    }
}
