//! quorumail-crds
