"""The house rules, held by reading the source of every module."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mfpar"
LONGEST = 300  # lines of a module

# The floors of the house, from the ground up. A room is a module or a folder of modules; a module imports from its own
# room and from lower floors.
HOUSE = (
    ("errors",),
    ("losses", "heaps", "abandoned"),
    ("settings",),
    ("atomic", "hashing", "formats", "grid", "config", "kernels", "parallel"),
    ("shards", "schedule", "blockreader", "sharded", "metrics"),
    ("blockfile", "budget"),
    ("engine", "ratings"),
    ("model", "planning", "recovery"),
    ("integrity", "doctor", "supervise"),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOORS = {room: floor for floor, rooms in enumerate(HOUSE) for room in rooms}

# Where each package from outside may be imported: modules or rooms. A new dependency has to be placed here.
EVERYWHERE = tuple(FLOORS)
LIBRARIES = {
    "numpy": EVERYWHERE,
    "scipy": ("ratings",),
    "numba": ("kernels",),
    "llvmlite": ("kernels",),
    "h5py": (
        "formats",
        "blockreader",
        "sharded",
        "blockfile",
        "ratings.blockwriter",
        "model.opening",
        "model.saving",
        "model.evaluation",
        "integrity",
        "api",
    ),
    "mpi4py": ("parallel",),
    "duckdb": ("ratings",),
    "rich": ("cli",),
    "optuna": ("api",),
    "tomli_w": ("api",),
}
BROUGHT = {"llvmlite"}  # comes with numba, in the version that it needs
OPTIONAL = {"optuna": "tune", "tomli_w": "tune"}  # and the extra of pyproject.toml that brings them
ONLY_IN_FUNCTIONS = {"mpi4py", "scipy", "rich", *OPTIONAL}
HEAVY = ("mpi4py", "numba", "llvmlite", "h5py", "duckdb", "scipy", "rich", "pandas", "pyarrow", *OPTIONAL)
ENDS = {"mfpar.parallel.bounded"}  # a process whose main thread does not come back from MPI
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
COMPILERS = {"jit", "njit", "vectorize", "guvectorize", "cfunc", "stencil"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    target: str  # absolute: "mfpar.grid", "numba.types"
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """A module of the package, parsed."""

    path: Path

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Its place below the package: ("model", "opening")."""
        return self.path.relative_to(PACKAGE).with_suffix("").parts

    @cached_property
    def name(self) -> str:
        """As it is imported: "mfpar.model.opening"; a folder's `__init__` is the folder."""
        return ".".join(("mfpar", *self.parts)).removesuffix(".__init__")

    @property
    def room(self) -> str:
        return self.parts[0]

    def lies_in(self, places: tuple[str, ...]) -> bool:
        return self.room in places or ".".join(self.parts) in places

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, bool]]:
        """Every node of the source, and whether it runs only when a function is called."""
        return list(walk(ast.parse("\n".join(self.lines)), False))

    @cached_property
    def imports(self) -> list[Import]:
        found = []
        for node, inside in self.nodes:
            if isinstance(node, ast.Import):
                found += [Import(alias.name, node.lineno, inside) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
                source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                found += [Import(f"{source}.{alias.name}", node.lineno, inside) for alias in node.names]
        return found

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


def walk(node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """The tree below a node; decorators, defaults and annotations of a function run outside it."""
    yield node, inside
    body = node.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else []
    inner = body if isinstance(body, list) else [body]
    for child in ast.iter_child_nodes(node):
        yield from walk(child, inside or any(child is statement for statement in inner))


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}
each_module = pytest.mark.parametrize("module", MODULES, ids=str)


def own_module(target: str) -> str | None:
    """The module of mfpar that an import of `target` reaches: `mfpar.grid.span` reaches mfpar.grid."""
    if target.partition(".")[0] != "mfpar":
        return None
    while target not in NAMES:
        target = target.rpartition(".")[0]
    return target


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def called(node: ast.AST) -> str:
    """The dotted name that is called, "" for anything else."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@each_module
def test_is_placed_on_a_floor_and_imports_downwards(module: Module) -> None:
    assert module.room in FLOORS, f"{module}: give {module.room} a place in HOUSE"
    for found in module.imports:
        name = own_module(found.target)
        if name and room_of(name) != module.room:
            upwards = f"{module}:{found.line}: imports {name}, which is not on a lower floor"
            assert FLOORS[room_of(name)] < FLOORS[module.room], upwards


def test_every_place_in_the_tables_exists() -> None:
    places = {*FLOORS, *(place for places in LIBRARIES.values() for place in places)}
    real = {module.room for module in MODULES} | {".".join(module.parts) for module in MODULES}
    assert places <= real


def test_no_import_cycle() -> None:
    """Imports inside functions count: they may start a module late, not hide that two modules need each other."""
    reached = {module.name: {own_module(found.target) for found in module.imports} - {None} for module in MODULES}
    try:
        graphlib.TopologicalSorter(reached).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' → '.join(error.args[1])}")


@each_module
def test_libraries_stay_in_their_rooms(module: Module) -> None:
    for found in module.imports:
        library = found.target.partition(".")[0]
        if library == "mfpar" or library in sys.stdlib_module_names:
            continue
        where = f"{module}:{found.line}: {library}"
        assert library in LIBRARIES, f"{where} is not among LIBRARIES"
        assert module.lies_in(LIBRARIES[library]), f"{where} belongs in {', '.join(LIBRARIES[library])}"
        assert found.in_function or library not in ONLY_IN_FUNCTIONS, f"{where} is to be imported inside a function"


def test_libraries_are_the_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[\w-]+", text)[0].replace("-", "_") for text in requirements}  # type: ignore[index]

    assert names(project["dependencies"]) == LIBRARIES.keys() - BROUGHT - OPTIONAL.keys()
    for extra in set(OPTIONAL.values()):
        optional = {library for library, home in OPTIONAL.items() if home == extra}
        assert names(project["optional-dependencies"][extra]) == optional


@each_module
def test_imports_can_be_read(module: Module) -> None:
    """No import by a computed name, but for the lazy names of `import mfpar` and a loss that the user names."""
    if module.name == "mfpar":
        return
    tree = ast.parse("\n".join(module.lines))
    if module.name == "mfpar.losses.lookup":  # `find` imports the user's own module, and nothing else in here does
        tree.body = [node for node in tree.body if getattr(node, "name", "") != "find"]
    dynamic = [called(node) for node, _ in walk(tree, False)]
    dynamic = [name for name in dynamic if name.endswith(("import_module", "__import__"))]
    assert not dynamic, f"{module}: {dynamic} import by a computed name"


@each_module
def test_one_place_compiles(module: Module) -> None:
    """Only kernels/compile.py decides compile options."""
    compilers = [found.target for found in module.imports if found.target.removeprefix("numba.") in COMPILERS]
    assert not compilers or module.name == "mfpar.kernels.compile", f"{module}: imports {compilers}"
    ours = [found.target for found in module.imports if found.target.startswith("mfpar.kernels.compile.")]
    assert not ours or module.room == "kernels", f"{module}: imports {ours}"


@each_module
def test_no_global_communicator(module: Module) -> None:
    named = {ast.Attribute: "attr", ast.Name: "id", ast.alias: "name"}
    lines = [
        node.lineno  # type: ignore[attr-defined]
        for node, inside in module.nodes
        if type(node) in named
        and getattr(node, named[type(node)]) in ("COMM_WORLD", "COMM_SELF")
        and not (inside and module.room == "parallel")
    ]
    assert not lines, f"{module}: a global communicator in lines {lines}"


@each_module
def test_library_neither_prints_nor_exits(module: Module) -> None:
    if module.room in ("cli", "__main__"):
        return
    for node, _ in module.nodes:
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        exits = called(node) in ("exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit")
        assert not exits or module.name in ENDS, f"{where}: only cli exits"
        if isinstance(node, ast.Call) and called(node) == "print":
            assert any(keyword.arg == "file" for keyword in node.keywords), f"{where}: only cli prints"
        streams = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
        assert not streams, f"{where}: only cli writes to the standard streams"


@each_module
def test_no_assert_statement(module: Module) -> None:
    """They vanish under `python -O`: what must hold is checked and raised."""
    lines = [node.lineno for node, _ in module.nodes if isinstance(node, ast.Assert)]
    assert not lines, f"{module}: assert in lines {lines}"


@each_module
def test_is_short_and_named_for_a_thing(module: Module) -> None:
    assert len(module.lines) <= LONGEST, f"{module}: {len(module.lines)} lines; cut it where its ideas part"
    assert not {"utils", "util", "helpers", "misc", "common"} & set(module.parts), f"{module}: name the thing instead"


@each_module
def test_everything_public_has_a_docstring(module: Module) -> None:
    tree = ast.parse("\n".join(module.lines))
    assert ast.get_docstring(tree), f"{module}: says nothing of itself"
    bare = [name for name, node in public(tree) if not (ast.get_docstring(node) or is_overload(node))]
    assert not bare, f"{module}: no docstring in {', '.join(bare)}"


def is_overload(node: Definition) -> bool:
    """Whether it only gives types to a function that follows, which has the docstring."""
    return "overload" in [ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list]


def public(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes of a module or class, and what is public in those classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in public(node))


def test_import_starts_nothing() -> None:
    """`import mfpar` imports neither MPI nor the JIT nor any other heavy library; nor does `mfpar --help`."""
    for statement in ("import mfpar", "from mfpar.cli.main import build_parser; build_parser()"):
        code = f"{statement}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert not done.stdout.split(), f"{statement}: imports {done.stdout.strip()}"


def test_the_rules_see_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parsing behind the tests above tells module level from function level, and resolves every form of import."""
    source = "import a.b\nfrom . import c\nfrom mfpar.grid import span\ndef f(x=COMM_WORLD):\n    from d import e\n"
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "new.py"
    path.write_text(source, encoding="utf-8")
    module = Module(path)
    assert [(found.target, found.in_function) for found in module.imports] == [
        ("a.b", False),
        ("mfpar.model.c", False),
        ("mfpar.grid.span", False),
        ("d.e", True),
    ]
    assert [inside for node, inside in module.nodes if isinstance(node, ast.Name)] == [False]
    assert own_module("mfpar.grid.span") == "mfpar.grid"
