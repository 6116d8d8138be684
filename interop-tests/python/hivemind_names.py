"""Gives hivemind 1.1.12 back the names that Petals 2.2.0 imports from its top level.

hivemind 1.1.12 is the newest release that installs from PyPI beside current Python packages, and it dropped these names
from its package root; Petals 2.2.0 was written for 1.1.10. Nothing else is changed: the names are looked up where
hivemind itself keeps them, when they are asked for. A `.pth` file of the environment imports this at start.
"""

import importlib
import importlib.abc
import importlib.machinery
import pkgutil
import sys

# Where the dropped names live. `hivemind.utils` stands for its submodules too.
HOMES = ("hivemind.p2p", "hivemind.dht", "hivemind.utils", "hivemind.compression", "hivemind.moe.server.runtime")


def find_name(name: str):
    """The module attribute that `hivemind.<name>` used to be. Raises AttributeError as a module does."""
    if not name.startswith("_"):
        for home in HOMES:
            module = importlib.import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
        utils = importlib.import_module("hivemind.utils")
        for entry in pkgutil.iter_modules(utils.__path__, "hivemind.utils."):
            module = importlib.import_module(entry.name)
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'hivemind' has no attribute {name!r}")


class HivemindLoader(importlib.machinery.SourceFileLoader):
    """Loads hivemind's package root, then adds the module `__getattr__` of PEP 562."""

    def exec_module(self, module) -> None:
        super().exec_module(module)
        module.__getattr__ = find_name  # only now: hivemind's own circular imports must not meet it


class HivemindFinder(importlib.abc.MetaPathFinder):
    """Answers for the package root only; every other import goes on as usual."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "hivemind":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = HivemindLoader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, HivemindFinder())
