"""Compile csrc/ into kvstore._core and protos/ into kvstore.v1; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Each compiled module and the plain C files it links; C files share nothing but their headers. Files that need each
# other have a name together.
INDEX = ["index", "ghost", "events"]
EVICT = ["evict", "tap"]
GITTINS = ["gittins", "gittins_audit", "duel", "cohort", "known", "survival"]
POLICIES = ["policies", "lru", "s3fifo", "arc", "queues", "echo", *GITTINS]
PUT = ["put", "lease", "slots", "removal", "walk", *INDEX, *EVICT]
SIMULATION = ["simulation", "eviction", "xxh3", "audit", *PUT]
MODULES = {
    "hash": ["sha256", "xxh3", "chain"],
    "transfer": ["copy"],
    "arena": ["memory", "slots"],
    "index": ["adopt", "moves", "removal", "walk", "audit", *INDEX, *EVICT, *POLICIES],
    "events": ["events"],
    "view": INDEX,
    "attach": ["attach", "attach_session", "shared", "hint", *PUT],
    "link": ["link", "shared", "lease", *INDEX],
    "walk": ["walk"],
    "eviction": ["eviction"],
    "lease": ["lease", "shared", *INDEX],
    "put": PUT,
    "hint": ["hint", "expire", *INDEX, *EVICT],
    "leave": ["leave", "adopt", "removal", *INDEX],
    "blockio": ["engine", "engine_queue", "transfer_op", "ring", "xxh3"],
    "clocked": ["clocked", "lease"],
    "simulation": ["optimum", *SIMULATION, *POLICIES],
    "whatif": ["whatif", *SIMULATION],
    "tiered": ["tiered", "hbm", "eviction", "lease", "moves", "removal", "walk", "audit", *INDEX, *EVICT, *POLICIES],
}
SANITIZE = os.environ.get("KVSTORE_SANITIZE") == "1"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1"]


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


def extensions() -> list[Extension]:
    headers = [str(path) for path in [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.pxd")]]
    return [
        Extension(
            f"kvstore._core.{name}",
            [f"csrc/kvstore/_core/{name}.pyx", *(f"csrc/c/{source}.c" for source in sources)],
            include_dirs=["csrc/c"],
            depends=headers,
            extra_compile_args=FLAGS + (SANITIZERS if SANITIZE else []),
            extra_link_args=["-pthread", "-lm", *(SANITIZERS if SANITIZE else [])],
        )
        for name, sources in MODULES.items()
    ]


setup(
    cmdclass={"build_ext": Build},
    ext_modules=cythonize(
        extensions(),
        include_path=["csrc"],
        language_level=3,
        compiler_directives={
            "freethreading_compatible": True,
            "boundscheck": False,
            "wraparound": False,
            "embedsignature": True,
        },
    ),
)
