//! Against a real PostgreSQL, where one is installed.

#[path = "../../../../../tests/postgresql/mod.rs"]
mod postgresql;

use self::postgresql::PostgreSql;
use super::*;
use crate::server::state::db::script;

const ADDRESS: &str = "https://a:9410";

fn connector(url: &str) -> Postgres {
    Postgres::connector(url, None, None, Some(ADDRESS.into())).unwrap()
}

fn engine(url: &str) -> Box<dyn StorageEngine> {
    connector(url).connect(Holder::fresh())
}

#[test]
fn postgresql_keeps_every_promise() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    script::run(Some(ADDRESS), engine(&url), |before| {
        drop(before);
        engine(&url)
    });
}
