//! Taking back what a command did, whatever happens to the command, to the agent, or to the server.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `machine` | the order of an attempt with an undo: arming, command, end, undo. No process, no clock |
//! | `plan` | everything that is needed to run one undo, as data: it goes to the guard as one record |
//! | `tries` | when an undo is tried, checked, and given up. No process, no clock |
//! | `run` | running the tries with real processes; by the agent, and by the guard when the agent is gone |
//! | `exclusion` | keeping two undos of one attempt apart |
//! | `deadman` | when the server was last heard of, and how often it is asked |
//! | `ledger` | what the server is to be told about undos |
//! | `execute` | running undos in the agent's threads |
//!
//! The rules: the guard has the plan before the command starts; the first reason wins; the whole process tree of the
//! command is ended before its undo begins; an undo cannot be canceled.

pub mod deadman;
pub mod exclusion;
pub(super) mod execute;
pub mod ledger;
pub mod machine;
pub mod plan;
pub mod run;
pub mod tries;
