"""Records what the header promises today, for later versions to be held against.

    python3 tests/abi/record.py HEADER_FOLDER table    sizes, offsets, numbers and signatures, as C
    python3 tests/abi/record.py HEADER_FOLDER stubs    a library of empty functions, to see types with debug information
"""

import sys
from pathlib import Path

from header import Header


def signature(name: str, result: str, types: list) -> str:
    return f"{result} {name}({', '.join(types) or 'void'})"


def print_table(header: Header) -> None:
    structs = [(name, field) for name, fields in header.structs().items() for field in fields]
    names = [value for values in header.enums().values() for value in values] + header.constants()
    # The version is what changes.
    names = [name for name in names if not name.startswith("IFL_VERSION")]
    questions = [f"sizeof({name})" for name in header.structs()]
    for name, field in structs:
        questions += [f"offsetof({name}, {field})", f"sizeof((({name} *)0)->{field})"]
    answers = iter(header.ask(questions + names))
    print("/* Recorded by tests/abi/record.py. Not to be changed. */\n")
    for name in header.structs():
        print(f"SIZE({name}, {next(answers)})")
    for name, field in structs:
        print(f"FIELD({name}, {field}, {next(answers)}, {next(answers)})")
    for name in names:
        print(f"VALUE({name}, {next(answers)}ULL)")
    for name, (result, types) in header.functions().items():
        print(f"FUNCTION({signature(name, result, types)})")


def print_stubs(header: Header) -> None:
    print("#include <inflight.h>\n")
    for name, (result, types) in header.functions().items():
        parameters = [f"{kind} a{index}" for index, kind in enumerate(types)]
        uses = "".join(f" (void)a{index};" for index in range(len(types)))
        end = "" if result == "void" else " return 0;"
        print(f"{signature(name, result, parameters)}\n{{{uses}{end}\n}}")


if len(sys.argv) != 3 or sys.argv[2] not in ("table", "stubs"):
    sys.exit(__doc__)
chosen = Header(Path(sys.argv[1]))
if sys.argv[2] == "table":
    print_table(chosen)
else:
    print_stubs(chosen)
