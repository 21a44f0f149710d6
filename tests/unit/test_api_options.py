"""The keywords of the Python API are the options of the command line, and reach every field of the Spec."""

import subprocess
import sys

import pytest

from sandbox import Sandbox, option_file
from sandbox.api.options import Options, make_spec
from sandbox.cli import run
from sandbox.errors import UsageError
from sandbox.spec import Spec, Tree, TreeKind

KEYS = option_file.keys(run.make_parser()[1])
# What an option can be given, by what it takes: one of these must be a value, and not the default.
SAMPLES = ("job", "x", "/x", "x=y", "7", "1s", "deny", "best-effort", "0.5", "fd:1", "1:1", "none", "python", "root")


def changed_by(name):
    """The fields of the Spec that an option changes, whatever it takes."""
    samples = (True,) if KEYS[name].kind == "flag" else (*SAMPLES, *KEYS[name].choices)
    default, found = Spec(), set()
    for sample in samples:
        try:
            spec = make_spec({name.replace("-", "_"): sample})
        except UsageError:
            continue
        found |= {field for field in Spec.fields if getattr(spec, field) != getattr(default, field)}
    return found


def test_the_types_know_every_option():
    options = {name.replace("-", "_") for name in KEYS}
    assert Options.__annotations__.keys() == options, "sandbox/api/options.py: a line for each option of sandbox run"


def test_every_option_is_a_keyword_that_changes_the_spec():
    # --kill-after alone is refused: it comes after another limit.
    without = [name for name in KEYS if not changed_by(name) and name != "kill-after"]
    assert not without, "no sample value fits; give SAMPLES one"


def test_every_field_of_the_spec_can_be_reached():
    assert set().union(*map(changed_by, KEYS)) == set(Spec.fields) - {"command"}


def test_values():
    spec = make_spec(
        {
            "static": ["a", b"b:c"],
            "dynamic": "d",
            "cache": True,
            "mkdir": False,
            "timeout": 1.5,
            "nice": -3,
            "net": None,
        }
    )
    assert spec.trees == (
        Tree(TreeKind.STATIC, b"a"),
        Tree(TreeKind.STATIC, b"b:c"),
        Tree(TreeKind.DYNAMIC, b"d"),
    )
    assert (spec.cache, spec.mkdir, spec.net) == (True, False, None)
    assert (spec.limits.timeout, spec.limits.nice) == (1.5, -3)
    assert make_spec({"env": {"A": "1"}}).env == make_spec({"env": ["A=1"]}).env == (b"A=1",)
    assert make_spec({"static": "-d"}).trees == (Tree(TreeKind.STATIC, b"-d"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolaton": "job"}, "isolaton: there is no such option (did you mean isolation?)"),
        ({"job": "x"}, "job: there is no such option"),
        ({"cache": 1}, "cache: 1 is neither True nor False"),
        ({"static": [None]}, "static: None is not a string, path or number"),
        ({"static": {"a": "x.zip"}}, "static: {'a': 'x.zip'} is not a string, path or number"),
        ({"chdir": {"a": "b"}}, "chdir: {'a': 'b'} is not a string, path or number"),
        ({"chdir": ["a"]}, "chdir: ['a'] is not a string, path or number"),
        ({"memory": "x"}, "--memory: 'x' is not a size"),
        ({"env": {"A": "x\0B=y"}}, "env: x\\x00B=y holds a NUL byte"),
        ({"chdir": "a\0b"}, "chdir: a\\x00b holds a NUL byte"),
    ],
)
def test_what_is_wrong_is_a_usage_error(options, message):
    with pytest.raises(UsageError) as caught:
        Sandbox(**options)
    assert str(caught.value).startswith(message)


def test_a_command_is_a_list():
    for bad in ("ls", b"ls", ["a\0b"], []):
        with pytest.raises(UsageError):
            Sandbox().run(bad)


@pytest.mark.parametrize("env", [{"A": "x\0B=injected"}, {"A\0B": "x"}, {"A=B": "x"}, {"": "x"}])
@pytest.mark.parametrize("engine", ["native", "python"])
def test_a_variable_is_one_variable(env, engine):
    """The environment goes to the native engine as text, where a NUL begins another one."""
    with pytest.raises(UsageError, match="env: "):
        Sandbox(engine=engine).run(["true"], env=env)


def test_a_spec_or_options():
    assert Sandbox(Spec(cache=True)).spec.cache
    with pytest.raises(UsageError):
        Sandbox(Spec(), cache=True)


@pytest.mark.parametrize("code", ["import sandbox", "from sandbox.cli import run; run.parse([b'true'])"])
def test_who_does_not_use_the_api_does_not_load_it(code):
    script = f"import sys; {code}; print([name for name in sys.modules if name.startswith(('sandbox.api', 'asyncio'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
