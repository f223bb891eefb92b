"""Specs that are written in Python: what is refused, and that the engine's own are understood."""

import copy
import dataclasses
import json
import tempfile
import unittest
from pathlib import Path

from inflight import Engine, InflightError, Status, spec

SPECS = Path(__file__).resolve().parents[2] / "benches" / "specs"


def small(**changes):
    """A sequential model with rotation, or one with other fields."""
    fields = dict(
        family="small",
        num_layers=2,
        hidden_size=48,
        intermediate_size=36,
        vocab_size=61,
        max_positions=64,
        positions=spec.rope(theta=500.0, rotary_dim=8),
        norm=spec.norm("rms", 1e-5),
        heads=spec.heads(6, 2, 8),
        mlp=spec.mlp("gated", "silu"),
        output="untied",
        weights=spec.weights(
            embedding="embedding",
            attention_norm="{layer}.norm_1",
            qkv=spec.separate("{layer}.q", "{layer}.k", "{layer}.v"),
            attention_output=spec.with_bias("{layer}.o"),
            mlp_norm="{layer}.norm_2",
            mlp=spec.gated("{layer}.gate", "{layer}.up", "{layer}.down"),
            final_norm="norm",
            head="head",
        ),
    )
    return spec.ModelSpec(**(fields | changes))


def rich():
    """A model with everything that a small one has not."""
    return small(
        num_layers=4,
        embedding=spec.embedding(scale=2.0, norm="normalized"),
        positions=spec.rope(
            500.0,
            8,
            scaling=spec.yarn_scaling(2.0, 32, attention_factor=1.1),
            local=spec.local_rope(100.0, spec.linear_scaling(2.0)),
        ),
        block="sandwich",
        heads=spec.heads(6, 2, 8, scale=0.5),
        attention=spec.attention(
            qkv_clamp=8.0, qk_norm="head", score_soft_cap=50.0, sliding_window=spec.window(4, spec.periodic(2, [0]))
        ),
        experts=spec.experts(
            4, 2, 12, weighting="normalized", shared=spec.shared_expert(24, "sigmoid"), layers=spec.layers_from(1)
        ),
        logits=spec.logits(0.5, 30.0),
        weights=spec.weights(
            embedding="embedding",
            embedding_norm="embedding_norm",
            attention_norm="{layer}.norm_1",
            qkv=spec.separate(*(spec.with_bias("{layer}." + name) for name in "qkv")),
            query_norm="{layer}.q_norm.{head}",
            key_norm="{layer}.k_norm",
            attention_output=spec.with_bias("{layer}.o"),
            post_attention_norm="{layer}.norm_2",
            mlp_norm="{layer}.norm_3",
            mlp=spec.fused_gated("{layer}.gate_up", "{layer}.down"),
            experts=spec.expert_names(
                "{layer}.router",
                spec.gated("{layer}.{expert}.w1", "{layer}.{expert}.w2", "{layer}.{expert}.w3"),
                shared=spec.gated("{layer}.s.w1", "{layer}.s.w2", "{layer}.s.w3"),
                shared_gate="{layer}.s.gate",
            ),
            post_mlp_norm="{layer}.norm_4",
            final_norm="norm",
            head="head",
        ),
    )


def examples():
    """Specs that between them have every field and kind."""
    no_head = {name: value for name, value in small().weights.items() if name != "head"}
    mixture = spec.experts(4, 2, 12, weighting="as_scored", scoring="sigmoid", scale=2.0)
    stacked = spec.expert_names("{layer}.router", spec.plain("{layer}.w1", "{layer}.w2"))
    return [
        rich(),
        small(),
        small(output="tied", weights=no_head, positions=spec.rope(5e5, 8, scaling=spec.dynamic_ntk_scaling(2.0, 32))),
        small(positions=spec.rope(5e5, 8, scaling=spec.llama3_scaling(8.0, 1.0, 4.0, 32))),
        small(positions=spec.rope(5e5, 4, pairing="interleaved", scaling=spec.per_frequency_scaling([1, 2.5]))),
        small(positions=spec.rope(5e5, 4, scaling=spec.long_rope_scaling([1.0, 1.0], [2.0, 3.0], 32, 1.2))),
        small(positions=spec.alibi(), norm=spec.norm("layer", 1e-5)),
        small(positions=spec.learned(2), weights=small().weights | {"position_embedding": "positions"}),
        small(positions=spec.no_positions(), attention=spec.attention(sliding_window=spec.window(4, spec.listed([1])))),
        small(
            mlp=spec.mlp("plain", "gelu"),
            experts=mixture,
            weights={name: value for name, value in small().weights.items() if name != "mlp"} | {"experts": stacked},
        ),
        small(weights=small().weights | {"qkv": spec.fused(spec.with_bias("{layer}.qkv"), "groups")}),
    ]


