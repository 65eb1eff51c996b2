"""`tmctl submit`: check a recipe, send a job to the cluster, and watch it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from json import dumps
from typing import Annotated, Any, cast

import typer

from jobs.cli.output import emit, follow, print_recipe
from jobs.registry import JobKind
from tinymusician.artifacts.store import Store
from tinymusician.recipe import Recipe, load_recipe

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Send a job to the Ray cluster and watch it.\n\n"
    "Pressing Ctrl-C stops watching, not the job; `tmctl stop RUN` stops the job.",
)

RecipeName = Annotated[str, typer.Argument(help="A packaged recipe's name (`tmctl recipes`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. training.steps=50.")
]
Cluster = Annotated[str | None, typer.Option(help="The Ray dashboard's address, e.g. http://HEAD:8265.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, show_default="1", help="Workers, each with a GPU if the cluster has them."),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job until it ends.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, start nothing.")]
Resume = Annotated[str | None, typer.Option(metavar="RUN", help="Continue this run from its last checkpoint.")]
Name = Annotated[str | None, typer.Option(help="The run's name; made from recipe and time if not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def start(
    kind: JobKind,
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """What the commands share."""
    from jobs.launch.cluster import CLUSTER_VARIABLE, is_here
    from jobs.launch.validate import check, check_overrides, with_local_paths
    from tinymusician.artifacts.open import open_store
    from tinymusician.artifacts.runs import summary

    loaded = load_recipe(recipe, tuple(overrides or ()))
    store = open_store()
    if resume:
        loaded = resumed_recipe(store, resume, loaded, tuple(overrides or ()))
    check_overrides(kind, overrides or [], loaded)
    address = cluster or os.environ.get(CLUSTER_VARIABLE)
    here = address is None or is_here(address)
    loaded = with_local_paths(loaded) if here else loaded
    check(kind, loaded, here)
    if not resume:
        from jobs.launch.validate import with_plan
        from jobs.worker.model_refs import resolve

        loaded = resolve(store, with_plan(loaded) if kind == "quantize" else loaded, kind, here)
    if dry_run:
        print_recipe(loaded, json, workers or 1, kind)
        return
    from jobs.launch.submit import submit

    run = submit(store, kind, loaded, workers, cluster, name, resume)
    if not here and store.url.startswith("file:"):
        print(f"warning: store {store.url}: every node of the cluster must see this folder", file=sys.stderr)
    if not json:
        print(f"run {run.id}: submitted to {run.record().cluster}, kept in {store.url}", file=sys.stderr)
    state = follow(run, quiet=json) if wait else "PENDING"
    emit(summary(run), json, f"{run.id}" if not wait else _closing(run.id, summary(run)))
    if state in {"FAILED", "STOPPED"}:
        raise typer.Exit(1)


def job(words: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Make a command out of what is special about a kind of job: its text, its own options, and what these set."""
    options, shared = (signature(one, eval_str=True).parameters for one in (words, start))
    _, recipe, *others = shared.values()
    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (recipe, *options.values(), *others)]

    def command(**given: Any) -> None:
        sets = words(**{name: given.pop(name) for name in options})
        given["overrides"] = [*(given["overrides"] or []), *sets]
        start(cast(JobKind, words.__name__), **given)

    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__doc__ = words.__doc__
    app.command(words.__name__)(command)
    return words


@job
def distill() -> list[str]:
    """Train a small student to imitate a big teacher, and keep it as an artifact.

    The teacher samples music for the recipe's prompts, then the student learns the teacher's distribution over
    codes on it. Teacher samples are kept in the store and used again by later runs.

    Examples:
    - `tmctl submit distill band`

    - `tmctl submit distill band --set objective.skew=0.2 --set training.steps=100 --workers 2`

    - `tmctl submit distill band --resume band-distill-20260101-120000-ab12`

    - `tmctl submit distill tinymusician --workers 8 --set signals.source=actors --set signals.actors=4`

    - `tmctl submit distill band --set teacher.target=guided --set 'teacher.guidance_range=[1, 5]'`
    """
    return []


@job
def precompute() -> list[str]:
    """Compute a teacher's samples and logits once, into shards in the store.

    Distillation with `--set signals.source=cached` then needs no teacher on its GPUs. Shards that exist are not made
    again, whichever run made them.

    Example: `tmctl submit precompute band --workers 2`
    """
    return []


@job
def pretrain() -> list[str]:
    """Make the house band from nothing: render its corpus, train codec, language models, CLAP and tagger.

    Takes hours on two cores and resumes where it stopped. The packaged weights were made this way.

    Example: `tmctl submit pretrain band --no-wait`
    """
    return []


@job
def quantize(
    model: Annotated[
        str | None,
        typer.Option(metavar="REF|DIR", help="What to compress.", show_default="the newest student of this recipe"),
    ] = None,
) -> list[str]:
    """Turn a model into a bundle: ONNX graphs that `tmctl generate`, phones and browsers play.

    The graphs are held against PyTorch, every group of weights is measured in few bits, and the smallest plan within
    the recipe's KL budget is stored, with a report. What was measured stays in the store and is not measured again.

    Examples:
    - `tmctl submit quantize band`

    - `tmctl submit quantize band --model band-large --set quantize.kl_budget=0.05`

    - `tmctl submit quantize band --model ./student --set quantize.plan=paper`
    """
    return [f"quantize.model={model}"] if model else []


