//! A warden alone, for the tests: `warden STATE [PREPARED [UNPACK_MS]]`. Runs until SIGTERM. And its unpacker.

use std::{os::fd::AsFd as _, process::ExitCode, time::Duration};

use rf_warden::WardenConfig;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, unpack, order] = &args[..]
        && unpack == "unpack"
    {
        let target = std::fs::File::open("/proc/self/fd/3").expect("descriptor 3 is a directory");
        return rf_template::unpack::unpacker_main(order, target.as_fd());
    }
    let state = args.get(1).expect("the state directory is named").into();
    let server_uid = rustix::process::geteuid().as_raw();
    let pool = args.get(2).map_or(0, |count| count.parse().expect("how many are prepared"));
    let unpack_time =
        args.get(3).map_or(rf_warden::UNPACK_TIME, |ms| Duration::from_millis(ms.parse().expect("milliseconds")));
    let config = WardenConfig { state, server_uid, pool, pool_base: 0, sandboxes_max: 64, unpack_time };
    if let Err(error) = rf_warden::run(config) {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            eprintln!("{error}");
            cause = error.source();
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
