"""The forward pass of a BERT sentence encoder in plain NumPy, with the attention left to the caller."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

# (q, k, v), each [1, seq, heads, dim], -> out of the same shape.
Attention = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def eager_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Textbook attention in the dtype of its inputs."""
    scores = np.einsum("bihd,bjhd->bhij", q, k) / q.dtype.type(math.sqrt(q.shape[-1]))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhij,bjhd->bihd", weights, v)


def log_sum_exp(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """LSE [1, heads, seq] of the scores that eager_attention uses."""
    scores = np.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    largest = scores.max(axis=-1)
    return largest + np.log(np.exp(scores - largest[..., None]).sum(axis=-1))


def gelu(x: np.ndarray) -> np.ndarray:
    erf = np.fromiter(map(math.erf, (x.ravel() / math.sqrt(2.0)).tolist()), dtype=np.float64, count=x.size)
    return (0.5 * x * (1.0 + erf.reshape(x.shape))).astype(x.dtype)


class SentenceEncoder:
    """Weights, tokenizer and sizes out of a sentence-transformers folder, computing in `dtype`."""

    def __init__(self, folder: Path, dtype: type = np.float32):
        config = json.loads((folder / "config.json").read_text())
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]
        self.max_tokens: int = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.weights = {
            name: tensor.astype(dtype)
            for name, tensor in load_file(folder / "model.safetensors").items()
            if np.issubdtype(tensor.dtype, np.floating)
        }
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_tokens)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def hidden_states(self, ids: list[int], attention: Attention) -> Iterator[np.ndarray]:
        """The output [seq, hidden] of each layer in turn."""
        x = self._embed(ids)
        for index in range(self.layers):
            x = self._layer(f"encoder.layer.{index}", x, attention)
            yield x

    def _embed(self, ids: list[int]) -> np.ndarray:
        table = "embeddings.{}_embeddings.weight".format
        x = self.weights[table("word")][ids]
        x = x + self.weights[table("position")][: len(ids)] + self.weights[table("token_type")][0]
        return self._norm("embeddings.LayerNorm", x)

    def _layer(self, name: str, x: np.ndarray, attention: Attention) -> np.ndarray:
        q, k, v = (self._split(self._linear(f"{name}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        attended = attention(q, k, v).reshape(x.shape)
        x = self._norm(
            f"{name}.attention.output.LayerNorm", x + self._linear(f"{name}.attention.output.dense", attended)
        )
        inner = gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._norm(f"{name}.output.LayerNorm", x + self._linear(f"{name}.output.dense", inner))

    def _split(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(1, x.shape[0], self.heads, -1)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def sentence_embedding(last_hidden: np.ndarray) -> np.ndarray:
    """The mean over the tokens, scaled to length 1."""
    mean = last_hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)
