"""The compiled kernel against the torch path: same scores, plans and nearest images, for every shape and storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diml.matching import (
    Matcher,
    Regions,
    codebooks,
    exact,
    learned,
    match,
    matcher,
    native,
    partial,
    regions,
    sinkhorn,
    transport,
)

pytestmark = pytest.mark.skipif(not native.info()["available"], reason=native.info()["reason"])

SETS = native.info()["usable"]


def images(count, regions, dim, seed, spread=1.0, dtype=torch.float32):
    """Images around a shared direction; one of them has blank regions, one is entirely blank, two are equal."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator) * spread + torch.randn(1, 1, dim, generator=generator)
    if count > 3:
        dense[0, : regions // 2] = 0
        dense[1] = 0
        dense[2] = dense[3]
    return Regions.normalized(dense, dense.mean(dim=1)).to(dtype)


def by_torch(monkeypatch, call):
    """The result of the torch path."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "_KERNEL", None)
        patch.setattr(native, "_REASON", "turned off by a test")
        return call()


@settings(max_examples=60)
@example(64, 64, False, 1, torch.float32, "uniform", 1.0, 0.05, 410)
@example(2, 11, True, 8, torch.int16, "cross_correlation", 3.0, 0.05, 614)  # a channel half-way between two codes
@given(
    regions_q=st.integers(1, 20) | st.sampled_from([49, 64]),
    regions_g=st.integers(1, 20) | st.sampled_from([49, 64]),
    same=st.booleans(),
    dim=st.integers(1, 40) | st.sampled_from([128, 300]),
    stored=st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int8]),
    weights=st.sampled_from(["cross_correlation", "uniform"]),
    spread=st.sampled_from([0.2, 1.0, 3.0]),
    epsilon=st.sampled_from([0.05, 0.2, 0.02]),
    seed=st.integers(0, 1000),
)
def test_scores_are_those_of_the_torch_path(regions_q, regions_g, same, dim, stored, weights, spread, epsilon, seed):
    query = images(3, regions_q, dim, seed, spread)
    gallery = images(11, regions_q if same else regions_g, dim, seed, spread)
    gallery = gallery.to(stored) if stored.is_floating_point else gallery.quantized(stored)
    rows = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(seed))
    # each path may be wrong by its marginal error, and with one channel, where cosines are 1 and -1, by nearly all of
    # it: two errors of the default tolerance have to fit into 1e-5
    ours = Matcher(weights=weights, epsilon=epsilon)
    pairs = (torch.arange(3).repeat_interleave(9), rows.flatten())
    first = matcher._score_native(ours, query, gallery, *pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_KERNEL", None)
        patch.setattr(native, "_REASON", "turned off by a test")
        second = matcher._score_torch(ours, query, gallery, rows)
    finished = bool(first.converged.all() and second.converged.all())
    torch.testing.assert_close(first.scores, second.scores.flatten(), rtol=0, atol=1e-5 if finished else 1e-3)


@pytest.mark.parametrize("regions", [1, 4, 9, 16, 49, 64, 196])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int16, torch.int8])
@pytest.mark.parametrize("dim", [37, 38])
def test_every_shape_in_every_instruction_set(instruction_set, regions, stored, dim, monkeypatch):
    query, gallery = images(2, regions, dim, 0), images(19, regions, dim, 1)
    gallery = gallery.to(stored) if stored.is_floating_point else gallery.quantized(stored)
    rows = torch.arange(19).repeat(2, 1)
    scores = Matcher().score(query, gallery, rows)
    expected = by_torch(monkeypatch, lambda: Matcher().score(query, gallery, rows))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.int16, torch.int8, "1kb"])
@pytest.mark.parametrize("dim", [37, 128])
def test_vnni_gives_the_same_numbers(instruction_set, stored, dim):
    """The same without Python: tests/native/check_vnni.cpp."""
    if not instruction_set.endswith("_vnni"):
        pytest.skip("about instruction sets with VNNI")
    query, gallery = images(2, 49, dim, 0), images(60, 49, dim, 1)
    gallery, rows = gallery.quantized(stored), torch.arange(60).repeat(2, 1)
    first = Matcher().score(query, gallery, rows)
    native._KERNEL.choose(instruction_set.removesuffix("_vnni"))
    assert torch.equal(first, Matcher().score(query, gallery, rows))


def test_scores_are_close_to_the_converged_solution_in_float64(instruction_set):
    query, gallery = images(4, 16, 128, 2), images(50, 16, 128, 3)
    rows = torch.arange(50).repeat(4, 1)
    scores = Matcher().score(query, gallery, rows)
    for i in range(4):
        exact = match(query[i].to(torch.float64), gallery.to(torch.float64), tolerance=1e-10, max_iterations=100_000)
        assert exact.converged.all()
        torch.testing.assert_close(scores[i].double(), exact.score, rtol=0, atol=1e-4)


def test_plans_are_those_of_the_torch_path(instruction_set, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for rows, cols in ((16, 16), (5, 7), (1, 3), (49, 49), (64, 41), (34, 101)):
        cost = torch.rand(21, rows, cols, generator=generator)
        weights = (torch.rand(21, size, generator=generator).softmax(dim=1) for size in (rows, cols))
        problem = (cost, *weights)
        found, expected = sinkhorn(*problem), by_torch(monkeypatch, lambda problem=problem: sinkhorn(*problem))
        torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.plan.sum(dim=2), problem[1], rtol=0, atol=2e-6)
        assert ((found.plan.sum(dim=1) - problem[2]).abs().sum(dim=1) <= 2e-5).all()
        apart = (found.iterations - expected.iterations).double().abs()  # of some, rounding decides what is mixed
        assert apart.median() <= 1
        assert apart.max() <= 15
        assert found.converged.all()


def test_a_pair_scores_the_same_alone_and_in_a_batch_bit_for_bit(instruction_set):
    query, gallery = images(5, 16, 64, 4), images(40, 16, 64, 5)
    rows = torch.arange(40).repeat(5, 1)
    together = Matcher().score(query, gallery, rows)
    for i, j in ((0, 0), (1, 17), (2, 39), (4, 20)):
        assert Matcher().score(query[i], gallery, torch.tensor([[j]])).item() == together[i, j].item()


@pytest.mark.parametrize("regions", [49, 64])
def test_a_pair_of_fine_grids_scores_the_same_alone_and_in_a_batch_bit_for_bit(instruction_set, regions):
    query, gallery = images(2, regions, 24, 4), images(19, regions, 24, 5)
    together = Matcher().score(query, gallery, torch.arange(19).repeat(2, 1))
    for i, j in ((0, 0), (1, 8), (1, 18)):
        assert Matcher().score(query[i], gallery, torch.tensor([[j]])).item() == together[i, j].item()


def test_over_relaxed_plans_of_fine_grids_are_those_of_the_torch_path(instruction_set, monkeypatch):
    """Only an error of exactly zero reaches this tolerance in float32: most go on after the 100 that are mixed."""
    generator = torch.Generator().manual_seed(3)
    cost = torch.rand(5, 49, 57, generator=generator)
    weights = (torch.rand(5, size, generator=generator).softmax(dim=1) for size in (49, 57))
    problem, limits = (cost, *weights), {"tolerance": 1e-12, "max_iterations": 131}
    found = sinkhorn(*problem, **limits)
    expected = by_torch(monkeypatch, lambda: sinkhorn(*problem, **limits))
    for side in (found, expected):
        late = side.iterations == 131
        assert late.sum() >= 3
        assert (side.marginal_error[~late] < 1e-12).all()
    assert found.marginal_error.max() < 4e-6
    torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=1e-5)


def test_threads_change_nothing():
    query, gallery = images(20, 16, 64, 6), images(100, 16, 64, 7)
    rows = torch.arange(100).repeat(20, 1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(Matcher().score(query, gallery, rows))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("regions", [5, 49])
def test_problems_too_wide_for_float32_are_solved_all_the_same(regions):
    generator = torch.Generator().manual_seed(1)
    cost = torch.rand(6, regions, regions, generator=generator)
    cost[::2] *= 0.1
    weight = torch.rand(6, regions, generator=generator).softmax(dim=1)
    wide = native.solve(cost, weight, weight, native.SolverSettings(0.02, 1e-5, 3000)).too_wide
    assert wide.tolist() == ((cost.amax((1, 2)) - cost.amin((1, 2))) / 0.02 > 41).tolist()
    assert wide.any()
    assert not wide.all()
    found = sinkhorn(cost, weight, weight, epsilon=0.02, max_iterations=3000)
    expected = sinkhorn(cost.double(), weight.double(), weight.double(), epsilon=0.02, max_iterations=3000)
    assert found.converged.all()
    torch.testing.assert_close(found.plan, expected.plan.float(), rtol=0, atol=1e-5)


@settings(max_examples=40)
@given(
    queries=st.integers(1, 40),
    count=st.integers(1, 600),
    dim=st.sampled_from([1, 3, 16, 128]),
    depth=st.integers(1, 130),
    copies=st.booleans(),
    seed=st.integers(0, 100),
)
def test_nearest_is_the_full_stable_sort(queries, count, dim, depth, copies, seed):
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
    if copies:  # ties all over
        gallery = gallery[torch.randint(0, max(1, count // 4), (count,), generator=generator)]
    own = torch.randint(-1, count, (queries,), generator=generator)
    query = gallery[own]
    scores = (query.double() @ gallery.double().T).float()
    scores[torch.arange(queries)[own >= 0], own[own >= 0]] = -torch.inf
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :depth]
    found = native.nearest(query, gallery, own, depth)
    last = found == -1
    assert (last.sum(dim=1) == ((own >= 0) & (depth >= count)).long()).all()
    assert torch.equal(found.masked_fill(last, 0), expected.masked_fill(last, 0))


@pytest.mark.parametrize("shape", ["apart by rounding", "one channel", "equal channels", "few long", "blank"])
@pytest.mark.parametrize("dim", [1, 7, 64, 129])
def test_nearest_is_exact_where_16_bits_cannot_tell_rows_apart(instruction_set, shape, dim):
    generator = torch.Generator().manual_seed(dim)
    gallery = torch.nn.functional.normalize(torch.randn(400, dim, generator=generator), dim=1)
    if shape == "apart by rounding":
        gallery = torch.nn.functional.normalize(gallery[:1] + 3e-6 * gallery, dim=1)
    elif shape == "one channel":
        gallery = torch.eye(dim)[torch.randint(0, dim, (400,), generator=generator)]
    elif shape == "equal channels":
        gallery = torch.nn.functional.normalize(torch.ones(400, dim), dim=1)
    elif shape == "few long":  # the step is that of the longest row
        gallery = gallery * torch.where(torch.arange(400) % 50 == 0, 1000.0, 1.0).unsqueeze(1)
    elif shape == "blank":
        gallery[::3] = 0
    query = gallery[:40]
    expected = (query.double() @ gallery.double().T).float().sort(dim=1, descending=True, stable=True).indices
    found = native.nearest(query, gallery, torch.full((40,), -1), 60)
    assert torch.equal(found, expected[:, :60])


def test_nearest_is_exact_where_the_sample_of_the_gallery_misleads(instruction_set):
    """The rows that thresholds are guessed from are the best ones here, so that too few others reach the guess."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(16 * 400, 32, generator=generator), dim=1)
    stratum = torch.arange(400)
    sampled = 16 * stratum + (stratum * 2654435769 % 2**32 >> 16) % 16  # as nearest.hpp does
    gallery[sampled] = torch.nn.functional.normalize(gallery[:1] + 0.1 * gallery[sampled], dim=1)
    query = torch.cat([gallery[:1], gallery[100:140]])
    expected = (query.double() @ gallery.double().T).float().sort(dim=1, descending=True, stable=True).indices
    for depth in (30, 100, 500):
        found = native.nearest(query, gallery, torch.full((41,), -1), depth)
        assert torch.equal(found, expected[:, :depth])


def test_powers_of_two_are_accurate(instruction_set):
    x = torch.cat([torch.linspace(-125, 0, 100_003), torch.tensor([0.0, -1e-30, -59.0])])
    found = torch.empty_like(x)
    native._KERNEL.exp2(x, found)
    relative = (found.double() / x.double().exp2() - 1).abs().max()
    assert relative < 2e-7
    assert found[-3] == 1


@pytest.mark.parametrize("value", [0, 1, -1, 1e-8, -6e-8, 65504, 0.3333, 6.1e-5])
def test_half_floats_are_read_exactly(instruction_set, value):
    dense = torch.zeros(1, 1, 5, dtype=torch.float16)
    dense[0, 0] = torch.tensor([value, 0.5, -0.25, value, 2.0])
    one = torch.ones(1, 1, 5)
    sides = native.StoredRegions(one, one[0]), native.StoredRegions(dense, torch.ones(1, 5))
    pair = native.PairIndices(*torch.zeros(2, 1).long())
    found = native.score(*sides, pair, native.SolverSettings(1e6, 1e-5, 10), uniform=True)
    assert found.structural.item() == pytest.approx(dense.float().sum().item(), rel=1e-6, abs=1e-6)


def test_wrong_arguments_raise_and_are_not_read():
    one, row = torch.ones(1, 2, 3), torch.tensor([0])
    solver, pairs = native.SolverSettings(0.05, 1e-5, 10), native.PairIndices(row, row)
    query = native.StoredRegions(one, one[0, :1])
    outside = {"query_rows": native.PairIndices(row - 1, row), "gallery_rows": native.PairIndices(row, row + 1)}
    for name, wrong in outside.items():
        with pytest.raises(ValueError, match=name):
            native.score(query, query, wrong, solver, uniform=False)
        with pytest.raises(ValueError, match=name):
            native.compare(one, one, wrong, solver, uniform=False, keep_cosine=False)
    galleries = {
        "dim": native.StoredRegions(torch.ones(1, 2, 4), torch.ones(1, 4)),
        r"gallery\.scale": native.StoredRegions(one.to(torch.int8), one[0, :1]),
        r"gallery\.values": native.StoredRegions(one.to(torch.int32), one[0, :1]),
    }
    for name, gallery in galleries.items():
        with pytest.raises(ValueError, match=name):
            native.score(query, gallery, pairs, solver, uniform=False)
    with pytest.raises(ValueError, match="mass_g"):
        native.solve(torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(2, 3), solver)
    with pytest.raises(ValueError, match="dim"):
        native.compare(one, torch.ones(1, 2, 4), pairs, solver, uniform=False, keep_cosine=False)


def test_wrong_slopes_and_pairs_of_gradients_raise():
    one, row, weight = torch.ones(1, 2, 3), torch.tensor([0]), torch.ones(1)
    slopes = native.PairSlopes(torch.ones(1, 1, 1), weight, weight)
    with pytest.raises(ValueError, match="query_rows"):
        native.accumulate_gradients(slopes, native.PairIndices(row + 1, row), one, (1, 2, 3), side="query")
    with pytest.raises(ValueError, match="gallery_rows"):
        native.accumulate_gradients(slopes, native.PairIndices(row, row + 1), one, (1, 2, 3), side="both")
    wrong = {"regions": (torch.ones(1, 2, 1), weight, weight), "weight": (torch.ones(1, 1, 1), weight[:0], weight)}
    for name, parts in wrong.items():
        slopes = native.PairSlopes(*parts)
        with pytest.raises(ValueError, match=name):
            native.accumulate_gradients(slopes, native.PairIndices(row, row), one, (1, 2, 3), side="query")


def test_constants_are_those_of_the_torch_path():
    """A number that one side has and the other lacks, or has otherwise, would make the two paths differ."""
    kernel = dict(native._KERNEL.CONSTANTS)
    assert kernel.pop("STORED") == tuple(str(dtype).removeprefix("torch.") for dtype in native.STORED)
    assert [kind.name for kind in native._KERNEL.PlanKind] == list(get_args(native.PlanKind))
    assert kernel.pop("TOO_WIDE") == native._TOO_WIDE
    for name in ("SAMPLE_EVERY", "SAMPLE_MOST"):  # of the kernel alone
        kernel.pop(name)
    for name in ("TIE_BREAK", "NO_MASS"):  # float64 on both sides
        assert kernel.pop(name) == getattr(exact, name)
    assert kernel.pop("CENTROIDS") == codebooks.CENTROIDS
    assert kernel.pop("CLOSED_LEVEL") == partial.CLOSED_LEVEL
    assert kernel.pop("LEAST_WEIGHT") == pytest.approx(learned.LEAST_WEIGHT)
    of_regions = ("SHORTS_PER_UNIT", "LONGEST_CODE")
    twins = {name: getattr(regions if name in of_regions else transport, name) for name in kernel}
    twins["PLAIN_RANGE"] = twins["PLAIN_RANGE"][torch.float32]
    assert kernel == {name: torch.tensor(value, dtype=torch.float32).item() for name, value in twins.items()}


def test_other_threads_run_meanwhile():
    """The interpreter's lock is released: a thread that counts goes on while the kernel works."""
    query, gallery = images(60, 49, 64, 8), images(200, 49, 64, 9)
    rows = torch.arange(200).repeat(60, 1)
    ticks, stop = [], threading.Event()

    def count():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    time.sleep(0.05)
    started = time.perf_counter()
    Matcher().score(query, gallery, rows)
    ended = time.perf_counter()
    stop.set()
    counter.join()
    assert sum(started < tick < ended for tick in ticks) >= 3


@pytest.mark.parametrize("used_before", [True, False])
def test_a_forked_child_has_its_own_threads(used_before):
    code = f"""
import os, torch
from diml.matching import Matcher, Regions
x = torch.randn(40, 4, 8)
r = Regions.normalized(x, x.mean(1))
rows = torch.arange(40).repeat(40, 1)
torch.set_num_threads(2)
torch.ones(10**6).add_(1)  # torch has its threads
if {used_before}:
    first = Matcher().score(r, r, rows)
child = os.fork()
if child == 0:
    found = Matcher().score(r, r, rows)
    os._exit(0 if not {used_before} or torch.equal(found, first) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc, and other systems have another OpenMP")
def test_it_works_on_the_threads_of_torch():
    code = """
import os, torch
from diml.matching import Matcher, Regions
torch.set_num_threads(3)
torch.ones(10**6).add_(1)  # torch has its threads
x = torch.randn(40, 4, 8)
r = Regions.normalized(x, x.mean(1))
before = len(os.listdir("/proc/self/task"))
Matcher().score(r, r, torch.arange(40).repeat(40, 1))
assert len(os.listdir("/proc/self/task")) == before, before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", ["tolerance=1e-30", "epsilon=0"])
def test_ctrl_c_ends_it_soon(setting):
    code = f"""
import signal
import torch
from diml.matching import Matcher, Regions
signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a background job is born ignoring it
x = torch.randn(300, 64, 64)
r = Regions.normalized(x, x.mean(1))
rows = torch.arange(300).repeat(300, 1)
print("ready", flush=True)
while True:
    Matcher({setting}).score(r, r, rows)
"""
    words = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.5)
            sent = time.perf_counter()
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in error
    assert time.perf_counter() - sent < 10  # within a second on a quiet machine; this one may be loaded


