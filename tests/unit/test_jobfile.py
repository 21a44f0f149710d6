"""Job files: what each key becomes, what is refused and on which line, and that no option is forgotten."""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import jobfile, option_file, toml_lines
from sandbox.cli import job as job_command
from sandbox.cli import run, run_options
from sandbox.errors import UsageError
from sandbox.jobfile import JobFile
from sandbox.limits import Limits
from sandbox.option_file import Opened
from sandbox.spec import Spec, Tree, TreeKind
from tests.support import job_keys

ACTIONS = run.make_parser()[1]
KEYS = option_file.keys(ACTIONS)


def load(text: str) -> JobFile:
    return JobFile(Opened("f.toml", text.encode()), KEYS, run_options.LIMITS)


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(text).refuse_problems()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(here, text: str, *argv: str) -> Spec:
    (here / "sandbox.toml").write_text(text)
    return run.parse([os.fsencode(word) for word in argv])[0]


# -- keys come from the options --------------------------------------------------------------------------------


def test_every_option_is_a_key_or_has_a_reason_not_to_be():
    options = {max(action.option_strings, key=len)[2:] for action in ACTIONS}
    assert options == KEYS.keys() | option_file.NOT_KEYS.keys()
    assert not KEYS.keys() & option_file.NOT_KEYS.keys()
    # "limits" may be an option as well, with a string; a table is then the limits.
    assert not KEYS.keys() & (set(jobfile.OWN_KEYS) - {"limits"})


def test_every_path_of_the_host_in_an_option_is_found():
    """Metavars that name a file, a directory or a source, but none of the host that counts from the file."""
    inside = {
        "chdir": "counts from where the job starts, or is in a tree",
        "run": "is in a tree",
        "hide": "is a place inside",
        "job-file": "is no key",
    }
    for action in ACTIONS:
        name = max(action.option_strings, key=len)[2:]
        if re.search(r"SRC|FILE|DIR|PATH", str(action.metavar)) and name not in inside:
            assert action.metavar in {"[NAME:]SRC", *jobfile.PLACES}, (
                f"tell sandbox/jobfile.py where the path is in --{name}"
            )
            if isinstance(action.default, str):
                assert jobfile.place(action.metavar, "/b", action.default) == action.default, "a default is no path"


@pytest.mark.parametrize(
    ("metavar", "text", "expected"),
    [
        ("[NAME:]SRC", "a.zip", "/b/a.zip"),
        ("[NAME:]SRC", "n:a.zip", "n:/b/a.zip"),
        ("[NAME:]SRC", "/in/side:a.zip", "/in/side:/b/a.zip"),
        ("[NAME:]SRC", "n:/a.zip", "n:/a.zip"),
        ("[NAME:]SRC", "@image:v1", "@image:v1"),
        ("[NAME:]SRC", "n:@image+a.zip+/c", "n:@image+/b/a.zip+/c"),
        ("SRC[:DEST]", "x:/y", "/b/x:/y"),
        ("SRC[=DEST]", "dist=out", "dist=/b/out"),
        ("SRC[=DEST]", "dist", "dist"),
        ("FILE|-|fd:N", "-", "-"),
        ("FILE|-|fd:N", "fd:3", "fd:3"),
        ("FILE|-|fd:N", "-x", "/b/-x"),
        ("FILE|none", "none", "none"),
        ("FILE|none", "filter", "/b/filter"),
        ("tmpfs|DIR", "tmpfs", "tmpfs"),
        ("tmpfs|DIR", "tmpfs2", "/b/tmpfs2"),
        ("FILE", "", ""),
    ],
)
def test_paths_count_from_a_base(metavar, text, expected):
    assert jobfile.place(metavar, "/b", text) == expected


def test_the_page_lists_the_keys_as_they_are():
    assert job_keys.parts()[1] == job_keys.table(), "python -m tests.support.job_keys"


def test_every_key_of_each_kind_becomes_words_that_the_options_understand():
    for key in KEYS.values():
        value = {"flag": "true", "list": '["x"]', "value": '"x"'}[key.kind]
        words = load(
            f"[job.a]\ncommand = ['c']\nrun = 'r'\n{'' if key.name == 'run' else f'{key.name} = {value}'}"
        ).jobs
        expected = {"flag": f"--{key.name}"}.get(key.kind, f"--{key.name}=x")
        assert words["a"].words[-1] == ("--run=r" if key.name == "run" else expected)
        if key.kind == "flag":
            namespace = run.make_parser()[0].parse_args([f"--{key.name}", f"--no-{key.name}"])
            assert getattr(namespace, key.name.replace("-", "_")) is False


# -- meaning ---------------------------------------------------------------------------------------------------