@job
def evaluate(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF|DIR",
            help="What to judge, once or several times: a student, bundle, folder, hub id, `teacher`, `untrained`; "
            "`NAME=REF` gives it a name in the report.",
            show_default="the newest student of this recipe",
        ),
    ] = None,
) -> list[str]:
    """Let models play the captions of real clips, and tell with intervals how good that is and what it costs.

    FAD, KAD and CLAP score, what a classifier hears, agreement with the teacher, degenerate clips, time and memory;
    with a page to look at and to listen to. The first model is the one that others are compared with. What was
    played and heard stays in the store and is not made again.

    Examples:
    - `tmctl submit evaluate band --model "before=untrained" --model band --model band-bundle`

    - `tmctl submit evaluate tinymusician --set evaluate.reference.kind=musiccaps
      --set evaluate.reference.table=musiccaps-public.csv --set evaluate.reference.audio=./musiccaps`
    """
    return [f"evaluate.models={dumps(model)}"] if model else []


@job
def sweep(
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary, once or several times: objectives, temperature, skew, switch.", show_default="all four"
        ),
    ] = None,
) -> list[str]:
    """Train students that differ in one thing each, and judge all of them by one yardstick.

    The paper's figures 2 and 3 are `--over objectives`: six objectives, three seeds each, their losses and how much
    these fluctuate, and what cannot be told from losses: KL both ways, and how what they play sounds. A training that
    the store has is not made again.

    Examples:
    - `tmctl submit sweep band --over objectives --workers 2 --set training.steps=60`

    - `tmctl submit sweep tinymusician --over skew --over switch --workers 8`
    """
    return [f"sweep.over={dumps(over)}"] if over else []


@job
def pipeline(
    first: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Begin here; what is before must be done.")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STEP", help="End here.")] = None,
) -> list[str]:
    """The whole way: precompute, distill, quantize, evaluate, publish, as one run with steps.

    A step whose inputs are unchanged is skipped; one that was interrupted goes on. The last one signs the bundle as
    the newest release of the recipe's alias (`candidate`), for which `tmctl signing-keys create` has made a key once.
    `tmctl artifacts promote` lets `stable` point at it if it passes the recipe's gates.

    Examples:
    - `tmctl submit pipeline band --workers 2`

    - `tmctl submit pipeline band --until evaluate --set quantize.kl_budget=0.05`
    """
    return [f"pipeline.{name}={step}" for name, step in (("first", first), ("last", last)) if step]


def resumed_recipe(store: Store, run: str, given: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """The recipe a run was started with, which is the one it goes on with, but for how it is done.

    Raises:
        RunError: the run does not exist, or the command line asks for something else.
    """
    from jobs.launch.submit import RESUMABLE_KEYS
    from tinymusician.artifacts.runs import RunStore
    from tinymusician.errors import RunError
    from tinymusician.recipe import overridden, parse_recipe

    content = RunStore(store, run).record().recipe
    if content["signals"].get("top_k") and any(override.startswith("signals.source=") for override in overrides):
        raise RunError(
            f"run {run!r}: learns from the likeliest codes alone (signals.top_k), which no other source gives"
        )
    for override in overrides:
        if override.partition("=")[0] not in RESUMABLE_KEYS:
            raise RunError(
                f"--set {override}: run {run!r} goes on with its own recipe, of which only {', '.join(RESUMABLE_KEYS)} "
                "may change; start a new run for anything else"
            )
    recipe = parse_recipe(overridden(content, overrides), run)
    if recipe.name != given.name:
        raise RunError(f"run {run!r}: is of recipe {recipe.name}, not {given.name}")
    return recipe


def _closing(run: str, facts: dict[str, object]) -> str:
    lines = [f"run {run}: {facts['state']} {facts['message'] or ''}".rstrip()]
    if facts["artifact"]:
        lines.append(f"artifact {facts['artifact']}")
    metrics = facts["metrics"]
    if isinstance(metrics, dict) and "kl_initial" in metrics:
        lines.append(f"held-out KL to the teacher {metrics['kl_initial']:.4f} → {metrics['kl_final']:.4f} nats a code")
    if facts["kind"] == "evaluate" and isinstance(metrics, dict):
        lines += [_figures_line(name, figures) for name, figures in metrics.items()]
        lines.append(f"report runs/{run}/report.html in the store")
    if facts["kind"] == "sweep" and isinstance(metrics, dict):
        lines.append(f"report runs/{run}/report.html in the store")
    if isinstance(metrics, dict) and "share_of_float32" in metrics:
        lines.append(
            f"plan {metrics['plan']}: {metrics['size'] / 1e6:.1f} MB, {metrics['share_of_float32']:.3f} of float32, "
            f"KL {max(metrics['kl_per_codebook']):.4g} nats a code in the worst codebook"
        )
        lines.append(f"report runs/{run}/report.html in the store")
    return "\n".join(lines)


def _figures_line(model: str, figures: dict[str, float | None]) -> str:
    names = {"fad_infinity": "FAD∞", "kad": "KAD", "clap": "CLAP", "clap_shuffled": "shuffled", "kl": "KL"}
    parts = [f"{shown} {figures[name]:.3f}" for name, shown in names.items() if figures.get(name) is not None]
    return f"{model:<20} {'  '.join(parts)}"
