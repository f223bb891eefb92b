"""Puts the library into the wheel: what cargo builds, or what lies in the folder that INFLIGHT_PREBUILT names."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

CRATE = Path(__file__).resolve().parents[2]


def version() -> str:
    """The crate's version, which is that of the wheel."""
    manifest = CRATE / "Cargo.toml"
    if not manifest.exists():
        raise SystemExit(f"{manifest} is missing; build the wheel in a checkout of the whole project")
    found = re.search(r'^version = "(.*)"$', manifest.read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def built_library() -> Path:
    folder = os.environ.get("INFLIGHT_PREBUILT")
    if folder is None:
        command = ["cargo", "build", "--release", "--locked", "--lib"]
        if os.environ.get("INFLIGHT_CUDA") == "0":
            command.append("--no-default-features")
        subprocess.run(command, cwd=CRATE, check=True)
        folder = str(Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target")) / "release")
    library = CRATE / folder / "libinflight.so"
    if not library.exists():
        raise SystemExit(f"{library} is missing; INFLIGHT_PREBUILT must name a folder that has it")
    return library


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        target = Path(self.build_lib) / "inflight" / f"libinflight.so.{version().split('.')[0]}"
        shutil.copy2(built_library(), target)
        # Debug information makes up most of the file.
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-debug", str(target)], check=True)


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        """Whether the files belong where those of one platform do."""
        return True


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> "tuple[str, str, str]":
        """The library needs a machine and a libc, but no version of Python."""
        package = Path(self.get_finalized_command("build_py").build_lib) / "inflight"
        (library,) = package.glob("libinflight.so.*")
        # The newest symbols that it needs name the oldest glibc that it runs with.
        minor = max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes()))
        machine = super().get_tag()[2].split("_", 1)[1]
        return "py3", "none", f"manylinux_2_{minor}_{machine}"


setup(
    version=version(),
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
)
