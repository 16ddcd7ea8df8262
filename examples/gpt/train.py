"""A small GPT trained twice on real text from one seed: with tessera.torch.attention and with torch's own attention.

The text is the language reference that ships with every Python (pydoc_data.topics, 460 KB), one token a character. Both
runs see the same batches and start from the same weights, so that their loss curves lie on top of each other; float32
rounding alone keeps them apart, which training makes grow, however small it is. Exit status 1 if they differ in the
first quarter or by the mean of the last 20 steps, or if the model does not learn what needs attention: the loss has to
fall below the entropy of a character given the one before it.

run.sh starts this with a Python that has torch and matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tessera.torch import attention
from torch import Tensor, nn
from torch.nn import functional

# (q, k, v), each [batch, seq, heads, dim], -> out of the same shape, causal.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_tessera(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, causal=True)


def with_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, attend: Attention):
        super().__init__()
        self.heads = heads
        self.attend = attend
        self.before_attention = nn.LayerNorm(width)
        self.before_mlp = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, seq, 3, self.heads, width // self.heads)
        x = x + self.projection(self.attend(*qkv.unbind(dim=2)).reshape(batch, seq, width))
        return x + self.mlp(self.before_mlp(x))


class Gpt(nn.Module):
    def __init__(self, symbols: int, context: int, width: int, layers: int, heads: int, attend: Attention):
        super().__init__()
        self.tokens = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("projection.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def load_text() -> tuple[Tensor, int]:
    """The text as numbers, and how many different ones there are."""
    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    return torch.tensor([symbols[symbol] for symbol in text]), len(symbols)


def pair_entropy(text: Tensor, symbols: int) -> float:
    """Nats a character of the text when only the character before is known: what a model without attention reaches."""
    pairs = torch.bincount(text[:-1] * symbols + text[1:], minlength=symbols**2).reshape(symbols, symbols).double()
    given = pairs / pairs.sum(dim=1, keepdim=True).clamp(min=1)
    return -float((pairs * torch.where(pairs > 0, given, 1).log()).sum() / pairs.sum())


def train(name: str, attend: Attention, text: Tensor, symbols: int, options: argparse.Namespace) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(options.seed)
    model = Gpt(symbols, options.context, options.width, options.layers, options.heads, attend)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 50))
    batches = torch.Generator().manual_seed(options.seed)
    losses = []
    start = time.perf_counter()
    for step in range(options.steps):
        offsets = torch.randint(len(text) - options.context, (options.batch,), generator=batches)
        window = text[offsets[:, None] + torch.arange(options.context + 1)]
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        warm_up.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == options.steps - 1:
            print(f"{name:8} step {step:>4}  loss {losses[-1]:.4f}  {time.perf_counter() - start:6.1f} s", flush=True)
    return losses


def plot(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415  only --plot needs it

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        above.plot(losses, style, label=name)
    first, second = curves.values()
    below.plot([abs(a - b) for a, b in zip(first, second, strict=True)], color="black", linewidth=0.8)
    above.set(title="a small GPT, the same seed", ylabel="loss, nats a character")
    above.legend()
    below.set(xlabel="step", ylabel="difference", yscale="log")
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both curves and their difference there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write both curves there")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    text, symbols = load_text()
    print(f"{len(text)} characters, {symbols} different ones")
    curves = {
        name: train(name, attend, text, symbols, options)
        for name, attend in (("Tessera", with_tessera), ("torch", with_torch))
    }
    if options.json:
        options.json.write_text(json.dumps(curves) + "\n")
    if options.plot:
        plot(curves, options.plot)
    ours, theirs = curves.values()
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    early = max(differences[: len(differences) // 4])
    reached, theirs_reached = statistics.fmean(ours[-20:]), statistics.fmean(theirs[-20:])
    without_attention = pair_entropy(text, symbols)
    print(f"largest difference of the losses: {early:.1e} in the first quarter, {max(differences):.1e} in all")
    print(
        f"loss of the last 20 steps: {reached:.3f} and {theirs_reached:.3f}; without attention {without_attention:.3f}"
    )
    if early > 1e-4 or abs(reached - theirs_reached) > 0.02 or reached >= without_attention:
        print("train: the runs do not agree, or attention learned nothing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
