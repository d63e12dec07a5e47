"""The roles on Ray actors around DeepSpeed and vLLM: the only package that imports them."""

from alignment.cluster.session import Cluster
from alignment.cluster.weights import weights_from_folder

__all__ = ["Cluster", "weights_from_folder"]
