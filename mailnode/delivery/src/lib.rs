//! quorumail-delivery
