//! The gRPC contracts of a mailnode: [`admin`] (operator, CLI and `quorumail dev` to mailnode) and [`peer`]
//! (mailnode to mailnode). Only the generated code lives here; what the calls mean is told in the `.proto` files.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// Operator, CLI and `quorumail dev` to mailnode; port 9443.
pub mod admin {
    tonic::include_proto!("quorumail.admin.v1");
}

/// Mailnode to mailnode; port 9444.
pub mod peer {
    tonic::include_proto!("quorumail.peer.v1");
}

mod secret;
