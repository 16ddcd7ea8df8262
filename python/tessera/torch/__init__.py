"""Attention on torch tensors, with autograd, torch.compile and torch.func, and drop-ins for other libraries' functions.

    out = tessera.torch.attention(q, k, v, causal=True)
    out = tessera.torch.scaled_dot_product_attention(query, key, value, is_causal=True)

Needs torch 2.4 or later, of any build: the extension module links no torch.
"""

from . import _ops, _vmap
from ._attention import attention
from ._block_mask import block_mask_of
from ._drop_in import (
    flash_attn_func,
    flash_attn_varlen_func,
    scaled_dot_product_attention,
)
from ._kv_cache import flash_attn_with_kvcache

__all__ = [
    "attention",
    "block_mask_of",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "scaled_dot_product_attention",
]

if hasattr(_ops.forward, "register_vmap"):  # since torch 2.5
    _vmap.register()
