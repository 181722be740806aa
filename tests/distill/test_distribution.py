"""Two processes of one training give what one gives: real processes that torchrun starts, on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import processes
import pytest
import torch
from processes import CASES, DATA
from torch import nn

from edgekd.distill.batches import Batches
from edgekd.distill.checks import check_division
from edgekd.distill.distribution import ALONE, Division, Portion, World, joined, size_from
from edgekd.distill.modules import synchronized
from edgekd.distill.objective import Objective, Term
from edgekd.errors import ProcessLost, UsageError

PROCESSES = 2
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each process got, by case."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES)]
    done = subprocess.run(
        [*command, processes.__file__, str(folder), *CASES],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    threads = [(folder / f"threads.{rank}").read_text() for rank in range(PROCESSES)]
    assert "gloo" not in "".join(threads), "connections that outlive the training may abort the process at its end"
    return {name: [dict(np.load(folder / f"{name}.{rank}.npz")) for rank in range(PROCESSES)] for name in CASES}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process gets."""
    return {name: dict(case(ALONE)) for name, case in CASES.items()}


def compare(found: dict[str, Any], expected: dict[str, Any], *names: str, within: float = 1e-5) -> None:
    for name in names or [name for name in expected if name.startswith("weights.")]:
        np.testing.assert_allclose(found[name], expected[name], rtol=within, atol=within, err_msg=name)


SAME = ("per_sample", "comparing", "adapted", "read", "read_adapted", "masked", "accumulated", "averaged")
UNEVEN = ("uneven", "uneven_accumulated", "uneven_texts", "uneven_masked")


@pytest.mark.parametrize("case", [*SAME, *UNEVEN])
def test_two_processes_give_the_weights_of_one(case: str, together: Results, alone: dict[str, Any]) -> None:
    first, second = together[case]
    compare(first, alone[case])
    compare(first, alone[case], "loss", "val", "gradients", "seen", "passes")
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("case", ["per_sample", "comparing", "adapted"])
def test_the_trainings_do_not_stand_still(case: str, alone: dict[str, Any]) -> None:
    start = processes.mlp(seed=1).state_dict()
    assert all(np.abs(alone[case][f"weights.{name}"] - value.numpy()).max() > 1e-3 for name, value in start.items())


def test_micro_batches_give_the_weights_of_the_whole_batch(alone: dict[str, Any]) -> None:
    compare(alone["accumulated"], alone["per_sample"])
    compare(alone["accumulated"], alone["per_sample"], "loss", "val")


def test_micro_batches_of_texts_count_by_their_tokens(alone: dict[str, Any]) -> None:
    terms = [Term("hidden", "hidden_mse", student_tap="hidden", teacher_tap="hidden")]
    found, expected = (processes.of_texts(ALONE, *terms, accumulate=count) for count in (3, 1))
    compare(found, expected)
    compare(found, expected, "loss")


def test_micro_batches_of_masked_texts_count_by_what_they_ask(alone: dict[str, Any]) -> None:
    found = processes.masked(ALONE, accumulate=3)
    compare(found, alone["masked"])
    compare(found, alone["masked"], "loss")


def test_masked_texts_and_terms_that_compare_samples_are_for_one_process() -> None:
    with pytest.raises(UsageError, match="train on one process, or drop these terms"):
        processes.masked(World(rank=0, size=2), more=(Term("dist", "dist", weight=0.5),))


def test_terms_that_compare_samples_do_so_within_a_micro_batch_and_say_so(
    together: Results, alone: dict[str, Any]
) -> None:
    compare(together["accumulated_comparing"][0], alone["accumulated_comparing"])
    assert list(together["accumulated_comparing"][0]["warnings"]) == [
        "accumulate = 2: rkd compare samples with one another, but only within each of the 2 micro-batches of a batch"
    ]
    whole = processes.trained(ALONE, processes.CE, Term("rkd", "rkd", weight=0.1))
    assert np.abs(whole["weights.1.weight"] - alone["accumulated_comparing"]["weights.1.weight"]).max() > 1e-4


