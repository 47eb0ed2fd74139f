//! The door for the E2B clients: the same gate, the same places, in the words of their wire format.
