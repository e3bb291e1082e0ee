//! quorumail-operator
