"""Verbs that make a bundle and prepare it for its way into an app: bundle, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.model_verbs import parse_steps_option
from edgekd.cli.options import Common
from edgekd.doctor import require
from edgekd.errors import UsageError


def bundle(
    common: Common,
    source: Annotated[Path, typer.Argument(metavar="RUN|MODEL.onnx", help="A run folder, or anybody's ONNX file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.edgekd")],
    as_zip: Annotated[bool, typer.Option("--zip", help="One zip file instead of a folder.")] = False,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", min=0, help="Labelled validation samples to ship with a run's bundle: somebody's data!"
        ),
    ] = 0,
    name: Annotated[
        str | None, typer.Option("--name", help="Name, for an ONNX file (default: that of the file).")
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="For an ONNX file: classification, multilabel or regression.")
    ] = "classification",
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="a,b,c|FILE", help="For an ONNX file: labels, or a file with one per line."),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess",
            metavar="JSON",
            help='For an ONNX file: steps, e.g. \'[{"op":"scale"}]\'; texts begin with tokenize.',
        ),
    ] = None,
    postprocess: Annotated[
        str | None,
        typer.Option("--postprocess", metavar="JSON", help="For an ONNX file: steps (default: those of the task)."),
    ] = None,
    preprocess_in_graph: Annotated[
        bool, typer.Option("--preprocess-in-graph", help="The graphs read raw images: bytes of any size.")
    ] = False,
    postprocess_in_graph: Annotated[
        bool, typer.Option("--postprocess-in-graph", help="The graphs give probabilities, the best classes, labels.")
    ] = False,
    licence: Annotated[str | None, typer.Option("--licence", help="For an ONNX file: its licence; asked for.")] = None,
    intended_use: Annotated[
        str | None, typer.Option("--intended-use", help="For an ONNX file: what it is for, and what it is not for.")
    ] = None,
) -> None:
    """Write a deployable bundle: ONNX, preprocessing, labels, hashes, golden vectors, licences.

    Examples:

      edgekd bundle runs/digits student.edgekd --zip

      edgekd bundle net.onnx net.edgekd --licence MIT --preprocess '[{"op": "scale"}, {"op": "layout"}]'

      edgekd bundle bert.onnx bert.edgekd --licence MIT --labels bad,good --preprocess
      '[{"op": "tokenize", "file": "my_bert", "max_length": 128}, {"op": "trim"}]'
    """
    require("graph", "cpu", purpose="making a bundle")
    from edgekd.stages.bundling import bundle_model, bundle_run
    from edgekd.stages.inside import Inside

    inside = Inside(preprocess_in_graph, postprocess_in_graph)
    of_model = {
        "--name": name,
        "--labels": labels,
        "--preprocess": preprocess,
        "--postprocess": postprocess,
        "--licence": licence,
        "--intended-use": intended_use,
    }
    if source.suffix == ".onnx":
        if samples:
            raise UsageError(f"--samples is for a run, which has validation samples; {source} is an ONNX file")
        written = bundle_model(
            source,
            out,
            name=name or source.stem,
            task=task,
            labels=labels,
            steps=parse_steps_option(preprocess, option="--preprocess") or [],
            post=parse_steps_option(postprocess, option="--postprocess"),
            inside=inside,
            licence=licence,
            intended_use=intended_use or "",
            as_zip=as_zip,
            seed=common.seed or 0,
            warn=common.warn,
        )
    else:
        ignored = [option for option, value in of_model.items() if value is not None]
        if ignored:
            raise UsageError(f"{', '.join(ignored)}: for an ONNX file only; a run's bundle has them from its recipe")
        written = bundle_run(source, out, as_zip=as_zip, samples=samples, inside=inside, seed=common.seed or 0)
    manifest = written.manifest
    if common.as_json:
        common.print_json({"path": str(written.path), "id": manifest["id"], "variants": list(manifest["variants"])})
        return
    common.say(f"wrote {written.path}: {', '.join(manifest['variants'])}; id {manifest['id']}")
    tables.print_next(common, *(tables.command(name, out) for name in ("verify", "benchmark", "inspect")))


def sign(
    common: Common,
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY.pem", help="A private Ed25519 key.")],
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first, and KEY.pub.pem for those who check.")
    ] = False,
) -> None:
    """Sign a bundle: whoever has the public key can tell that it is yours, and unchanged.

    Examples:

      edgekd sign student.edgekd --key key.pem --new-key

      edgekd verify student.edgekd --key key.pub.pem
    """
    from edgekd.device.bundle import Bundle
    from edgekd.device.manifest import SIGNATURE
    from edgekd.device.signing import create_key
    from edgekd.device.signing import sign as sign_bundle

    bundle = Bundle.open(path)
    public = create_key(key) if new_key else None
    sign_bundle(bundle, key)
    if common.as_json:
        common.print_json({"bundle": str(path), "signature": SIGNATURE, "public_key": public and str(public)})
        return
    common.say(f"signed {path}: {SIGNATURE}")
    if public is not None:
        common.say(f"new key: keep {key} to yourself, hand out {public}")
    tables.print_next(common, tables.command("verify", path, "--key", public or key.with_suffix(".pub.pem")))
