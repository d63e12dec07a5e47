"""Which processes the run looks after on its own machine."""

import os
import socket
from pathlib import Path
from typing import Any

from alignment.config import ClusterConfig
from flows.engines import Engines
from flows.memory import MemorySampler
from flows.timing import WorkClock


class Role:
    """A role with a process here and, under the same number, one on another host."""

    def describe(self) -> list[dict[str, Any]]:
        hosts = (socket.gethostname(), "elsewhere")
        return [
            {"role": "policy", "rank": rank, "pid": os.getpid(), "host": host}
            for rank, host in enumerate(hosts)
        ]


def test_the_number_of_another_hosts_process_is_not_looked_up_here(tmp_path: Path) -> None:
    with MemorySampler() as memory:
        engines = Engines(ClusterConfig(), clock=WorkClock(), memory=memory, logs=tmp_path)
        engines._watch(Role())
        assert memory.report().peak_pss_gib.keys() == {"policy-0"}
