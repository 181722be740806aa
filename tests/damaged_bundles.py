"""Ways to damage a bundle's folder, for the readers of every app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The manifest is changed; its hash is nowhere, so that only what it says can be wrong."""

    def edit(place: Path) -> None:
        manifest = json.loads((place / "bundle.json").read_text())
        change(manifest)
        (place / "bundle.json").write_text(json.dumps(manifest))

    return edit


def tampered(place: Path) -> None:
    """One byte of the graph is another."""
    graph = place / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")


def linked(place: Path) -> None:
    """The graph is a link out of the bundle."""
    (place / "graphs" / "float32.onnx").rename(place.parent / "elsewhere.onnx")
    (place / "graphs" / "float32.onnx").symlink_to(place.parent / "elsewhere.onnx")
