"""Compile csrc/ into kvstore._core and protos/ into kvstore.v1; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Each compiled module and the plain C files it links; C files share nothing but their headers.
MODULES = {
    "hash": ["sha256", "xxh3", "chain"],
    "transfer": ["copy"],
    "arena": ["memory", "slots"],
    "index": [
        "index",
        "ghost",
        "adopt",
        "events",
        "policies",
        "lru",
        "gittins",
        "gittins_audit",
        "duel",
        "cohort",
        "known",
        "survival",
        "queues",
        "echo",
        "s3fifo",
        "arc",
        "evict",
        "tap",
        "moves",
        "removal",
        "walk",
        "audit",
    ],
    "events": ["events"],
    "view": ["index", "ghost", "events"],
    "attach": [
        "attach",
        "attach_session",
        "shared",
        "put",
        "index",
        "ghost",
        "events",
        "lease",
        "evict",
        "tap",
        "removal",
        "walk",
        "slots",
        "hint",
    ],
    "link": ["link", "shared", "index", "ghost", "events", "lease"],
    "walk": ["walk"],
    "eviction": ["eviction"],
    "lease": ["lease", "index", "ghost", "events", "shared"],
    "put": ["put", "index", "ghost", "events", "lease", "evict", "tap", "removal", "walk", "slots"],
    "hint": ["hint", "expire", "index", "ghost", "events", "evict", "tap"],
    "leave": ["leave", "adopt", "index", "ghost", "events", "removal"],
    "blockio": ["engine", "engine_queue", "transfer_op", "ring", "xxh3"],
    "clocked": ["clocked", "lease"],
    "simulation": [
        "simulation",
        "optimum",
        "policies",
        "eviction",
        "xxh3",
        "put",
        "index",
        "ghost",
        "events",
        "lease",
        "lru",
        "gittins",
        "gittins_audit",
        "duel",
        "cohort",
        "known",
        "survival",
        "queues",
        "echo",
        "s3fifo",
        "arc",
        "evict",
        "tap",
        "removal",
        "walk",
        "slots",
        "audit",
    ],
    "whatif": [
        "whatif",
        "simulation",
        "xxh3",
        "put",
        "index",
        "ghost",
        "events",
        "lease",
        "evict",
        "tap",
        "removal",
        "walk",
        "slots",
        "audit",
    ],
    "tiered": [
        "tiered",
        "hbm",
        "policies",
        "eviction",
        "index",
        "ghost",
        "events",
        "lease",
        "lru",
        "gittins",
        "gittins_audit",
        "duel",
        "cohort",
        "known",
        "survival",
        "queues",
        "echo",
        "s3fifo",
        "arc",
        "evict",
        "tap",
        "moves",
        "removal",
        "walk",
        "audit",
    ],
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
