"""What a model_spec.json may hold: one table of fields with their types, limits and words, and a walk over it.

The limits and words are the engine's. tests/python/test_spec.py holds both against each other: it changes specs and
demands that this file and the engine refuse the same ones.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Union

NORM_KINDS = ("rms", "layer")
NORM_WEIGHTS = ("plain", "one_plus", "absent")
EMBEDDING_NORMS = ("none", "normalized")
BLOCKS = ("sequential", "parallel", "parallel_two_norms", "sandwich", "post_norm")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared")
OUTPUTS = ("tied", "untied", "untied_unit_rows")
PAIRINGS = ("half", "interleaved")
QK_NORMS = ("head", "width")
QKV_ORDERS = ("blocks", "groups")
ORIENTATIONS = ("out_in", "in_out")
SCORINGS = ("softmax", "sigmoid")
WEIGHTINGS = ("as_scored", "normalized")
SHARED_GATES = ("none", "sigmoid")

LAYERS_MAX = 1 << 12
POSITIONS_MAX = 1 << 26
EXPERTS_MAX = 1 << 12
NAME_BYTES_MAX = 256


class SpecError(ValueError):
    """A spec that contradicts itself. `field` is what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclasses.dataclass(frozen=True)
class Size:
    """A whole number from `low` to `high`."""

    high: int
    low: int = 1

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def fits(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Number:
    """A number above `above` and at most `high`, which the engine keeps in single precision or, `double`, in double."""

    above: float = 0.0
    high: float = 1e9
    double: bool = False

    def __str__(self) -> str:
        return f"a number above {self.above:g} and at most {self.high:g}"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        try:
            kept = float(value) if self.double else struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            return False
        return bool(self.above < kept <= self.high)


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text."""

    def __str__(self) -> str:
        return "a text"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and is_unicode(value)


@dataclasses.dataclass(frozen=True)
class Word:
    """One of several words."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.words


@dataclasses.dataclass(frozen=True)
class List:
    """A list of what `element` says."""

    element: Union[Size, Number]

    def __str__(self) -> str:
        return f"a list, each element {self.element}"


@dataclasses.dataclass(frozen=True)
class Name:
    """A tensor's name, with `{layer}` in it where there is one for each layer. `index` is another placeholder that may
    be there. `with_bias`: or an object of `weight` and `bias`."""

    per_layer: bool = True
    index: str = ""
    with_bias: bool = True

    def __str__(self) -> str:
        what = "a name, or an object of weight and bias" if self.with_bias else "a name"
        layer = ", with {layer}" if self.per_layer else ""
        return what + layer + (f", perhaps with {self.index}" if self.index else "")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of an object: what it holds, whether it may be absent, and whether it may be None as well."""

    form: Form
    is_required: bool = True
    may_be_none: bool = False


Fields = Mapping[str, Field]


@dataclasses.dataclass(frozen=True)
class Object:
    """An object of these fields."""

    fields: Fields

    def __str__(self) -> str:
        return f"an object of {', '.join(self.fields)}"


@dataclasses.dataclass(frozen=True)
class Tagged:
    """An object whose field `kind` says which others it has."""

    kinds: Mapping[str, Fields]

    def __str__(self) -> str:
        return f"an object with a kind of {', '.join(self.kinds)}"


Form = Union[Size, Number, Text, Word, List, Name, Object, Tagged]


def required(form: Form) -> Field:
    return Field(form)


def defaulted(form: Form) -> Field:
    return Field(form, is_required=False)


def optional(form: Form) -> Field:
    return Field(form, is_required=False, may_be_none=True)


_FACTOR = Number()
_DOUBLE = Number(double=True)
_THETA = Number(above=1.0, high=1e15, double=True)
_POSITIONS = required(Size(POSITIONS_MAX))
_INTERMEDIATE = required(Size(1 << 20))

SCALING = Tagged(
    {
        "none": {},
        "linear": {"factor": required(_DOUBLE)},
        "dynamic_ntk": {"factor": required(_DOUBLE), "original_max_positions": _POSITIONS},
        "llama3": {
            "factor": required(_DOUBLE),
            "low_freq_factor": required(_DOUBLE),
            "high_freq_factor": required(_DOUBLE),
            "original_max_positions": _POSITIONS,
        },
        "yarn": {
            "factor": required(_DOUBLE),
            "original_max_positions": _POSITIONS,
            "beta_fast": required(_DOUBLE),
            "beta_slow": required(_DOUBLE),
            "attention_factor": required(_DOUBLE),
        },
        "per_frequency": {"factors": required(List(_FACTOR))},
        "long_rope": {
            "short_factors": required(List(_FACTOR)),
            "long_factors": required(List(_FACTOR)),
            "original_max_positions": _POSITIONS,
            "attention_factor": required(_DOUBLE),
        },
    }
)
POSITIONS = Tagged(
    {
        "none": {},
        "learned": {"offset": defaulted(Size(POSITIONS_MAX - 1, low=0))},
        "alibi": {"max_bias": defaulted(_FACTOR), "scale": defaulted(_FACTOR)},
        "rope": {
            "theta": required(_THETA),
            "rotary_dim": required(Size(1 << 10, low=2)),
            "pairing": defaulted(Word(PAIRINGS)),
            "scaling": defaulted(SCALING),
            "local": optional(Object({"theta": required(_THETA), "scaling": defaulted(SCALING)})),
        },
    }
)
LAYERS = Tagged(
    {
        "all": {},
        "from": {"first": required(Size(LAYERS_MAX, low=0))},
        "periodic": {"period": required(Size(LAYERS_MAX)), "remainders": required(List(Size(LAYERS_MAX, low=0)))},
        "listed": {"layers": required(List(Size(LAYERS_MAX, low=0)))},
    }
)


def _mlp_names(index: str = "") -> Tagged:
    name = required(Name(index=index))
    return Tagged(
        {
            "plain": {"up": name, "down": name},
            "gated": {"gate": name, "up": name, "down": name},
            "fused_gated": {"gate_up": name, "down": name},
        }
    )


WEIGHTS = Object(
    {
        "orientation": defaulted(Word(ORIENTATIONS)),
        "embedding": required(Name(per_layer=False, with_bias=False)),
        "position_embedding": optional(Name(per_layer=False, with_bias=False)),
        "embedding_norm": optional(Name(per_layer=False)),
        "attention_norm": optional(Name()),
        "qkv": required(
            Tagged(
                {
                    "separate": {"query": required(Name()), "key": required(Name()), "value": required(Name())},
                    "fused": {"qkv": required(Name()), "order": required(Word(QKV_ORDERS))},
                }
            )
        ),
        "query_norm": optional(Name(index="{head}")),
        "key_norm": optional(Name(index="{head}")),
        "attention_output": required(Name()),
        "post_attention_norm": optional(Name()),
        "mlp_norm": optional(Name()),
        "mlp": optional(_mlp_names()),
        "experts": optional(
            Object(
                {
                    "router": required(Name(with_bias=False)),
                    "experts": required(_mlp_names("{expert}")),
                    "shared": optional(_mlp_names()),
                    "shared_gate": optional(Name(with_bias=False)),
                }
            )
        ),
        "post_mlp_norm": optional(Name()),
        "final_norm": optional(Name(per_layer=False)),
        "head": optional(Name(per_layer=False)),
    }
)
_MLP = {"activation": required(Word(ACTIVATIONS))}
SPEC = Object(
    {
        "family": required(Text()),
        "num_layers": required(Size(LAYERS_MAX)),
        "hidden_size": required(Size(1 << 18)),
        "intermediate_size": _INTERMEDIATE,
        "vocab_size": required(Size(1 << 24)),
        "max_positions": _POSITIONS,
        "embedding": defaulted(Object({"scale": defaulted(_FACTOR), "norm": defaulted(Word(EMBEDDING_NORMS))})),
        "positions": required(POSITIONS),
        "norm": required(
            Object(
                {
                    "kind": required(Word(NORM_KINDS)),
                    "epsilon": required(_FACTOR),
                    "weight": defaulted(Word(NORM_WEIGHTS)),
                }
            )
        ),
        "block": defaulted(Word(BLOCKS)),
        "heads": required(
            Object(
                {
                    "num_heads": required(Size(1 << 12)),
                    "num_kv_heads": required(Size(1 << 12)),
                    "head_dim": required(Size(1 << 10)),
                    "scale": optional(_FACTOR),
                }
            )
        ),
        "attention": defaulted(
            Object(
                {
                    "qkv_clamp": optional(_FACTOR),
                    "qk_norm": optional(Word(QK_NORMS)),
                    "score_soft_cap": optional(_FACTOR),
                    "sliding_window": optional(Object({"size": _POSITIONS, "layers": defaulted(LAYERS)})),
                }
            )
        ),
        "mlp": required(Tagged({"plain": _MLP, "gated": _MLP})),
        "experts": optional(
            Object(
                {
                    "num_experts": required(Size(EXPERTS_MAX)),
                    "num_chosen": required(Size(EXPERTS_MAX)),
                    "intermediate_size": required(Size(1 << 24)),
                    "scoring": defaulted(Word(SCORINGS)),
                    "weighting": required(Word(WEIGHTINGS)),
                    "scale": defaulted(_FACTOR),
                    "shared": optional(
                        Object({"intermediate_size": _INTERMEDIATE, "gate": defaulted(Word(SHARED_GATES))})
                    ),
                    "layers": defaulted(LAYERS),
                }
            )
        ),
        "output": required(Word(OUTPUTS)),
        "logits": defaulted(Object({"scale": defaulted(_FACTOR), "soft_cap": optional(_FACTOR)})),
        "weights": required(WEIGHTS),
    }
)


def is_unicode(text: str) -> bool:
    """Whether it can be written: halves of surrogate pairs cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def check(form: Form, value: Any, at: str = "") -> None:
    """Raises SpecError where `value` is not what `form` says."""
    if isinstance(form, List):
        if not isinstance(value, (list, tuple)):
            raise _not_this(at, form, value)
        for index, element in enumerate(value):
            check(form.element, element, f"{at}[{index}]")
    elif isinstance(form, Object):
        if not isinstance(value, dict):
            raise _not_this(at, form, value)
        _check_fields(form.fields, value, at)
    elif isinstance(form, Tagged):
        if not isinstance(value, dict):
            raise _not_this(at, form, value)
        kind = Word(tuple(form.kinds))
        if "kind" not in value:
            raise SpecError(f"{at}.kind", f"is missing; it is {kind}")
        check(kind, value["kind"], f"{at}.kind")
        _check_fields({"kind": required(kind), **form.kinds[value["kind"]]}, value, at)
    elif isinstance(form, Name):
        if form.with_bias and isinstance(value, dict):
            fields = {"weight": required(Text()), "bias": optional(Text())}
            _check_fields(fields, value, at)
        elif not Text().fits(value):
            raise _not_this(at, form, value)
    elif not form.fits(value):
        raise _not_this(at, form, value)


def _not_this(at: str, form: Form, value: Any) -> SpecError:
    return SpecError(at or "spec", f"must be {form}, but is {value!r:.200}")


def _check_fields(fields: Fields, value: dict[str, Any], at: str) -> None:
    prefix = f"{at}." if at else ""
    for name in value:
        if name not in fields:
            raise SpecError(f"{prefix}{name}", f"is not a field that is known here; known are {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value:
            if field.is_required:
                raise SpecError(f"{prefix}{name}", f"is missing; it is {field.form}")
        elif value[name] is not None or not field.may_be_none:
            check(field.form, value[name], f"{prefix}{name}")


def names(form: Form, value: Any, at: str) -> Iterator[tuple[str, str, Name]]:
    """Every tensor's name in what has passed `check`, where it stands, and what it must be."""
    if isinstance(form, Name):
        if isinstance(value, str):
            yield at, value, form
        else:
            yield at, value["weight"], form
            if value.get("bias") is not None:
                yield f"{at}.bias", value["bias"], form
    elif isinstance(form, (Object, Tagged)):
        fields = form.fields if isinstance(form, Object) else form.kinds[value["kind"]]
        for name, field in fields.items():
            if value.get(name) is not None:
                yield from names(field.form, value[name], f"{at}.{name}")


def describe(form: Form = SPEC, at: str = "") -> Iterator[str]:
    """A line for each field: where it stands and what it may hold."""
    if isinstance(form, Object):
        groups = {at: form.fields}
    elif isinstance(form, Tagged):
        groups = {f"{at}({kind})": fields for kind, fields in form.kinds.items()}
    else:
        return
    for group, fields in groups.items():
        if isinstance(form, Tagged):
            yield f"{group}: {', '.join(fields) or 'no further fields'}"
        for name, field in fields.items():
            where = f"{group}.{name}" if group else name
            yield f"{where}: {field.form}" + ("" if field.is_required else "; may be absent")
            yield from describe(field.form, where)
