"""What the fields of a model_spec.json must be to each other. The rules are the engine's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ._spec_form import NAME_BYTES_MAX, WEIGHTS, Name, SpecError, names

# Widths of all experts of a layer together, and heads or experts of all layers together.
_EXPERTS_WIDTH_MAX = 1 << 24
_PARTS_MAX = 1 << 18
_PLACEHOLDERS = ("{layer}", "{expert}", "{head}")

Object = dict[str, Any]


def check_rules(spec: Object) -> None:
    """Raises SpecError where fields, each of which is well-formed, contradict each other."""
    heads, num_layers = spec["heads"], spec["num_layers"]
    if heads["num_heads"] % heads["num_kv_heads"]:
        raise SpecError("heads.num_kv_heads", f"does not divide num_heads {heads['num_heads']}")
    if num_layers * heads["num_heads"] > _PARTS_MAX:
        raise SpecError("heads.num_heads", f"times num_layers is above {_PARTS_MAX}")
    window = spec.get("attention", {}).get("sliding_window")
    if spec["positions"]["kind"] == "rope":
        _check_rope(spec["positions"], heads["head_dim"], window is not None)
    if window is not None:
        _check_layers("attention.sliding_window.layers", window.get("layers"), num_layers)
    if spec.get("experts") is not None:
        _check_experts(spec["experts"], num_layers)
    _check_names(spec)
    _check_presence(spec)
    _check_packing(spec)


def _check_rope(rope: Object, head_dim: int, has_window: bool) -> None:
    rotary_dim = rope["rotary_dim"]
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise SpecError("positions.rotary_dim", f"{rotary_dim} is not an even number up to head_dim {head_dim}")
    _check_scaling("positions.scaling", rope.get("scaling"), rotary_dim)
    local = rope.get("local")
    if local is not None:
        if not has_window:
            raise SpecError("positions.local", "is for layers with a sliding window, but there is none in attention")
        _check_scaling("positions.local.scaling", local.get("scaling"), rotary_dim)


def _check_scaling(field: str, scaling: Object | None, rotary_dim: int) -> None:
    kind = "none" if scaling is None else scaling["kind"]
    if scaling is None or kind == "none":
        return
    if kind == "dynamic_ntk":
        if rotary_dim < 4:
            raise SpecError("positions.rotary_dim", f"{rotary_dim} is below 4, which dynamic_ntk needs")
        if scaling["factor"] < 1:
            raise SpecError(f"{field}.factor", "must be at least 1")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise SpecError(f"{field}.high_freq_factor", "must be above low_freq_factor")
    if kind == "yarn" and scaling["beta_slow"] > scaling["beta_fast"]:
        raise SpecError(f"{field}.beta_fast", "must not be below beta_slow")
    for name in ("factors", "short_factors", "long_factors"):
        if name in scaling and len(scaling[name]) != rotary_dim // 2:
            raise SpecError(f"{field}.{name}", f"needs {rotary_dim // 2} factors, one for each frequency")


def _check_layers(field: str, layers: Object | None, num_layers: int) -> None:
    kind = "all" if layers is None else layers["kind"]
    if layers is None or kind in ("all", "from"):
        return
    name, end = ("remainders", layers["period"]) if kind == "periodic" else ("layers", num_layers)
    indexes = layers[name]
    if len(indexes) > end:
        raise SpecError(f"{field}.{name}", f"has {len(indexes)} entries, more than {end}")
    if any(index >= end for index in indexes):
        raise SpecError(f"{field}.{name}", f"{max(indexes)} is not below {end}")


def _check_experts(experts: Object, num_layers: int) -> None:
    num_experts = experts["num_experts"]
    if experts["num_chosen"] > num_experts:
        raise SpecError("experts.num_chosen", f"{experts['num_chosen']} is more than num_experts {num_experts}")
    if experts["intermediate_size"] > _EXPERTS_WIDTH_MAX // num_experts:
        raise SpecError("experts.intermediate_size", f"times num_experts is above {_EXPERTS_WIDTH_MAX}")
    if num_layers * num_experts > _PARTS_MAX:
        raise SpecError("experts.num_experts", f"times num_layers is above {_PARTS_MAX}")
    _check_layers("experts.layers", experts.get("layers"), num_layers)


def _has_experts(experts: Object | None, layer: int) -> bool:
    if experts is None:
        return False
    layers = experts.get("layers", {"kind": "all"})
    if layers["kind"] == "from":
        return bool(layer >= layers["first"])
    if layers["kind"] == "periodic":
        return layer % layers["period"] in layers["remainders"]
    return layers["kind"] == "all" or layer in layers["layers"]


def _check_names(spec: Object) -> None:
    seen: dict[str, str] = {}
    alike: dict[str, list[tuple[str, str]]] = {}
    for field, name, form in names(WEIGHTS, spec["weights"], "weights"):
        _check_name(field, name, form)
        if name in seen:
            raise SpecError(field, f"{name!r} stands for {seen[name]} too")
        seen[name] = field
        # Names that become one tensor's are alike but for their indexes.
        alike.setdefault(re.sub(r"([0-9]|\{\w+\})+", "#", name), []).append((field, name))
    for group in alike.values():
        if len(group) > 1 or "}{" in group[0][1]:
            tensors: set[str] = set()
            for field, name in group:
                for tensor in _tensors(name, spec):
                    if tensor in tensors:
                        raise SpecError(field, f"{name!r}: tensor {tensor!r} stands for another weight too")
                    tensors.add(tensor)


def _check_name(field: str, name: str, form: Name) -> None:
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX:
        raise SpecError(field, f"must have 1 to {NAME_BYTES_MAX} bytes")
    if ("{layer}" in name) != form.per_layer:
        raise SpecError(field, f"{name!r} must {'' if form.per_layer else 'not '}contain {{layer}}")
    rest = name
    for placeholder in _PLACEHOLDERS:
        if placeholder in name and placeholder not in ("{layer}", form.index):
            raise SpecError(field, f"{name!r} must not contain {placeholder}")
        rest = rest.replace(placeholder, "")
    if "{" in rest or "}" in rest:
        raise SpecError(field, f"{name!r}: braces stand for {', '.join(_PLACEHOLDERS)} alone")


def _tensors(name: str, spec: Object) -> Iterator[str]:
    """What a name is with every index."""
    num_layers = spec["num_layers"] if "{layer}" in name else 1
    num_indexes = 1
    if "{expert}" in name and spec.get("experts") is not None:
        num_indexes = spec["experts"]["num_experts"]
    if "{head}" in name:
        num_indexes = max(num_indexes, spec["heads"]["num_heads"])
    for layer in range(num_layers):
        in_layer = name.replace("{layer}", str(layer))
        for index in range(num_indexes):
            yield in_layer.replace("{expert}", str(index)).replace("{head}", str(index))


def _check_presence(spec: Object) -> None:
    """Which optional names must be there follows from the other fields."""
    weights, experts, block = spec["weights"], spec.get("experts"), spec.get("block", "sequential")
    has_weights = spec["norm"].get("weight", "plain") != "absent"
    has_pre_norm = has_weights and block != "post_norm"
    has_post_norms = has_weights and block in ("sandwich", "post_norm")
    has_qk_norm = has_weights and spec.get("attention", {}).get("qk_norm") is not None
    needed = {
        "position_embedding": spec["positions"]["kind"] == "learned",
        "embedding_norm": has_weights and spec.get("embedding", {}).get("norm") == "normalized",
        "attention_norm": has_pre_norm,
        "query_norm": has_qk_norm,
        "key_norm": has_qk_norm,
        "post_attention_norm": has_post_norms,
        "mlp_norm": has_pre_norm and block != "parallel",
        "mlp": not all(_has_experts(experts, layer) for layer in range(spec["num_layers"])),
        "experts": experts is not None,
        "post_mlp_norm": has_post_norms,
        "final_norm": has_weights,
    }
    # The name of a tied head may be there and is not used.
    if spec["output"] != "tied":
        needed["head"] = True
    for field, is_needed in needed.items():
        if is_needed != (weights.get(field) is not None):
            message = "is missing" if is_needed else "names a weight that the architecture has no use for"
            raise SpecError(f"weights.{field}", message)


def _has_bias(name: Any) -> bool:
    return isinstance(name, dict) and name.get("bias") is not None


def _check_packing(spec: Object) -> None:
    """Checks names of projections that are stacked, and those of experts."""
    weights, experts = spec["weights"], spec.get("experts")
    qkv = weights["qkv"]
    if qkv["kind"] == "separate" and len({_has_bias(qkv[name]) for name in ("query", "key", "value")}) > 1:
        raise SpecError("weights.qkv", "query, key and value must all have a bias, or none")
    is_gated = spec["mlp"]["kind"] == "gated"
    if weights.get("mlp") is not None:
        _check_mlp("weights.mlp", weights["mlp"], is_gated)
    if experts is None:
        return
    expert_names = weights["experts"]
    for field in ("experts", "shared"):
        if expert_names.get(field) is not None:
            _check_mlp(f"weights.experts.{field}", expert_names[field], is_gated)
            for part, name in expert_names[field].items():
                if _has_bias(name):
                    raise SpecError(f"weights.experts.{field}.{part}", "biases of experts are not supported")
    shared = experts.get("shared")
    has_gate = shared is not None and shared.get("gate", "none") == "sigmoid"
    for field, is_needed in (("shared", shared is not None), ("shared_gate", has_gate)):
        if is_needed != (expert_names.get(field) is not None):
            message = "must be there where experts.shared asks for it, and only there"
            raise SpecError(f"weights.experts.{field}", message)


def _check_mlp(field: str, mlp_names: Object, is_gated: bool) -> None:
    if (mlp_names["kind"] != "plain") != is_gated:
        raise SpecError(f"{field}.kind", "names an MLP of another kind than mlp.kind")
    if mlp_names["kind"] == "gated" and _has_bias(mlp_names["gate"]) != _has_bias(mlp_names["up"]):
        raise SpecError(field, "gate and up must both have a bias, or none")
