"""Describes a decoder-only transformer that Inflight has no file for. Needs the standard library alone.

    from inflight import spec

    model = spec.ModelSpec(
        family="zebra",
        num_layers=12, hidden_size=768, intermediate_size=3072, vocab_size=32000, max_positions=4096,
        positions=spec.rope(theta=10000.0, rotary_dim=64),
        norm=spec.norm("rms", 1e-5),
        heads=spec.heads(num_heads=12, num_kv_heads=4, head_dim=64),
        mlp=spec.mlp("gated", "silu"),
        output="untied",
        weights=spec.weights(
            embedding="embed.weight",
            attention_norm="layers.{layer}.norm_1.weight",
            qkv=spec.separate("layers.{layer}.q.weight", "layers.{layer}.k.weight", "layers.{layer}.v.weight"),
            attention_output="layers.{layer}.o.weight",
            mlp_norm="layers.{layer}.norm_2.weight",
            mlp=spec.gated("layers.{layer}.gate.weight", "layers.{layer}.up.weight", "layers.{layer}.down.weight"),
            final_norm="norm.weight",
            head="head.weight",
        ),
    )
    model.write("model-directory")

`write` puts `model_spec.json` beside the weights, `Engine(model, spec=FILE)` takes one from elsewhere, and `read` takes
one that `inflight inspect MODEL --spec` printed. `check` finds what contradicts itself before the engine does. Each
part of a spec has a function here that makes it; `python3 -m inflight.spec` prints all fields with what they may hold.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from . import _spec_form
from ._spec_form import (
    ACTIVATIONS as ACTIVATIONS,
    BLOCKS as BLOCKS,
    NORM_KINDS as NORM_KINDS,
    NORM_WEIGHTS as NORM_WEIGHTS,
    OUTPUTS as OUTPUTS,
    PAIRINGS as PAIRINGS,
    QK_NORMS as QK_NORMS,
    QKV_ORDERS as QKV_ORDERS,
    SCORINGS as SCORINGS,
    WEIGHTINGS as WEIGHTINGS,
    SpecError as SpecError,
)
from ._spec_rules import check_rules

FILE_NAME = "model_spec.json"

Object = dict[str, Any]
Names = Union[str, Mapping[str, str]]
"""A weight's name, or `{"weight": ..., "bias": ...}`. `{layer}` stands for the layer's index."""


def _object(**fields: Any) -> Object:
    """The fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def fields() -> Iterator[str]:
    """A line for each field of a spec: where it stands and what it may hold."""
    return _spec_form.describe()


def embedding(scale: float = 1.0, norm: str = "none") -> Object:
    """What happens to embedded tokens: a factor on the table's rows (Gemma's is the root of hidden_size), then the
    model's norm where `norm` is "normalized" (BLOOM)."""
    return _object(scale=scale, norm=norm)


def rope(
    theta: float, rotary_dim: int, *, pairing: str = "half", scaling: Object | None = None, local: Object | None = None
) -> Object:
    """Rotation of queries and keys: of the first `rotary_dim` elements of a head, with frequencies of base `theta`.
    `pairing` "half" makes a pair of elements i and i + rotary_dim / 2, "interleaved" of 2 i and 2 i + 1. `scaling` is
    one of the functions below; `local` is for layers with a sliding window, where they differ."""
    return _object(kind="rope", theta=theta, rotary_dim=rotary_dim, pairing=pairing, scaling=scaling, local=local)


def local_rope(theta: float, scaling: Object | None = None) -> Object:
    """Frequencies of the layers with a sliding window (Gemma 3)."""
    return _object(theta=theta, scaling=scaling)


def linear_scaling(factor: float) -> Object:
    """All frequencies divided by `factor`."""
    return _object(kind="linear", factor=factor)


def dynamic_ntk_scaling(factor: float, original_max_positions: int) -> Object:
    """A base that is raised for contexts past the original, as for the longest context; `factor` is at least 1."""
    return _object(kind="dynamic_ntk", factor=factor, original_max_positions=original_max_positions)


def llama3_scaling(
    factor: float, low_freq_factor: float, high_freq_factor: float, original_max_positions: int
) -> Object:
    """Llama 3.1's blend: wavelengths above original_max_positions / low_freq_factor are divided by `factor`, those
    below original_max_positions / high_freq_factor stay."""
    return _object(
        kind="llama3",
        factor=factor,
        low_freq_factor=low_freq_factor,
        high_freq_factor=high_freq_factor,
        original_max_positions=original_max_positions,
    )


def yarn_scaling(
    factor: float,
    original_max_positions: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float,
) -> Object:
    """YaRN: frequencies of more than `beta_fast` rotations stay, those of fewer than `beta_slow` are divided by
    `factor`; `attention_factor`, usually 0.1 ln(factor) + 1, multiplies cosines and sines."""
    return _object(
        kind="yarn",
        factor=factor,
        original_max_positions=original_max_positions,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=attention_factor,
    )