def places(value, at=()):
    """Paths to everything in a spec."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def kinds(fields, place):
    """The kinds of the objects on the way to a place."""
    found = []
    for key in place:
        found.append(fields.get("kind") if isinstance(fields, dict) else None)
        fields = fields[key]
    return tuple(found)


def put(fields, place, value):
    """A copy with another value at a place."""
    changed = copy.deepcopy(fields)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if value is REMOVED:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return changed


REMOVED = object()
VALUES = [
    *(REMOVED, None, True, 0, 1, 2, 3, 5, 7, 8, 12, -1, 8.0, 0.5, -1.0, 1e-50, 1e10, 1e16, float("nan")),
    *(9999, 1 << 18, 1 << 19, 1 << 24, (1 << 26) + 1, 1 << 70, "", "x", "zork", "norm", "{layer}.q"),
    *("{layer}.norm_1", "{layer}.{expert}.w", "{layer}.{head}", "{layer}{expert}", "{Layer}", "0.norm_1"),
    *("{layer}" + 300 * "x", "\ud800"),
    *([], [0], [1.0, 2.0], [9], {}, {"kind": "none"}, {"kind": "zork"}, {"kind": "longrope"}, {"surprise": 1}),
    *({"weight": "{layer}.q"}, {"weight": "{layer}.x", "bias": "{layer}.y"}, {"weight": "x", "bias": None}),
    *("none", "layer", "absent", "parallel", "post_norm", "plain", "tied", "normalized", "width", "dynamic_ntk", "all"),
    *({"kind": "listed", "layers": [0, 1, 2, 3]}, {"kind": "from", "first": 0}, {"kind": "periodic", "period": 2}),
]


class EngineTest(unittest.TestCase):
    """What the Python code accepts the engine accepts, and the other way round."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "spec.json"

    def complaint(self, fields):
        """What the engine says of a spec."""
        self.path.write_text(json.dumps(fields))
        try:
            Engine.plan(self.path, device="cpu", num_threads=1)
        except InflightError as error:
            self.assertIn(error.status, (Status.MODEL_INVALID, Status.MODEL_UNSUPPORTED), error)
            return str(error)
        return None

    def assert_agree(self, fields):
        engine, ours = self.complaint(fields), None
        try:
            self.path.write_text(json.dumps(fields))
            spec.ModelSpec.read(self.path).check()
        except spec.SpecError as error:
            ours = str(error)
        self.assertEqual(ours is None, engine is None, f"{fields}\npython: {ours}\nengine: {engine}")

    def test_examples(self):
        for example in examples():
            example.check()
            self.assertIsNone(self.complaint(example.to_dict()))

    def test_changed_specs(self):
        seen = set()
        for example in examples():
            fields = example.to_dict()
            # A field that another example has under the same kinds takes the same values.
            new = [place for place in places(fields) if place and (place, kinds(fields, place)) not in seen]
            seen.update((place, kinds(fields, place)) for place in new)
            for place in new:
                for value in VALUES:
                    # None stands for an absent field of the dataclass, and is not written.
                    if len(place) > 1 or value is not None:
                        with self.subTest(place=place, value=value):
                            self.assert_agree(put(fields, place, value))
            for place in new:
                if isinstance(place[-1], str):
                    self.assert_agree(put(fields, (*place[:-1], "surprise"), 1))

    def test_a_spec_is_named_in_the_options(self):
        model = Path(__file__).resolve().parents[1] / "golden" / "families" / "llama"
        changed = json.loads((model / "config.json").read_text())
        self.assertNotEqual(changed["max_position_embeddings"], 77)
        self.assertRaises(InflightError, Engine.plan, model, spec=self.path, device="cpu")
        small().write_file(self.path)
        with self.assertRaisesRegex(InflightError, "embedding"):
            Engine.plan(model, spec=self.path, device="cpu")


