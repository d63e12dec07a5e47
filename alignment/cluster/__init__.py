"""The roles on Ray actors around DeepSpeed and vLLM: the only package that imports them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignment.cluster.session import Cluster
    from alignment.cluster.weights import weights_from_folder

__all__ = ["Cluster", "weights_from_folder"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: who looks at processes or leftovers needs no Ray, which takes 2 s."""
    if name == "Cluster":
        from alignment.cluster.session import Cluster

        return Cluster
    if name == "weights_from_folder":
        from alignment.cluster.weights import weights_from_folder

        return weights_from_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
