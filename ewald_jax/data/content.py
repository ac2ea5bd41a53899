"""What is in a file, as a hash, without reading gigabytes each time that a training starts.

A hash is kept beside the cached graphs with the size and the time of change that the file had.
It counts only while both are the same, and if the file was left alone for a while before it was
read: what changes within one tick of the clock would go unnoticed.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
from pathlib import Path

_FOLDER = "hashes"
_TICK = 2 * 10**9  # ns, the coarsest clock of a file system in use
_WORTH_KEEPING = 2**20  # bytes; smaller files are read faster than their entry


def content_hash(path: Path, cache: Path | None) -> str:
    """The SHA-256 of a file.

    Args:
        path: The file.
        cache: Folder of cached graphs, None for none.

    Raises:
        OSError: If the file cannot be read.
    """
    before, now = path.stat(), time.time_ns()
    facts = [before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino]
    entry = None
    if cache is not None and before.st_size >= _WORTH_KEEPING:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        entry = cache / _FOLDER / f"{name}.json"
        # A damaged entry is no entry.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(entry.read_text(encoding="utf-8"))
            if kept["facts"] == facts:
                return str(kept["sha256"])
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    settled = now - max(before.st_mtime_ns, before.st_ctime_ns) > _TICK
    if entry is not None and settled:
        keep(entry, json.dumps({"facts": facts, "sha256": found}).encode())
    return found


def keep(entry: Path, content: bytes) -> None:
    """Writes a small file of the cache, whole or not at all.

    Nothing is lost where it cannot be written: what is in it can be computed again.
    """
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        half = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}")
        half.write_bytes(content)
        half.replace(entry)
