"""`llmtune sft --nproc N`: becomes torchrun, which runs the same command line in each process.

Several machines: start the same line on each, with torchrun's variables NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from llmtune.distributed.ranks import world_size
from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator
from llmtune.utils.processes import replace_process

SECONDS_TO_SAVE = "600"
"""Time for processes to end their step and save after SIGTERM, before torchrun kills them."""


def hand_over(command: str, argv: Sequence[str], *, nproc: int, max_restarts: int) -> None:
    """Become torchrun and never return, if `nproc` asks for it and this is not one of its processes yet."""
    if not is_handed_over(nproc, os.environ):
        return
    check_launch(nproc, os.environ)
    words = torchrun_arguments(nproc, max_restarts, os.environ)
    replace_process([sys.executable, "-m", "llmtune.distributed.launch", *words, "-m", "--", "llmtune", command, *argv])


def is_handed_over(nproc: int, environment: Mapping[str, str]) -> bool:
    """Whether torchrun takes over: `nproc` asks for it, and this is not one of its processes yet."""
    return (nproc != 1 or "NNODES" in environment) and "LOCAL_RANK" not in environment


def check_launch(nproc: int, environment: Mapping[str, str]) -> None:
    """Refuse settings on which torchrun would fail with a traceback.

    Raises:
        UsageError: One of its variables is not a number, or --nproc 0 counts GPUs where there are none.
    """
    for name in ("NNODES", "NODE_RANK", "MASTER_PORT"):
        text = environment.get(name, "0")
        if not text.isdecimal() and not (name == "NNODES" and re.fullmatch(r"\d+:\d+", text)):
            raise UsageError(
                f"{name}={text} in the environment is not a number, which torchrun needs. Correct it, or unset it."
            )
    if nproc != 0:
        return
    if not accelerator().is_gpu:
        raise UsageError("--nproc 0 starts one process per GPU, and there is no GPU. Give a number: --nproc 2.")


def planned_processes(nproc: int, environment: Mapping[str, str]) -> int | None:
    """World size of the run that this command line starts; None: one per GPU."""
    if not is_handed_over(nproc, environment):
        return world_size()
    nodes = environment.get("NNODES", "1").partition(":")[0]
    return nproc * int(nodes) or None if nodes.isdecimal() else None


def torchrun_arguments(nproc: int, max_restarts: int, environment: Mapping[str, str]) -> list[str]:
    """Flags of torchrun itself; on one machine it chooses a free port."""
    words = ["--nproc_per_node", str(nproc) if nproc else "gpu"]
    nodes = environment.get("NNODES", "1")
    if nodes == "1":
        words.append("--standalone")
    else:
        words += ["--nnodes", nodes, "--node_rank", environment.get("NODE_RANK", "0")]
        words += ["--master_addr", environment.get("MASTER_ADDR", "127.0.0.1")]
        words += ["--master_port", environment.get("MASTER_PORT", "29500")]
    if max_restarts:
        words += ["--max_restarts", str(max_restarts)]
    return words


def main(argv: Sequence[str]) -> int:
    """Run torchrun; a failure is reported in one line, and SIGTERM, after which all have saved, is none."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    options = get_args_parser().parse_args(list(argv))
    if options.max_restarts:
        # upstream: torch 2.13.0 pytorch/pytorch#135712: restarted processes read the addresses of dead ones
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if not os.environ.get("OMP_NUM_THREADS") and options.nproc_per_node.isdigit():
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // int(options.nproc_per_node), 1))
    try:
        run(options)
    except ChildFailedError as err:
        rank, failure = err.get_first_failure()
        sys.stderr.write(f"llmtune: rank {rank} exited with status {failure.exitcode}; its error is above.\n")
        return failure.exitcode if 0 < failure.exitcode < 256 else 1
    except SignalException as err:
        return 130 if err.sigval.name == "SIGINT" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
