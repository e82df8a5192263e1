//! Tests of logs: bounded, rotated, a line at a time.

use std::time::Duration;

use super::*;

fn written(limits: LogLimits, output: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("log");
    let log = Log::open(&path, limits).unwrap();
    let (out, mut out_in) = std::io::pipe().unwrap();
    let (err, err_in) = std::io::pipe().unwrap();
    drop(err_in);
    let collector = std::thread::spawn(move || collect(log, out.into(), err.into()));
    out_in.write_all(output).unwrap();
    drop(out_in);
    collector.join().unwrap();
    (home, path)
}

/// The tag and text of each line.
fn lines(path: &Path) -> Vec<(String, Vec<u8>)> {
    let text = fs::read(path).unwrap();
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let lines = lines.map(|line| {
        let line = line.strip_suffix(b"\n").unwrap();
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let tag = fields.nth(2).unwrap();
        (
            String::from_utf8(tag.into()).unwrap(),
            fields.next().unwrap().to_vec(),
        )
    });
    lines.collect()
}

#[test]
fn lines_are_kept_as_they_came_and_the_last_needs_no_end() {
    let (_home, path) = written(LogLimits::default(), b"one\n\n\xff two\nthree");
    let expected: [&[u8]; 4] = [b"one", b"", b"\xff two", b"three"];
    let expected = expected.map(|text| ("F".to_string(), text.to_vec()));
    assert_eq!(lines(&path), expected);
}

#[test]
fn a_line_longer_than_is_kept_together_comes_in_parts() {
    let long = [vec![b'a'; LINE], vec![b'b'; 10], vec![b'\n']].concat();
    let (_home, path) = written(LogLimits::default(), &long);
    let found = lines(&path);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], ("P".into(), vec![b'a'; LINE]));
    assert_eq!(found[1], ("F".into(), vec![b'b'; 10]));
}

#[test]
fn a_line_of_exactly_the_length_is_whole() {
    let long = [vec![b'a'; LINE], vec![b'\n']].concat();
    let (_home, path) = written(LogLimits::default(), &long);
    assert_eq!(lines(&path), [("F".to_string(), vec![b'a'; LINE])]);
}

#[test]
fn files_are_bounded_in_size_and_number() {
    let limits = LogLimits {
        file_size: 4096,
        files: 3,
    };
    let output = "some text of a container\n".repeat(1000);
    let (home, path) = written(limits, output.as_bytes());
    let mut names = Vec::new();
    for entry in fs::read_dir(home.path()).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().len() <= 4096);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    assert_eq!(lines(&path).last().unwrap().1, b"some text of a container");
}

#[test]
fn times_are_as_rfc_3339_has_them() {
    let cases = [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
        (1_795_426_550, 999_999_999, "2026-11-23T09:35:50.999999999Z"),
        (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
    ];
    for (seconds, nanos, text) in cases {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(timestamp(time), text);
    }
}
