"""The solver: stopping, flags, types, refusals, and the envelope argument behind the gradients."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch

from diml.matching import TransportPlan, sinkhorn

module = importlib.import_module("diml.matching.transport")  # the package has the function of that name


def problem(batch=3, rows=4, columns=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(batch, rows, columns, generator=generator, dtype=dtype)
    weights = [torch.rand(batch, n, generator=generator, dtype=dtype) + 0.1 for n in (rows, columns)]
    return [cost, *(weight / weight.sum(dim=1, keepdim=True) for weight in weights)]


def hard(dtype=torch.float64):
    """Five problems of very different difficulty in one batch."""
    cost, weight_q, weight_g = problem(batch=5, rows=4, columns=4, dtype=dtype)
    cost[0] = 1.0  # solved by the first step
    cost[1] *= 0.05
    cost[4] = 1 - torch.eye(4, dtype=dtype)  # nearly a permutation, which is slow
    return cost, weight_q, weight_g


def test_each_problem_stops_on_its_own_error():
    together = sinkhorn(*hard())
    assert together.converged.all()
    assert len(set(together.iterations.tolist())) >= 4
    assert together.iterations[0] == 1
    for i in range(5):
        alone = sinkhorn(*(part[i : i + 1] for part in hard()))
        assert alone.iterations.item() == together.iterations[i].item()
        torch.testing.assert_close(alone.plan[0], together.plan[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.marginal_error[0], together.marginal_error[i], rtol=0, atol=1e-12)


def test_no_iteration_is_wasted_that_far_from_the_tolerance():
    needed = sinkhorn(*hard()).iterations
    for i, count in enumerate(needed.tolist()[1:], start=1):
        early = sinkhorn(*(part[i : i + 1] for part in hard()), max_iterations=count // 2)
        assert early.marginal_error > 1e-5
        assert not early.converged
        assert early.iterations == count // 2


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_the_error_that_is_reported_is_the_error_of_the_plan(tolerance):
    cost, weight_q, weight_g = problem()
    found = sinkhorn(cost, weight_q, weight_g, tolerance=tolerance)
    error = (found.plan.sum(dim=1) - weight_g).abs().sum(dim=1)
    torch.testing.assert_close(found.marginal_error, error, rtol=0, atol=1e-12)
    assert (error <= tolerance).all()
    torch.testing.assert_close(found.plan.sum(dim=2), weight_q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 1e-3], ids=["plain", "log"])
def test_what_has_not_converged_is_flagged(epsilon):
    found = sinkhorn(*problem(), epsilon=epsilon, max_iterations=1)
    assert not found.converged.any()
    assert (found.marginal_error > 1e-4).all()
    assert (found.iterations == 1).all()
    assert torch.isfinite(found.plan).all()


@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (196, 196), (16, 49)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_at_any_epsilon_is_finite_and_non_negative(epsilon, shape, dtype):
    found = sinkhorn(*problem(2, *shape, dtype=dtype), epsilon=epsilon, max_iterations=20)
    assert found.plan.shape == (2, *shape)
    assert torch.isfinite(found.plan).all()
    assert (found.plan >= 0).all()
    assert torch.isfinite(found.marginal_error).all()


@pytest.mark.parametrize("epsilon", [0.05, 1e-3], ids=["plain", "log"])
def test_regions_without_weight_send_and_receive_nothing(epsilon):
    cost, weight_q, weight_g = problem(dtype=torch.float32)
    weight_q[:, 1] = weight_g[:, 3] = 0
    weight_q[2] = weight_g[2] = 0
    weight_q[2, 0] = weight_g[2, 4] = 1
    weight_q, weight_g = (weight / weight.sum(dim=1, keepdim=True) for weight in (weight_q, weight_g))
    found = sinkhorn(cost, weight_q, weight_g, epsilon=epsilon)
    assert torch.isfinite(found.plan).all()
    assert (found.plan[:, 1] == 0).all()
    assert (found.plan[:, :, 3] == 0).all()
    assert found.plan[2, 0, 4] == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found.plan.sum(dim=2), weight_q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tiny", [1e-12, 1e-30, 1e-42])
def test_tiny_weights_do_not_overflow(tiny):
    cost = 2 * (1 - torch.eye(3))[None]
    weights = torch.tensor([[1.0, tiny, tiny]])
    for problem in ((cost, weights, weights.flip(1)), (2 - cost, weights, weights), (cost, weights.flip(1), weights)):
        found = sinkhorn(*problem)
        assert torch.isfinite(found.plan).all()
        torch.testing.assert_close(found.plan.sum(dim=2), problem[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("range_", [40.0, 42.0, 299.0, 301.0, 2000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_types_solve_the_same_problem_at_any_range_of_costs(range_, dtype):
    """The plain kernel of float32 ends near 41 and that of float64 near 300; the results must not show it."""
    parts = problem(rows=3, columns=3)
    parts[0] /= parts[0].amax()
    exact = sinkhorn(*parts, epsilon=1 / range_, tolerance=1e-5)
    found = sinkhorn(*(part.to(dtype) for part in parts), epsilon=1 / range_, tolerance=1e-5)
    assert found.plan.dtype == dtype
    torch.testing.assert_close(found.plan.double(), exact.plan, rtol=0, atol=2e-5)


def test_easy_and_very_sharp_problems_share_a_batch():
    cost, weight_q, weight_g = problem(batch=4)
    cost[1::2] *= 10000
    together = sinkhorn(cost, weight_q, weight_g)
    for i in range(4):
        alone = sinkhorn(cost[i : i + 1], weight_q[i : i + 1], weight_g[i : i + 1])
        torch.testing.assert_close(together.plan[i], alone.plan[0], rtol=0, atol=1e-12)
        assert together.converged[i] == alone.converged[0]


@pytest.mark.parametrize("shift", [-100.0, 3.0, 1e4])
def test_a_constant_added_to_the_cost_changes_nothing(shift):
    cost, weight_q, weight_g = problem()
    plain, shifted = (sinkhorn(c, weight_q, weight_g).plan for c in (cost, cost + shift))
    torch.testing.assert_close(plain, shifted, rtol=0, atol=1e-9)


def test_scaling_cost_and_epsilon_together_changes_nothing():
    cost, weight_q, weight_g = problem()
    plain = sinkhorn(cost, weight_q, weight_g, epsilon=0.1).plan
    torch.testing.assert_close(sinkhorn(7 * cost, weight_q, weight_g, epsilon=0.7).plan, plain, rtol=0, atol=1e-9)


def test_much_entropy_spreads_the_mass_and_little_collects_it():
    cost, weight_q, weight_g = problem()
    independent = weight_q.unsqueeze(2) * weight_g.unsqueeze(1)
    torch.testing.assert_close(sinkhorn(cost, weight_q, weight_g, epsilon=1e5).plan, independent, rtol=0, atol=1e-4)
    costs = [(sinkhorn(cost, weight_q, weight_g, epsilon=e).plan * cost).sum(dim=(1, 2)) for e in (0.02, 0.1, 1.0)]
    assert (costs[0] < costs[1]).all()
    assert (costs[1] < costs[2]).all()


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("epsilon", [0.05, 1e-3], ids=["plain", "log"])
def test_the_solver_works_in_float32_or_better(given, returned, epsilon):
    cost, weight_q, weight_g = problem(dtype=torch.float32)
    found = sinkhorn(cost.to(given), weight_q, weight_g, epsilon=epsilon)
    assert found.plan.dtype == found.marginal_error.dtype == returned
    assert (found.iterations.dtype, found.converged.dtype) == (torch.int64, torch.bool)
    exact = sinkhorn(cost.to(given).float(), weight_q, weight_g, epsilon=epsilon)
    torch.testing.assert_close(found.plan, exact.plan, rtol=0, atol=1e-4, check_dtype=False)


def test_no_problems_give_no_plans():
    found = sinkhorn(torch.zeros(0, 4, 5), torch.zeros(0, 4), torch.zeros(0, 5))
    assert isinstance(found, TransportPlan)
    assert found.plan.shape == (0, 4, 5)
    assert found.marginal_error.shape == found.iterations.shape == found.converged.shape == (0,)


def test_no_gradient_and_no_change_of_the_input():
    parts = [part.requires_grad_() for part in problem()]
    before = [part.detach().clone() for part in parts]
    assert not sinkhorn(*parts).plan.requires_grad
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


def test_the_plan_is_the_gradient_of_the_regularised_cost():
    """The envelope theorem, by central differences: why the plan needs no gradient of its own."""
    cost, weight_q, weight_g = problem(batch=1, rows=3, columns=4)
    epsilon, step = 0.3, 1e-5

    def optimum(at):
        plan = sinkhorn(at, weight_q, weight_g, epsilon=epsilon, tolerance=1e-13).plan
        return (plan * at).sum() + epsilon * torch.xlogy(plan, plan).sum()

    plan = sinkhorn(cost, weight_q, weight_g, epsilon=epsilon, tolerance=1e-13).plan
    for i in range(3):
        for j in range(4):
            nudge = torch.zeros_like(cost)
            nudge[0, i, j] = step
            slope = (optimum(cost + nudge) - optimum(cost - nudge)) / (2 * step)
            assert slope.item() == pytest.approx(plan[0, i, j].item(), abs=1e-8)


@pytest.mark.parametrize("name", ["epsilon", "tolerance", "max_iterations"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_settings_out_of_range_are_refused(name, value):
    need = "an integer of at least 1" if name == "max_iterations" else "a positive, finite number"
    with pytest.raises(ValueError, match=rf"{name}: need {need}, got {value}"):
        sinkhorn(*problem(), **{name: value})


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("change", [lambda w: w[:, :-1], lambda w: w[:1], lambda w: w[0]])
def test_weights_that_do_not_fit_the_cost_are_refused(which, change):
    parts = problem()
    parts[which] = change(parts[which])
    with pytest.raises(ValueError, match=r"weight_q, weight_g: need \(3, 4\) and \(3, 5\).*got \("):
        sinkhorn(*parts)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(
    "epsilon", [pytest.param(0.05, id="plain"), pytest.param(1e-3, id="log", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_compiled_update_gives_the_same_plans(epsilon, monkeypatch):
    """What runs compiled on GPUs, here compiled on the CPU, where nothing but this test does so."""
    expected = sinkhorn(*problem(), epsilon=epsilon, max_iterations=50)
    monkeypatch.setattr(module, "COMPILED_ON", {"cpu"})
    found = sinkhorn(*problem(), epsilon=epsilon, max_iterations=50)
    assert module._compiled is not None
    torch.testing.assert_close(found.plan, expected.plan, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.iterations, expected.iterations)
