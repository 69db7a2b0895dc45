"""Stored results: one JSON file each, an object or a list of them, with what is needed to obtain it again."""

from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever looks finds the old content or the new, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
