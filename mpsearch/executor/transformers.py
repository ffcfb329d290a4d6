"""MIL ops of the family ``transformers`` (iOS18). Each function is the op it is named after."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
