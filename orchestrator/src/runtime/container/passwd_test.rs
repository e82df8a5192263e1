//! Tests of users: as an image knows them, and by number.

use super::*;

fn root() -> (tempfile::TempDir, Rooted) {
    let home = tempfile::tempdir().unwrap();
    let etc = home.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:web:/srv:/bin/sh\n";
    std::fs::write(etc.join("passwd"), passwd).unwrap();
    let group = "root:x:0:\nweb:x:34:\nlogs:x:4:other,web\nweird:x:nine:web\n";
    std::fs::write(etc.join("group"), group).unwrap();
    let root = Rooted::open(home.path()).unwrap();
    (home, root)
}

fn who(uid: u32, gid: u32, groups: &[u32]) -> Identity {
    Identity {
        uid,
        gid,
        groups: groups.into(),
    }
}

#[test]
fn users_are_names_or_numbers() {
    let (_home, root) = root();
    let cases = [
        ("", who(0, 0, &[])),
        ("web", who(33, 34, &[4])),
        ("33", who(33, 34, &[4])),
        ("1000", who(1000, 0, &[])),
        ("1000:1001", who(1000, 1001, &[])),
        ("web:logs", who(33, 4, &[])),
    ];
    for (user, identity) in cases {
        assert_eq!(super::identity(&root, user).unwrap(), identity, "{user:?}");
    }
}

#[test]
fn somebody_unknown_is_refused_by_name() {
    let (_home, root) = root();
    for user in ["nobody", "web:nobody", ":", "-1"] {
        let error = identity(&root, user).unwrap_err().to_string();
        assert!(error.contains("give a number"), "{user}: {error}");
    }
}

#[test]
fn a_list_of_users_outside_of_the_root_is_not_read() {
    let (home, root) = root();
    let passwd = home.path().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    std::os::unix::fs::symlink("/../../../../etc/passwd", &passwd).unwrap();
    // The link leads to itself: in the root, that is.
    assert!(identity(&root, "root").is_err());
}