def per_frequency_scaling(factors: Sequence[float]) -> Object:
    """A divisor for each of the rotary_dim / 2 frequencies."""
    return _object(kind="per_frequency", factors=list(factors))


def long_rope_scaling(
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    original_max_positions: int,
    attention_factor: float,
) -> Object:
    """LongRoPE: a divisor for each of the rotary_dim / 2 frequencies, from the long list where the longest context is
    above the original; `attention_factor` multiplies cosines and sines (Phi-3, Phi-4)."""
    return _object(
        kind="long_rope",
        short_factors=list(short_factors),
        long_factors=list(long_factors),
        original_max_positions=original_max_positions,
        attention_factor=attention_factor,
    )


def alibi(max_bias: float = 8.0, scale: float = 1.0) -> Object:
    """Linear biases on the scores, by distance: the last slope of a power of two of heads is 2 ** -max_bias, and
    `scale` multiplies all."""
    return _object(kind="alibi", max_bias=max_bias, scale=scale)


def learned(offset: int = 0) -> Object:
    """A table of positions that is added to the embeddings; `offset` is the row of position 0."""
    return _object(kind="learned", offset=offset)


def no_positions() -> Object:
    """Order enters by the causal mask alone."""
    return _object(kind="none")


def norm(kind: str, epsilon: float, weight: str = "plain") -> Object:
    """The norm at every place, `kind` "rms" or "layer". It multiplies with the weight ("plain"), with 1 plus the weight
    ("one_plus"), or with nothing ("absent": there are no weights of norms)."""
    return _object(kind=kind, epsilon=epsilon, weight=weight)


def heads(num_heads: int, num_kv_heads: int, head_dim: int, *, scale: float | None = None) -> Object:
    """Attention heads; num_kv_heads divides num_heads. `scale` is a factor on the scores, 1 / sqrt(head_dim) if
    None."""
    return _object(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=scale)


def attention(
    *,
    qkv_clamp: float | None = None,
    qk_norm: str | None = None,
    score_soft_cap: float | None = None,
    sliding_window: Object | None = None,
) -> Object:
    """What attention does beyond the usual: limits the elements of queries, keys and values to plus and minus
    `qkv_clamp`; norms queries and keys before positions enter, `qk_norm` "head" by head or "width" all heads together;
    makes scores cap * tanh(score / cap); limits sight to a `window`."""
    return _object(
        qkv_clamp=qkv_clamp, qk_norm=qk_norm, score_soft_cap=score_soft_cap, sliding_window=sliding_window
    )


def window(size: int, layers: Object | None = None) -> Object:
    """Sight of `size` tokens, in all layers or in those of `listed`, `periodic` or `layers_from`."""
    return _object(size=size, layers=layers)


def listed(layers: Sequence[int]) -> Object:
    """These layers, counted from 0."""
    return _object(kind="listed", layers=list(layers))


def periodic(period: int, remainders: Sequence[int]) -> Object:
    """Layers whose index modulo `period` is one of `remainders`."""
    return _object(kind="periodic", period=period, remainders=list(remainders))


def layers_from(first: int) -> Object:
    """Layer `first` and those after it."""
    return {"kind": "from", "first": first}


def mlp(kind: str, activation: str) -> Object:
    """The MLP, and the form of experts: `kind` "plain", down(f(up(x))), or "gated", down(f(gate(x)) * up(x)), with an f
    of ACTIVATIONS."""
    return _object(kind=kind, activation=activation)


def experts(
    num_experts: int,
    num_chosen: int,
    intermediate_size: int,
    *,
    weighting: str,
    scoring: str = "softmax",
    scale: float = 1.0,
    shared: Object | None = None,
    layers: Object | None = None,
) -> Object:
    """A mixture of experts of width `intermediate_size`, `num_chosen` of them for a token, in all layers or in those of
    `listed`, `periodic` or `layers_from`. Scores are the router's products by `scoring` "softmax" over all experts or
    "sigmoid" of each; the chosen ones stay ("as_scored") or are divided by their sum ("normalized"), times `scale`."""
    return _object(
        num_experts=num_experts,
        num_chosen=num_chosen,
        intermediate_size=intermediate_size,
        scoring=scoring,
        weighting=weighting,
        scale=scale,
        shared=shared,
        layers=layers,
    )


def shared_expert(intermediate_size: int, gate: str = "none") -> Object:
    """An expert that all tokens pass; `gate` "sigmoid" multiplies its result with the logistic function of a product
    with the hidden state (Qwen MoE)."""
    return _object(intermediate_size=intermediate_size, gate=gate)


def logits(scale: float = 1.0, soft_cap: float | None = None) -> Object:
    """What happens to the head's products: a factor, then cap * tanh(logit / cap)."""
    return _object(scale=scale, soft_cap=soft_cap)


