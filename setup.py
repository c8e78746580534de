"""Compile csrc/ into kvstore._core and protos/ into kvstore.v1; everything else is in pyproject.toml.

The plain C files are compiled once, into a library that every module takes what it needs from.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

SANITIZE = os.environ.get("KVSTORE_SANITIZE") == "1"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1"] if SANITIZE else []
LIBRARY = "kvstore_core"
SOURCES = sorted(map(str, Path("csrc/c").glob("*.c")))
MODULES = Path("csrc/kvstore/_core").glob("*.pyx")
HEADERS = [str(path) for path in [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.pxd")]]


def recompile_little(compiler: Any) -> None:
    """From now on it passes over files that are older than what they were compiled to, as are all headers."""
    compile_all = compiler.compile

    def compile_some(sources: list[str], output_dir: str, **options: Any) -> list[str]:
        targets = compiler.object_filenames(sources, output_dir=output_dir)
        pairs = zip(sources, targets, strict=True)
        old = [source for source, target in pairs if newer_group([source, *HEADERS, __file__], target)]
        if old:
            compile_all(old, output_dir=output_dir, **options)
        return targets

    compiler.compile = compile_some


class Build(build_ext):
    """Generates the protobuf modules before the extensions: editable, wheel and in-place builds all pass here."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        from grpc_tools import protoc

        target = Path() if self.inplace or self.editable_mode else Path(self.build_lib)
        target.mkdir(parents=True, exist_ok=True)
        for proto in sorted(Path("protos").rglob("*.proto")):
            arguments = [
                "protoc",
                "-Iprotos",
                f"--python_out={target}",
                f"--pyi_out={target}",
                str(proto),
            ]
            if protoc.main(arguments) != 0:
                raise SystemExit(f"protoc failed on {proto}")
        super().run()

    def build_extensions(self) -> None:
        recompile_little(self.compiler)
        for module in self.extensions:
            if newer_group([*module.sources, *module.depends], self.get_ext_fullpath(module.name)):
                self.build_library()
                break
        super().build_extensions()

    def build_library(self) -> None:
        options = {"include_dirs": ["csrc/c"], "extra_postargs": FLAGS + SANITIZERS}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(lambda source: self.compiler.compile([source], self.build_temp, **options), SOURCES)
            objects = [target for targets in done for target in targets]
        self.compiler.create_static_lib(objects, LIBRARY, output_dir=self.build_temp)
        for module in self.extensions:  # as an object: a library that has changed would be no reason to link
            module.extra_objects = [self.compiler.library_filename(LIBRARY, output_dir=self.build_temp)]


def modules() -> list[Extension]:
    options = {
        "include_dirs": ["csrc/c"],
        "extra_compile_args": FLAGS + SANITIZERS,
        "extra_link_args": ["-pthread", "-lm", *SANITIZERS],
    }
    found = cythonize(
        [Extension(f"kvstore._core.{path.stem}", [str(path)], **options) for path in sorted(MODULES)],
        include_path=["csrc"],
        language_level=3,
        compiler_directives={
            "freethreading_compatible": True,
            "boundscheck": False,
            "wraparound": False,
            "embedsignature": True,
        },
    )
    for module in found:
        module.depends = [*HEADERS, *SOURCES]  # linked anew; if Cython knew, it would write all of them anew
    return found


setup(cmdclass={"build_ext": Build}, ext_modules=modules())
