"""Explanations: which part of a image matched which part of another, drawn and in numbers.

Read in this order: `pair` (two images in one call), `figure` (the explanation image), `grid` (a query with its
hits); `panels`, `flows` and `canvas` are what both are made of. `page_file` writes the page that one can touch, whose
viewer is in `page/`. `hits` compares the
hits of a query, `gallery` writes the report of an evaluation. `sharpening` makes a sharper plan for showing,
`faithfulness/` measures how far all this can be trusted. `drawing` makes two images to try it on.
"""

from diml.explain.canvas import check_format, save_figure
from diml.explain.cells import cell_name, cell_of
from diml.explain.drawing import drawn_pair
from diml.explain.explanation import Explanation, describe_match, match_images, match_query
from diml.explain.figure import draw_match
from diml.explain.flows import check_lines
from diml.explain.hits import RankedHits, describe_hits, rank_hits
from diml.explain.hits_figure import Hit, hits_figure
from diml.explain.html import check_page_name, explanation_page
from diml.explain.report import choose_queries, gallery_report
from diml.explain.sharpening import check_sharpening, sharpened

__all__ = [
    "Explanation",
    "Hit",
    "RankedHits",
    "cell_name",
    "cell_of",
    "check_format",
    "check_lines",
    "check_page_name",
    "check_sharpening",
    "choose_queries",
    "describe_hits",
    "describe_match",
    "draw_match",
    "drawn_pair",
    "explanation_page",
    "gallery_report",
    "hits_figure",
    "match_images",
    "match_query",
    "rank_hits",
    "save_figure",
    "sharpened",
]
