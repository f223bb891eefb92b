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

`write` puts `model_spec.json` beside the weights; `read` takes one that `inflight inspect MODEL --spec` printed.
What the fields mean, in order and with the families that use them, stands in `src/model/spec.rs` and
`src/model/names.rs` of the sources. `check` finds what contradicts itself before the engine does.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

FILE_NAME = "model_spec.json"
NORM_KINDS = ("rms", "layer")
NORM_WEIGHTS = ("plain", "one_plus", "absent")
BLOCKS = ("sequential", "parallel", "parallel_two_norms", "sandwich", "post_norm")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared")
OUTPUTS = ("tied", "untied", "untied_unit_rows")
QKV_ORDERS = ("blocks", "groups")
POSITIONS = ("none", "learned", "alibi", "rope")
MLP_KINDS = ("plain", "gated")

Object = dict[str, Any]
Names = Union[str, Mapping[str, str]]
"""A weight's name, or `{"weight": ..., "bias": ...}`. `{layer}` stands for the layer's index."""


class SpecError(ValueError):
    """A spec that contradicts itself. `field` is what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def _object(**fields: Any) -> Object:
    """The fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


def rope(
    theta: float, rotary_dim: int, *, pairing: str = "half", scaling: Object | None = None, local: Object | None = None
) -> Object:
    """Rotation of queries and keys, `pairing` "half" or "interleaved"."""
    return _object(kind="rope", theta=theta, rotary_dim=rotary_dim, pairing=pairing, scaling=scaling, local=local)


def alibi(max_bias: float = 8.0, scale: float = 1.0) -> Object:
    """Linear biases on the scores, by distance."""
    return _object(kind="alibi", max_bias=max_bias, scale=scale)


def learned(offset: int = 0) -> Object:
    """A table of positions that is added to the embeddings; `offset` is the row of position 0."""
    return _object(kind="learned", offset=offset)


def no_positions() -> Object:
    """Order enters by the causal mask alone."""
    return _object(kind="none")


def norm(kind: str, epsilon: float, weight: str = "plain") -> Object:
    """The norm at every place, `kind` "rms" or "layer"."""
    return _object(kind=kind, epsilon=epsilon, weight=weight)


def heads(num_heads: int, num_kv_heads: int, head_dim: int, *, scale: float | None = None) -> Object:
    """Attention heads; `scale` is a factor on the scores, 1 / sqrt(head_dim) if None."""
    return _object(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, scale=scale)


def attention(
    *,
    qkv_clamp: float | None = None,
    qk_norm: str | None = None,
    score_soft_cap: float | None = None,
    sliding_window: Object | None = None,
) -> Object:
    """What attention does beyond the usual; `qk_norm` "head" or "width"."""
    return _object(
        qkv_clamp=qkv_clamp, qk_norm=qk_norm, score_soft_cap=score_soft_cap, sliding_window=sliding_window
    )


def window(size: int, layers: Object | None = None) -> Object:
    """Sight of `size` tokens, in all layers or in those of `listed`, `periodic` or `layers_from`."""
    return _object(size=size, layers=layers)


def listed(layers: list[int]) -> Object:
    """These layers, counted from 0."""
    return _object(kind="listed", layers=layers)


def periodic(period: int, remainders: list[int]) -> Object:
    """Layers whose index modulo `period` is one of `remainders`."""
    return _object(kind="periodic", period=period, remainders=remainders)


def layers_from(first: int) -> Object:
    """Layer `first` and those after it."""
    return {"kind": "from", "first": first}


def mlp(kind: str, activation: str) -> Object:
    """The MLP, `kind` "plain" or "gated"."""
    return _object(kind=kind, activation=activation)


def with_bias(stem: str) -> Object:
    """`stem.weight` and `stem.bias`."""
    return {"weight": f"{stem}.weight", "bias": f"{stem}.bias"}


def separate(query: Names, key: Names, value: Names) -> Object:
    """Projections that are a tensor each."""
    return _object(kind="separate", query=query, key=key, value=value)


def fused(qkv: Names, order: str) -> Object:
    """Projections in one tensor, `order` "blocks" or "groups"."""
    return _object(kind="fused", qkv=qkv, order=order)


def plain(up: Names, down: Names) -> Object:
    """Tensors of an MLP without a gate."""
    return _object(kind="plain", up=up, down=down)


def gated(gate: Names, up: Names, down: Names) -> Object:
    """Tensors of an MLP with a gate."""
    return _object(kind="gated", gate=gate, up=up, down=down)


