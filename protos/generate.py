"""Generate the committed Python stubs of every .proto file.

Usage: python protos/generate.py [OUT]   OUT is protos/python by default; `make stubs-check` generates into a temporary
folder and compares. Needs grpcio-tools and mypy-protobuf (both in requirements.lock).
"""

import pathlib
import shutil
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent


def generate(out: pathlib.Path) -> int:
    """Write messages, services and their type stubs below OUT/netweft; anything that was there goes first."""
    shutil.rmtree(out / "netweft", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.glob("netweft/**/*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    status: int = protoc.main(
        [
            "protoc",
            f"--proto_path={HERE}",
            f"--proto_path={well_known}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ]
    )
    for folder in {path.parent for path in (out / "netweft").rglob("*.py")}:
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()
    for folder in [path for path in (out / "netweft").rglob("*") if path.is_dir()]:
        (folder / "__init__.py").touch()
    (out / "netweft" / "__init__.py").touch()
    (out / "netweft" / "py.typed").touch()
    return status


if __name__ == "__main__":
    sys.exit(generate(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "python"))
