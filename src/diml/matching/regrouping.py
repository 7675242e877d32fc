"""Improve groups of regions of two images, region by region: connected in either image as far as possible.

Legend: N nodes (regions of both images, those of the first image first), n groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

#: Smallest gain for which a region is moved; what is less may be rounding.
LEAST_GAIN: Final = 1e-9

#: For each node its neighbours on the grid of its image; None for nodes of an image without a grid.
Neighbours = Sequence[Sequence[int] | None]


class Grouping:
    """Groups of regions, each with regions of both images, and how much of a graph they keep inside.

    The objective is the sum over the groups of the affinity inside as a fraction of all affinity of their regions
    (normalised association: n minus the normalised cut).

    Args:
        affinity: (N, N) symmetric, non-negative float64 with zero diagonal.
        near: neighbours of each node.
        first: number of nodes of the first image.
        groups: group of each node. Groups without regions of one of the images are merged with that to which they have
            the most affinity.

    Attributes:
        groups: group of each node, 0..count - 1.
        count: n.

    Source of the moves: Kernighan and Lin, Bell System Technical Journal 1970, with single moves.
    """

    def __init__(self, affinity: Tensor, near: Neighbours, first: int, groups: Sequence[int]) -> None:
        self._matrix, self._affinity, self.near, self.first = affinity, affinity.tolist(), near, first
        self._degree: list[float] = affinity.sum(dim=1).tolist()
        self.groups = list(groups)
        self._merge_one_sided()
        self._add_up()

    @property
    def association(self) -> float:
        """The objective, at most n."""
        return sum(map(_ratio, self._inside, self._size))

    def inside(self, values: Tensor) -> float:
        """Sum of values (N1, N2) of pairs of regions of the two images that are in one group."""
        groups = torch.tensor(self.groups)
        return float((values * (groups[: self.first, None] == groups[None, self.first :])).sum())

    def connect(self, mass: Sequence[float]) -> None:
        """Leave each group its heaviest piece in either image; other pieces join one of the groups around them."""
        for _ in self.groups:
            joined = False
            for group in range(self.count):
                for side in (0, 1):
                    joined |= self._join_lesser(group, side, mass)
            if not joined:
                break
        self._merge_one_sided()
        self._add_up()

    def refine(self) -> None:
        """Move single regions to adjacent groups as long as the objective grows, without tearing a group."""
        for _ in range(4 * len(self.groups)):
            moves = [(-gain, node, group) for gain, node, group in self._moves() if gain > LEAST_GAIN]
            chosen = next((move for move in sorted(moves) if self._stays_whole(move[1])), None)
            if chosen is None:
                break
            self._move(chosen[1], chosen[2])

    def reach(self, values: Tensor, target: float) -> None:
        """Move single regions until the groups hold `target` of values (N1, N2), or no move adds to it.

        Moves that tear a group come last.
        """
        held = self.inside(values)
        both = torch.zeros_like(self._matrix)
        both[: self.first, self.first :] = values
        both += both.T.clone()
        pairs = both.tolist()
        towards: list[list[float]] = (both @ self._one_hot()).tolist()
        while held < target:
            moves = sorted(
                (own[self.groups[node]] - own[group], node, group)
                for node, own in enumerate(towards)
                if self._members[self.groups[node]][node >= self.first] > 1
                for group in range(self.count)
                if own[group] - own[self.groups[node]] > LEAST_GAIN
            )
            if not moves:
                break
            whole = (move for move in moves if self._is_adjacent(*move[1:]) and self._stays_whole(move[1]))
            loss, node, group = next(whole, moves[0])
            for row, value in zip(towards, pairs[node], strict=True):
                row[self.groups[node]] -= value
                row[group] += value
            self._move(node, group)
            held -= loss

    def _one_hot(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.groups), self.count).double()

    def _add_up(self) -> None:
        """Number the groups from 0 and add up what they hold."""
        names = sorted(set(self.groups))
        self.groups, self.count = [names.index(group) for group in self.groups], len(names)
        self._towards: list[list[float]] = (self._matrix @ self._one_hot()).tolist()
        self._size, self._inside = [0.0] * self.count, [0.0] * self.count
        self._members = [[0, 0] for _ in names]
        for node, group in enumerate(self.groups):
            self._size[group] += self._degree[node]
            self._inside[group] += self._towards[node][group]
            self._members[group][node >= self.first] += 1

    def _merge_one_sided(self) -> None:
        while True:
            sides: dict[int, set[bool]] = {}
            for node, group in enumerate(self.groups):
                sides.setdefault(group, set()).add(node >= self.first)
            lone = [group for group in sorted(sides) if len(sides[group]) == 1]
            if not lone or len(sides) == 1:
                break
            nodes = [node for node, group in enumerate(self.groups) if group == lone[0]]
            self._join(nodes, [group for group in sorted(sides) if group != lone[0]])

    def _join(self, nodes: Sequence[int], others: Sequence[int]) -> None:
        """Move nodes to that of some other groups to which they have the most affinity."""
        towards = dict.fromkeys(others, 0.0)
        for node in nodes:
            for value, group in zip(self._affinity[node], self.groups, strict=True):
                if group in towards:
                    towards[group] += value
        best = max(others, key=towards.__getitem__)
        for node in nodes:
            self.groups[node] = best

    def _join_lesser(self, group: int, side: int, mass: Sequence[float]) -> bool:
        """Move all pieces of a group in one image but the heaviest to groups around them; whether there were any."""
        nodes = self._nodes(group, side)
        if not nodes or self.near[nodes[0]] is None:
            return False
        found = pieces(nodes, self.near)
        heaviest = max(found, key=lambda piece: sum(mass[node] for node in piece))
        joined = False
        for piece in found:
            around = {self.groups[other] for node in piece for other in self.near[node] or ()} - {group}
            if piece is not heaviest and around:  # a piece that no region of the grid touches stays
                self._join(piece, sorted(around))
                joined = True
        return joined

    def _nodes(self, group: int, side: int) -> list[int]:
        nodes = range(self.first, len(self.groups)) if side else range(self.first)
        return [node for node in nodes if self.groups[node] == group]

    def _moves(self) -> Iterable[tuple[float, int, int]]:
        """All moves of a region to an adjacent group: (gain, node, group)."""
        ratios = list(map(_ratio, self._inside, self._size))
        for node, own in enumerate(self.groups):
            near = self.near[node]
            others = set(range(self.count) if near is None else [self.groups[other] for other in near]) - {own}
            if others:
                towards, degree = self._towards[node], self._degree[node]
                left = _ratio(self._inside[own] - 2 * towards[own], self._size[own] - degree) - ratios[own]
                for group in others:
                    joined = _ratio(self._inside[group] + 2 * towards[group], self._size[group] + degree)
                    yield left + joined - ratios[group], node, group

    def _is_adjacent(self, node: int, group: int) -> bool:
        near = self.near[node]
        return near is None or any(self.groups[other] == group for other in near)

    def _stays_whole(self, node: int) -> bool:
        """Whether the group of a node, without it, has regions in its image, in no more pieces than before."""
        own, side, near = self.groups[node], int(node >= self.first), self.near[node]
        if self._members[own][side] == 1:
            return False
        touching = [] if near is None else [other for other in near if self.groups[other] == own]
        if len(touching) <= 1:
            return True
        without = pieces([other for other in self._nodes(own, side) if other != node], self.near)
        return sum(any(other in piece for other in touching) for piece in without) == 1

    def _move(self, node: int, group: int) -> None:
        old, side = self.groups[node], int(node >= self.first)
        self._inside[old] -= 2 * self._towards[node][old]
        self._inside[group] += 2 * self._towards[node][group]
        self._size[old] -= self._degree[node]
        self._size[group] += self._degree[node]
        self._members[old][side] -= 1
        self._members[group][side] += 1
        self.groups[node] = group
        for value, towards in zip(self._affinity[node], self._towards, strict=True):
            towards[old] -= value
            towards[group] += value


def grid_neighbours(grid: tuple[int, int], regions: Sequence[int]) -> list[list[int]]:
    """Of some regions of a grid (row-major), the neighbours above, below, left and right, as places in `regions`."""
    place = {region: at for at, region in enumerate(regions)}
    found = []
    for region in regions:
        row, column = divmod(region, grid[1])
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        numbers = [r * grid[1] + c for r, c in near if 0 <= r < grid[0] and 0 <= c < grid[1]]
        found.append([place[number] for number in numbers if number in place])
    return found


def pieces(nodes: Iterable[int], near: Neighbours) -> list[list[int]]:
    """Nodes in pieces that are connected by neighbours, each ascending."""
    left, found = set(nodes), []
    while left:
        piece = [min(left)]
        left.discard(piece[0])
        for node in piece:
            for other in near[node] or ():
                if other in left:
                    left.discard(other)
                    piece.append(other)
        found.append(sorted(piece))
    return found


def _ratio(inside: float, size: float) -> float:
    return inside / size if size > 0 else 0.0
