"""Reports, and docs/report.md as their JSON schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema

_TEXT, _COUNT, _NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(*values: str | None) -> dict[str, Any]:
    return {"enum": list(values)}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMA = _object(
    schema={"const": 1},
    sandbox=_TEXT,
    started=_TIME,
    ended=_TIME,
    command={"type": "array", "items": _TEXT},
    mode=_one_of("root", "setuid", "userns", "landlock", None),
    engine=_one_of("python", "native", None),
    level=_one_of("none", "job", "strict", None),
    images={
        "type": "array",
        "items": _object(
            name=_TEXT,
            source={"type": "string", "pattern": "^/"},
            use=_one_of("static", "dynamic"),
            digest=_or_null({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}),
        ),
    },
    mounts={
        "type": "array",
        "items": _object(
            on=_TEXT,
            kind=_one_of("tmpfs", "image", "overlay", "directory", "file"),
            source=_or_null(_TEXT),
            read_only={"type": "boolean"},
        ),
    },
    sockets=_or_null({"type": "array", "maxItems": 256, "items": _TEXT}),
    phases={"type": "array", "minItems": 1, "items": _object(name=_TEXT, start_us=_COUNT, us=_COUNT)},
    cause=_one_of("exited", "signalled", "timeout", "oom", "limit", "launcher"),
    limit=_one_of("cpu-time", "fsize", "pids", None),
    error=_or_null(_TEXT),
    exit_code=_or_null({"type": "integer", "minimum": 0, "maximum": 255}),
    signal=_or_null({"type": "integer", "minimum": 1, "maximum": 64}),
    wall_seconds=_or_null(_NUMBER),
    user_seconds=_or_null(_NUMBER),
    system_seconds=_or_null(_NUMBER),
    peak_memory_bytes=_or_null(_COUNT),
    peak_memory_of=_one_of("cgroup", "largest process", None),
    processes=_or_null(_COUNT),
    oom_kills=_or_null(_COUNT),
    forks_refused=_or_null(_COUNT),
    read_bytes=_or_null(_COUNT),
    written_bytes=_or_null(_COUNT),
    discarded=_or_null(_COUNT),
    kept=_or_null(
        {
            "type": "array",
            "items": _object(source=_TEXT, target=_TEXT, files=_COUNT, size=_COUNT, skipped=_COUNT, error=_TEXT),
        }
    ),
    refused_calls=_or_null({"type": "array", "items": _object(call=_TEXT, error=_TEXT, count=_COUNT)}),
)


def check(text: str) -> dict[str, Any]:
    """The report, which must be one."""
    told: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(told)
    assert told["started"] <= told["ended"]
    return told


def read(path: Path) -> dict[str, Any]:
    return check(path.read_text())
