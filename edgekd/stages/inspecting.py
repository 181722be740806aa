"""What the runtimes that are installed here say of a model that they are given."""

from __future__ import annotations

from pathlib import Path

from edgekd.device.runtimes import PRESETS, open_session, readers, why_missing
from edgekd.errors import EdgekdError
from edgekd.graph.formats import FORMATS

LOADS = "loads it"


def ask_runtimes(model: Path) -> dict[str, str]:
    """Runtime -> "loads it", why it does not, what is missing here, or which conversion comes first.

    Settings of a runtime (providers, an app's) are not asked: they load what the runtime loads.
    """
    told = {}
    for name in readers(model.suffix):
        if name in PRESETS:
            continue
        missing = why_missing(name)
        if missing is not None:
            told[name] = f"not known: {missing}"
            continue
        try:
            open_session(model, runtime=name, threads=1).close()
            told[name] = LOADS
        except EdgekdError as error:
            told[name] = f"does not load it: {error}"
    for name, form in FORMATS.items():
        if form.runtime not in told:
            told[form.runtime] = f"reads {form.suffix}: edgekd convert BUNDLE FOLDER --to {name}"
    return told
