"""One line for Hugging Face transformers: tessera.transformers.register(), then attn_implementation="tessera".

    import tessera.transformers
    tessera.transformers.register()
    model = AutoModel.from_pretrained(name, attn_implementation="tessera")

Training and evaluation, padded batches and generation with a cache go through tessera.torch.attention. The masks that
models build are boolean tensors, of which causal, sliding-window and padding ones are computed as what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from .torch import attention


def register(name: str = "tessera") -> None:
    """Make `name` an attn_implementation of every model that takes one. May be called again."""
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    cache: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' AttentionInterface.

    query [batch, heads_q, seq_q, dim], key and value [batch, heads_kv, seq_k, dim]; returns ([batch, seq_q, heads_q,
    dim], None). attention_mask is what sdpa_mask makes: None, or boolean [batch, 1, seq_q, seq_k]; an additive one of a
    caller's own is taken too. A window is in the mask already. Attention weights never exist, so that output_attentions
    raises, and so does the paged cache of continuous batching.
    """
    if output_attentions:
        raise NotImplementedError('output_attentions: True; accepted: False, or attn_implementation="eager"')
    if cache is not None:
        raise NotImplementedError(f"cache: {type(cache).__name__}; accepted: None, without continuous batching")
    boolean = attention_mask is not None and attention_mask.dtype == torch.bool
    bias = position_bias
    if attention_mask is not None and not boolean:
        bias = attention_mask if position_bias is None else attention_mask + position_bias
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    out = attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        mask=attention_mask if boolean else None,
        bias=bias,
        # Without a mask the first query stands at the first key, also in an empty static cache with room for more keys;
        # a single query is the last one.
        causal=bool(is_causal) and attention_mask is None and query.shape[2] > 1,
        alignment="top_left",
        scale=scaling,
        softcap=softcap,
        sinks=s_aux,
        dropout_p=dropout,
    )
    return out, None
