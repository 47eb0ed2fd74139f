//! What an unpacker's report says to whoever started it.

use rf_template::unpack::{Caps, Order, REPORT_BYTES_MAX, Report, Unpacked};
use rf_types::{Code, Fault};

fn unpacked(diff_id: &str) -> Unpacked {
    Unpacked { bytes: 1, files: 2, diff_id: diff_id.to_owned(), ..Unpacked::default() }
}

fn line(report: &Report) -> Vec<u8> {
    serde_json::to_vec(report).unwrap()
}

#[test]
fn a_report_counts_only_for_the_layer_that_was_asked_for() {
    let good = line(&Report::Unpacked(unpacked("sha256:aa")));
    assert_eq!(Report::read(&good, "sha256:aa"), Ok(unpacked("sha256:aa")));
    assert_eq!(Report::read(&good, "sha256:bb").unwrap_err().code, Code::TemplateUnavailable);
    let fault = Fault::new(Code::TooLarge, "too much", "less");
    assert_eq!(Report::read(&line(&Report::Failed(fault.clone())), "sha256:aa"), Err(fault));
}

#[test]
fn a_broken_unpacker_is_a_fault_and_never_a_layer() {
    let padded = [line(&Report::Unpacked(unpacked("sha256:aa"))), vec![b' '; REPORT_BYTES_MAX]].concat();
    for bytes in
        [b"".as_slice(), b"{", b"{\"unpacked\":{}}", b"{\"unpacked\":{\"bytes\":1},\"failed\":2}", b"\xff\xfe", &padded]
    {
        assert_eq!(Report::read(bytes, "sha256:aa").unwrap_err().code, Code::TemplateUnavailable);
    }
}

#[test]
fn the_order_is_one_argument_and_reads_back() {
    let order = Order { caps: Caps::STANDARD, diff_id: format!("sha256:{}", "0".repeat(64)) };
    let argument = order.argument();
    assert!(argument.len() < 1024 && !argument.contains('\0'));
    assert_eq!(serde_json::from_str::<Order>(&argument).unwrap(), order);
    assert!(serde_json::from_str::<Order>(&argument.replacen('{', "{\"more\":1,", 1)).is_err());
}
