//! Layers made to fill up, to lie about their size, to be cut off or damaged.

mod support;

use std::{
    fs,
    io::{Cursor, Read as _, Write as _},
    os::fd::AsFd as _,
};

use rf_template::unpack::{BoundKind, Caps, UnpackError, unpack};
use sha2::{Digest as _, Sha256};
use support::{Field, Layer, caps, hex, untouched};

#[test]
fn sparse_files_have_their_holes() {
    let field = Field::new();
    let mut old = Layer::default().raw(b'S', b"old", b"", 0o644, 4, b"");
    // The body comes after the header, which is patched first: `ustar  `, two segments, the real size.
    old = old
        .patch(257, b"ustar  \0")
        .patch(386, b"00000010000\x0000000000004\0")
        .patch(410, b"00004000000\x0000000000000\0")
        .patch(483, b"00004000000\0");
    old.0.extend_from_slice(b"DATA");
    old.0.resize(old.0.len().next_multiple_of(512), 0);
    let map = format!("{:\0<512}DATA", "1\n8192\n4\n");
    let bytes = old
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new"),
            ("GNU.sparse.realsize", b"1048576"),
        ])
        .file("GNUSparseFile.1/new", &map)
        .pax(&[("GNU.sparse.map", b"4096,4"), ("GNU.sparse.size", b"8192")])
        .file("middle", "DATA")
        .end();
    field.unpack(&bytes).unwrap();
    let check = |name: &str, size: u64, at: usize| {
        let meta = field.path(name).metadata().unwrap();
        assert_eq!(meta.len(), size, "{name}");
        let body = fs::read(field.path(name)).unwrap();
        assert_eq!(&body[at..at + 4], b"DATA", "{name}");
        assert!(body[..at].iter().chain(&body[at + 4..]).all(|&byte| byte == 0), "{name}");
    };
    check("old", 1 << 20, 4096);
    check("new", 1 << 20, 8192);
    check("middle", 8192, 4096);
    // Maps that overlap, pass the size, or tell of more data than there is.
    for (map, size, body) in
        [("0,4,2,4", "8", "12345678"), ("4,8", "8", "12345678"), ("0,8", "8", "1234"), ("1", "8", "1")]
    {
        let bytes = Layer::default()
            .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())])
            .file("bad", body)
            .end();
        let error = Field::new().unpack(&bytes).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed("a sparse file's map")), "{map}: {error}");
    }
    // A hole of a terabyte is refused by the cap of one file.
    let bytes =
        Layer::default().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1099511627776")]).file("h", "x").end();
    bound(&bytes, &caps(), BoundKind::FileBytes);
}

#[track_caller]
fn bound(bytes: &[u8], caps: &Caps, expected: BoundKind) {
    match Field::new().unpack_within(bytes, caps) {
        Err(UnpackError::Bound { what, .. }) => assert_eq!(what, expected),
        other => panic!("{expected:?} did not hold: {other:?}"),
    }
}

#[test]
fn every_cap_holds_at_one_past_it_and_not_at_it() {
    let two = Layer::default().file("a", "12345").file("b", "67890").end();
    let with = |change: fn(&mut Caps)| {
        let mut caps = caps();
        change(&mut caps);
        caps
    };
    let fits = |bytes: &[u8], change: fn(&mut Caps)| {
        Field::new().unpack_within(bytes, &with(change)).unwrap();
    };
    fits(&two, |caps| caps.entries_max = 2);
    bound(&two, &with(|caps| caps.entries_max = 1), BoundKind::Entries);
    fits(&two, |caps| caps.file_bytes_max = 5);
    bound(&two, &with(|caps| caps.file_bytes_max = 4), BoundKind::FileBytes);
    fits(&two, |caps| caps.files_bytes_max = 10);
    bound(&two, &with(|caps| caps.files_bytes_max = 9), BoundKind::FilesBytes);
    fits(&two, |caps| caps.tar_bytes_max = 3072);
    bound(&two, &with(|caps| caps.tar_bytes_max = 3071), BoundKind::TarBytes);
    let deep = Layer::default().file("1/2/3/4", "").end();
    fits(&deep, |caps| caps.depth_max = 4);
    bound(&deep, &with(|caps| caps.depth_max = 3), BoundKind::Depth);
    // Made directories count as entries: `1`, `1/2`, `1/2/3` and the file.
    fits(&deep, |caps| caps.entries_max = 4);
    bound(&deep, &with(|caps| caps.entries_max = 3), BoundKind::Entries);
    // Depth through links counts as what it comes to.
    let folded = Layer::default().dir("1/2/3").symlink("s", "1/2/3").file("s/4/5", "").end();
    fits(&folded, |caps| caps.depth_max = 5);
    bound(&folded, &with(|caps| caps.depth_max = 4), BoundKind::Depth);
    let long = Layer::default().file("12345678", "").end();
    fits(&long, |caps| caps.path_bytes_max = 8);
    bound(&long, &with(|caps| caps.path_bytes_max = 7), BoundKind::PathBytes);
    let target = Layer::default().symlink("s", "12345678").end();
    bound(&target, &with(|caps| caps.path_bytes_max = 7), BoundKind::PathBytes);
    let pax = Layer::default().pax(&[("comment", &[b'c'; 1000])]).file("a", "").end();
    fits(&pax, |caps| caps.header_bytes_max = 1014);
    bound(&pax, &with(|caps| caps.header_bytes_max = 1013), BoundKind::HeaderBytes);
}

