"""What this package was built from, for the results that it writes."""

from __future__ import annotations

from bsfa import _core

__all__ = ["built_from"]


def built_from() -> str:
    """The commit, followed by "with changes" where files of it had been changed.

    "" where the source was no clone of the repository, as in a release: its version says what it
    is.
    """
    commit, changed = _core.source_tree()
    return f"{commit} with changes" if commit and changed else commit
