"""The process of a Ray job: one stage of a run, done by the same function as without jobs.

    python -m flows.job_entry STORE NOTE      where the store is, and its note that says what to do

The finished artifact goes into the store, everything else into marked lines of the output.
"""

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from alignment.code_digest import require_same_code
from alignment.config import PipelineConfig
from flows.environment import prepare_environment
from flows.exit_codes import FAILED, INTERRUPTED
from flows.interruption import interruptible
from flows.job_events import JobDashboard, tell
from flows.shared_store import read_note
from flows.stage_call import StageCall, inputs_at_hand
from flows.timing import PHASES

JOBS_FOLDER = "jobs"


def main(arguments: list[str]) -> int:
    """Do what the note says; gives the process's exit code."""
    where, note = arguments
    try:
        with interruptible():
            _work(_read_call(where, note))
    except KeyboardInterrupt:
        print("stopped; the stage goes on from its newest checkpoint when it is asked for again")
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        trace = "".join(traceback.format_exception(error))
        tell("failed", error=type(error).__name__, message=str(error), trace=trace)
        return FAILED
    return 0


def _read_call(where: str, note: str) -> StageCall:
    told = read_note(where, note)
    require_same_code(told["code"], "the process that asks for this Ray job")
    return StageCall(**told)  # other code may say more, or less


def _work(call: StageCall) -> None:
    if Path(call.folder).is_dir():
        os.chdir(call.folder)  # settings name files and reward functions relative to it
    config = job_settings(call.settings(), os.environ["RAY_ADDRESS"])
    prepare_environment(config)
    stage = call.stage()
    from flows.run_record import RunOptions
    from flows.running import running

    options = RunOptions(dashboard=JobDashboard(), part_of=config.run.runs.parent)
    with running(config, options) as run:
        run = replace(run.in_round(call.round), expected_key=call.key)
        stage(run, *inputs_at_hand(run.store, call.inputs))
        tell(
            "done",
            phases={phase: run.clock.phase_s(phase) for phase in PHASES},
            peak_pss_gib=run.memory.report().peak_pss_gib,
            warnings=run.record.file.warnings,
        )


def job_settings(config: PipelineConfig, ray_address: str) -> PipelineConfig:
    """The run's settings as its job uses them: this cluster, and a run's folder of its own.

    The run that waits holds its folder and its loggers; the job's is below it and keeps the
    stage's metrics from one attempt to the next.
    """
    runs = config.run.runs / config.run.name / JOBS_FOLDER
    own = {"runs": runs, "loggers": (), "mlflow_tracking_uri": None, "wandb_mode": "offline"}
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=own),
            "cluster": config.cluster.model_copy(
                update={"job_server": None, "address": ray_address}
            ),
        }
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
