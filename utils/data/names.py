"""Names of files: texts that can stand in one, and that differ where what is named does."""

import hashlib
import os
import re
from collections.abc import Iterable


def distinct(labels: Iterable[str], keys: Iterable[str], longest: int = 200) -> list[str]:
    """File names that differ wherever the keys do: the labels, as long as these differ and are short enough.

    Args:
        labels: the names to begin with; what cannot stand in a name (separators, control characters, bytes that are not
            UTF-8) becomes `_`.
        keys: what is named, for instance paths.
        longest: most bytes of a name.
    """
    plain_labels = [plain(label) for label in labels]
    pairs = list(zip(plain_labels, keys, strict=True))
    # What is named may be listed several times.
    keys_of: dict[str, set[str]] = {}
    for name, key in pairs:
        keys_of.setdefault(name, set()).add(key)
    names = []
    for name, key in pairs:
        encoded = name.encode()
        is_shared = len(keys_of[name]) > 1
        # A hash of the key tells apart names that are shared, and names that are cut.
        if is_shared or len(encoded) > longest:
            digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:10]
            # A letter of several bytes that is cut is left out.
            start = encoded[: longest - 11].decode(errors="ignore")
            name = f"{start}-{digest}"
        names.append(name)
    return names


def plain(text: str) -> str:
    """Text that can stand in the name of a file, with `_` for what cannot."""
    # Bytes that are not UTF-8 first, then control characters and separators.
    text = os.fsencode(text).decode(errors="replace")
    text = text.replace("\ufffd", "_")
    return re.sub(r"[\x00-\x1f\x7f/]", "_", text)