def test_statistics_of_batch_norm_are_the_same_in_all_processes_at_the_end(
    together: Results, alone: dict[str, Any]
) -> None:
    first, second = together["normalized"]
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    # Each process normalizes its own rows, so the result is another than that of one process.
    assert np.abs(first["weights.2.running_mean"] - alone["normalized"]["weights.2.running_mean"]).max() > 1e-4


def test_each_process_draws_its_own_dropout_and_the_first_those_of_one(
    together: Results, alone: dict[str, Any]
) -> None:
    first, second = together["dropped_out"]
    assert (first["mask"] != second["mask"]).any()
    assert first["weights.1.weight"].tobytes() == second["weights.1.weight"].tobytes()
    assert (first["mask"][0] == alone["dropped_out"]["mask"][0]).all()


def test_a_training_that_was_cut_goes_on_to_the_same_bytes(together: Results, alone: dict[str, Any]) -> None:
    for found in (*together["resumed"], alone["resumed"]):
        assert found["done"] == 1
        assert found["same"]
        assert not np.any(found["loss"])


def test_processes_go_on_with_what_one_began_and_say_so(together: Results, alone: dict[str, Any]) -> None:
    for found in together["grown"]:
        compare(found, alone["grown"])
        compare(found, alone["grown"], "loss", "val")
        [note] = found["warnings"]
        assert note.startswith("epochs up to 2 were trained by 1 process, those after it by 2: sums round in another")
        assert note.endswith("so the weights are not the bytes of an uninterrupted training")
    assert list(alone["grown"]["warnings"]) == []


def test_the_gradient_of_what_was_gathered_is_exactly_that_of_one_process(
    together: Results, alone: dict[str, Any]
) -> None:
    for found in together["gathered"]:
        compare(found, alone["gathered"], "loss", "gradient", within=1e-13)
        assert list(found["order"]) == list(range(11))
        assert list(found["flags"]) == [number % 3 == 0 for number in range(11)]
        assert found["unused"]  # or weight decay would move what nobody uses
        assert found["shared"] == "from 0"
        assert list(found["collected"]) == [0, 1]


def test_processes_build_the_cache_that_one_builds_to_the_last_byte(together: Results, alone: dict[str, Any]) -> None:
    expected = {name: value.tobytes() for name, value in alone["cached"].items() if name.startswith("file ")}
    assert len(expected) == 2 + 2 * 6, "index, ids, and two tensors of six shards"
    for found in together["cached"]:
        assert {name: value.tobytes() for name, value in found.items() if name.startswith("file ")} == expected
        assert (found["asked"], found["again"]) == (2 * 95, 0)
    own = [int(found["own"]) for found in together["cached"]]
    assert sum(own) == 2 * 95
    assert min(own) >= 80, "each has answered its half"
    assert int(alone["cached"]["own"]) == 2 * 95


@pytest.mark.parametrize(("size", "accumulate", "total"), [(1, 1, 5), (2, 1, 7), (3, 2, 20), (2, 4, 8)])
def test_every_row_goes_to_one_part_and_counts_once(size: int, accumulate: int, total: int) -> None:
    divisions = [Division(World(rank, size), accumulate) for rank in range(size)]
    dealt = [[list(range(total))[part :: division.count] for part in division.own] for division in divisions]
    assert sorted(row for parts in dealt for part in parts for row in part) == list(range(total))
    for division, parts in zip(divisions, dealt):
        portions = division.portions(total)
        assert [portion.sizes[division.world.rank] for portion in portions] == [len(part) for part in parts]
        assert sum(portion.whole for portion in portions) == pytest.approx(1.0)
    # The mean over the processes of the sum of the weighted means is the mean over the batch.
    means = [
        sum(portion.own * np.mean(part) for portion, part in zip(division.portions(total), parts))
        for division, parts in zip(divisions, dealt)
    ]
    assert np.mean(means) == pytest.approx(np.mean(range(total)))


