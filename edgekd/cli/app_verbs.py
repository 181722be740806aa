"""The verb that puts a bundle into an app: embed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.doctor import require


def embed(
    common: Common,
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    app: Annotated[str, typer.Option("--app", help="Which app; an unknown name lists them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of the app.")],
    variant: Annotated[
        str | None, typer.Option("--variant", help="For apps that are made from one variant (c, web).")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--onnxruntime-web", metavar="DIR", help="The npm package for the web app (default: in node_modules)."
        ),
    ] = None,
    only_glue: Annotated[
        bool, typer.Option("--only-glue", help="Only the files that an app of your own needs.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there and differ.")] = False,
) -> None:
    """A small complete app with the student in it: its loader, an example, licences, a self-test.

    Examples:

      edgekd embed student.edgekd --app python --out app

      edgekd embed student.edgekd --app web --out page

      edgekd embed student.edgekd --app c --out firmware/student --only-glue
    """
    from edgekd.device.bundle import Bundle
    from edgekd.stages.embedding import APPS
    from edgekd.stages.embedding import embed as embed_bundle

    if app in APPS and (extra := APPS[app].extra) is not None:
        require(extra, purpose=f"making the {app} app")
    bundle = Bundle.open(path)
    if bundle.manifest.get("samples") is not None and not only_glue:
        common.warn(f"{path} holds {bundle.manifest['samples']['count']} labelled samples; they go into the app")
    made = embed_bundle(bundle, app, out, variant=variant, runtime=runtime, only_glue=only_glue, force=force)
    if common.as_json:
        common.print_json({"app": app, "path": str(out), "files": list(made.files), "run": made.run, **made.figures})
        return
    common.say(f"wrote {out}: {len(made.files)} files" + (f" ({', '.join(made.files)})" if only_glue else ""))
    for name, value in made.figures.items():
        common.say(f"{name:<14} {value:,}")
    for note in made.notes:
        common.warn(note)
    if not only_glue:
        tables.print_next(common, f"{shlex.join(['cd', str(out)])} && {made.run}")
