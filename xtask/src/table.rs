//! The house as data: which crate may use which, and what it must never reach.

/// One crate of the house.
#[derive(Debug)]
pub(crate) struct Room {
    /// The folder below `crates/`, and the crate's name.
    pub(crate) name: &'static str,
    /// House crates it may name in `[dependencies]`. `ANY` for the yard, which is never a normal dependency.
    pub(crate) may_use: &'static [&'static str],
    /// Crates, ours or others', that it must not reach through its normal dependencies of the house, however far.
    pub(crate) must_never: &'static [&'static str],
    /// May hold `unsafe` code.
    pub(crate) may_be_unsafe: bool,
}

/// Whatever stands in the house.
pub(crate) const ANY: &[&str] = &["*"];

/// What has no place beneath an asynchronous runtime, a network or a database.
const NO_WORLD: &[&str] =
    &["tokio", "reqwest", "hyper", "axum", "http", "tokio-tungstenite", "rusqlite", "rf-store", "rf-server"];

/// The crates whose own sources make permits: the judge's, the gate that asks it, and what makes them for tests.
pub(crate) const JUDGES: &[&str] = &["rf-policy", "rf-gate", "rf-testkit"];

/// Every crate, from the cellar up. A crate that is not here may not be in `crates/`.
pub(crate) const HOUSE: &[Room] = &[
    Room { name: "rf-sys", may_use: &[], must_never: &["serde", "tracing", "tokio"], may_be_unsafe: true },
    Room {
        name: "rf-types",
        may_use: &[],
        must_never: &["tokio", "reqwest", "rustix", "libc", "tracing"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-policy",
        may_use: &["rf-types"],
        must_never: &["tokio", "http", "reqwest", "tracing", "rustix", "rf-sys"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-e2b",
        may_use: &["rf-types"],
        must_never: &["tokio", "rf-sys", "rustix", "axum", "reqwest"],
        may_be_unsafe: false,
    },
    Room { name: "rf-wire", may_use: &["rf-types"], must_never: &["tokio", "rf-sys", "rustix"], may_be_unsafe: false },
    Room {
        name: "rf-sandbox",
        may_use: &["rf-sys", "rf-types", "rf-policy", "rf-wire", "rf-template"],
        must_never: NO_WORLD,
        may_be_unsafe: false,
    },
    Room {
        name: "rf-template",
        may_use: &["rf-types"],
        // The warden builds the host's tree with it, so it may not bring the world.
        must_never: NO_WORLD,
        may_be_unsafe: false,
    },
    Room {
        name: "rf-images",
        may_use: &["rf-types", "rf-template"],
        must_never: &["rf-sandbox", "rf-store", "rf-sys", "axum"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-places",
        may_use: &["rf-wire", "rf-types", "rf-policy"],
        must_never: &["rf-store", "rf-gate", "rf-sandbox", "rf-sys", "axum"],
        may_be_unsafe: false,
    },
    Room { name: "rf-store", may_use: &["rf-types"], must_never: &["rf-sys", "axum"], may_be_unsafe: false },
    Room {
        name: "rf-gate",
        may_use: &["rf-policy", "rf-store", "rf-types"],
        must_never: &["rf-places", "rf-sandbox", "rf-sys", "axum"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-ledger",
        may_use: &["rf-types", "rf-store"],
        must_never: &["rf-places", "rf-sandbox", "rf-sys"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-client",
        may_use: &["rf-types", "rf-wire"],
        must_never: &["rf-store", "rf-server", "rf-gate", "rf-sys"],
        may_be_unsafe: false,
    },
    // The entry point of a program without a standard library is an unsafe attribute; nothing else in it is unsafe.
    Room {
        name: "rf-init",
        may_use: &["rf-sys", "rf-types", "rf-wire"],
        must_never: &["serde_json", "tokio", "reqwest", "rf-store"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-warden",
        may_use: &["rf-sys", "rf-sandbox", "rf-wire", "rf-types", "rf-template"],
        must_never: NO_WORLD,
        may_be_unsafe: false,
    },
    Room {
        name: "rf-server",
        may_use: &[
            "rf-places",
            "rf-gate",
            "rf-store",
            "rf-ledger",
            "rf-wire",
            "rf-types",
            "rf-policy",
            "rf-template",
            "rf-images",
            "rf-e2b",
        ],
        must_never: &["rf-sandbox", "rf-sys", "rf-warden", "rf-machine"],
        may_be_unsafe: false,
    },
    Room {
        name: "rf-machine",
        may_use: &["rf-places", "rf-wire", "rf-policy", "rf-types", "rf-sys"],
        must_never: &["rf-store", "rf-gate", "rf-server", "rf-sandbox"],
        may_be_unsafe: false,
    },
    Room {
        name: "ringfence",
        may_use: &[
            "rf-types",
            "rf-client",
            "rf-server",
            "rf-warden",
            "rf-machine",
            "rf-ledger",
            "rf-template",
            // For what it prints: the list of system calls and the probe of the host.
            "rf-sandbox",
        ],
        must_never: &["rf-testkit"],
        may_be_unsafe: false,
    },
    Room { name: "rf-testkit", may_use: ANY, must_never: &[], may_be_unsafe: false },
    Room { name: "rf-escape", may_use: ANY, must_never: &[], may_be_unsafe: false },
];

/// Crates that must not be in `Cargo.lock`: a second cryptographic provider, or a C library that the host must have.
pub(crate) const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "a second provider beside ring makes rustls panic at first use"),
    ("aws-lc-sys", "needs cmake, and is a second provider beside ring"),
    ("openssl-sys", "needs the host's OpenSSL"),
    ("native-tls", "needs the host's OpenSSL"),
];

/// Longest source file, in lines.
pub(crate) const LINES_MAX: usize = 800;