class SpecTest(unittest.TestCase):
    def test_what_is_written_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = small().write(folder)
            self.assertEqual(path, Path(folder) / "model_spec.json")
            self.assertEqual(spec.ModelSpec.read(folder), small())

    def test_the_engines_own_specs_pass(self):
        paths = sorted(SPECS.glob("*.json"))
        self.assertTrue(paths)
        for path in paths:
            spec.ModelSpec.read(path).check()

    def test_contradictions_name_the_field(self):
        names = small().weights
        cases = [
            ("num_layers", dict(num_layers=0)),
            ("hidden_size", dict(hidden_size="48")),
            ("vocab_size", dict(vocab_size=True)),
            ("heads.num_kv_heads", dict(heads=spec.heads(6, 4, 8))),
            ("heads.head_dim", dict(heads=spec.heads(6, 2, 0))),
            ("positions.rotary_dim", dict(positions=spec.rope(500.0, 7))),
            ("positions.rotary_dim", dict(positions=spec.rope(500.0, 10))),
            ("positions.kind", dict(positions={"kind": "sinus"})),
            ("block", dict(block="both")),
            ("output", dict(output="loose")),
            ("norm.kind", dict(norm=spec.norm("batch", 1e-5))),
            ("mlp.activation", dict(mlp=spec.mlp("gated", "tanh"))),
            ("weights.position_embedding", dict(positions=spec.learned())),
            ("weights.post_attention_norm", dict(block="sandwich")),
            ("weights.mlp_norm", dict(block="parallel")),
            ("weights.query_norm", dict(attention=spec.attention(qk_norm="head"))),
            ("weights.attention_norm", dict(norm=spec.norm("layer", 1e-5, "absent"))),
            ("weights.final_norm", dict(weights=names | dict(final_norm="{layer}.norm"))),
            ("weights.attention_output", dict(weights=names | dict(attention_output="o"))),
            ("weights.qkv.value", dict(weights=names | dict(qkv=spec.separate("{layer}.q", "{layer}.k", "{layer}.k")))),
        ]
        for field, changes in cases:
            with self.subTest(field=field, changes=changes), self.assertRaises(spec.SpecError) as raised:
                small(**changes).check()
            self.assertEqual(raised.exception.field, field)

    def test_anything_may_be_wrong(self):
        cases = [
            ("heads", dict(heads=[6, 2, 8])),
            ("heads", dict(heads=None)),
            ("positions", dict(positions="rope")),
            ("mlp", dict(mlp="gated")),
            ("weights", dict(weights=None)),
            ("family", dict(family=None)),
            ("norm.epsilon", dict(norm=spec.norm("rms", float("nan")))),
            ("positions.theta", dict(positions=spec.rope("500", 8))),
            ("positions.pairing", dict(positions=spec.rope(500.0, 8, pairing="zork"))),
            ("positions.local", dict(positions=spec.rope(500.0, 8, local=spec.local_rope(100.0)))),
            ("weights.mlp.kind", dict(mlp=spec.mlp("plain", "silu"))),
            ("experts.num_chosen", dict(experts=spec.experts(2, 3, 8, weighting="as_scored"))),
        ]
        for field, changes in cases:
            with self.subTest(field=field, changes=changes), self.assertRaises(spec.SpecError) as raised:
                small(**changes).check()
            self.assertEqual(raised.exception.field, field)
        with self.assertRaises(TypeError):
            spec.weights("embedding", {}, "{layer}.o", final_nrom="norm")

    def test_files_that_hold_something_else_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.json"
            for text in ("[]", "null", "5", "", "{", "\xff", "[" * 100000):
                path.write_text(text, encoding="latin-1")
                with self.subTest(text=text[:9]), self.assertRaisesRegex(spec.SpecError, "spec.json"):
                    spec.ModelSpec.read(path)

    def test_fields_are_listed(self):
        lines = list(spec.fields())
        self.assertIn("positions(rope).rotary_dim: a whole number from 2 to 1024", lines)
        self.assertIn("experts.weighting: one of as_scored, normalized", lines)

    def test_files_with_other_fields_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.json"
            path.write_text('{"family": "x", "surprise": 1}')
            with self.assertRaisesRegex(spec.SpecError, "surprise"):
                spec.ModelSpec.read(path)
            path.write_text('{"family": "x"}')
            with self.assertRaisesRegex(spec.SpecError, "is missing"):
                spec.ModelSpec.read(path)

    def test_absent_fields_are_not_written(self):
        written = small().to_dict()
        self.assertNotIn("experts", written)
        self.assertEqual(set(written) - {field.name for field in dataclasses.fields(spec.ModelSpec)}, set())


if __name__ == "__main__":
    unittest.main()