#[test]
fn sizes_that_are_lies_are_refused_before_anything_is_read() {
    // 8 GiB minus one by the header, exabytes by the extended header and in base 256; the body is not there.
    let huge = Layer::default().raw(b'0', b"a", b"", 0o644, 0o77_777_777_777, b"");
    let small = Caps { file_bytes_max: 1 << 20, ..caps() };
    bound(&huge.clone().end(), &small, BoundKind::FileBytes);
    bound(&Layer::default().pax(&[("size", b"9223372036854775807")]).file("a", "").end(), &small, BoundKind::TarBytes);
    let base256 =
        Layer::default().raw(b'0', b"a", b"", 0o644, 0, b"").patch(124, &[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]);
    bound(&base256.end(), &small, BoundKind::TarBytes);
    let long_name = Layer::default().raw(b'L', b"l", b"", 0, 1 << 32, b"");
    bound(&long_name.end(), &small, BoundKind::HeaderBytes);
    // With a size that is allowed but not there, the archive is cut off.
    let error = Field::new().unpack(&huge.0).unwrap_err();
    assert!(matches!(error, UnpackError::Truncated), "{error}");
    for bad in [
        Layer::default().pax(&[("size", b"18446744073709551616")]).file("a", ""),
        Layer::default().pax(&[("size", b"-1")]).file("a", ""),
        Layer::default().pax(&[("size", b"")]).file("a", ""),
        Layer::default().raw(b'0', b"a", b"", 0o644, 0, b"").patch(124, &[0xff; 12]),
        Layer::default().raw(b'0', b"a", b"", 0o644, 0, b"").patch(124, b"0000000009\0"),
        Layer::default().raw(b'x', b"p", b"", 0, 5, b"99 a="),
        Layer::default().raw(b'x', b"p", b"", 0, 5, b"5 ab\n"),
        Layer::default().raw(b'x', b"p", b"", 0, 5, b"xxxxx"),
        Layer::default().raw(b'x', b"p", b"", 0, 3, b"2 \n"),
    ] {
        let error = Field::new().unpack(&bad.end()).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed(_)), "{error}");
    }
}

#[test]
fn bombs_are_refused_by_their_ratio() {
    // 96 MiB of zeros compress a thousandfold with gzip and more with zstd.
    let header = Layer::default().raw(b'0', b"zeros", b"", 0o644, 96 << 20, b"").0;
    let archive = || header.as_slice().chain(std::io::repeat(0).take((96 << 20) + 1024));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut archive(), &mut gzip).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(archive(), 1).unwrap();
    assert!(gzip.len() < 1 << 18 && zstd.len() < 1 << 18);
    for bomb in [&gzip, &zstd] {
        bound(bomb, &caps(), BoundKind::Ratio);
        // Control: with the ratio let go the same bytes are a file.
        let field = Field::new();
        let done = field.unpack_within(bomb, &Caps { ratio_max: u32::MAX, ..caps() }).unwrap();
        assert_eq!(done.bytes, 96 << 20);
        // And the bound of all bytes holds whatever the ratio.
        bound(bomb, &Caps { ratio_max: u32::MAX, files_bytes_max: 1 << 20, ..caps() }, BoundKind::FilesBytes);
    }
}

