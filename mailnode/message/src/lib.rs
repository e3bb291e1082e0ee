//! What is done to one message: addresses, parsing, headers, delivery status notifications.
//!
//! Pure functions on bytes; no I/O and no clock. RFC 5322 (format), RFC 5321 4.4 (trace), RFC 3464 (DSN).

pub mod address;
pub mod dsn;
pub mod headers;
pub mod received;

pub use address::{Address, AddressError, Domain};
