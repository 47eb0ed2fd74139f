//! The messages of the services inside a sandbox, as both codecs of Connect write them: made from `proto/` by
//! `cargo run -p xtask --features codegen -- e2b-codegen`, and compared by the same with `--check`.

/// Processes; `proto/process/process.proto`.
#[path = "generated/process.rs"]
#[rustfmt::skip]
#[allow(
    clippy::all,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    unused_imports,
    unused_qualifications
)]
pub mod process;

/// Files and what happens to them; `proto/filesystem/filesystem.proto`.
#[path = "generated/filesystem.rs"]
#[rustfmt::skip]
#[allow(
    clippy::all,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    unused_imports,
    unused_qualifications
)]
pub mod filesystem;

#[cfg(test)]
mod tests {
    use buffa::{Message as _, MessageField};
    use serde_json::json;

    use super::{filesystem, process};

    #[test]
    fn a_message_in_json_is_as_the_clients_write_and_read_it() {
        let start: process::StartRequest = serde_json::from_value(json!({
            "process": {"cmd": "/bin/bash", "args": ["-l", "-c", "true"], "envs": {"A": "b"}, "unheard_of": 1},
            "stdin": false,
            "pty": {"size": {"cols": 80, "rows": "24"}},
        }))
        .unwrap();
        assert_eq!(start.process.args, ["-l", "-c", "true"]);
        assert_eq!(start.process.envs["A"], "b");
        assert_eq!((start.stdin, start.tag, start.process.cwd.as_deref()), (Some(false), None, None));
        assert_eq!((start.pty.size.cols, start.pty.size.rows), (80, 24));

        let output = process::__buffa::oneof::process_event::data_event::Output::Stdout(vec![0xff, 0].into());
        let data = process::process_event::DataEvent { output: Some(output) };
        let event = process::ProcessEvent { event: data.into() };
        let response = process::StartResponse { event: MessageField::some(event) };
        assert_eq!(serde_json::to_value(&response).unwrap(), json!({"event": {"data": {"stdout": "/wA="}}}));
        let end =
            process::process_event::EndEvent { exited: true, status: "exit status 0".into(), ..Default::default() };
        assert_eq!(serde_json::to_value(&end).unwrap(), json!({"exited": true, "status": "exit status 0"}));

        let signal: process::SendSignalRequest =
            serde_json::from_value(json!({"process": {"pid": 7}, "signal": "SIGNAL_SIGKILL"})).unwrap();
        assert_eq!(signal.signal, process::Signal::SIGNAL_SIGKILL);
    }

    #[test]
    fn an_entry_in_json_has_its_numbers_and_times_as_proto3_writes_them() {
        let entry = filesystem::EntryInfo {
            name: "a".into(),
            r#type: filesystem::FileType::FILE_TYPE_FILE.into(),
            size: 5,
            modified_time: MessageField::some(buffa_types::google::protobuf::Timestamp {
                seconds: 1_700_000_000,
                nanos: 500_000_000,
                ..Default::default()
            }),
            symlink_target: Some("/t".into()),
            ..Default::default()
        };
        let json = json!({"name": "a", "type": "FILE_TYPE_FILE", "size": "5", "symlinkTarget": "/t",
            "modifiedTime": "2023-11-14T22:13:20.500Z"});
        assert_eq!(serde_json::to_value(&entry).unwrap(), json);
        let back: filesystem::EntryInfo = serde_json::from_value(json).unwrap();
        assert_eq!(back, entry);
        let snake: filesystem::WatchDirRequest =
            serde_json::from_value(json!({"path": "x", "include_entry": true})).unwrap();
        assert!(snake.include_entry);
    }

    #[test]
    fn a_message_in_binary_has_the_numbers_of_the_wire() {
        let list = filesystem::ListDirRequest { path: "ab".into(), depth: 3 };
        assert_eq!(list.encode_to_vec(), [0x0a, 2, b'a', b'b', 0x10, 3]);
        let end = process::process_event::EndEvent { exit_code: -1, ..Default::default() };
        // sint32 is zigzag: -1 is 1.
        assert_eq!(end.encode_to_vec(), [0x08, 1]);
    }
}
