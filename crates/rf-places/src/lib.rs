//! Places: the sandboxes and machines in which operations run, the life of an exec, and the choice of a place.
//!
//! Decides nothing about who may; every function that does something for a user takes a [`rf_policy::Permit`].

pub mod place;
