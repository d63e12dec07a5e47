"""What the last bit of a PPO run depends on besides its settings and inputs.

A checkpoint keeps these facts (`Exactness`). A resumed run compares them with its own: where
they are equal it continues to the bit on CPU in float32; where one differs it is refused, or
goes on with the change on record where `ppo.exact` is false.

Settings and inputs are not here: they are in the stage's key, and another key is another stage.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEME = {
    "journal": 1,  # layout of the journal's files
    "seeds": 1,  # derive_seed(run, "sample", step, sequence); orders from (run, step, epoch)
}
"""Numbers to raise by hand when the journal or the derivation of seeds changes."""

INSTRUCTION_SETS = ("avx", "fma", "amx", "sve", "asimd", "neon", "bf16")
"""Beginnings of the processor flags by which matrix libraries choose their kernels."""


@dataclass(frozen=True, slots=True)
class Exactness:
    """Facts by name, e.g. `policy.threads: 2`; plain values that JSON holds."""

    facts: Mapping[str, Any]

    def changes(self, now: "Exactness") -> list[str]:
        """What differs in `now`, each as "name old -> new"; empty: the same to the bit."""
        names = sorted(set(self.facts) | set(now.facts))
        pairs = ((n, self.facts.get(n, "absent"), now.facts.get(n, "absent")) for n in names)
        return [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]


def exactness_of(roles: Mapping[str, Any]) -> Exactness:
    """The facts of these roles by name, and of this process, which computes the advantages.

    A role that cannot describe itself contributes none.
    """
    facts: dict[str, Any] = SCHEME | {f"driver.{k}": v for k, v in arithmetic_facts().items()}
    for name, role in roles.items():
        described = role.describe() if hasattr(role, "describe") else []
        per_rank = [rank.get("exactness", {}) for rank in described]
        if not per_rank:
            continue
        facts[f"{name}.ranks"] = len(per_rank)
        for fact in sorted({fact for rank in per_rank for fact in rank}):
            facts[f"{name}.{fact}"] = _agreed([rank.get(fact) for rank in per_rank])
    return Exactness(facts)


def arithmetic_facts(**of_the_role: Any) -> dict[str, Any]:
    """What this process computes with, and `of_the_role`: the role's own choices."""
    import torch

    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["cuda"] = torch.version.cuda
    return facts | of_the_role


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's vector instructions, sorted; its architecture where that is unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return os.uname().machine
    flags: Iterable[str] = next(
        (
            line.partition(":")[2].split()
            for line in lines
            if line.startswith(("flags", "Features"))
        ),
        (),
    )
    return " ".join(sorted(f for f in flags if f.startswith(INSTRUCTION_SETS))) or (
        os.uname().machine
    )


def _agreed(values: list[Any]) -> Any:
    """The ranks' one value, or all of them where they differ."""
    return values[0] if all(value == values[0] for value in values) else values