def test_a_job_becomes_a_spec(here):
    text = """
        [job.build]
        command = ["make", "-C", "src"]
        static = ["zig:z.whl", "t.zip"]
        dynamic = ["src:."]
        dynamic-empty = ["out"]
        cache = true
        mkdir = false
        env = { B = "1=2", A = "ü" }
        max-unpacked = 1024
        limits = { timeout = "20m", nofile = 9 }
        nice = 3
        """
    spec = parsed(here, text, "--job", "build", "--", "-j2")
    assert spec == Spec(
        command=(b"make", b"-C", b"src", b"-j2"),
        trees=(
            Tree(TreeKind.STATIC, b"zig:z.whl"),
            Tree(TreeKind.STATIC, b"t.zip"),
            Tree(TreeKind.DYNAMIC, b"src:."),
            Tree(TreeKind.EMPTY, b"out"),
        ),
        cache=True,
        env=(b"B=1=2", "A=ü".encode()),
        max_unpacked=1024,
        limits=Limits(timeout=1200, nofile=9, nice=3),
    )


def test_the_command_line_wins(here):
    text = '[job.a]\ncommand = "echo"\ncache = true\nstatic = ["a"]\nenv = ["K=1"]\ntimeout = 5\nreport = "r"'
    text += '\nmode = "root"'
    spec = parsed(
        here, text, "--job=a", "--no-cache", "-sb", "-eK=2", "--timeout=7", "--report=s", "--mode", "auto", "x"
    )
    assert (spec.cache, spec.env, spec.report, spec.mode) == (False, (b"K=1", b"K=2"), b"s", "auto")
    assert [tree.text for tree in spec.trees] == [b"a", b"b"]
    assert spec.limits == Limits(timeout=7)
    assert spec.command == (b"sh", b"-c", b"echo", b"sh", b"x")


def test_values_are_never_options(here):
    hostile = '[job.a]\ncommand = ["--explain"]\nchdir = "--explain"\nenv = ["--cache=1"]\nunset-env = ["-v"]'
    spec = parsed(here, hostile, "--job", "a")
    assert (spec.chdir, spec.env, spec.unset_env, spec.cache) == (b"--explain", (b"--cache=1",), (b"-v",), False)
    assert spec.command == (b"--explain",)


def test_paths_of_a_named_file_count_from_its_directory(here):
    (here / "ci").mkdir()
    (here / "ci" / "jobs.toml").write_text(
        '[job.a]\ncommand=["true"]\nstatic=["n:a.zip"]\nscratch="s"\nenv-file=["e"]\nchdir="d"\nreport="-"'
    )
    spec = run.parse([b"--job-file=ci/jobs.toml", b"--job=a", b"-sb.zip"])[0]
    assert [tree.text for tree in spec.trees] == [b"n:ci/a.zip", b"b.zip"]
    assert (spec.scratch, spec.env_files, spec.chdir, spec.report) == (b"ci/s", (b"ci/e",), b"d", b"-")
    assert os.getcwd() == str(here)


def test_paths_of_the_caller_count_from_the_caller_s_directory(here, monkeypatch):
    (here / "sandbox.toml").write_text('[job.a]\ncommand=["true"]\nstatic=["a.zip"]')
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    monkeypatch.setenv("PWD", str(here / "sub"))
    spec = run.parse([b"--job=a", b"-sb.zip", b"--report=r"])[0]
    assert [tree.text for tree in spec.trees] == [b"a.zip", os.fsencode(here / "sub" / "b.zip")]
    assert spec.report == os.fsencode(here / "sub" / "r")
    assert (os.getcwd(), os.environ["PWD"]) == (str(here), str(here))


def test_a_job_that_needs_the_network_gets_what_isolation_would_take(here):
    text = '[job.a]\ncommand = ["true"]\nneeds-network = true\n'
    assert parsed(here, text, "--job=a").command == (b"true",)
    assert parsed(here, f'{text}level = "job"', "--job=a").net == "private"
    assert parsed(here, f'{text}level = "job"', "--job=a", "--net=none").net == "none"
    assert parsed(here, f'{text}isolation = "job"', "--job=a", "--isolation=none").net is None
    assert "needs-network" in refusal(f'{text}net = "none"')
    assert "the same" in refusal(f'{text}level = "job"\nisolation = "job"')


# -- refusals --------------------------------------------------------------------------------------------------

