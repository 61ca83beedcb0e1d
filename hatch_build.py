"""Build hook: puts `template.bundle`, the template's releases, into the wheel and into the sdist.

An sdist carries the bundle ready made, so that a wheel built from it needs no git history. An editable installation
carries none: it reads the checkout, which `mcp_scaffold.pack.refresh` packs when it has changed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType


class TemplateBundleHook(BuildHookInterface[Any]):
    """Builds the bundle before hatchling collects the files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the bundle from the history, or take the one that an sdist carries."""
        if self.target_name == "wheel" and version == "editable":
            return
        root = Path(self.root)
        pack = _load_pack(root)
        bundle = root / pack.BUNDLE_FILE
        if not (root / "PKG-INFO").exists():
            tags = pack.build(root, bundle)
            self.app.display_info(f"Packed the template: {', '.join(tags)}")
        inside = pack.BUNDLE_FILE if self.target_name == "sdist" else "mcp_scaffold/template.bundle"
        build_data["force_include"][str(bundle)] = inside


def _load_pack(root: Path) -> ModuleType:
    """Load `pack.py` by its path: the package and what it depends on are not installed while it is built."""
    path = root / "src" / "mcp_scaffold" / "pack.py"
    spec = importlib.util.spec_from_file_location("mcp_scaffold_pack", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
