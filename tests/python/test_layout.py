"""What Python believes of the ABI, held against the header: a C program prints sizes, offsets and numbers."""

from __future__ import annotations

import ctypes
import enum
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any

from inflight import _abi, _library

HEADER = Path(os.environ["INFLIGHT_INCLUDE"]) / "inflight.h"

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


def code() -> str:
    """The header without comments."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return re.sub(r"//.*", "", text)


def structs() -> dict[str, list[str]]:
    """Structs of the header and their fields."""
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", code(), re.DOTALL):
        found[name] = [re.findall(r"\w+", field)[-1] for field in body.split(";")[:-1]]
    return found


def enums() -> dict[str, list[str]]:
    """Enums of the header and their values."""
    bodies = re.findall(r"typedef enum \{(.*?)\} (\w+);", code(), re.DOTALL)
    return {name: re.findall(r"(\w+) =", body) for body, name in bodies}


def functions() -> dict[str, tuple[str, list[str]]]:
    """Functions of the header with the types that they return and take."""
    found = {}
    for result, name, arguments in re.findall(r"^([\w \*]+?)(ifl_\w+)\(([^)]*)\);", code(), re.MULTILINE):
        types = [re.sub(r"\w+$", "", argument.strip()) for argument in arguments.split(",") if argument != "void"]
        found[name] = (tidy(result), [tidy(kind) for kind in types])
    return found


def tidy(kind: str) -> str:
    return re.sub(r"\s*\*\s*", "*", re.sub(r"\bconst\b|\s+", " ", kind)).strip()


def ask_compiler(lines: list[str]) -> list[str]:
    """What a C program prints that has these statements."""
    source = '#include <inflight.h>\n#include <stdio.h>\n#include <inttypes.h>\nint main(void) {\n'
    source += "\n".join(lines) + "\nreturn 0; }\n"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "layout"
        command = ["cc", "-x", "c", "-", "-I", str(HEADER.parent), "-o", str(program)]
        subprocess.run(command, input=source, text=True, check=True)
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


class Layout(unittest.TestCase):
    def test_structs_have_the_same_fields_at_the_same_places(self) -> None:
        self.assertEqual(structs().keys(), STRUCTS.keys())
        lines, expected = [], []
        for name, fields in structs().items():
            struct = STRUCTS[name]
            self.assertEqual(fields, [field[0] for field in struct._fields_], name)
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
            expected.append(f"{name} {ctypes.sizeof(struct)}")
            for field in fields:
                place = getattr(struct, field)
                lines.append(
                    f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
                )
                expected.append(f"{name}.{field} {place.offset} {place.size}")
        self.assertEqual(ask_compiler(lines), expected)
        self.assertGreater(len(expected), 90)

    def test_numbers_have_the_same_names_and_values(self) -> None:
        self.assertEqual(enums().keys(), ENUMS.keys())
        lines = [f'printf("{name} %" PRIu64 "\\n", (uint64_t)({name}));' for name in CONSTANTS]
        expected = [f"{name} {value % 2**64}" for name, value in CONSTANTS.items()]
        for enum_name, values in enums().items():
            prefix, ours = ENUMS[enum_name]
            self.assertEqual(values, [prefix + member.name for member in ours], enum_name)
            for name, member in zip(values, ours):
                lines.append(f'printf("{name} %d\\n", (int){name});')
                expected.append(f"{name} {int(member)}")
        self.assertEqual(ask_compiler(lines), expected)

    def test_functions_have_the_same_types(self) -> None:
        self.assertEqual(functions().keys(), _abi.FUNCTIONS.keys())
        for name, (result, arguments) in functions().items():
            ours = _abi.FUNCTIONS[name]
            self.assertEqual(len(arguments), len(ours[1]), name)
            for theirs, mine in zip([result, *arguments], [ours[0], *ours[1]]):
                self.assert_same_type(theirs, mine, name)

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
