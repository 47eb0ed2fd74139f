//! A warden alone, for the tests: `warden STATE [PREPARED]`. Runs until SIGTERM.

use rf_warden::WardenConfig;

fn main() {
    let state = std::env::args_os().nth(1).expect("the state directory is named").into();
    let server_uid = rustix::process::geteuid().as_raw();
    let pool = std::env::args().nth(2).map_or(0, |count| count.parse().expect("how many are prepared"));
    let config = WardenConfig { state, server_uid, pool, pool_base: 0, sandboxes_max: 64 };
    if let Err(error) = rf_warden::run(config) {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            eprintln!("{error}");
            cause = error.source();
        }
        std::process::exit(1);
    }
}
