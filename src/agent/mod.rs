//! The agent.
/// Runs it.
pub fn run(_config: crate::config::AgentConfig) -> Result<(), String> {
    Err("not yet".into())
}
