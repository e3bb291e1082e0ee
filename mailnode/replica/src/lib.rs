//! A node's replicas: the store as the state machine of consensus, and how what their disk has lost comes back.
//!
//! Store and consensus know nothing of each other. Here they meet, and here is what needs both: rot that is found in the
//! journal ([`scrub`]), bodies that are fetched from other replicas ([`repair`]), segments that the logs leave behind
//! ([`retire`]). Who waits, how fast, what is counted and what outlives a restart is left to whoever runs it: a node, with
//! threads and a clock, or the simulation, with neither.

pub mod machine;
pub mod repair;
pub mod retire;
pub mod scrub;

pub use machine::Machine;
pub use repair::{Mended, Mender};
pub use retire::{Left, leave_behind};
pub use scrub::{Looked, Rot, look};
