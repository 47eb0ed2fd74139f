//! How our ids are written on the wire: without the underscore, for a client puts them into host names.

use rf_types::{SandboxId, SnapshotId};

/// A sandbox's id as `sbx` and 32 hex digits.
#[must_use]
pub fn sandbox_text(id: SandboxId) -> String {
    id.to_string().replacen("sbx_", "sbx", 1)
}

/// The id that [`sandbox_text`] wrote; nothing for every other text.
#[must_use]
pub fn sandbox_of(text: &str) -> Option<SandboxId> {
    format!("sbx_{}", text.strip_prefix("sbx")?).parse().ok()
}

/// A snapshot's id as `snp` and 32 hex digits. It names a template, too.
#[must_use]
pub fn snapshot_text(id: SnapshotId) -> String {
    id.to_string().replacen("snp_", "snp", 1)
}

/// The id that [`snapshot_text`] wrote; nothing for every other text.
#[must_use]
pub fn snapshot_of(text: &str) -> Option<SnapshotId> {
    format!("snp_{}", text.strip_prefix("snp")?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_id_comes_back_and_is_no_sandboxs() {
        let id: SnapshotId = "snp_00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(snapshot_text(id), "snp00112233445566778899aabbccddeeff");
        assert_eq!(snapshot_of(&snapshot_text(id)), Some(id));
        assert_eq!(sandbox_of(&snapshot_text(id)), None);
        for other in ["", "snp", "snp_00112233445566778899aabbccddeeff", "sbx00112233445566778899aabbccddeeff"] {
            assert_eq!(snapshot_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_id_has_one_text_and_comes_back() {
        let id: SandboxId = "sbx_00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(sandbox_text(id), "sbx00112233445566778899aabbccddeeff");
        assert_eq!(sandbox_of(&sandbox_text(id)), Some(id));
        for other in ["", "sbx", "sbx_00112233445566778899aabbccddeeff", "sbx00112233445566778899AABBCCDDEEFF", "sbx+1"]
        {
            assert_eq!(sandbox_of(other), None, "{other}");
        }
    }
}
