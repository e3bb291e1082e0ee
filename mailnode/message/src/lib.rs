//! What is done to one message: addresses, headers, delivery status notifications.
//!
//! Pure functions on bytes; no I/O and no clock. RFC 5322 (format), RFC 5321 4.4 (trace), RFC 3464 (DSN), RFC 2369 and 2919
//! (mailing lists).

pub mod address;
pub mod date;
pub mod dsn;
pub mod headers;
pub mod list;
pub mod received;
pub mod status;

pub use address::{Address, AddressError, Domain};
pub use date::rfc5322_date;
pub use dsn::{FailedRecipient, Report};
pub use headers::{MAX_RECEIVED, count_received};
pub use received::{Received, return_path};
pub use status::EnhancedStatus;