def with_bias(stem: str) -> Object:
    """`stem.weight` and `stem.bias`."""
    return {"weight": f"{stem}.weight", "bias": f"{stem}.bias"}


def separate(query: Names, key: Names, value: Names) -> Object:
    """Projections that are a tensor each, `[heads * head_dim, hidden_size]`."""
    return _object(kind="separate", query=query, key=key, value=value)


def fused(qkv: Names, order: str) -> Object:
    """Projections in one tensor. Its rows are all queries, all keys and all values ("blocks"), or for each key-value
    head its queries, its key and its value ("groups")."""
    return _object(kind="fused", qkv=qkv, order=order)


def plain(up: Names, down: Names) -> Object:
    """Tensors of an MLP without a gate."""
    return _object(kind="plain", up=up, down=down)


def gated(gate: Names, up: Names, down: Names) -> Object:
    """Tensors of an MLP with a gate."""
    return _object(kind="gated", gate=gate, up=up, down=down)


def fused_gated(gate_up: Names, down: Names) -> Object:
    """Tensors of an MLP whose gate and up projection are one, the gate's rows first."""
    return _object(kind="fused_gated", gate_up=gate_up, down=down)


def expert_names(
    router: str, experts: Object, *, shared: Object | None = None, shared_gate: str | None = None
) -> Object:
    """Tensors of a mixture of experts: the router, `[num_experts, hidden_size]`; an MLP's names with `{expert}`, or
    without it for tensors with all experts, `[num_experts, out, in]`; the shared expert and its gate, `[1,
    hidden_size]`."""
    return _object(router=router, experts=experts, shared=shared, shared_gate=shared_gate)


def weights(
    embedding: str,
    qkv: Object,
    attention_output: Names,
    *,
    orientation: str | None = None,
    position_embedding: str | None = None,
    embedding_norm: Names | None = None,
    attention_norm: Names | None = None,
    query_norm: Names | None = None,
    key_norm: Names | None = None,
    post_attention_norm: Names | None = None,
    mlp_norm: Names | None = None,
    mlp: Object | None = None,
    experts: Object | None = None,
    post_mlp_norm: Names | None = None,
    final_norm: Names | None = None,
    head: Names | None = None,
) -> Object:
    """Names of all tensors, in a GGUF file GGUF's. Which of the optional ones must be there follows from the other
    fields: `attention_norm` and `mlp_norm` stand before attention and MLP, the `post_` ones after them. Matrices are
    `[out, in]`; `orientation` "in_out" says that those of layers are the other way round (GPT-2)."""
    return _object(
        orientation=orientation,
        embedding=embedding,
        position_embedding=position_embedding,
        embedding_norm=embedding_norm,
        attention_norm=attention_norm,
        qkv=qkv,
        query_norm=query_norm,
        key_norm=key_norm,
        attention_output=attention_output,
        post_attention_norm=post_attention_norm,
        mlp_norm=mlp_norm,
        mlp=mlp,
        experts=experts,
        post_mlp_norm=post_mlp_norm,
        final_norm=final_norm,
        head=head,
    )


@dataclasses.dataclass
class ModelSpec:
    """An architecture. Every field is an axis on which models differ. With norms n, attention a and MLP m, a layer of
    `block` "sequential" is x += a(n(x)); x += m(n(x)), "parallel" x += a(n(x)) + m(n(x)) with one norm and
    "parallel_two_norms" with two, "sandwich" x += n(a(n(x))); x += n(m(n(x))), "post_norm" x += n(a(x)); x += n(m(x)).
    `output` says what the head is: the embedding table ("tied"), a matrix of its own ("untied"), or one whose rows are
    divided by their lengths ("untied_unit_rows")."""

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    positions: Object
    norm: Object
    heads: Object
    mlp: Object
    output: str
    weights: Object
    block: str = "sequential"
    embedding: Object | None = None
    attention: Object | None = None
    experts: Object | None = None
    logits: Object | None = None

    def to_dict(self) -> Object:
        """The fields that are given, as JSON has them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _object(**fields)

    def check(self) -> None:
        """Raises SpecError for what the engine would refuse, whatever is wrong."""
        fields = self.to_dict()
        _spec_form.check(_spec_form.SPEC, fields)
        check_rules(fields)

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Checks the spec and writes it as `model_spec.json` of a model directory."""
        return self.write_file(Path(directory) / FILE_NAME)

    def write_file(self, path: str | os.PathLike[str]) -> Path:
        """Checks the spec and writes it to a file of any name, for `Engine(model, spec=path)`."""
        self.check()
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ModelSpec:
        """A spec from a file, or from the one of a model directory."""
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SpecError(str(path), f"is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise SpecError(str(path), f"must hold an object, but holds {fields!r:.200}")
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise SpecError(name, "is not a field of a spec")
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        for name in sorted(required - fields.keys()):
            raise SpecError(name, "is missing")
        return cls(**fields)


if __name__ == "__main__":
    print(*fields(), sep="\n")
