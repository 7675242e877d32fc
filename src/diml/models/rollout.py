"""Truncated attention rollout: how much a plain vision transformer attends to each patch of an image.

With A_l the attention of block l, averaged over its heads, and half of each block's output taken from its residual,

    B_l = (A_l + I) / 2,    mass of patch j  ~  sum_i p_i (B_L B_(L-1) ... B_(L-m+1))_ij,

over the last m of L blocks. p is how the network pools: the class token, every patch alike, or the attention of its
pooling layer. Masses of the patches are scaled to sum to 1; where all mass stays with the class token, they are
uniform.

Fused attention never holds A_l. The queries and keys that the network hands to it are recorded instead (after their
normalisation and rotation, with the mask that carries relative positions), and A_l is computed from them, some images
at a time.

Source: for the product and the residual half Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020;
that it is truncated and gives the masses, from the abstract of DIML's journal extension (Zhao et al., TPAMI 2024). Its
exact formulas are not available to us: this is our reading.

Legend: B images, H heads, L tokens, P patches, C channels.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diml.matching.weights import normalize_mass
from diml.models.backbones import Backbone, Features, TokenBackbone, token_grid

#: Blocks of the rollout unless the embedder says otherwise: the last third of a network of twelve.
DEFAULT_BLOCKS: Final = 4

#: Why there are no masses, for a network of this name.
NO_TRANSFORMER: Final = "{} is no plain vision transformer of timm, which attention rollout is for"
#: Why there are none, whatever the network.
NO_BLOCKS: Final = "rollout_blocks is 0"

#: Attention of timm that is softmax(q k / scale + bias) and nothing else: where each class stands, in some version.
_PLAIN: Final = (
    ("timm.layers", "Attention"),
    ("timm.layers", "AttentionRope"),
    ("timm.models.vision_transformer", "Attention"),
    ("timm.models.vision_transformer_relpos", "RelPosAttention"),
    ("timm.models.eva", "EvaAttention"),
    ("timm.models.beit", "Attention"),
)
#: Bytes of one block's attention matrices that are held at a time.
_MATRIX_BYTES: Final = 64 * 2**20


def features_with_masses(backbone: Backbone, images: Tensor, blocks: int) -> tuple[Features, str]:
    """Features of normalised images (B, 3, height, width) with the masses of their cells, where there are any.

    Args:
        backbone: any; only plain vision transformers are rolled out.
        images: as `Backbone.forward` takes them.
        blocks: m; a network of fewer blocks uses all, and 0 rolls out nothing.

    Returns:
        The features, their `masses` (B, rows, columns) float32 without gradient, an image summing to 1; why there are
        none, or "".
    """
    if blocks and isinstance(backbone, TokenBackbone):
        if torch.compiler.is_compiling():  # as a decorator it would import the compiler, 2 s, in every command
            eager: Any = torch.compiler.disable(_rolled_out)  # type: ignore[no-untyped-call]
            return eager(backbone, images, blocks)  # type: ignore[no-any-return]
        return _rolled_out(backbone, images, blocks)
    return backbone(images), NO_TRANSFORMER.format(type(backbone.net).__name__) if blocks else NO_BLOCKS


def _rolled_out(backbone: TokenBackbone, images: Tensor, blocks: int) -> tuple[Features, str]:
    why = not_plain(backbone)
    if why:
        return backbone(images), why
    with _Recorder(backbone, blocks) as recorder:
        features = backbone(images)
    masses, why = recorder.masses(len(images))
    if masses is None:
        return features, why
    grid = token_grid(backbone.net, images.shape[2], images.shape[3])
    return replace(features, masses=masses.view(len(images), *grid)), ""


def why_massless(backbone: Backbone, blocks: int) -> str:
    """Why the cells of a backbone have no masses when attention is rolled out over `blocks` blocks, known without any
    image; empty where they have."""
    return not_plain(backbone) if blocks else NO_BLOCKS


def not_plain(backbone: Backbone) -> str:
    """Why the attention of a backbone cannot be rolled out; empty where it can."""
    name = type(backbone.net).__name__
    if not isinstance(backbone, TokenBackbone):
        return NO_TRANSFORMER.format(name)
    found: Any = getattr(backbone.net, "blocks", None)
    for block in found or ():
        kinds = [type(part).__name__ for part in block.modules() if type(part) in plain_attention()]
        if len(kinds) != 1:
            what = f"{len(kinds)} attention layers" if kinds else "an attention that mixes tokens in another way"
            return f"blocks of {name} ({type(block).__name__}) have {what}, which attention rollout is not defined for"
    return "" if found else f"{name} has no blocks with attention"


@cache
def plain_attention() -> frozenset[type[nn.Module]]:
    """The classes of attention whose matrix can be recorded, of those that the installed timm has."""
    found = set()
    for place, name in _PLAIN:
        with contextlib.suppress(ImportError, AttributeError):
            found.add(getattr(importlib.import_module(place), name))
    return frozenset(found)


@dataclass(frozen=True, eq=False)
class _Attention:
    """One attention layer for B images: queries and keys (B, H, L, C), or the matrix (B, L, L) averaged over heads."""

    query: Tensor | None = None
    key: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0
    matrix: Tensor | None = None

    def applied_to(self, mass: Tensor) -> Tensor:
        """Mass (B, I) of the reading tokens carried to the tokens read: (B, L), mass @ A."""
        if self.matrix is not None:
            return torch.bmm(mass.unsqueeze(1), self.matrix.float()).squeeze(1)
        assert self.query is not None
        assert self.key is not None
        images, heads, reading, _ = self.query.shape
        at_once = max(1, _MATRIX_BYTES // (4 * heads * reading * self.key.shape[2]))
        carried = []
        for start in range(0, images, at_once):
            rows = slice(start, start + at_once)
            scores = (self.query[rows].float() * self.scale) @ self.key[rows].float().mT
            if self.bias is not None:
                scores = scores + (self.bias if self.bias.ndim < 4 or len(self.bias) == 1 else self.bias[rows])
            carried.append(torch.einsum("bi,bhij->bj", mass[rows], scores.softmax(dim=-1)) / heads)
        return torch.cat(carried)


class _Recorder(TorchFunctionMode):
    """While entered, records the attention of the last blocks of a network, and of its pooling layer.

    Only in the thread that entered it.
    """

    def __init__(self, backbone: TokenBackbone, blocks: int) -> None:
        super().__init__()
        self.backbone = backbone
        net: Any = backbone.net
        last = list(net.blocks)[-blocks:]
        self.layers = [next(part for part in block.modules() if type(part) in plain_attention()) for block in last]
        self._pool: int | None = None
        if backbone.token_pooling == "attention":
            self._pool = len(self.layers)
            self.layers.append(net.attn_pool)
        self.found: dict[int, list[_Attention]] = {index: [] for index in range(len(self.layers))}
        self._inside: int | None = None
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []

    def __enter__(self) -> _Recorder:
        for index, layer in enumerate(self.layers):
            enter, leave = self._marker(index), self._marker(None)
            self._hooks.append(layer.register_forward_pre_hook(enter))
            self._hooks.append(layer.register_forward_hook(leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and keep what it tells about attention where a recorded layer is at work."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._inside is None or (self._inside == self._pool and self.found[self._inside]):
            return result  # the pooling layer is asked for the image first, then for each cell alone
        if func is F.scaled_dot_product_attention:
            self.found[self._inside].append(_of_fused(*args, **kwargs))
        elif func in (Tensor.softmax, torch.softmax, F.softmax) and result.ndim == 4:
            self.found[self._inside].append(_Attention(matrix=result.detach().float().mean(dim=1)))
        return result

    @torch.no_grad()
    def masses(self, images: int) -> tuple[Tensor | None, str]:
        """(B, P) float32, rows summing to 1; or why attention was not found as expected."""
        records = []
        for index, layer in enumerate(self.layers):
            found = self.found[index]
            if len(found) != 1:
                what = f"{len(found)} attention matrices instead of one in {type(layer).__name__}"
                return None, f"recording found {what}; please report the versions of timm and torch"
            records.append(found[0])
        with torch.autocast(self._device(records).type, enabled=False):
            mass = self._pooling(records, images)
            for record in reversed(records[: self._pool]):
                mass = (mass + record.applied_to(mass)) / 2
        return normalize_mass(mass[:, self.backbone.prefix :]), ""

    def _pooling(self, records: list[_Attention], images: int) -> Tensor:
        """p (B, L): how much the pooled feature takes from each token of the last block."""
        first, prefix = records[0], self.backbone.prefix
        tokens = first.matrix.shape[2] if first.matrix is not None else first.key.shape[2]  # type: ignore[union-attr]
        mass = torch.zeros(images, tokens, device=self._device(records))
        if self.backbone.token_pooling == "class":
            mass[:, : self.backbone.class_tokens] = 1 / self.backbone.class_tokens
        elif self.backbone.token_pooling == "mean":
            mass[:, prefix:] = 1 / (tokens - prefix)
        else:
            pool = records[-1]
            latent = pool.matrix.shape[1] if pool.matrix is not None else pool.query.shape[2]  # type: ignore[union-attr]
            reading = torch.zeros(images, latent, device=mass.device)
            reading[:, : 1 if getattr(self.layers[-1], "pool", "token") == "token" else latent] = 1
            carried = pool.applied_to(reading / reading.sum(dim=1, keepdim=True))
            mass[:, tokens - carried.shape[1] :] = carried
        return mass

    @staticmethod
    def _device(records: list[_Attention]) -> torch.device:
        first = records[0].matrix if records[0].matrix is not None else records[0].query
        assert first is not None
        return first.device

    def _marker(self, inside: int | None) -> Callable[..., None]:
        """A hook that notes which layer is at work; another thread that runs the same network is left alone."""

        def note(*_: Any) -> None:
            if threading.get_ident() == self._thread:
                self._inside = inside

        return note


def _of_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Attention:
    """What `torch.nn.functional.scaled_dot_product_attention` was asked; its matrix is computed from that later."""
    query, key = query.detach(), key.detach()
    if enable_gqa and key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    bias = None if attn_mask is None else attn_mask.detach()
    if is_causal:
        bias = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if bias is not None:
        bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf) if _is_bool(bias) else bias
        bias = bias.float()
    return _Attention(query, key, bias, 1 / math.sqrt(query.shape[3]) if scale is None else scale)


def _is_bool(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool
