"""Specs that are written in Python: what is refused, and that the engine's own are understood."""

import dataclasses
import tempfile
import unittest
from pathlib import Path

from inflight import spec

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
