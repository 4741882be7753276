"""Faster versions of parts of V-JEPA 2's encoder in transformers, with the same result up to rounding.

In float32 each agrees with the original to about 1e-6; in half precision it loses no more than the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

BLOCKS = "cpu-blocks"  # the name of `attend_in_blocks` among transformers' attention functions
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in V-JEPA 2's processor
_BLOCK_SCORES = 2**22  # attention scores in memory at a time


class RopeTable:
    """Rotary positions computed once in float32 and shared by all layers; transformers computes them in every layer.

    In float32 the result is that of transformers; in bfloat16 the angles lose less. The table keeps the published quirk
    (angles tiled, pairs interleaved), because the weights were trained with it.
    """

    def __init__(self, attention: Any) -> None:
        """`attention`: the VJEPA2RopeAttention of any layer; all layers of an encoder have the same geometry."""
        self._grid, self._part, self._width = attention.grid_size, attention.d_dim, attention.attention_head_size
        self._heads = attention.num_attention_heads
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def fit(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Makes the tables at least `tokens` long. A shorter clip uses their beginning."""
        if self._tables is not None and len(self._tables[0]) >= tokens:
            return
        ids = torch.arange(tokens, device=device)
        place = ids % self._grid**2
        omega = torch.arange(self._part // 2, dtype=torch.float32, device=device) / (self._part / 2.0)
        omega = 1.0 / 10000**omega
        angle = torch.zeros(tokens, self._width, device=device)  # dimensions that no axis rotates have cos 1, sin 0
        for axis, position in enumerate((ids // self._grid**2, place // self._grid, place % self._grid)):
            span = slice(axis * self._part, (axis + 1) * self._part)
            angle[:, span] = (position.unsqueeze(-1) * omega).repeat(1, 2)
        sin = angle.sin()
        sin[:, 0::2] *= -1  # the pair (x, y) turns into (-y, x): its sign sits in the table
        # Repeated per head: a CPU is twice as fast if the rows are as long as those of the tokens.
        self._tables = angle.cos().to(dtype).repeat(1, self._heads), sin.to(dtype).repeat(1, self._heads)

    def rotate(self, qk: torch.Tensor, tokens: int) -> torch.Tensor:
        """Rotates (B, heads, tokens, width). Replaces VJEPA2RopeAttention.apply_rotary_embeddings."""
        assert self._tables is not None
        cos, sin = (table[:tokens] for table in self._tables)
        rows = qk.transpose(1, 2).flatten(2)  # the layout that the linear layer gave
        swapped = torch.stack((rows[..., 1::2], rows[..., 0::2]), -1).flatten(2)
        return torch.addcmul(rows * cos, swapped, sin).unflatten(2, (self._heads, -1)).transpose(1, 2)

    def install(self, encoder: Any) -> None:
        """Makes every layer of `encoder` use these tables."""
        for layer in encoder.layer:
            layer.attention.get_position_ids = lambda x, masks=None: x.size(1)
            layer.attention.apply_rotary_embeddings = self.rotate


class BytePatches(nn.Module):
    """V-JEPA 2's patch embedding as one matrix product on bytes, with the processor's normalisation in the weights.

    (x / 255 - mean) / std is affine, so it is folded into the kernel, and no float video exists. 128 is subtracted from
    the bytes, and every precision represents the result exactly.
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
        """Embeds uint8 (B, F, S, S, 3) -> (B, tokens, D)."""
        split = clips.unflatten(1, (-1, self._tubelet)).unflatten(3, (-1, self._patch)).unflatten(5, (-1, self._patch))
        patches = split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)
        centred = (patches - 128).view(torch.int8)  # wraps around to a signed byte
        return nn.functional.linear(centred.to(self.weight.dtype), self.weight, self.bias)


def blocks_are_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns True if `attend_in_blocks` is faster than PyTorch: bfloat16 on a CPU with AVX-512 but without AMX."""
    capabilities = torch.cpu.get_capabilities()
    fits = capabilities.get("avx512_bf16") and not capabilities.get("amx_bf16")
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
    """Computes attention as plain products, a block of rows at a time: (B, heads, n, width) -> (B, n, heads, width).

    It serves bfloat16 on a CPU without AMX (see `blocks_are_faster`). There PyTorch's own attention reaches a third of
    the speed of matrix products. Scores and weights are rounded to bfloat16, as in transformers' eager attention; the
    softmax itself is float32.
    """
    batch, heads, tokens, _width = query.shape
    queries, keys, values = (query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
    rows = max(64, _BLOCK_SCORES // (batch * heads * tokens))
    out = torch.cat([torch.bmm(torch.bmm(q, keys).softmax(-1), values) for q in queries.split(rows, dim=1)], dim=1)
    return out.unflatten(0, (batch, heads)).transpose(1, 2), None


AttentionInterface.register(BLOCKS, attend_in_blocks)
