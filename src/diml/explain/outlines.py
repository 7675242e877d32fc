"""Outlines of groups of cells: the border of their union, drawn inside it, so that neighbours do not cover each other.

Coordinates are (x, y) with y down. Loops have the cells on their right: outer borders run clockwise, holes the other
way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from matplotlib.patches import PathPatch
from matplotlib.path import Path

if TYPE_CHECKING:
    from diml.explain.canvas import Canvas
    from diml.explain.panels import Panel

Point = tuple[float, float]
Corner = tuple[int, int]

_EAST, _SOUTH, _WEST, _NORTH = (1, 0), (0, 1), (-1, 0), (0, -1)
_CASING: Final = 1.9  # width of the white line below, relative to the coloured one
_POINT: Final = 100 / 72  # pixels


def connected_cells(regions: Iterable[int], columns: int) -> list[list[int]]:
    """The pieces of a group of cells (row-major indices) that share edges, the largest first."""
    left, found = set(regions), []
    while left:
        piece = [min(left)]
        left.remove(piece[0])
        for cell in piece:
            row, column = divmod(cell, columns)
            beside = [(row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column)]
            for near in (r * columns + c for r, c in beside if 0 <= c < columns):
                if near in left:
                    left.remove(near)
                    piece.append(near)
        found.append(sorted(piece))
    return sorted(found, key=lambda piece: (-len(piece), piece))


def border_loops(regions: Iterable[int], columns: int) -> list[list[Corner]]:
    """The border of a union of cells as closed loops of its corners, in units of cells.

    Cells that touch at a corner only have separate loops.
    """
    cells = {divmod(region, columns)[::-1] for region in regions}
    edges: set[tuple[Corner, Corner]] = set()  # start and direction
    for x, y in cells:
        sides = (((x, y), _EAST, _NORTH), ((x + 1, y), _SOUTH, _EAST), ((x + 1, y + 1), _WEST, _SOUTH))
        for start, along, outside in (*sides, ((x, y + 1), _NORTH, _WEST)):
            if (x + outside[0], y + outside[1]) not in cells:
                edges.add((start, along))
    loops = []
    left = set(edges)
    while left:
        first = edge = min(left)
        corners: list[Corner] = []
        while True:
            left.remove(edge)
            following = _next_edge(edge, edges)
            if following[1] != edge[1]:
                corners.append(following[0])
            edge = following
            if edge == first:
                break
        loops.append(corners)
    return loops


def _next_edge(edge: tuple[Corner, Corner], edges: set[tuple[Corner, Corner]]) -> tuple[Corner, Corner]:
    """The edge that follows on a border: to the right, around the same cell, where there is a choice."""
    (x, y), (dx, dy) = edge
    end = (x + dx, y + dy)
    return next((end, way) for way in ((-dy, dx), (dx, dy), (dy, -dx)) if (end, way) in edges)


def inset_loop(loop: Sequence[Point], distance: float) -> list[Point]:
    """A loop of alternately horizontal and vertical edges, moved by a distance towards the cells on its right."""
    moved = []
    for number, (x, y) in enumerate(loop):
        before, after = loop[number - 1], loop[(number + 1) % len(loop)]
        shift_x, shift_y = 0.0, 0.0
        for (x0, y0), (x1, y1) in ((before, (x, y)), ((x, y), after)):
            shift_x -= (y1 > y0) - (y1 < y0)
            shift_y += (x1 > x0) - (x1 < x0)
        moved.append((x + distance * shift_x, y + distance * shift_y))
    return moved


def rounded_path(loops: Iterable[Sequence[Point]], radius: float) -> Path:
    """Closed loops with rounded corners as one path; the radius shrinks where an edge is short."""
    points: list[Point] = []
    codes: list[int] = []
    for loop in loops:
        for number, (x, y) in enumerate(loop):
            for (x1, y1), first in ((loop[number - 1], True), (loop[(number + 1) % len(loop)], False)):
                length = abs(x1 - x) + abs(y1 - y)
                part = min(radius, 0.5 * length) / length if length else 0.0
                points.append((x + part * (x1 - x), y + part * (y1 - y)))
                if first:
                    codes.append(int(Path.MOVETO if number == 0 else Path.LINETO))
                    points.append((x, y))
                    codes.append(int(Path.CURVE3))
                else:
                    codes.append(int(Path.CURVE3))
        points.append((0.0, 0.0))  # ignored
        codes.append(int(Path.CLOSEPOLY))
    return Path(points, codes)


def outline_path(panel: Panel, regions: Sequence[int], width: float) -> Path:
    """The outline of the union of regions on a panel, inside it by half of a line's casing.

    Args:
        panel: whose regions they are.
        regions: at least one.
        width: of the coloured line in points.
    """
    inset = width * _CASING / 2 * _POINT
    (x0, y0), (wide, high) = panel.origin, panel.cell_size
    loops = [
        inset_loop([(x0 + x * wide, y0 + y * high) for x, y in loop], min(inset, 0.3 * wide, 0.3 * high))
        for loop in border_loops(regions, panel.side.layout[1])
    ]
    return rounded_path(loops, min(2.2 * inset, 0.3 * wide, 0.3 * high))


def draw_outline(canvas: Canvas, path: Path, colour: str, width: float, gid: str) -> None:
    """Draw an outline in a colour with a white casing, which is visible on any photo.

    Args:
        canvas: to draw on.
        path: as of `outline_path`.
        colour: of the line.
        width: of the coloured line in points.
        gid: of the coloured line.
    """
    for line, ink, name in ((width * _CASING, "white", f"casing-{gid}"), (width, colour, gid)):
        patch = PathPatch(path, fill=False, edgecolor=ink, linewidth=line, joinstyle="round")
        patch.set_gid(name)
        canvas.sheet.add_patch(patch)


def draw_veil(canvas: Canvas, panel: Panel, path: Path, strength: float = 0.72) -> None:
    """Fade everything on a panel that is outside an outline."""
    right, bottom = panel.left + panel.width, panel.top + panel.height
    frame = [
        (panel.left, panel.top),
        (panel.left, bottom),
        (right, bottom),
        (right, panel.top),
        (panel.left, panel.top),
    ]
    around = Path(frame, [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY])  # against the outline: its inside stays
    veil = PathPatch(Path.make_compound_path(around, path), facecolor="white", edgecolor="none", alpha=strength)
    veil.set_clip_path(around, canvas.sheet.transData)
    canvas.sheet.add_patch(veil)