#[test]
fn an_archive_cut_off_anywhere_is_refused() {
    let whole = Layer::default().dir("d").file("d/a", &"x".repeat(600)).symlink("l", "d/a").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(Cursor::new(&whole), 1).unwrap();
    // Up to the first block of zeros the archive says that it goes on.
    for length in (1..=whole.len() - 1024).step_by(37) {
        assert!(Field::new().unpack(&whole[..length]).is_err(), "cut at {length}");
    }
    for bytes in [&gzip, &zstd] {
        for length in 1..bytes.len() {
            assert!(Field::new().unpack(&bytes[..length]).is_err(), "cut at {length} of {}", bytes.len());
        }
    }
    // Control: whole, all three are fine.
    for bytes in [&whole, &gzip, &zstd] {
        Field::new().unpack(bytes).unwrap();
    }
    // An archive whose writer forgot the end is taken when its digest is known.
    let marked = &whole[..whole.len() - 1024];
    let field = Field::new();
    let target = fs::File::open(field.target()).unwrap();
    let digest = format!("sha256:{}", hex(&Sha256::digest(marked)));
    unpack(Cursor::new(marked), target.as_fd(), &caps(), Some(&digest)).unwrap();
    assert!(matches!(Field::new().unpack(marked), Err(UnpackError::Truncated)));
}

#[test]
fn a_header_with_a_wrong_checksum_is_refused() {
    let good = Layer::default().file("a", "text").end();
    Field::new().unpack(&good).unwrap();
    for at in [0, 110, 156, 300] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(matches!(Field::new().unpack(&bad), Err(UnpackError::Malformed(_))), "byte {at}");
    }
}

#[test]
fn unknown_kinds_are_refused_and_global_headers_ignored() {
    for kind in [b'M', b'V', b'D', b'Z', 0xff] {
        let error = Field::new().unpack(&Layer::default().raw(kind, b"a", b"", 0, 0, b"").end()).unwrap_err();
        assert!(matches!(error, UnpackError::Refused { why: "it is of an unknown kind", .. }), "{error}");
    }
    let field = Field::new();
    let bytes =
        Layer::default().raw(b'g', b"pax_global_header", b"", 0, 17, b"17 path=../evil\n\n").file("a", "text").end();
    field.unpack(&bytes).unwrap();
    assert_eq!(fs::read_to_string(field.path("a")).unwrap(), "text");
    // An entry whose headers never end.
    let mut chain = Layer::default();
    for _ in 0..20 {
        chain = chain.pax(&[("comment", b"again")]);
    }
    assert!(matches!(Field::new().unpack(&chain.file("a", "").end()), Err(UnpackError::Malformed(_))));
}

/// Whatever bytes come, unpacking ends with an answer and nothing is touched outside. Each failure prints its seed.
#[test]
fn damaged_archives_never_reach_outside() {
    let good = Layer::default()
        .dir("d")
        .symlink("door", "../outside")
        .file("door/x", "y")
        .pax(&[("path", b"p/q"), ("mtime", b"-1.5"), ("size", b"3")])
        .file("short", "abc")
        .hard_link("h", "d/../d/f")
        .file(".wh.gone", "")
        .raw(b'S', b"sparse", b"", 0o644, 0, b"")
        .end();
    let field = Field::new();
    for seed in 0..1_000_u64 {
        let mut bytes = good.clone();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        for _ in 0..1 + random() % 4 {
            let at = usize::try_from(random() % bytes.len() as u64).unwrap();
            bytes[at] = random().to_le_bytes()[0];
            // Half of them get past the checksum.
            if seed % 2 == 0 {
                let start = at / 512 * 512;
                let mut block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                Layer::seal(&mut block);
                bytes[start..start + 512].copy_from_slice(&block);
            }
        }
        let small = Caps { file_bytes_max: 1 << 20, tar_bytes_max: 1 << 20, ..caps() };
        drop(field.unpack_within(&bytes, &small));
        assert_eq!(field.outside(), untouched(), "seed {seed}");
    }
}
