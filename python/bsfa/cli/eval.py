"""bsfa eval: accuracy, time and density of the method against its baselines, on your model."""

from __future__ import annotations

from typing import Any

from bsfa.cli import eval_ablate, eval_harness, eval_report, eval_sweep


def add(verbs: Any) -> None:
    """Adds the verb and its own verbs."""
    parser = verbs.add_parser(
        "eval", help="accuracy, time to the first token and density, against the baselines"
    )
    inner = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for verb in (eval_sweep, eval_report, eval_ablate, eval_harness):
        verb.add(inner)
