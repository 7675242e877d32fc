"""Exact optimal transport of small problems, in plain Python and float64: the twin of `csrc/exact.hpp`, step for step.

Successive shortest paths with dual prices. Start with prices at which no reduced cost, cost - price of the row - price
of the column, is negative, and with mass only where it is zero. As long as a row has mass left, find the shortest path
(Dijkstra, by reduced costs, backwards along entries of the plan) to a column that lacks some, change the prices so that
the path costs nothing, and send along it as much as possible. The plan stays the cheapest for what has been sent.

Legend: R rows and C columns, of the side with fewer regions and of the other one; nodes are rows 0..R - 1 and columns
R..R + C - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

#: Ties are settled by a perturbation of the costs by up to this share of their range; mass up to NO_MASS is none.
TIE_BREAK, NO_MASS = 1e-10, 1e-13

Matrix = list[list[float]]


class Solution(NamedTuple):
    """Plan (Rq, Rg), dual prices (Rq) and (Rg), and the number of shortest paths that led to it."""

    plan: Matrix
    potential_q: list[float]
    potential_g: list[float]
    paths: int


def solve(cost: Matrix, weight_q: Sequence[float], weight_g: Sequence[float]) -> Solution:
    """Solve one problem of costs (Rq, Rg) and non-negative weights (Rq) and (Rg), which are normalised to sum to 1.

    Ties are settled in an orientation that the numbers decide, so that exchanging the sides transposes the plan.
    """
    turned = [list(column) for column in zip(*cost, strict=True)]
    if _is_exchanged(cost, turned, weight_q, weight_g):
        found = _Problem(turned, weight_g, weight_q).solve()
        plan = [list(column) for column in zip(*found.plan, strict=True)]
        return Solution(plan, found.potential_g, found.potential_q, found.paths)
    return _Problem(cost, weight_q, weight_g).solve()


def _is_exchanged(cost: Matrix, turned: Matrix, weight_q: Sequence[float], weight_g: Sequence[float]) -> bool:
    """Whether the sides are exchanged: fewer regions come first, then the smaller weights, then the smaller costs."""
    if len(weight_q) != len(weight_g):
        return len(weight_q) > len(weight_g)
    return (list(weight_q), cost) > (list(weight_g), turned)


class _Problem:
    """One problem and the state of its solution.

    Attributes:
        flow: (R, C) plan.
        price_r, price_c: dual prices of the scaled and perturbed costs.
        supply, demand: mass that rows still have to send and columns to receive.
    """

    def __init__(self, cost: Matrix, mass_r: Sequence[float], mass_c: Sequence[float]) -> None:
        self.rows, self.columns = range(len(mass_r)), range(len(mass_c))
        self.low, high = min(map(min, cost)), max(map(max, cost))
        self.range = high - self.low if high > self.low else 1.0
        self.cost = [
            [(value - self.low) / self.range + TIE_BREAK * _tie_break(i, j) for j, value in enumerate(row)]
            for i, row in enumerate(cost)
        ]
        self.mass_r, self.mass_c = _normalized(mass_r), _normalized(mass_c)
        self.supply, self.demand = list(self.mass_r), list(self.mass_c)
        self.flow = [[0.0] * len(mass_c) for _ in self.rows]
        self.price_r = [min(row) for row in self.cost]
        self.price_c = [
            min(row[j] - price for row, price in zip(self.cost, self.price_r, strict=True)) for j in self.columns
        ]
        self.paths = 0

    def solve(self) -> Solution:
        for i in self.rows:
            for j in self.columns:
                free = self.cost[i][j] - self.price_r[i] - self.price_c[j] <= 0
                if free and self.supply[i] > NO_MASS and self.demand[j] > NO_MASS:
                    self._send(i, j, [(i, j)], min(self.supply[i], self.demand[j]))
        for i in self.rows:
            while self.supply[i] > NO_MASS and self._augment(i):
                self.paths += 1
        self._settle()
        self._price_idle()
        half = (
            _dot(self.mass_c, self.price_c) - _dot(self.mass_r, self.price_r)
        ) / 2  # each side bears half of the cost
        potential_r = [(price + half) * self.range + self.low / 2 for price in self.price_r]
        potential_c = [(price - half) * self.range + self.low / 2 for price in self.price_c]
        return Solution(self.flow, potential_r, potential_c, self.paths)

    def _send(self, source: int, sink: int, path: list[tuple[int, int]], mass: float) -> None:
        """Send mass along a path of entries, of which every second one sends less and may vanish."""
        for step, (i, j) in enumerate(path):
            self.flow[i][j] += -mass if step % 2 else mass
            if step % 2 and self.flow[i][j] <= NO_MASS:
                self.flow[i][j] = 0.0
        self.supply[source] -= mass
        self.demand[sink] -= mass

    def _augment(self, source: int) -> bool:
        """Send mass along a shortest path from row `source`; False where no column lacks any."""
        row_at, column_at = {source: 0.0}, {}  # distances of what has been scanned
        from_column = {source: -1}
        open_at, from_row = dict.fromkeys(self.columns, math.inf), {}
        scanned = [source]
        while True:
            for i in scanned:
                shift = row_at[i] - self.price_r[i]
                for j in open_at:
                    reached = self.cost[i][j] - self.price_c[j] + shift
                    if reached < open_at[j]:
                        open_at[j], from_row[j] = reached, i
            sink = min(open_at, key=open_at.__getitem__, default=-1)
            if sink < 0 or open_at[sink] == math.inf:
                return False
            column_at[sink] = far = open_at.pop(sink)
            if self.demand[sink] > NO_MASS:
                break
            scanned = [i for i in self.rows if self.flow[i][sink] > 0 and i not in row_at]
            for i in scanned:
                row_at[i], from_column[i] = max(far, 0.0), sink
        for i, at in row_at.items():
            self.price_r[i] += far - at
        for j, at in column_at.items():
            self.price_c[j] -= far - at
        path, j = [], sink  # entries from the sink back to the source: more, less, more ...
        while j >= 0:
            i = from_row[j]
            path += [(i, j), (i, from_column[i])]
            j = from_column[i]
        path.pop()
        least = min((self.flow[i][j] for i, j in path[1::2]), default=math.inf)
        self._send(source, sink, path, min(self.supply[source], self.demand[sink], least))
        return True

    def _settle(self) -> None:
        """Make the entries a forest and compute their masses from its leaves: sums then hold to rounding."""
        while True:
            leaves, core = self._peeled()
            if not core:
                break
            self._break_cycle(core)
        left = self.mass_r + self.mass_c
        for leaf, other in leaves:
            i, j = min(leaf, other), max(leaf, other) - len(self.rows)
            self.flow[i][j] = sent = max(left[leaf], 0.0)
            left[leaf] -= sent
            left[other] -= sent

    def _peeled(self) -> tuple[list[tuple[int, int]], dict[int, list[int]]]:
        """Leaves of the graph of entries, each removed after those before it, with the node that each hangs on.

        The second result is what is left: nodes on or between cycles, with their neighbours.
        """
        rows = len(self.rows)
        near: dict[int, list[int]] = {node: [] for node in range(rows + len(self.columns))}
        for i in self.rows:
            for j in self.columns:
                if self.flow[i][j] > 0:
                    near[i].append(rows + j)
                    near[rows + j].append(i)
        leaves = []
        waiting = [node for node in near if len(near[node]) == 1]
        for leaf in waiting:
            if not near[leaf]:  # removed as the other end of a leaf
                continue
            other = near[leaf].pop()
            near[other].remove(leaf)
            leaves.append((leaf, other))
            if len(near[other]) == 1:
                waiting.append(other)
        return leaves, {node: others for node, others in near.items() if others}

    def _break_cycle(self, core: dict[int, list[int]]) -> None:
        """Send mass around a cycle until one of its entries vanishes; all of its reduced costs are zero."""
        walk, at, before = [], min(core), -1
        while at not in walk:
            walk.append(at)
            before, at = at, next(node for node in core[at] if node != before)
        cycle = [*walk[walk.index(at) :], at]
        entries = [(min(pair), max(pair) - len(self.rows)) for pair in pairwise(cycle)]
        entries = entries[1:] + entries[:1]  # the first one of `_send` gains
        least = min(self.flow[i][j] for i, j in entries[1::2])
        self._send(0, 0, entries, least)

    def _price_idle(self) -> None:
        """Raise the prices of rows and columns without mass, which no path has to reach, as far as they go."""
        for i in self.rows:
            if self.mass_r[i] <= NO_MASS:
                self.price_r[i] = min(cost - price for cost, price in zip(self.cost[i], self.price_c, strict=True))
        for j in self.columns:
            if self.mass_c[j] <= NO_MASS:
                self.price_c[j] = min(row[j] - price for row, price in zip(self.cost, self.price_r, strict=True))


def _tie_break(i: int, j: int) -> float:
    """In [0, 1), without order, as in the kernel; 0 on the diagonal: of equal regions each goes to its counterpart."""
    if i == j:
        return 0.0
    x = (i * 0x9E3779B1 ^ (j * 0x85EBCA77 + 0x165667B1)) & 0xFFFFFFFF
    x = ((x ^ x >> 15) * 0x2C1B3C6D) & 0xFFFFFFFF
    x = ((x ^ x >> 12) * 0x297A2D39) & 0xFFFFFFFF
    return (x ^ x >> 15) / 2**32


def _normalized(mass: Sequence[float]) -> list[float]:
    total = sum(mass)
    return [value / total if total > 0 else 1 / len(mass) for value in mass]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
