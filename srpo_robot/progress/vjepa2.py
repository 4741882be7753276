"""Parts of V-JEPA 2's encoder that transformers' module computes slower than it must; the outcome is the same.

Rounding apart: in float32 each equals what it stands in for to about 1e-6, in half precision it loses no more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

BLOCKS = "cpu-blocks"  # the name of `attend_in_blocks` among transformers' attention functions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in V-JEPA 2's processor
_BLOCK_SCORES = 2**22  # scores in memory at once


class RopeTable:
    """Rotary positions computed once in float32 and shared by all layers: V-JEPA 2 makes them anew in every layer.

    In float32 the outcome is transformers' own; in bfloat16 the angles lose less. It keeps the published quirk (angles
    tiled, pairs interleaved), which the weights were trained with.
    """

    def __init__(self, attention: Any) -> None:
        """`attention`: any layer's VJEPA2RopeAttention; all of an encoder agree in their geometry."""
        self._grid, self._part, self._width = attention.grid_size, attention.d_dim, attention.attention_head_size
        self._heads = attention.num_attention_heads
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def fit(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Make the tables at least `tokens` long; positions of a shorter clip are their beginning."""
        if self._tables is not None and len(self._tables[0]) >= tokens:
            return
        ids = torch.arange(tokens, device=device)
        place = ids % self._grid**2
        omega = torch.arange(self._part // 2, dtype=torch.float32, device=device) / (self._part / 2.0)
        omega = 1.0 / 10000**omega
        angle = torch.zeros(tokens, self._width, device=device)  # what no axis rotates: cos 1, sin 0
        for axis, position in enumerate((ids // self._grid**2, place // self._grid, place % self._grid)):
            span = slice(axis * self._part, (axis + 1) * self._part)
            angle[:, span] = (position.unsqueeze(-1) * omega).repeat(1, 2)
        sin = angle.sin()
        sin[:, 0::2] *= -1  # the pair (x, y) turns into (-y, x): its sign sits in the table
        # Once per head: rows as long as the tokens', which a CPU goes through twice as fast.
        self._tables = angle.cos().to(dtype).repeat(1, self._heads), sin.to(dtype).repeat(1, self._heads)

    def rotate(self, qk: torch.Tensor, tokens: int) -> torch.Tensor:
        """(B, heads, tokens, width) -> the same, rotated; stands in for VJEPA2RopeAttention.apply_rotary_embeddings."""
        assert self._tables is not None
        cos, sin = (table[:tokens] for table in self._tables)
        rows = qk.transpose(1, 2).flatten(2)  # as the linear layer left them
        swapped = torch.stack((rows[..., 1::2], rows[..., 0::2]), -1).flatten(2)
        return torch.addcmul(rows * cos, swapped, sin).unflatten(2, (self._heads, -1)).transpose(1, 2)

    def install(self, encoder: Any) -> None:
        """Let every layer of `encoder` use these tables."""
        for layer in encoder.layer:
            layer.attention.get_position_ids = lambda x, masks=None: x.size(1)
            layer.attention.apply_rotary_embeddings = self.rotate


class BytePatches(nn.Module):
    """V-JEPA 2's patch embedding as one matrix product that takes bytes: its processor's normalising is in the weights.

    (x / 255 - mean) / std is affine, so it joins the kernel: no float video is ever made. Bytes enter less 128, which
    every precision holds exactly.
    """

    def __init__(self, embeddings: Any, config: Any) -> None:
        """`embeddings`: the encoder's VJEPA2Embeddings; `config`: its VJEPA2Config."""
        super().__init__()
        self._tubelet, self._patch = config.tubelet_size, config.patch_size
        kernel = embeddings.patch_embeddings.proj
        weight = kernel.weight.detach().float().permute(0, 2, 3, 4, 1)  # (D, tubelet, patch, patch, 3), as pixels lie
        mean, std = (torch.tensor(values, device=weight.device) for values in (_MEAN, _STD))
        self.weight = nn.Parameter((weight / (255 * std)).flatten(1), requires_grad=False)
        shift = (weight * ((128 / 255 - mean) / std)).flatten(1).sum(1)
        self.bias = nn.Parameter(kernel.bias.detach() + shift, requires_grad=False)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 (B, F, S, S, 3) -> (B, tokens, D)."""
        split = clips.unflatten(1, (-1, self._tubelet)).unflatten(3, (-1, self._patch)).unflatten(5, (-1, self._patch))
        patches = split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)
        centred = (patches - 128).view(torch.int8)  # wraps around to the signed byte
        return nn.functional.linear(centred.to(self.weight.dtype), self.weight, self.bias)


def blocks_are_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend_in_blocks` beats PyTorch's attention: bfloat16 on a CPU that has AVX-512's but not AMX's."""
    able = torch.cpu.get_capabilities()
    fits = able.get("avx512_bf16") and not able.get("amx_bf16")
    return bool(fits) and device.type == "cpu" and dtype == torch.bfloat16


def attend_in_blocks(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as plain products, a block of rows at a time: (B, heads, n, width) -> (B, n, heads, width).

    For bfloat16 on a CPU without AMX (see `blocks_are_faster`), where PyTorch's own works at a third of the rate of
    matrix products. Scores and weights are rounded to bfloat16, as in transformers' eager attention; the softmax itself
    is float32.
    """
    batch, heads, tokens, _width = query.shape
    queries, keys, values = (query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
    rows = max(64, _BLOCK_SCORES // (batch * heads * tokens))
    out = torch.cat([torch.bmm(torch.bmm(q, keys).softmax(-1), values) for q in queries.split(rows, dim=1)], dim=1)
    return out.unflatten(0, (batch, heads)).transpose(1, 2), None


AttentionInterface.register(BLOCKS, attend_in_blocks)
