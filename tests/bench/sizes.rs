//! The size of the binaries.

use crate::setting::Setting;
use crate::table::Row;
use std::path::Path;

/// With all features, in MB.
const ALL_MB: f64 = 9.0;
/// With the agent alone, in MB.
const AGENT_MB: f64 = 3.0;

/// Of the release binary and of the agent alone.
pub fn sizes(setting: &Setting) -> Result<Vec<Row>, String> {
    let all = row("release binary, all features", &setting.binary, ALL_MB)?;
    let name = "`--no-default-features --features agent`";
    let agent = match &setting.agent_only {
        Some(path) => row(name, path, AGENT_MB)?,
        None => Row::not_measured(name, "SIDEBIKE_AGENT_ONLY is not set"),
    };
    Ok(vec![all, agent])
}

fn row(what: &str, path: &Path, most: f64) -> Result<Row, String> {
    let metadata = std::fs::metadata(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let size = metadata.len() as f64 / 1e6;
    Ok(Row::new(what, format!("{size:.2} MB")).target(format!("< {most} MB"), size < most))
}
