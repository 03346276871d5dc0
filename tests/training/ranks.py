"""Several processes as one job, as torchrun starts them, but forked and so within a second."""

import socket
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.training.runs import start


def start_ranks(
    count: int, arguments: Sequence[str], said: Path, module: str = "segmenter.train"
) -> list[ForkServerProcess]:
    """Processes of a command, stderr and stdout of number r in the file r of the folder `said`."""
    said.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = map(str, range(count))
    return [start(list(arguments), said / rank, module, **job, RANK=rank, LOCAL_RANK=rank) for rank in ranks]


def run_ranks(count: int, arguments: Sequence[str], said: Path, module: str = "segmenter.train") -> list[int | None]:
    """Exit statuses of `count` processes of a command."""
    processes = start_ranks(count, arguments, said, module)
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]
