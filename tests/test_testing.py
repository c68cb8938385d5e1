"""run_distributed: results by rank, reuse of processes, and what a failing or stuck rank leaves behind."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megalm import testing
from megalm.testing import RankError, run_distributed


def sum_of_ranks(offset: int) -> tuple[int, torch.Tensor]:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return dist.get_rank(), total


def pid() -> int:
    return os.getpid()


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        print("the last words")
        raise ValueError(f"rank {rank} cannot")
    dist.barrier()


def leave_peer_waiting(noticed: Path) -> None:
    """Rank 1 closes its connections, waits for its peer to notice, and only then says why."""
    if dist.get_rank() == 1:
        dist.destroy_process_group()
        while not noticed.exists():
            time.sleep(0.01)
        time.sleep(0.5)  # so that the peer's complaint comes first: the harder case
        raise ValueError("the cause")
    try:
        dist.all_reduce(torch.ones(1))
    finally:
        noticed.touch()


def die(number: int) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), number)
    dist.barrier()


def wait_on_rank_1() -> None:
    if dist.get_rank() == 1:
        signal.pause()
    dist.barrier()


def disturb() -> None:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    tensor_parallel.random.get_cuda_rng_tracker().add("mine", 1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(99)


def surroundings() -> dict:
    from megatron.core import parallel_state, tensor_parallel

    return {
        "groups": len(dist.distributed_c10d._world.pg_map),
        "model_parallel": parallel_state.is_initialized(),
        "rng_states": list(tensor_parallel.random.get_cuda_rng_tracker().get_states()),
        "dtype": torch.get_default_dtype(),
        "random": torch.rand(1).item(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
    }


def test_results_come_in_rank_order_from_one_world():
    results = run_distributed(sum_of_ranks, 3, 10)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(total.item() == 33 for _, total in results)


def test_processes_are_reused():
    first, second = run_distributed(pid, 2), run_distributed(pid, 2)
    assert first == second
    assert len({*first, os.getpid()}) == 3


def test_traceback_and_output_of_the_failing_rank_arrive():
    with pytest.raises(RankError, match="rank 1 cannot") as caught:
        run_distributed(fail_on, 2, 1)
    assert caught.value.rank == 1
    assert "in fail_on" in str(caught.value)
    assert "the last words" in str(caught.value)


def test_a_world_is_fresh_after_a_failure():
    before = run_distributed(pid, 2)
    with pytest.raises(RankError):
        run_distributed(fail_on, 2, 0)
    after = run_distributed(pid, 2)
    assert not set(before) & set(after)
    assert "the last words" not in str(after)


def test_cause_is_reported_and_not_the_connection_loss_that_came_first(tmp_path):
    with pytest.raises(RankError, match="the cause") as caught:
        run_distributed(leave_peer_waiting, 2, tmp_path / "noticed")
    assert caught.value.rank == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_rank_is_named_with_its_signal(number):
    with pytest.raises(RankError, match=number.name) as caught:
        run_distributed(die, 2, number)
    assert caught.value.rank == 1


def test_timeout_shows_where_every_rank_is_stuck():
    run_distributed(pid, 2)  # the import of this file is not what should be timed
    with pytest.raises(TimeoutError) as caught:
        run_distributed(wait_on_rank_1, 2, timeout=2)
    rank_0, rank_1 = str(caught.value).split("\nrank 1:")
    assert "in barrier" in rank_0
    assert "in wait_on_rank_1" in rank_1 and "in barrier" not in rank_1


def test_calls_do_not_see_what_earlier_calls_set_up():
    run_distributed(pid, 2)
    before = run_distributed(surroundings, 2)
    run_distributed(disturb, 2)
    assert run_distributed(surroundings, 2) == before
    assert before[0]["groups"] == 1 and not before[0]["model_parallel"]
    assert before[0]["threads"] == 1 and not before[0]["cuda"]


def test_function_that_workers_cannot_find_is_refused_without_losing_the_world():
    before = run_distributed(pid, 1)
    with pytest.raises((AttributeError, TypeError, testing.pickle.PicklingError)):
        run_distributed(lambda: 1, 1)
    assert run_distributed(pid, 1) == before


def test_few_worlds_live_at_once():
    for world_size in (1, 2, 3, 4):
        run_distributed(pid, world_size)
    assert list(testing._worlds) == [2, 3, 4]


def leave_threads_behind() -> int:
    event = threading.Event()
    for _ in range(testing.MAX_THREADS):
        threading.Thread(target=event.wait, daemon=True).start()
    return os.getpid()


def test_processes_that_hold_too_many_threads_are_not_reused() -> None:
    crowded = run_distributed(leave_threads_behind, 1)
    assert run_distributed(os.getpid, 1) != crowded
