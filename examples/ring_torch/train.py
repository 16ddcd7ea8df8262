"""A small transformer trained on sequences that no rank holds: each has some tokens of every one.

Start it with torchrun; without a GPU the ranks are processes on the CPU (gloo), with GPUs each has one (nccl):

    torchrun --nproc-per-node 2 examples/ring_torch/train.py

The model is the same on every rank and sees its own tokens alone; only attention looks further, around the ring.
Rotary embeddings take the positions that the tokens have in the whole sequence, and the gradients of the parameters are
summed over the ranks, as in data parallelism. At the end rank 0 trains the same model on whole sequences by itself:
exit status 1 if the losses differ by more than rounding, or if the model learned nothing.

The task needs attention over the whole sequence: a random string of symbols, then the same string again, which the
model has to continue.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from tessera.torch import attention
from tessera.torch import distributed as ring
from torch import Tensor, nn
from torch.nn import functional

# (q, k, v), each [batch, tokens, heads, dim], -> out of q's shape, causal.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SYMBOLS, WIDTH, HEADS, KEY_HEADS, LAYERS = 16, 64, 4, 2, 2


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embeddings; x [batch, tokens, heads, dim], angles [tokens, dim / 2]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, attend: Attention) -> None:
        super().__init__()
        self.attend = attend
        dim = WIDTH // HEADS
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, heads * dim) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        normed = self.before_attention(x)
        q, k, v = (
            projection(normed).unflatten(-1, (-1, WIDTH // HEADS)) for projection in (self.query, self.key, self.value)
        )
        q, k = rotate(q, angles), rotate(k, angles)
        x = x + self.projection(self.attend(q, k, v).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Model(nn.Module):
    def __init__(self, attend: Attention) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.blocks = nn.ModuleList(Block(attend) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [batch, tokens, symbols] of tokens that have these positions in their sequences."""
        frequencies = 1000.0 ** -torch.linspace(0, 1, WIDTH // HEADS // 2, device=ids.device)
        angles = positions[:, None] * frequencies
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, angles)
        return self.head(self.norm(x))


def batches(options: argparse.Namespace, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """(ids, labels) [batch, seq] of each step, the same on every rank; labels of the first half are -100: ignored."""
    generator = torch.Generator().manual_seed(options.seed)
    made = []
    for _ in range(options.steps):
        half = torch.randint(SYMBOLS, (options.batch, (options.seq + 2) // 2), generator=generator)
        whole = torch.cat((half, half), dim=1)[:, : options.seq + 1]
        labels = whole[:, 1:].clone()
        labels[:, : half.shape[1]] = -100
        made.append((whole[:, :-1].to(device), labels.to(device)))
    return made


def train(options: argparse.Namespace, device: torch.device, distributed: bool) -> list[float]:
    """The loss of every step, over whole sequences."""
    attend, positions = partial(attention, causal=True), torch.arange(options.seq, device=device)
    if distributed:
        attend = partial(ring.attention, causal=True, layout=options.layout)
        positions = ring.positions(options.seq, layout=options.layout, device=device)
    torch.manual_seed(options.seed)
    model = Model(attend).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate)
    losses = []
    for whole_ids, whole_labels in batches(options, device):
        counted = int((whole_labels >= 0).sum())
        # Where sequences come from a disk, a rank reads no more than this.
        ids, labels = whole_ids[:, positions], whole_labels[:, positions]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(ids, positions).float()
        # A sum over this rank's tokens, so that gradients add up to those of the mean over all.
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / counted
        optimiser.zero_grad()
        loss.backward()
        total = loss.detach()
        if distributed:
            gradients = torch.cat([x.grad.flatten() for x in model.parameters()])
            dist.all_reduce(gradients)
            for x, gradient in zip(
                model.parameters(), gradients.split([x.numel() for x in model.parameters()]), strict=True
            ):
                x.grad.copy_(gradient.view_as(x))
            dist.all_reduce(total)
        optimiser.step()
        losses.append(float(total))
    return losses


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=63)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layout", default="zigzag", choices=("zigzag", "striped", "contiguous"))
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        losses = train(options, device, distributed=True)
        if dist.get_rank() != 0:
            return 0
        print(f"{dist.get_world_size()} ranks: loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
        alone = train(options, device, distributed=False)
        early = max(abs(x - y) for x, y in zip(losses[:20], alone[:20], strict=True))
        print(f"one device: loss {alone[0]:.3f} at first, {alone[-1]:.3f} at last; differs by {early:.1e} in 20 steps")
        if early > (5e-2 if gpu else 1e-3) or losses[-1] > 0.5 * losses[0]:
            print("train: the runs do not agree, or attention learned nothing", file=sys.stderr)
            return 1
        return 0
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
