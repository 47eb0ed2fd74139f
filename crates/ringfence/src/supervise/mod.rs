//! What `ringfence up` is made of: the children it keeps alive, the rights it takes from the server, and the look at
//! what each of them holds.

pub(crate) mod child;
pub(crate) mod inspect;
pub(crate) mod rights;
