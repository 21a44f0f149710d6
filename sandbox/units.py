"""Ages and sizes for a person, and times that a person typed."""


def age(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(int(seconds // unit), 0)} {name}"
    return f"{int(seconds // 86400)} days"


def seconds(text: str) -> float:
    """How long to wait between two looks, for argparse. Raises ValueError for what no clock can wait."""
    if not 0 < (wait := float(text)) <= 86400:  # neither is nan
        raise ValueError(text)
    return wait


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
