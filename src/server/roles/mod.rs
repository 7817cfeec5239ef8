//! What a server is: the only one, or one of several, of which one leads and the others stand by.
//!
//! A single server leads from its start. One of several stands by until it has the lead, and then leads until it ends: one
//! that has lost the lead has nothing in memory that is still true, so its process starts anew ([`start_anew`]).
//!
//! | file | what it is for |
//! | --- | --- |
//! | `front` | what the edge calls: the server that leads, or the answers of a standby |
//! | `standby` | what a standby answers |
//! | `proof` | how a standby proves to the leader for whom it asks |
//! | `candidate` | the thread that stands by, takes the lead, loads, and then saves |
//! | `presence` | says to the other servers that this one is there, and compares their settings |
//! | `settings_proof` | what settings are compared by |
//! | `start_anew` | the process executes itself |

#[cfg(feature = "db")]
mod candidate;
mod front;
#[cfg(feature = "db")]
mod presence;
#[cfg(feature = "db")]
mod proof;
#[cfg(feature = "db")]
mod settings_proof;
#[cfg(feature = "db")]
mod standby;
#[cfg(feature = "db")]
mod start_anew;

#[cfg(feature = "db")]
pub use self::candidate::Candidate;
pub use self::front::Front;
#[cfg(feature = "db")]
pub use self::standby::Standby;
