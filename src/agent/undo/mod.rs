//! Taking back what a command did, whatever happens to the command, to the agent, or to the server.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `plan` | everything that is needed to run one undo, as data: it goes to the guard as one record |
//! | `tries` | when an undo is tried, checked, and given up: no process, no clock |
//! | `run` | running the tries with real processes; by the agent, and by the guard when the agent is gone |
//! | `exclusion` | keeping two undos of one attempt apart |
//!
//! The rules: the guard has the plan before the command starts; the first reason wins; the whole process tree of the
//! command is ended before its undo begins; an undo cannot be canceled. The reports are in
//! [`super::undo_reports`].

pub mod exclusion;
pub mod plan;
pub mod run;
pub mod tries;
