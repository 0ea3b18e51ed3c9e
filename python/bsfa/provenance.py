"""What this package was built from, for the results that it writes."""

from __future__ import annotations

from bsfa import _core
from bsfa.errors import InvalidArgumentError

__all__ = ["built_from", "refuse_changes"]


def built_from() -> str:
    """The commit, followed by "with changes" where files of it had been changed.

    "" where the source was no clone of the repository, as in a release: its version says what it
    is.
    """
    commit, changed = _core.source_tree()
    return f"{commit} with changes" if commit and changed else commit


def refuse_changes(dirty: bool) -> None:
    """Refuses results that no commit could be named for, unless they may be `dirty`."""
    commit, changed = _core.source_tree()
    if commit and changed and not dirty:
        raise InvalidArgumentError(
            f"bsfa was built from commit {commit} with changes that no commit names; accepted: a "
            'build of a commit, or --dirty, with which the results say "with changes"'
        )
