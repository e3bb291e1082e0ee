//! What tells whose a message is: SPF, DKIM and DMARC of mail that comes in, DKIM signatures on mail that goes out.
//!
//! Follows RFC 7208 (SPF), RFC 6376, 8301 and 8463 (DKIM), RFC 9989 (DMARC) and RFC 8601 (Authentication-Results). SPF,
//! DMARC and the verification of signatures are those of `mail-auth`; canonical forms, signing and the field are our own.
//! Knows DNS, and nothing of SMTP or of where keys come from.

pub mod canonical;
pub mod check;
pub mod dns;
pub mod results;
pub mod sign;
pub mod sts;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use check::{Checker, Incoming};
pub use results::{Dkim, Dmarc, Outcome, Policy, Spf, Verdict};
pub use sign::{Algorithm, KeyError, SigningKey, author, sign};
