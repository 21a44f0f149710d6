use super::*;

#[test]
fn a_policy_says_what_differs_from_the_defaults() {
    assert_eq!(Policy::parse(b""), Ok(STRICT));
    let text =
        b"images = \"trusted\"\ngroups = [5]\nbuilder_uid = 7\nbuilder_gid = 8\ntrusted_directories = [\"/a\"]\n\
        store = \"/var/lib/sandbox\"\nallow_new_privs = false\n[limits]\nimage_bytes = 1\ntmpfs_bytes = 2\n";
    let policy = Policy::parse(text).unwrap();
    assert_eq!((policy.images, policy.groups, policy.builder), (Images::Trusted, vec![5], (7, 8)));
    assert_eq!((policy.image_bytes, policy.tmpfs_bytes, policy.memfd_bytes), (1, 2, STRICT.memfd_bytes));
    assert_eq!(policy.trusted, [b"/a"]);
}

#[test]
fn unknown_words_are_refused() {
    for text in [
        "x = 1",
        "images = \"all\"",
        "images = true",
        "groups = [\"a\"]",
        "groups = [4294967296]",
        "builder_uid = 4294967295",
        "trusted_directories = [\"a\"]",
        "allow_new_privs = 1",
        "loop_devices = true",
        "[limits]\nimages = \"any\"",
        "[x]\nimage_bytes = 1",
    ] {
        assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
    }
}