X = "'x',"
JOB = '[job.a]\ncommand = ["true"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{JOB}\nstatics = []", "f.toml:4: job a: unknown key statics (did you mean static?)"),
        (f"{JOB}max_unpacked = 1", "f.toml:3: job a: unknown key max_unpacked (did you mean max-unpacked?)"),
        (f"{JOB}zzzzzz = 1", "f.toml:3: job a: unknown key zzzzzz (docs/job-files.md lists the keys)"),
        (f"{JOB}limits = {{ tiemout = 1 }}", "f.toml:3: job a: unknown key tiemout (did you mean timeout?)"),
        (f"{JOB}[job.a.limits]\n\ncache = true", "f.toml:5: job a: unknown key cache (limits are: "),
        (f"{JOB}explain = true", "f.toml:3: job a: explain is for the command line only ("),
        ("[jobs.a]", "f.toml:1: unknown key jobs (did you mean job?)"),
        ("\n\nx = 1", "f.toml:3: unknown key x ("),
        ("job = 1", "f.toml:1: job must be a table for each job"),
        ("[[job]]", "f.toml:1: job must be a table for each job"),
        ("[job]\na = 1", "f.toml:2: job a: must be a table, not a number"),
        ("[job.a]", "f.toml:1: job a: has no command"),
        ("[job.a]\ncommand = []", "f.toml:2: job a: command must be a list of strings, or"),
        ("[job.a]\ncommand = [1]", "f.toml:2: job a: command must be a list of strings, not a number"),
        ("[job.a]\nrun='x/y'\ncommand = 'z'", "f.toml:3: job a: command must be a list of strings beside run"),
        ('[job.a]\ncommand = ["a\\u0000b"]', "f.toml:2: job a: command holds a NUL"),
        (f'{JOB}static = "z"', "f.toml:3: job a: static must be a list of strings, not a string"),
        (f"{JOB}static = [\n1]", "f.toml:3: job a: static must be a list of strings, not a number"),
        (f'{JOB}cache = "yes"', "f.toml:3: job a: cache must be true or false, not a string"),
        (f"{JOB}memory = inf", "f.toml:3: job a: memory must be a string or a number, not inf or nan"),
        (f"{JOB}chdir = 1979-05-27", "f.toml:3: job a: chdir must be a string, not a date or time"),
        (f"{JOB}nofile = true", "f.toml:3: job a: nofile must be a string or a number, not true or false"),
        (f"{JOB}nofile = 0x{'f' * 99}", "f.toml:3: job a: nofile: the number is too large"),
        (f"{JOB}nofile = 0x{'f' * 9999}", "f.toml:3: job a: nofile: the number is too large"),
        (f"{JOB}timeout = 1e300", "f.toml:3: job a: timeout: the number is too large"),
        (f"{JOB}env = {{ A = 1 }}", "f.toml:3: job a: A must be a string, not a number"),
        (f'{JOB}env = {{ "A=B" = "" }}', "f.toml:3: job a: env: A=B holds a ="),
        (f'{JOB}env = {{ "A\\u0000" = "" }}', "f.toml:3: job a: A\\x00 holds a NUL"),
        (f"{JOB}limits = 3", "f.toml:3: job a: limits must be a"),
        (f"{JOB}nice = 1\nlimits = {{ nice = 1 }}", "f.toml:3: job a: nice stands in limits as well"),
        (f"{JOB}needs-network = 1", "f.toml:3: job a: needs-network must be true or false"),
        (f"{JOB}static = [{'1,' * 2000}]", "f.toml: more than 100 mistakes"),
        (f"{JOB}static = [{X * 2000}]", "f.toml:1: job a: more than 1000 options"),
        ("a b", "f.toml:1: Expected '=' after a key"),
        ("\n[job.a", "f.toml:2: Expected ']'"),
        ("x = 'a", "f.toml:1: "),
        ("[job.a]\n[job.a]", "f.toml:2: "),
        (f"x = {'1' * 5000}", "f.toml:1: Exceeds the limit"),
        ("\x00", "f.toml:1: Invalid statement"),
        (f"x = {'[' * 5000}", "f.toml:1: nested too deeply"),
        (f"{'a.' * 5000}a = 1", "f.toml:1: nested too deeply"),
        ("#" * (256 << 10) + "#", "f.toml: more than 256 KiB"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_refused(text, expected):
    assert refusal(text).startswith(expected)


def test_text_that_is_no_utf_8_is_refused():
    with pytest.raises(UsageError, match=r"^f\.toml:2: not UTF-8"):
        JobFile(Opened("f.toml", b"# a\nx = '\xff'"), KEYS, run_options.LIMITS)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('timeout = "soon"', "sandbox.toml:3: job a: --timeout: 'soon' is not a duration ("),
        ("\nlimits = { nofile = -1 }", "sandbox.toml:4: job a: --nofile: "),
        ("kill-after = 3", "sandbox.toml:3: job a: --kill-after: nothing ends the job"),
        ('\nmode = "rot"', "sandbox.toml:4: job a: --mode: invalid choice: 'rot'"),
        ('[job.a.env]\nX = "1"\nSANDBOX_TMPDIR = "x"', "sandbox.toml:3: job a: --env: SANDBOX_TMPDIR is set by"),
        ('engine = "python"\nmode = "setuid"', "sandbox.toml:4: job a: --mode setuid needs the native engine"),
    ],
)
def test_what_the_options_refuse_has_a_line_too(here, lines, expected):
    (here / "sandbox.toml").write_text(JOB + lines)
    with pytest.raises(UsageError) as caught:
        run.parse([b"--job=a"])
    assert str(caught.value).startswith(expected)


