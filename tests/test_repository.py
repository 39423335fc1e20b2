import ast
import difflib
import graphlib
import itertools
import re
import subprocess

import pytest

from tests.support import ROOT

tracked = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
)
FILES = [ROOT / name for name in tracked.stdout.split() if (ROOT / name).is_file()]
RECIPE_CODE = [
    path for path in FILES if path.is_relative_to(ROOT / "egs") and path.suffix in (".py", ".sh")
]
CONFS = [path for path in FILES if path.parent.name == "conf"]


def lines(path):
    return [
        line.strip()
        for line in path.read_text().splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


@pytest.mark.slow
def test_no_recipe_file_is_a_copy_of_another():
    shell_engine = [
        path for path in RECIPE_CODE if path.name != "run.sh"
    ]  # stage blocks are alike on purpose
    for a, b in itertools.combinations(
        shell_engine + [path for path in FILES if path.is_relative_to(ROOT / "utils")], 2
    ):
        if a.suffix == b.suffix and min(len(lines(a)), len(lines(b))) > 5:
            assert (
                difflib.SequenceMatcher(None, lines(a), lines(b), autojunk=False).ratio() < 0.6
            ), f"{a} and {b}"


def test_no_configuration_repeats_another():
    for a, b in itertools.combinations(CONFS, 2):
        assert lines(a) != lines(b), f"{a} and {b}"


def imports(path):
    """The modules of this repository that a file imports, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = set()
    for name in names:
        while name and name not in MODULES:  # "utils.files.sha256" is in the module "utils.files"
            name = name.rpartition(".")[0]
        modules |= {name} - {""}
    return modules


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES if path.suffix == ".py"}


@pytest.fixture(scope="module")
def imported_by():
    """By module, the modules of this repository that it imports."""
    return {module: imports(path) for module, path in MODULES.items()}


def test_dependencies_point_one_way(imported_by):
    allowed = {
        "local_models": {"local_models"},
        "utils": {"utils", "local_models"},
        "egs": {"utils", "local_models"},  # scripts of a recipe import each other by bare names
    }
    for module, imported in imported_by.items():
        part = module.partition(".")[0]
        for other in imported:
            assert other.partition(".")[0] in allowed.get(part, {"tests", *allowed}), (
                module,
                other,
            )


def test_no_room_of_local_models_imports_another(imported_by):
    rooms = {path.parent.name for path in ROOT.glob("local_models/*/__init__.py")}
    assert len(rooms) >= 6

    def room(module):
        name = [*module.split("."), ""][1]
        return name if name in rooms else None

    for module, imported in imported_by.items():
        if module.startswith("local_models."):
            for other in imported:
                assert room(other) in (None, room(module)), (module, other)


def test_data_are_made_without_what_is_done_with_them(imported_by):
    """Neither training nor evaluation nor report is needed to make, read or mix data."""
    later = ("utils.training", "utils.evaluation", "utils.report")
    makers = [module for module in imported_by if module.startswith("utils.data.")]
    assert len(makers) >= 20
    for module in makers:
        for other in imported_by[module]:
            assert not other.startswith(later), (module, other)


def test_no_module_imports_itself_through_others(imported_by):
    graph = {module: imported - {module} for module, imported in imported_by.items()}
    for package in [module for module, path in MODULES.items() if path.name == "__init__.py"]:
        graph.pop(package)  # a room's door, which imports what is in it
    for imported in graph.values():
        imported &= graph.keys()
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_function_asks_how_many_axes_a_signal_has():
    """Signals have channels always, so that nothing depends on it."""
    asks = re.compile(r"\.ndim\b|\.dim\(\)|atleast_[123]d")
    for path in FILES:
        room = path.relative_to(ROOT).parts[0]
        if room in ("egs", "local_models", "utils") and path.suffix == ".py":
            assert not asks.search(path.read_text()), path


@pytest.mark.parametrize(
    "readme", [path for path in FILES if path.name == "README.md"], ids=lambda p: p.parent.name
)
def test_readmes_name_files_that_exist(readme):
    for target in re.findall(r"\]\(([^)#]+)", readme.read_text()):
        if "://" not in target:
            assert (readme.parent / target).exists(), f"{readme}: {target}"
    for conf in re.findall(r"conf/[\w.]+\.yml", readme.read_text()):
        assert list(ROOT.glob(f"egs/*/{conf}")), f"{readme}: {conf}"
