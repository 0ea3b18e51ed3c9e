"""What ties an attention layer to the settings of its model: a mark on the module itself.

It goes where the module goes. A deep copy of an enabled model has a state of its own, a model that
shares its configuration object with an enabled one has no mark and hence no gate, and pickling is
refused, since what is loaded again would run dense without a word.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from bsfa.errors import UnsupportedError

if TYPE_CHECKING:
    from bsfa.hf.state import State

ATTRIBUTE = "_bsfa_mark"


class Mark:
    """One attention module of an enabled model."""

    def __init__(self, state: State, position: int, module: nn.Module | None) -> None:
        self.state = state
        self.position = position
        """Which of the model's attention modules it is, counted from 0."""
        if module is not None:
            state.modules[position] = module
            module.__dict__[ATTRIBUTE] = self  # not a submodule, parameter or buffer
        self._module = None if module is None else weakref.ref(module)
        self._mask: weakref.ref[Any] | None = None
        self._called = 0

    def next_call(self, mask: Any) -> tuple[int, int]:
        """What this call is known by: the module's position, and its how manieth call it is.

        Counted from 0 in each forward pass. mask: what the call was given (a plan or a tensor);
        one pass makes it once, so that a module which gets the same again is in the same pass.
        """
        known = self.state.shape.calls_of(self.position)
        before = None if self._mask is None else self._mask()
        again = known > 1 if mask is None else mask is before
        if torch._C._current_graph_task_id() != -1:
            again = False  # a checkpoint computes the call anew, in a backward pass
        self._called = self._called + 1 if again else 0
        if known > 1:
            self._called %= known
        self._mask = None if mask is None else weakref.ref(mask)
        return self.position, self._called

    def __deepcopy__(self, memo: dict[int, Any]) -> Mark:
        old = self.state
        state = memo.get(id(old))
        if state is None:
            state = memo[id(old)] = old.copy_for(memo.get(id(old.config), old.config))
        module = None if self._module is None else self._module()
        copied = memo.get(id(module))
        mark = Mark(state, self.position, None)
        if copied is not None:  # its attributes are about to be set, this mark among them
            state.modules[self.position] = copied
            mark._module = weakref.ref(copied)
        return mark

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedError(
            "a model that bsfa.enable has set up cannot be pickled, since what is loaded again "
            "would run dense; call bsfa.disable(model) before, and bsfa.enable on what was loaded "
            "(save_pretrained and state_dict work as they are)"
        )


def mark_on(module: nn.Module) -> Mark | None:
    """The mark of an attention module, if its model is enabled."""
    return module.__dict__.get(ATTRIBUTE)


def take_marks(model: nn.Module) -> list[tuple[nn.Module, Mark]]:
    """Removes the marks of a model; `give_marks` puts them back."""
    marked = [(m, m.__dict__[ATTRIBUTE]) for m in model.modules() if ATTRIBUTE in m.__dict__]
    for module, _ in marked:
        del module.__dict__[ATTRIBUTE]
    return marked


def give_marks(marked: list[tuple[nn.Module, Mark]]) -> None:
    """Puts marks back."""
    for module, mark in marked:
        module.__dict__[ATTRIBUTE] = mark