def test_another_job_s_mistake_is_one_of_the_file(here):
    with pytest.raises(UsageError, match=r"^sandbox\.toml:4: job b: unknown key commands"):
        parsed(here, f'{JOB}[job.b]\ncommands = ["x"]', "--job=a")


def test_a_job_that_is_not_there(here):
    with pytest.raises(UsageError, match=r"has no job 'tset' \(did you mean test\?\)"):
        parsed(here, '[job.test]\ncommand = ["true"]', "--job=tset")
    with pytest.raises(UsageError, match=r"has no job 'x' \(there are: none\)"):
        parsed(here, "", "--job=x")
    with pytest.raises(UsageError, match="which job"):
        parsed(here, "", "--job-file=sandbox.toml")


# -- the scanner -----------------------------------------------------------------------------------------------

DOCUMENTS = [
    'a = """\n[x]\n\\"""\n"""""\nb = 1',
    "a = '''\n\"\n''''\n# [c]\n[d] # ]\n'e.f' = [ # [\n 1, '[', \"\\\"]\"\n]\ng.\"h.i\" = { j = 1, k = { l = [\n] } }",
    "[a]\nb=1\n[[c]]\nd=1\n[[c]]\nd=2\n[c.e]\nf=1\n[a.g]\n",
    "\r\n\r\na = 1\r\n[b]\r\nc = 2\r\n",
]


def slow_lines(text):
    """The same by the definition: a key's statement begins after the longest beginning without it that is TOML."""
    found, begins = {}, 1
    rows = text.replace("\r\n", "\n").split("\n")
    for count in range(1, len(rows) + 1):
        try:
            values = tomllib.loads("\n".join(rows[:count]))
        except tomllib.TOMLDecodeError:
            continue
        for path in paths(values):
            found.setdefault(path, begins)
        begins = count + 1
    return found


def paths(values, above=()):
    for key, value in values.items():
        yield (*above, key)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from paths(inner, (*above, key))


@pytest.mark.parametrize("text", DOCUMENTS)
def test_lines(text):
    assert toml_lines.lines(text) == slow_lines(text)


NAMES = st.sampled_from(["a", "b", '"c.d"', "'#'", "e . f"])
VALUES = st.sampled_from(
    ["1", "'['", '"\\""', '"""\n"\n"""', "[\n'#', # ]\n]", "{ x = 1, y.z = [2,\n3] }", "'''\n'''''"]
)
LINES = st.one_of(
    st.builds("{} = {}".format, NAMES, VALUES),
    st.builds("[{}]".format, NAMES),
    st.builds("[[{}]]".format, NAMES),
    st.sampled_from(["", "  ", "# x = 1"]),
)


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_lines_of_any_document(text):
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert toml_lines.lines(text) == slow_lines(text)


@given(st.text(alphabet="[]{}.=\"'#\n\\a1, \x00é", max_size=60))
def test_no_text_ends_in_anything_but_a_refusal(text):
    with contextlib.suppress(UsageError):
        file = load(text)
        assert all(file.line((key,)) for key in file.values)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        'a = "' + '\\"' * 120_000,
        '\\"""' * 60_000,
        "'''" * 80_001,
        "a = [" + "\n" * 250_000 + "]",
        '"a' * 120_000,
        f"[job.a]\ncommand = ['x']\nenv = [{X * 60_000}]",
        "\n".join(f"k{n} = 1" for n in range(20_000)),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_costs_what_its_length_does(text):
    """What is quadratic here takes minutes."""
    with contextlib.suppress(UsageError):
        load(text).refuse_problems()


# -- starts ----------------------------------------------------------------------------------------------------


def test_a_run_without_a_job_imports_none_of_it():
    script = "import sys; from sandbox.cli import run; run.parse([b'true']); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "'sandbox.cli.run'" in modules
    for name in ("sandbox.jobfile", "sandbox.toml_lines", "sandbox.cli.job", "tomllib", "difflib"):
        assert f"'{name}'" not in modules


def test_main_module_is_not_needed_to_judge(here, capsys):
    (here / "sandbox.toml").write_text(f'{JOB}report = "r.json"\nmode = "rot"')
    assert job_command.main(argparse.Namespace(action="check", file=None, json=True)) == 125
    assert '"line": 4' in capsys.readouterr().out
    assert os.listdir(here) == ["sandbox.toml"], "checking writes nothing"