def test_a_term_of_the_users_own_says_itself_that_it_compares_samples() -> None:
    def spread(student: torch.Tensor) -> torch.Tensor:
        return student.std(dim=0).mean()

    assert Objective([Term("spread", spread)]).comparing_terms == ()
    assert Objective([Term("spread", spread, compares_samples=True)]).comparing_terms == ("spread",)
    assert Objective([Term("rkd", "rkd"), Term("kd", "kd")]).comparing_terms == ("rkd",)


def test_too_few_samples_for_the_processes_is_refused_before_the_first_step() -> None:
    train = Batches(DATA.train, batch_size=20)  # the last batch holds 15
    cpu = torch.device("cpu")

    def check(division: Division, num_val: int = 37, **options: Any) -> None:
        check_division(division, train, num_val=num_val, device=cpu, **{"sync_batch_norm": False, **options})

    check(Division(World(0, 20)))
    with pytest.raises(UsageError, match="a batch holds 20 samples, too few for 21 processes; expected at least 21"):
        check(Division(World(0, 21)))
    with pytest.raises(UsageError, match=r"20 samples, too few for 7 processes with 3 micro-batches each"):
        check(Division(World(0, 7), 3))
    with pytest.raises(UsageError, match="validation has 4 samples, too few for 5 processes"):
        check(Division(World(0, 5)), num_val=4)
    with pytest.raises(UsageError, match="found accumulate = 0, expected a whole number from 1"):
        check(Division(ALONE, 0))
    check(Division(World(0, 10), least=2))
    with pytest.raises(UsageError, match=r"which cannot learn from 1 sample\); expected at least 22"):
        check(Division(World(0, 11), least=2))
    with pytest.raises(UsageError, match="sync_batch_norm works on GPUs only, but the student is trained on cpu"):
        check(Division(World(0, 2), least=2), sync_batch_norm=True)
    check(Division(ALONE, least=2), sync_batch_norm=True)


@pytest.mark.parametrize(
    ("total", "world", "accumulate"), [(12, 2, 3), (11, 1, 3), (6, 1, 3), (5, 2, 1), (4, 2, 1), (3, 1, 1), (1, 1, 1)]
)
def test_a_batch_too_small_for_all_is_dealt_out_to_fewer(total: int, world: int, accumulate: int) -> None:
    division = Division(World(1, 2), 3, least=2).of(total)
    assert (division.world.size, division.accumulate) == (world, accumulate)
    portions = division.portions(total)
    assert [sum(portion.sizes) for portion in portions] == [len(range(k, total, accumulate)) for k in range(accumulate)]
    assert all(size >= min(2, total) for portion in portions for size in portion.sizes)


def test_synchronized_batch_norm_is_the_users_own_again_afterwards() -> None:
    norm = nn.BatchNorm1d(4)
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(norm, nn.ReLU()))
    before = dict(module.state_dict(keep_vars=True))
    with synchronized(module):
        assert isinstance(module[1][0], nn.SyncBatchNorm)
        inside = dict(module.state_dict(keep_vars=True))
    assert module[1][0] is norm
    assert all(inside[name] is value for name, value in before.items())
    assert module.state_dict(keep_vars=True).keys() == before.keys()


def test_without_a_launcher_there_is_one_process() -> None:
    assert size_from({}) == 1
    assert size_from({"WORLD_SIZE": "4"}) == 1  # of somebody else: a launcher names the rank too
    assert size_from({"WORLD_SIZE": "4", "RANK": "0"}) == 4
    with joined({}, device=torch.device("cpu")) as world:
        assert world == ALONE
    x = torch.arange(3.0)
    assert ALONE.gather(x, (3,)) is x
    assert ALONE.share("x") == "x"
    assert Portion(ALONE, (3,), 3).own == 1.0


def test_a_process_that_is_lost_is_said_with_what_to_do() -> None:
    text = r"process 1 of 2 waited for the others, and one of them .* Connection closed by peer.* run the same command"
    with pytest.raises(ProcessLost, match=text), World(1, 2)._together():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1\nmore")
