"""Runs a function on several ranks, each a process of its own.

The processes come from a fork server that has imported the heavy packages once. They find their rank in the
environment, as under torchrun, so that Lightning launches nothing itself, and meet in a file, so that no port can be
taken. This file is both sides: imported it starts ranks, executed as ``__rank__`` it is one.
"""

import inspect
import multiprocessing
import os
import pickle
import runpy
import sys
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

PRELOADED = ["torch", "torch.distributed.tensor.parallel", "lightning", "transformers", "lightning_minillm.modules"]
GRACE_SECONDS = 3.0


class RankError(Exception):
    """Holds the traceback of a rank; the cause of what is raised."""


class Ranks:
    """Starts functions on ranks, with results and exceptions handed back through files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def __call__(self, function, world_size, *, timeout=90.0, **kwargs):
        """Return what ``function(**kwargs)`` returned on each rank, in order.

        Args:
            function: at the top of a file; the file is loaded by its path.
            world_size: number of ranks.
            timeout: seconds until everything is killed.
            kwargs: to be pickled.

        Raises:
            TimeoutError: some ranks hang.
            Exception: whatever the first failing rank raised, with its traceback as the cause.
        """
        self._runs += 1
        folder = self.folder / f"run_{self._runs}"
        folder.mkdir(parents=True)
        job = {
            "file": inspect.getsourcefile(function),
            "name": function.__name__,
            "kwargs": kwargs,
            "world_size": world_size,
            "folder": str(folder),
        }
        processes = []
        for rank in range(world_size):
            options = {"init_globals": {"JOB": {**job, "rank": rank}}, "run_name": "__rank__"}
            processes.append(self._context.Process(target=runpy.run_path, args=(__file__,), kwargs=options))
        try:
            for process in processes:
                process.start()
            finished = self._wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:  # all before the first is waited for: the others would report that it is gone
                if process.is_alive():
                    process.kill()
            for process in processes:
                process.join()
        return self._results(folder, processes, finished, timeout)

    @staticmethod
    def _wait(processes, deadline):
        """Wait for all; once one has failed, the others get a moment to fail by themselves."""
        running = {process.sentinel: process for process in processes}
        while running and time.monotonic() < deadline:
            for sentinel in wait(list(running), timeout=max(0.0, deadline - time.monotonic())):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return not running

    @staticmethod
    def _results(folder, processes, finished, timeout):
        results = []
        failures = sorted(folder.glob("*.failed"), key=lambda file: file.stat().st_mtime)
        if failures:
            error, text = pickle.loads(failures[0].read_bytes())
            raise error from RankError(f"on rank {failures[0].stem}:\n{text}")
        for rank, process in enumerate(processes):
            file = folder / f"{rank}.done"
            if not file.exists():
                if finished:
                    raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode} and no result")
                raise TimeoutError(f"rank {rank} did not finish in {timeout:.0f} seconds")
            results.append(pickle.loads(file.read_bytes()))
        return results


def be_rank(job):
    """Run the job as one rank, write what comes of it, and end the process without any cleaning up."""
    rank, world_size, folder = job["rank"], job["world_size"], Path(job["folder"])
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",  # never opened: the ranks meet in a file
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    scratch = folder / f".{rank}"
    status = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
        module = runpy.run_path(job["file"], run_name="__ranks__")
        scratch.write_bytes(pickle.dumps(module[job["name"]](**job["kwargs"])))
        dist.barrier()
        scratch.rename(folder / f"{rank}.done")
        status = 0
    except BaseException as error:
        text = traceback.format_exc()
        try:
            content = pickle.dumps((error, text))
            pickle.loads(content)
        except Exception:
            content = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
        scratch.write_bytes(content)
        scratch.rename(folder / f"{rank}.failed")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads may abort an orderly exit


if __name__ == "__rank__":
    be_rank(globals()["JOB"])
