"""attn_implementation="tessera" against "eager": logits, gradients, padding, generation with caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import tessera.transformers  # noqa: E402

tessera.transformers.register()

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def configurations() -> dict[str, Any]:
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 96}
    return {
        "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**SMALL, **without_dropout)),
        "gpt2": (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(
                vocab_size=97,
                n_positions=64,
                n_embd=32,
                n_layer=3,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                scale_attn_by_inverse_layer_idx=True,
                **tokens,
            ),
        ),
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL, num_key_value_heads=2, **tokens)),
        "mistral": (
            transformers.MistralForCausalLM,
            transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=5, **tokens),
        ),
        "gemma2, with softcap": (
            transformers.Gemma2ForCausalLM,
            transformers.Gemma2Config(
                **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5, attn_logit_softcapping=5.0, **tokens
            ),
        ),
        "gpt-oss, with sinks": (
            transformers.GptOssForCausalLM,
            transformers.GptOssConfig(
                **SMALL,
                num_key_value_heads=2,
                head_dim=8,
                sliding_window=5,
                num_local_experts=2,
                num_experts_per_tok=1,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                **tokens,
            ),
        ),
        "modernbert": (
            transformers.ModernBertForMaskedLM,
            transformers.ModernBertConfig(
                **SMALL, local_attention=6, global_attn_every_n_layers=2, pad_token_id=0, reference_compile=False
            ),
        ),
    }


CONFIGURATIONS = configurations()
CAUSAL = ("gpt2", "llama", "mistral")


def model(name: str, implementation: str) -> Any:
    kind, config = CONFIGURATIONS[name]
    torch.manual_seed(11)
    made = kind._from_config(config, attn_implementation=implementation)
    assert made.config._attn_implementation == implementation
    return made.train()


def batch(padding: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 90, (3, 12), generator=torch.Generator().manual_seed(5))
    attended = torch.ones(3, 12, dtype=torch.long)
    if padding == "right":
        attended[0, 7:] = 0
        attended[2, 3:] = 0
    elif padding == "left":
        attended[0, :5] = 0
        attended[2, :9] = 0
    return {"input_ids": ids, "attention_mask": attended}


def logits_and_gradients(name: str, implementation: str, inputs: dict[str, torch.Tensor]) -> Any:
    network = model(name, implementation)
    logits = network(**inputs).logits
    seen = inputs["attention_mask"].bool()
    # The tokens before a left padding ends see nothing: eager averages over what is hidden, which no loss looks at.
    torch.nn.functional.cross_entropy(logits[seen], inputs["input_ids"][seen]).backward()
    return logits[seen].detach(), {key: x.grad for key, x in network.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_and_gradients(name: str, padding: str) -> None:
    inputs = batch(padding)
    logits, gradients = logits_and_gradients(name, "tessera", inputs)
    expected, expected_gradients = logits_and_gradients(name, "eager", inputs)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation(name: str, padding: str, cache: str) -> None:
    def generate(implementation: str, use_cache: bool) -> torch.Tensor:
        return (
            model(name, implementation)
            .eval()
            .generate(
                **batch(padding),
                max_new_tokens=10,
                do_sample=False,
                use_cache=use_cache,
                disable_compile=True,
                **({"cache_implementation": cache} if use_cache and cache == "static" else {}),
            )
        )

    generated = generate("tessera", True)
    assert generated.shape == (3, 22)
    assert torch.equal(generated, generate("eager", True))
    assert torch.equal(generated, generate("tessera", False))


def test_dropout_is_that_of_training_alone() -> None:
    kind, config = CONFIGURATIONS["bert"]
    config = type(config)(**{**config.to_dict(), "attention_probs_dropout_prob": 0.5})
    network = kind._from_config(config, attn_implementation="tessera")
    inputs = batch("none")
    with torch.no_grad():
        first, second = network.train()(**inputs).logits, network(**inputs).logits
        third, fourth = network.eval()(**inputs).logits, network(**inputs).logits
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_softcap_and_sinks_are_honoured_and_weights_are_refused() -> None:
    module = torch.nn.Module()
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    sinks = torch.randn(4, dtype=torch.bfloat16)
    out, weights = tessera.transformers.attention_forward(
        module, q, k, k, None, scaling=0.5, softcap=2.0, s_aux=sinks, is_causal=False
    )
    rows = [x.transpose(1, 2) for x in (q, k, k)]
    expected = tessera.torch.attention(*rows, scale=0.5, softcap=2.0, sinks=sinks.float())
    assert weights is None
    torch.testing.assert_close(out, expected)
    with pytest.raises(NotImplementedError, match="output_attentions: True"):
        tessera.transformers.attention_forward(module, q, k, k, None, output_attentions=True)
