"""The roles on Ray actors around DeepSpeed and vLLM: the only package that imports them.

Names load when first used, so that a module that needs only DeepSpeed comes without Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.cluster.session import Cluster
    from alignment.cluster.weights import weights_from_folder

__all__ = ["Cluster", "weights_from_folder"]

_HOMES = {"Cluster": "session", "weights_from_folder": "weights"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