def fused_gated(gate_up: Names, down: Names) -> Object:
    """Tensors of an MLP whose gate and up projection are one."""
    return _object(kind="fused_gated", gate_up=gate_up, down=down)


def weights(embedding: str, qkv: Object, attention_output: Names, **others: Any) -> Object:
    """Names of all tensors; `others` are the norms, `mlp`, `experts`, `head` and so on."""
    return _object(embedding=embedding, qkv=qkv, attention_output=attention_output, **others)


@dataclasses.dataclass
class ModelSpec:
    """An architecture. Every field is an axis on which models differ."""

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
        """Raises SpecError for what contradicts itself."""
        for field in ("num_layers", "hidden_size", "intermediate_size", "vocab_size", "max_positions"):
            _check_size(field, getattr(self, field))
        for field in ("num_heads", "num_kv_heads", "head_dim"):
            _check_size(f"heads.{field}", self.heads.get(field))
        if self.heads["num_heads"] % self.heads["num_kv_heads"]:
            raise SpecError("heads.num_kv_heads", f"does not divide num_heads {self.heads['num_heads']}")
        _check_choice("block", self.block, BLOCKS)
        _check_choice("output", self.output, OUTPUTS)
        _check_choice("norm.kind", self.norm.get("kind"), NORM_KINDS)
        _check_choice("norm.weight", self.norm.get("weight", "plain"), NORM_WEIGHTS)
        _check_choice("mlp.kind", self.mlp.get("kind"), MLP_KINDS)
        _check_choice("mlp.activation", self.mlp.get("activation"), ACTIVATIONS)
        _check_choice("positions.kind", self.positions.get("kind"), POSITIONS)
        if self.positions["kind"] == "rope":
            _check_size("positions.rotary_dim", self.positions.get("rotary_dim"))
            rotary_dim = self.positions["rotary_dim"]
            if rotary_dim % 2 or rotary_dim > self.heads["head_dim"]:
                raise SpecError("positions.rotary_dim", f"{rotary_dim} is odd, or wider than a head")
        self._check_names()

    def _check_names(self) -> None:
        """Which optional names must be there follows from the other fields."""
        has_weights = self.norm.get("weight", "plain") != "absent"
        has_pre_norm = self.block != "post_norm"
        has_post_norms = self.block in ("sandwich", "post_norm")
        has_qk_norm = (self.attention or {}).get("qk_norm") is not None
        is_normalized = (self.embedding or {}).get("norm") == "normalized"
        needed = {
            "position_embedding": self.positions["kind"] == "learned",
            "embedding_norm": has_weights and is_normalized,
            "attention_norm": has_weights and has_pre_norm,
            "query_norm": has_weights and has_qk_norm,
            "key_norm": has_weights and has_qk_norm,
            "post_attention_norm": has_weights and has_post_norms,
            "mlp_norm": has_weights and has_pre_norm and self.block != "parallel",
            "post_mlp_norm": has_weights and has_post_norms,
            "experts": self.experts is not None,
            "final_norm": has_weights,
        }
        if self.experts is None:
            needed["mlp"] = True
        if self.output != "tied":
            needed["head"] = True
        for field, is_needed in needed.items():
            if is_needed != (field in self.weights):
                message = "is missing" if is_needed else "names a weight that the architecture has no use for"
                raise SpecError(f"weights.{field}", message)
        single = ("embedding", "position_embedding", "embedding_norm", "final_norm", "head")
        seen: dict[str, str] = {}
        for field, name in _names("weights", self.weights):
            is_single = field.split(".")[1] in single
            if ("{layer}" in name) == is_single:
                raise SpecError(field, f"{name!r} must {'not ' if is_single else ''}contain {{layer}}")
            if name in seen:
                raise SpecError(field, f"{name!r} stands for {seen[name]} too")
            seen[name] = field

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Checks the spec and writes it as `model_spec.json` of a model directory."""
        self.check()
        path = Path(directory) / FILE_NAME
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ModelSpec:
        """A spec from a file, or from the one of a model directory."""
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        fields = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise SpecError(name, "is not a field of a spec")
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        for name in sorted(required - fields.keys()):
            raise SpecError(name, "is missing")
        return cls(**fields)


def _check_size(field: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(field, f"must be an integer of at least 1, but is {value!r}")


def _check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(field, f"must be one of {', '.join(choices)}, but is {value!r}")


def _names(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every tensor's name and where it stands."""
    if isinstance(value, str):
        if field.rpartition(".")[2] not in ("kind", "order", "orientation"):
            yield field, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _names(f"{field}.{key}", child)
