"""What a Session or namespace may be called, and what its folder and lock are called on disk.

Knows that no name reaches the file system: only a digest of it does.
"""

from __future__ import annotations

import hashlib
import re

from agent_memory.errors import InvalidName

MAX_NAME_BYTES = 255

FOLDER = re.compile(r"[0-9a-f]{32}-[0-9a-f]{8}")
"""What a Session's folder is called: the digest of its name, and digits of its own."""

FILE = re.compile(FOLDER.pattern + r"/(?:[0-9]{12,18}-[0-9a-f]{8}|tail)\.safetensors")
"""What a row may name as its file, from the folder of Sessions on."""

LOCK = re.compile(r"[0-9a-f]{32}\.lock")
"""What a Session's lock file is called."""


def check_name(name: str, what: str = "session name") -> str:
    """``name`` unchanged, or InvalidName. Not normalised: NFC and NFD twins, and case twins, are different names."""
    if not isinstance(name, str):
        raise InvalidName(f"a {what} is text, not {type(name).__name__}")
    if not name:
        raise InvalidName(f"a {what} cannot be empty")
    if "\0" in name:
        raise InvalidName(f"a {what} cannot hold a NUL character")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidName(f"the {what} {name!r} is not valid Unicode") from None
    if size > MAX_NAME_BYTES:
        raise InvalidName(f"a {what} has at most {MAX_NAME_BYTES} bytes in UTF-8, this one has {size}")
    return name


def name_digest(namespace: str, name: str) -> str:
    """32 hexadecimal digits for a Session; length-prefixed, so ``("a", "bc")`` and ``("ab", "c")`` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (namespace, name):
        encoded = part.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
