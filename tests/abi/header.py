"""What a version of inflight.h declares, for the tests that hold something against it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path


class Header:
    """A header in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = (folder / "inflight.h").read_text()
        self.code = re.sub(r"//.*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))

    def structs(self) -> dict[str, list[str]]:
        """Structs and their fields."""
        found = re.findall(r"typedef struct \{(.*?)\} (\w+);", self.code, re.DOTALL)
        return {name: [re.findall(r"\w+", field)[-1] for field in body.split(";")[:-1]] for body, name in found}

    def enums(self) -> dict[str, list[str]]:
        """Enums and their values."""
        found = re.findall(r"typedef enum \{(.*?)\} (\w+);", self.code, re.DOTALL)
        return {name: re.findall(r"(\w+) =", body) for body, name in found}

    def constants(self) -> list[str]:
        """Macros that are numbers."""
        found = re.findall(r"^#define (IFL_\w+) (?=[\w(])", self.code, re.MULTILINE)
        return [name for name in found if not name.endswith("_INIT")]

    def functions(self) -> dict[str, tuple[str, list[str]]]:
        """Functions with the types that they return and take."""
        found = {}
        for result, name, parameters in re.findall(r"^([\w \*]+?)(ifl_\w+)\(([^)]*)\);", self.code, re.MULTILINE):
            types = [re.sub(r"\w+$", "", one.strip()).strip() for one in parameters.split(",") if one != "void"]
            found[name] = (result.strip(), [" ".join(kind.split()) for kind in types])
        return found

    def ask(self, expressions: list[str]) -> list[int]:
        """What numbers these expressions are in C."""
        prints = "".join(f'printf("%llu\\n", (unsigned long long)({one}));\n' for one in expressions)
        source = f"#include <inflight.h>\n#include <stdio.h>\nint main(void) {{\n{prints}return 0; }}\n"
        with tempfile.TemporaryDirectory() as folder:
            program = str(Path(folder) / "numbers")
            command = ["cc", "-x", "c", "-", "-I", str(self.folder), "-o", program]
            subprocess.run(command, input=source, text=True, check=True)
            printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        return [int(line) for line in printed.split()]
