"""Holding a text against one that somebody has looked at and found good.

After a change that is wanted, look at the difference, and renew it: UPDATE=1 python -m pytest TEST
"""

import os
from pathlib import Path


def require_approved(path: Path, text: str) -> None:
    """Hold a text against the approved one, or make it the approved one. Spaces at the ends of lines do not count."""
    lines = [line.rstrip() for line in text.splitlines()]
    if os.environ.get("UPDATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == path.read_text(encoding="utf-8").splitlines(), f"{path.name}: look, then see {__file__}"
