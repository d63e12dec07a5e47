"""The flows that `prefect.yaml` deploys: the whole pipeline, and one stage alone.

The parameter is the run's whole configuration, so Prefect's form shows every setting with its
default, and its server refuses what does not fit. The body is that of flows/pipeline.py; what is
added is what a run needs that may be suspended for days and started again by somebody else.
"""

from typing import Literal

from prefect import flow

from alignment.config import PipelineConfig
from flows.deployed_run import deployed_run

StageName = Literal[
    "base_model",
    "data",
    "sft",
    "candidates",
    "preferences",
    "reward_model",
    "ppo",
    "evaluation",
]


@flow(name="align", persist_result=False, log_prints=False)
def align(config: PipelineConfig = PipelineConfig()) -> str:  # noqa: B008 - frozen, and the form's defaults
    """SFT, candidates, rankings, reward model, PPO and evaluation; waits suspended for people."""
    return deployed_run(config)


@flow(name="align_stage", persist_result=False, log_prints=False)
def align_stage(stage: StageName, config: PipelineConfig = PipelineConfig()) -> str:  # noqa: B008
    """One stage alone; the stages before it must be in the store with the same settings."""
    return deployed_run(config, only=stage)
