//! Files on their way from people to machines, and back.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `range` | what `Range`, `Content-Range` and `offset` mean |

pub mod range;
