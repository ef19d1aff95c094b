"""The harness itself: it hands back results and exceptions, and nothing outlives it."""

import os
import time

import pytest
import torch
import torch.distributed as dist


def sum_of_ranks(offset):
    value = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(value)
    return int(value), torch.get_num_threads(), os.environ["LOCAL_RANK"], os.getpid()


def fail_on(rank):
    if dist.get_rank() == rank:
        raise KeyError(f"rank {rank} fails")
    dist.barrier()


def hang(seconds):
    if dist.get_rank() == 0:
        time.sleep(seconds)


def vanish():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def test_results_come_back_in_order(run_ranks):
    (first, second) = run_ranks(sum_of_ranks, 2, offset=10)
    assert first[:3] == (21, 1, "0")
    assert second[:3] == (21, 1, "1")
    assert len({first[3], second[3], os.getpid()}) == 3


def test_a_ranks_exception_is_raised_again(run_ranks):
    started = time.monotonic()
    with pytest.raises(KeyError, match="rank 1 fails") as raised:
        run_ranks(fail_on, 2, rank=1)
    assert "in fail_on" in str(raised.value.__cause__)
    assert time.monotonic() - started < 30


def test_what_hangs_is_killed(run_ranks):
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="did not finish in 4 seconds"):
        run_ranks(hang, 2, timeout=4.0, seconds=600)
    assert time.monotonic() - started < 30


def test_a_rank_that_ends_without_a_word_is_an_error(run_ranks):
    with pytest.raises(Exception, match=r"exit code 7|Connection closed|reset by peer|did not finish"):
        run_ranks(vanish, 2, timeout=20.0)
