"""Command lines to specs, names, sizes: what needs no host."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import environment, limits, sources
from sandbox.cli import run
from sandbox.errors import UsageError
from sandbox.spec import (
    Spec,
    SymlinkPolicy,
    Tree,
    TreeKind,
    check_name,
    parse_descriptor,
    parse_size,
    parse_symlinks,
    parse_user,
    validate,
)


def parse(*argv):
    return run.parse([word if isinstance(word, bytes) else word.encode() for word in argv])[0]


def test_the_first_word_that_is_no_option_ends_the_options():
    assert parse("-v", "ls", "-s", "x", "--", "y").command == (b"ls", b"-s", b"x", b"--", b"y")
    assert parse("--", "-s").command == (b"-s",)
    assert parse("-s", "a", "-vs", "b", "cmd").trees == (Tree(TreeKind.STATIC, b"a"), Tree(TreeKind.STATIC, b"b"))
    assert parse("-sa", "--static=b", "cmd", "-v").command == (b"cmd", b"-v")


def test_trees_keep_the_order_given():
    spec = parse("-d", "b:x", "-s", "a:y", "--dynamic-empty", "e", "-d", "c", "true")
    assert [tree.text for tree in spec.trees] == [b"b:x", b"a:y", b"e", b"c"]
    assert [tree.kind.name for tree in spec.trees] == ["DYNAMIC", "STATIC", "EMPTY", "DYNAMIC"]


def test_bytes_survive():
    assert parse(b"-s", b"\xff\n:\x80", b"cmd", b"\xfe").trees[0].text == b"\xff\n:\x80"
    assert parse(b"cmd", b"\xfe").command == (b"cmd", b"\xfe")


def test_two_command_lines_do_not_share_their_trees():
    assert len(parse("-s", "a", "x").trees) == 1
    assert len(parse("-s", "a", "x").trees) == 1


@pytest.mark.parametrize("argv", [["--bogus", "x"], ["--stat", "a", "x"], ["--mode", "none", "x"], ["-s"], ["--chdir"]])
def test_bad_options_are_usage_errors(argv):
    with pytest.raises(UsageError):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512M", 512 << 20), ("2g", 2 << 30), ("1KiB", 1024), ("3MB", 3 << 20), (" 7 ", 7), ("1T", 1 << 40)],
)
def test_sizes(text, size):
    assert parse_size(text, option="--x") == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "G", "1P", "1 G x", "9" * 30, "9" * 5000, "0x10", "١٢"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError):
        parse_size(text, option="--x")


@given(st.text())
def test_no_text_breaks_the_size_parser(text):
    with contextlib.suppress(UsageError):
        assert parse_size(text, option="--x") > 0


@pytest.mark.parametrize("text", ["9" * 5000, "١٢", "1_0", "-1", ""])
@pytest.mark.parametrize("parser", [parse_descriptor, limits.parse_count, limits.parse_duration, parse_user])
def test_what_is_no_number(parser, text):
    """Digits are ASCII's, and int() takes 4300 of them at most."""
    with pytest.raises(UsageError, match="is not"):
        parser(text) if parser is parse_user else parser(text, option="--x")


@pytest.mark.parametrize(
    "option",
    ["--chdir", "--scratch", "--log", "--seccomp", "--run", "--env-file", "--require-mount", "--allow-read", "--bind"],
)
def test_an_empty_value_is_no_path(option):
    with pytest.raises(UsageError, match=f"^{option}: the value is empty"):
        validate(parse(f"{option}=", "x"))


@pytest.mark.parametrize("name", [b"a/b", b"", b".", b"..", b"/", b"//", b"/a/../b", b"../x"])
def test_names_that_are_refused(name):
    with pytest.raises(UsageError):
        check_name(name, option="--static")


@pytest.mark.parametrize("name", [b"a", b"a b", b"\xff", b"...", b"/opt/x", b"-x", b"a\nb"])
def test_names_that_are_taken(name):
    assert check_name(name, option="--static") == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"src.tar.gz", b"src"),
        (b"/x/y.whl", b"y"),
        (b"a.b.zip", b"a.b"),
        (b".zip", b".zip"),
        (b"x.gz", b"x"),
        (b"plain", b"plain"),
        (b"a.tar.zst", b"a"),
    ],
)
def test_default_names(path, name):
    assert sources.default_name(path) == name


def test_symlink_policies():
    assert parse_symlinks(b"deny") == SymlinkPolicy(b"", True)
    assert parse_symlinks(b"a=b=follow") == SymlinkPolicy(b"a=b", False)
    with pytest.raises(UsageError):
        parse_symlinks(b"maybe")


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(command=(b"",)),
        Spec((b"x",), env=(b"=1",)),
        Spec((b"x",), env=(b"A=\0B=1",)),
        Spec((b"x",), unset_env=(b"",)),
    ],
)
def test_what_validation_refuses(spec):
    with pytest.raises(UsageError):
        validate(spec)


def test_the_environment_in_its_order(tmp_path):
    file = tmp_path / "env"
    file.write_bytes(b"# no\n\n A=file\nB=file\nC\nD=x=y\xff\n")
    spec = Spec((b"x",), env=(b"B=option", b"E"), env_files=(bytes(file),), unset_env=(b"F",))
    caller = {b"C": b"caller", b"E": b"caller", b"F": b"gone", b"G": b"kept"}
    assert environment.build(spec, caller) == {
        b"A": b"file",
        b"B": b"option",
        b"C": b"caller",
        b"D": b"x=y\xff",
        b"E": b"caller",
        b"G": b"kept",
    }


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    """Editors of Windows put one before the first line; anywhere else it is what somebody wrote."""
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbfA=1\nB=\xef\xbb\xbf\n")
    env = environment.build(Spec((b"x",), env_files=(bytes(file),)), {})
    assert env == {b"A": b"1", b"B": b"\xef\xbb\xbf"}
    file.write_bytes(b"\xef\xbb\xbf# A=1\n")
    assert environment.build(Spec((b"x",), env_files=(bytes(file),)), {}) == {}


def test_a_variable_that_is_not_set_is_refused():
    with pytest.raises(UsageError, match="not set"):
        environment.build(Spec((b"x",), env=(b"NOPE",)), {})
