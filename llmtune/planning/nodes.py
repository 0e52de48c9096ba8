"""`--nodes auto`: as few machines as a run fits on, by its plan."""

from __future__ import annotations

import copy

from llmtune.arguments.stage import StageArguments
from llmtune.errors import UsageError
from llmtune.models.devices import find_gpu, gib
from llmtune.planning.plan import Plan, make_plan
from llmtune.planning.workload import sharding_of

MOST_NODES = 64


def least_nodes(args: StageArguments, accelerator: str, gpus: int) -> tuple[int, Plan]:
    """Return the machines, a power of two, and the plan of the run on them.

    Args:
        accelerator: Kind of GPU, as `llmtune plan --gpu` takes it.
        gpus: GPUs per machine, one process each.

    Raises:
        UsageError: It fits on none, with what would help.
    """
    gpu = find_gpu(accelerator)
    nodes = 1
    while nodes <= MOST_NODES:
        tried = copy.copy(args)
        tried.nproc = nodes * gpus
        found = make_plan(tried, gpu, gpus)
        if found.fits:
            return nodes, found
        sharding = sharding_of(tried, gpus)
        if tried.nproc > 1 and sharding.weights == sharding.gradients == sharding.optimizer == 1:
            raise UsageError(
                f"--nodes auto: the run needs {gib(found.estimate.total)} of {gib(found.limit)} on each {gpu.name}. "
                "More machines do not help, since each GPU holds the whole model. Shard it: --fsdp true, or "
                "--deepspeed_config_path zero3. `llmtune plan` shows other ways."
            )
        nodes *= 2
    raise UsageError(
        f"--nodes auto: on {MOST_NODES} machines of {gpus} {gpu.name} the run still needs "
        f"{gib(found.estimate.total)} of {gib(found.limit)} per GPU. `llmtune plan` shows what makes it smaller."
    )


def note(nodes: int, gpus: int, found: Plan) -> str:
    """Describe the choice, for the log."""
    rows = found.rows()
    machines = "1 machine" if nodes == 1 else f"{nodes} machines"
    return f"--nodes auto: {machines} of {gpus} GPUs; {rows['  total'].strip()} per GPU" + (
        f"; FLOPs: {rows['FLOPs']}" if "FLOPs" in rows else ""
    )
