"""Makes the lm-evaluation-harness know the model type `bsfa`.

The harness looks for model types in its own package only. So `bsfa_lm_eval.pth` imports this module
when Python starts, and it waits for `lm_eval.models`: until that is imported nothing else is, and
afterwards the type is in the harness's registry by its name.
"""

import sys


class _Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "lm_eval.models":
            return None
        sys.meta_path.remove(cls)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                _register()

            spec.loader.exec_module = exec_module
        return spec


def _register():
    from lm_eval.api import registry

    models = getattr(registry, "model_registry", None)
    if models is None:
        import warnings

        warnings.warn(
            "this lm_eval has no lm_eval.api.registry.model_registry, so it does not learn the"
            " model type bsfa; lm_eval 0.4.13 does",
            stacklevel=2,
        )
    elif "bsfa" not in models:
        models.register("bsfa", target="bsfa.eval.harness:BsfaLM")


sys.meta_path.insert(0, _Finder)
