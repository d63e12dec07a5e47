"""vLLM's receiving end for weights from Ray's object store, or from the policy's memory.

vLLM 0.32 ships receivers for CUDA only (nccl, ipc). This one is registered beside them and
goes through the same official calls: start_weight_update, update_weights (one a bucket, or one
for all weights that are lent), finish_weight_update.
"""

from dataclasses import dataclass

from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from alignment.cluster.lent_weights import Borrower, LentWeights
from alignment.cluster.weights import WeightBucket, read_bucket

BACKEND = "alignflow_object_store"

BORROWER = Borrower()
"""One a process: its mapping outlives an update."""


@dataclass
class StoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the references travel with each update."""


@dataclass
class StoreUpdateInfo(WeightTransferUpdateInfo):
    """One piece of the weights, or all of them where a policy lends them."""

    bucket: WeightBucket | LentWeights


class ObjectStoreTransfer(WeightTransferEngine[StoreInitInfo, StoreUpdateInfo]):
    """Reads weights that are already on this machine."""

    init_info_cls = StoreInitInfo
    update_info_cls = StoreUpdateInfo

    def init_transfer_engine(self, init_info: StoreInitInfo) -> None:
        """No connection to make."""

    def start_weight_update(self) -> None:
        """Let every layer wait for its new weights."""
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: StoreUpdateInfo) -> None:
        """Load one piece, or all."""
        piece = update_info.bucket
        weights = BORROWER.read(piece) if isinstance(piece, LentWeights) else read_bucket(piece)
        self._loaded |= self.model.load_weights(weights)

    def finish_weight_update(self) -> None:
        """Repack every layer for its kernels, and note which weights never came.

        Whoever finishes an update must look at `missing`: vLLM alone would only log it, and an
        error raised here would leave its update session open for ever.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        self.missing = sorted(self._expected - self._loaded)

    def shutdown(self) -> None:
        """Nothing is held between updates but the mapping of lent weights."""


def register() -> None:
    """Make the backend known to vLLM in this process; again is harmless."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransfer)
