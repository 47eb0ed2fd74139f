//! Process 1 of a sandbox; see the library beside it.

#![no_std]
#![no_main]

rf_sys::guest_main!(rf_init::main);
