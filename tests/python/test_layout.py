"""What Python believes of the ABI, held against the header: a C program prints sizes, offsets and numbers."""

from __future__ import annotations

import ctypes
import enum
import os
import re
import sys
import unittest
from pathlib import Path
from typing import Any

from inflight import _abi, _library

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "abi"))

from header import Header

HEADER = Header(Path(os.environ["INFLIGHT_INCLUDE"]))

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "ifl_engine_options": _abi.EngineOptions,
    "ifl_request": _abi.Request,
    "ifl_event": _abi.Event,
    "ifl_memory_plan": _abi.MemoryPlan,
    "ifl_stats": _abi.Stats,
    "ifl_model_info": _abi.ModelInfo,
}

ENUMS: dict[str, tuple[str, type[enum.IntEnum] | type[enum.IntFlag]]] = {
    "ifl_status_value": ("IFL_", _abi.Status),
    "ifl_category_value": ("IFL_CATEGORY_", _abi.Category),
    "ifl_dtype_value": ("IFL_DTYPE_", _abi.Dtype),
    "ifl_log_level_value": ("IFL_LOG_", _abi.LogLevel),
    "ifl_prompt_kind_value": ("IFL_PROMPT_", _abi.PromptKind),
    "ifl_event_kind_value": ("IFL_EVENT_", _abi.EventKind),
    "ifl_finish_reason_value": ("IFL_FINISH_", _abi.FinishReason),
    "ifl_text_flags_value": ("IFL_TEXT_", _abi.TextFlags),
}

CONSTANTS = {
    "IFL_VERSION": _abi.VERSION,
    "IFL_NUL_TERMINATED": _abi.NUL_TERMINATED,
    "IFL_MODEL_DEFAULT": _abi.MODEL_DEFAULT,
    "IFL_RANDOM_SEED": _abi.RANDOM_SEED,
    "IFL_NO_TOKEN": _abi.NO_TOKEN,
}

NUMBERS: dict[str, Any] = {
    "void": None,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "ifl_status": ctypes.c_int32,
    "ifl_category": ctypes.c_int32,
    "ifl_text_flags": ctypes.c_uint32,
}


def tidy(kind: str) -> str:
    return re.sub(r"\s*\*\s*", "*", re.sub(r"\bconst\b|\s+", " ", kind)).strip()


class Layout(unittest.TestCase):
    def test_structs_have_the_same_fields_at_the_same_places(self) -> None:
        self.assertEqual(HEADER.structs().keys(), STRUCTS.keys())
        questions, answers = [], []
        for name, fields in HEADER.structs().items():
            struct = STRUCTS[name]
            self.assertEqual(fields, [field[0] for field in struct._fields_], name)
            questions.append(f"sizeof({name})")
            answers.append(ctypes.sizeof(struct))
            for field in fields:
                questions += [f"offsetof({name}, {field})", f"sizeof((({name} *)0)->{field})"]
                answers += [getattr(struct, field).offset, getattr(struct, field).size]
        self.assert_same_numbers(questions, answers)
        self.assertGreater(len(questions), 180)

    def test_numbers_have_the_same_names_and_values(self) -> None:
        self.assertEqual(HEADER.enums().keys(), ENUMS.keys())
        parts = {f"IFL_VERSION_{part}" for part in ("MAJOR", "MINOR", "PATCH")}
        self.assertEqual(set(HEADER.constants()), {*CONSTANTS, *parts})
        expected = dict(CONSTANTS)
        for enum_name, values in HEADER.enums().items():
            prefix, ours = ENUMS[enum_name]
            self.assertEqual(values, [prefix + member.name for member in ours], enum_name)
            expected.update(zip(values, ours))
        self.assert_same_numbers(list(expected), [int(value) % 2**64 for value in expected.values()])

    def assert_same_numbers(self, questions: list[str], answers: list[int]) -> None:
        self.assertEqual(dict(zip(questions, HEADER.ask(questions))), dict(zip(questions, answers)))

    def test_functions_have_the_same_types(self) -> None:
        self.assertEqual(HEADER.functions().keys(), _abi.FUNCTIONS.keys())
        for name, (result, arguments) in HEADER.functions().items():
            ours = _abi.FUNCTIONS[name]
            self.assertEqual(len(arguments), len(ours[1]), name)
            for theirs, mine in zip([result, *arguments], [ours[0], *ours[1]]):
                self.assert_same_type(tidy(theirs), mine, name)

    def assert_same_type(self, theirs: str, mine: Any, where: str) -> None:
        if not theirs.endswith("*"):
            self.assertIs(mine, NUMBERS[theirs], where)
            return
        pointed_to = theirs[:-1]
        if pointed_to in STRUCTS:
            self.assertIs(mine, ctypes.POINTER(STRUCTS[pointed_to]), where)
        elif pointed_to in ("int32_t", "uint32_t", "uint64_t"):
            self.assertIs(mine, ctypes.POINTER(NUMBERS[pointed_to]), where)
        elif pointed_to == "char":
            # Text of the library with a length is an address, so that NUL does not cut it.
            self.assertIn(mine, (ctypes.c_char_p, ctypes.c_void_p), where)
        elif pointed_to.endswith("*"):
            self.assertIs(mine, ctypes.POINTER(ctypes.c_void_p), where)
        else:
            self.assertIs(mine, ctypes.c_void_p, where)

    def test_defaults_of_the_library_fit_the_structs(self) -> None:
        for struct, init in (
            (_abi.Request(), "ifl_request_init"),
            (_abi.EngineOptions(), "ifl_engine_options_init"),
        ):
            _library.call(getattr(_library.library(), init), ctypes.byref(struct), ctypes.sizeof(struct))
            self.assertEqual(struct.struct_size, ctypes.sizeof(struct))

    def test_numbers_of_a_newer_library_are_kept(self) -> None:
        self.assertEqual(_abi.Status(77), 77)
        self.assertEqual(_abi.Status(77).name, "UNKNOWN_77")
