"""Whether an attention layer's own code computes with the mask that it is given.

Where a model runs eagerly, its placeholder shows that by itself. A graph that is traced has to know
before: there a placeholder has no values, and such a model gets the mask that it had.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from typing import Any

_MASK = "attention_mask"


@functools.lru_cache(maxsize=256)
def reads_its_mask(layer: Any) -> bool:
    """Whether `forward` does more with its mask than hand it to a function or ask if there is one.

    Read off its source; False where there is none.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(layer.forward)))
    except (AttributeError, OSError, TypeError, SyntaxError):
        return False
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        # A function of the module's namespace or a variable: the attention itself. A method is not.
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            passed.update(node.args)
            passed.update(keyword.value for keyword in node.keywords)
        if isinstance(node, ast.Compare) and all(
            isinstance(sign, ast.Is | ast.IsNot) for sign in node.ops
        ):
            passed.add(node.left)
    return any(
        isinstance(node, ast.Name)
        and node.id == _MASK
        and isinstance(node.ctx, ast.Load)
        and node not in passed
        for node in ast.walk(tree)
    )
