//! Attacks on a sandbox, run against the whole system on a real kernel.
//!
//! All of it is in `tests/` and `probes/`: a probe is a small program that prints `GOT` when the attack works and
//! `REFUSED` with the error when the kernel refuses it. Each runs twice, as the control without the layer (outside of a
//! sandbox, where it must work, or the refusal would mean nothing) and inside, where one exact refusal is expected.
