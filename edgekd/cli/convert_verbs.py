"""The verb that makes other runtimes' files of a bundle: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.doctor import require
from edgekd.errors import AnswerIsNo


def convert(
    common: Common,
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Gets VARIANT.ort, VARIANT.xml, ...")],
    to: Annotated[
        str, typer.Option("--to", metavar="F,...", help="Formats: ort, openvino, ncnn, mnn, litert, executorch.")
    ] = "ort",
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="V,...", help="Which variants (default: all that the format takes)."),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="Device kind: .ort files for x86-64 do not run elsewhere.")
    ] = "cpu",
    converter_env: Annotated[
        Path | None,
        typer.Option("--converter-env", metavar="PATH", help="A virtual environment that has the converter."),
    ] = None,
) -> None:
    """A bundle's graphs in other runtimes' own formats, each proven by the golden vectors before it counts.

    Examples:

      edgekd convert student.edgekd mobile --to ort,openvino --target android

      edgekd convert student.edgekd mobile --to litert --converter-env converters
    """
    require("graph", "cpu", purpose="converting")
    from edgekd.device.bundle import Bundle
    from edgekd.graph.targets import load_target
    from edgekd.stages.converting import convert_bundle, platform_of

    result = convert_bundle(
        Bundle.open(path),
        to.split(","),
        out,
        platform=platform_of(load_target(target)),
        variants=variant.split(",") if variant else (),
        env=converter_env,
    )
    if common.as_json:
        common.print_json({"folder": str(out), **result})
    else:
        for name, item in result["made"].items():
            common.say(
                f"{name}: {item['size_bytes'] / 1000:.1f} kB, golden outputs within {item['max_abs_diff']:.1e}, same "
                f"answer on {item['label_agreement']:.1%}"
            )
        made = [out / name for name in result["made"]]
        if made:
            tables.print_next(common, tables.command("benchmark", path, *made, "--same-as", path))
    if result["refused"]:
        raise AnswerIsNo("; ".join(f"{name}: {reason}" for name, reason in result["refused"].items()))