@pytest.mark.parametrize(("value", "available"), [("0", False), ("1", True)])
def test_the_environment_turns_it_off(value, available):
    code = "from diml.matching import native; print(native.info()['available'])"
    environment = {**os.environ, "DIML_NATIVE": value}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(available), done.stderr


def test_without_a_kernel_it_says_so_once(monkeypatch):
    monkeypatch.setattr(native, "_KERNEL", None)
    monkeypatch.setattr(native, "_REASON", "not built: no compiler")
    monkeypatch.setattr(native, "_warned", False)
    given = images(4, 4, 8, 0)
    with pytest.warns(native.KernelMissingWarning, match="install a C"):
        first = match(given, given)
    again = match(given, given)  # warnings are errors here
    assert torch.equal(first.score, again.score)


def test_many_pairs_too_wide_are_solved_in_parts_that_fit_into_memory(monkeypatch):
    """Each such pair copies its query for torch: with all at once, a data set of 2,400 queries asked for 48 GB."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 4, 2048, generator=generator)
    given = Regions.normalized(dense, dense.mean(dim=1))
    candidates = torch.arange(6).expand(6, 6)
    solver = {"epsilon": 0.004, "max_iterations": 20000}
    sizes = []
    by_torch = matcher._score_torch

    def watched(matcher, query, *rest):
        sizes.append(len(query))
        return by_torch(matcher, query, *rest)

    monkeypatch.setattr(matcher, "_score_torch", watched)
    monkeypatch.setattr(matcher, "BLOCK_BYTES", 2 * 4 * 2048 * 4)
    scores = Matcher(**solver).score(given, given, candidates)
    assert sum(sizes) > 2
    assert max(sizes) == 2
    expected = torch.stack([match(given[row], given, **solver).score for row in range(6)])
    assert torch.allclose(scores, expected, atol=1e-5)
