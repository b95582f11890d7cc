"""Modules import each other in one direction only: late imports and those for types count, too."""

from __future__ import annotations

import configparser
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

CONTRACTS = Path(__file__).parents[2] / ".importlinter"


def test_no_circle_of_imports() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(CONTRACTS)
    graph = grimp.build_graph(*contracts["importlinter"]["root_packages"].split(), cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))
