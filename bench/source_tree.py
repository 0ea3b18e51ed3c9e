"""Which source a results file was measured with: one rule for every benchmark that writes one.

A file names its commit. So the tree that the script lies in has to be a clone without changes, and
whatever was built and is measured has to come from the same commit. `--dirty` lets it be otherwise
and marks the record.
"""

import pathlib
import subprocess
import sys


def add_dirty(parser):
    """The option --dirty of every writer."""
    parser.add_argument(
        "--dirty",
        action="store_true",
        help='also from a tree with changes: the results say "dirty"',
    )


def state_of(path):
    """(commit, whether files of it are changed) of the tree around a file; ("", False): no clone."""

    def git(*arguments):
        command = ["git", "-C", str(pathlib.Path(path).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit, bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "", False


def record(script, dirty, **built):
    """What a results file says of its source: {"commit": ...} and, where allowed, {"dirty": true}.

    `script` is the benchmark's own file; `built` names what it measures, each with the commit it was
    built from and whether the source had changes, such as package=bsfa._core.source_tree(). Ends the
    program with a message if the record would name a commit that the numbers are not of.
    """
    commit, changed = state_of(script)
    wrong = []
    if not commit:
        wrong.append(f"{script} lies in no clone of the repository")
    if changed:
        wrong.append(f"the tree has changes that commit {commit[:12]} does not name")
    for name, (of, with_changes) in built.items():
        if of != commit:
            wrong.append(
                f"the {name} was built from {'commit ' + of[:12] if of else 'no clone'}, "
                f"not from {commit[:12] or 'this tree'}"
            )
        elif with_changes:
            wrong.append(f"the {name} was built from a tree with changes")
    if wrong and not dirty:
        sys.exit(
            f"{pathlib.Path(script).name}: {'; '.join(wrong)}. Commit and build again, or give "
            "--dirty, which marks the results"
        )
    return {"commit": commit, **({"dirty": True} if wrong else {})}
