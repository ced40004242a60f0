"""What all generators share: number format, file hashes, JSON layout, version header."""

import hashlib
import json
import platform
from importlib.metadata import version


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions(*packages):
    """The versions that a golden file depends on: Python's and those of `packages`."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def significant(values, digits):
    """`values` as a list of floats rounded to `digits` significant digits; works for nested arrays."""
    if getattr(values, "ndim", 1) > 1:
        return [significant(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") for value in values]


def write_json(path, content):
    """One top-level key per line, list items that are objects on lines of their own: small, yet diffable."""

    def compact(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = "[\n" + ",\n".join(compact(item) for item in value) + "\n]"
        else:
            body = compact(value)
        lines.append(f"{json.dumps(key)}:{body}")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {path}")
