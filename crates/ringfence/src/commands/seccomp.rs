//! `ringfence seccomp`: the system calls that a sandbox may make.

use std::process::ExitCode;

use anyhow::Result;
use rf_sandbox::seccomp::{CALLS_MAX, calls, table::Treatment};
use serde_json::json;

use crate::output::{self, Output};

pub(crate) fn seccomp(out: &Output) -> Result<ExitCode> {
    let treatment = |treatment| match treatment {
        Treatment::Allowed => "allowed",
        Treatment::ByArgument => "by argument",
        Treatment::Pretended => "pretended",
        Treatment::InitOnly => "init only",
    };
    let listed: Vec<_> = calls()
        .iter()
        .map(|call| {
            json!({
                "number": call.number,
                "name": call.name,
                "treatment": treatment(call.treatment),
                "reason": call.reason,
            })
        })
        .collect();
    let value = json!({ "count": listed.len(), "count_max": CALLS_MAX, "others": "ENOSYS", "calls": listed });
    out.value(&value, |_| {
        let rows = calls().iter().map(|call| {
            let words = [call.number.to_string(), call.name.to_owned(), treatment(call.treatment).to_owned()];
            [&words[..], &[call.reason.to_owned()]].concat()
        });
        format!(
            "{}\n\n{} calls; every other number answers ENOSYS, 32-bit and x32 entries kill the process",
            output::table(&["no", "call", "treatment", "why"], rows),
            calls().len()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
