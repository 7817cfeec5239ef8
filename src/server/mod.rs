//! The server.
/// Runs it.
pub fn run(_config: crate::config::ServerConfig) -> Result<(), String> {
    Err("not yet".into())
}
