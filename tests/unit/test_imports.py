"""The direction of imports, as docs/architecture.md draws it, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

# What a layer may import beside itself and the modules that belong to none. That hub, which may know the model's
# files, does not pull in paddle with them is a test of its own.
LAYERS: dict[str, set[str]] = {
    "ops": set(),
    "model": {"ops"},
    "processing": {"model.config"},
    "hub": {"model"},
    "reading": {"model.config", "processing"},  # joins a profile and the processor; runtime and training both read so
    "runtime": {"model", "processing", "reading", "hub", "ops"},
    "training": {"model", "processing", "reading", "hub", "ops"},
    "bench": {"model", "processing", "reading", "hub", "ops", "runtime"},
    "doctor": {"model", "processing", "reading", "hub", "ops", "runtime", "training"},
    "planning": {"model", "processing", "hub", "runtime", "training", "doctor"},
    "cli": {"training", "runtime", "bench", "doctor", "planning", "hub", "processing", "reading", "model.config"},
}
# Never, not even inside a function.
WITHOUT_PADDLE = ("processing", "profile", "profile_files", "schema", "messages", "messages_json", "errors", "hub")
WITHOUT_PADDLE_EITHER = (
    *("model.config", "grounding", "profile_training", "reading", "cli", "runtime.records"),
    *("training.refusals", "model.asking"),
    *("bench.model", "bench.run", "bench.peers"),  # where the time is taken while a side computes in its own process
)


def modules() -> dict[str, Path]:
    """Dotted names below qvl ("" for the package itself) and their files."""
    found = {}
    for path in sorted((SOURCE / "qvl").rglob("*.py")):
        parts = path.relative_to(SOURCE / "qvl").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(module: str, *, top_level_only: bool) -> Iterator[str]:
    """Full names that a module imports; what only type checkers see does not count."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        pending += ast.iter_child_nodes(node)


def own(name: str) -> str | None:
    """The module of ours behind an imported name, or None for the rest of the world."""
    if name != "qvl" and not name.startswith("qvl."):
        return None
    inside = name.removeprefix("qvl").removeprefix(".")
    while inside and inside not in MODULES:
        inside = inside.rpartition(".")[0]
    return inside


def within(module: str, layers: tuple[str, ...]) -> bool:
    return any(module == layer or module.startswith(f"{layer}.") for layer in layers)


def test_this_test_sees_the_source() -> None:
    assert {"", "errors", "cli.app", "model.config"} <= set(MODULES)
    assert "qvl.errors.QvlError" in set(imports("cli.app", top_level_only=True))
    assert own("qvl.errors.QvlError") == "errors"
    assert own("numpy") is None


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in LAYERS])
def test_a_layer_imports_only_what_is_below_it(module: str) -> None:
    layer = module.split(".")[0]
    for name in imports(module, top_level_only=False):
        target = own(name)
        if target is None or target.split(".")[0] not in LAYERS:
            continue
        assert within(target, (layer, *LAYERS[layer])), f"qvl.{module} imports {name}"


def test_runtime_and_training_do_without_each_other() -> None:
    assert "training" not in LAYERS["runtime"] and "runtime" not in LAYERS["training"]


@pytest.mark.parametrize("module", [name for name in MODULES if name and name.split(".")[0] not in LAYERS])
def test_what_is_below_all_layers_imports_none(module: str) -> None:
    for name in imports(module, top_level_only=False):
        target = own(name)
        assert target is None or target.split(".")[0] not in LAYERS, f"qvl.{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, WITHOUT_PADDLE + WITHOUT_PADDLE_EITHER)])
def test_paddle_stays_out_of_what_has_to_be_light(module: str) -> None:
    direct = list(imports(module, top_level_only=False))
    assert not [name for name in direct if name.split(".")[0] in ("paddle", "paddlenlp")], f"qvl.{module}"
    seen: set[str] = set()
    pending = [module]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if "." in current:
            pending.append(current.rpartition(".")[0])  # importing a module runs its package first
        names = list(imports(current, top_level_only=True))
        assert "paddle" not in {name.split(".")[0] for name in names}, f"qvl.{module} imports paddle through {current}"
        pending += [target for name in names if (target := own(name))]


@pytest.mark.parametrize("module", MODULES)
def test_paddlenlp_is_for_training_only(module: str) -> None:
    uses = any(name.split(".")[0] == "paddlenlp" for name in imports(module, top_level_only=False))
    assert not uses or within(module, ("training",))


PEERS = [module for module in MODULES if within(module, ("bench.peers",))]


@pytest.mark.parametrize("module", PEERS)
def test_what_runs_in_a_peers_python_does_without_qvl(module: str) -> None:
    assert len(PEERS) > 3
    assert not [name for name in imports(module, top_level_only=False) if own(name) is not None]


def test_the_kernels_know_no_framework() -> None:
    for folder in ("include", "cpu", "cuda"):
        for path in (ROOT / "ext" / folder).rglob("*"):
            if path.is_file():
                assert "paddle" not in path.read_text(encoding="utf-8").lower(), f"{path.relative_to(ROOT)}"
