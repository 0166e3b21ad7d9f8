"""Options that commands share: the cache, held-out domains, the settings of a run."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import PATH, Function, option, together
from pipeline.datasets.stated import ACCEPT, LAYOUTS
from pipeline.encoder.towers import ACTIVATIONS, Towers
from pipeline.errors import ConfigError
from pipeline.settings import PRESETS, RunConfig
from pipeline.settings_used import ways_of

if TYPE_CHECKING:
    from cache.table import FeatureTable
    from pipeline.cluster.connect import Size

ALIASES = {"rounds": "--iters", "local_epochs": "--wk-iters", "split": "--datapercent"}
"""The released code's names of settings."""
DATA, HARDWARE = "Data", "Hardware"
SECTIONS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("Preset and seed", None, ("seed",)),
    ("What is held out", None, ("split", "fixed_split")),
    ("Adapter", "head", ("mode", "head", "start", "rank")),
    (
        "Local training", "optimizer",
        ("local_epochs", "batch", "loss", "lr", "schedule", "weight_decay", "optimizer", "moments",
         "beta1", "beta2", "eps", "momentum"),
    ),
    (
        "Federated method", "method",
        ("method", "rounds", "weighting", "choose", "eval", "client_fraction", "dropout",
         "stragglers", "payload", "personalise", "mu", "server_lr", "server_momentum",
         "server_beta1", "server_beta2", "tau", "trim", "byzantine", "keep",
         "solver", "tune_on", "shape", "strength", "refit"),
    ),
    (
        "Partition into clients", "partition",
        ("partition", "clients", "shots", "alpha", "classes_per_client"),
    ),
    ("Privacy", None, ("clip", "noise")),
)  # fmt: skip
"""Title, the setting whose choices get headings of their own, and the settings in order."""
OTHERS = "Other settings"
FEW = 5  # choices in a heading, at most; a setting that more choices use has none


def setting_options(command: Function) -> Function:
    """Adds an option for each setting of RunConfig but held_out, and --preset.

    The command gets them as one dict, `given`: the preset's settings, overridden by the given
    options. Others have RunConfig's defaults.
    """

    @functools.wraps(command)
    def with_settings(*args: Any, preset: str, **words: Any) -> Any:
        named = {each.name: words.pop(each.name) for _, _, each in arranged()}
        return command(*args, given=given_settings(preset, named), **words)

    return together(
        option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            default="released",
            show_default=True,
            section=arranged()[0][0],
            meanings={
                "released": "The released FedCLIP code's settings.",
                "tuned": "Ten rounds from the closed-form classifier (docs/findings.md).",
                "cosine": "A text classifier trained with momentum on the server "
                "(docs/findings.md).",
            },
            help="Settings to start from; other options override it.",
        ),
        *(_setting(*place) for place in arranged()),
    )(with_settings)


def _setting(section: str, under: str, each: dataclasses.Field[Any]) -> Function:
    choices = each.metadata.get("choices")
    return option(
        "--" + each.name.replace("_", "-"),
        *([ALIASES[each.name]] if each.name in ALIASES else []),
        each.name,
        type=click.Choice(choices) if choices else each.type,
        section=section,
        under=under,
        meanings=each.metadata.get("meanings"),
        note=each.default if choices else f"{each.default:g}",
        help=each.metadata["help"],
    )


def arranged() -> list[tuple[str, str, dataclasses.Field[Any]]]:
    """(section, heading in it, field) of each setting but held_out, in the order of --help."""
    fields = {each.name: each for each in dataclasses.fields(RunConfig) if each.metadata}
    found = []
    for title, chooser, names in SECTIONS:
        placed = [(under(name, chooser), name) for name in names]
        headings = {heading: at for at, (heading, _) in reversed(list(enumerate(placed)))}
        for heading, name in sorted(placed, key=lambda one: (one[0] != "", headings[one[0]])):
            found.append((title, heading, fields.pop(name)))
    return found + [(OTHERS, "", each) for each in fields.values()]


def under(name: str, chooser: str | None) -> str:
    """The heading of a setting that few choices use, as "With --method fedprox or ditto"; or ""."""
    used = [way[chooser] for way in ways_of(name) if chooser in way] if chooser else []
    if name == chooser or len(used) != 1 or len(used[0]) > FEW:
        return ""
    *others, last = used[0]
    return f"With --{chooser} {', '.join(others)}{' or ' if others else ''}{last}"


def given_settings(preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's settings, overridden by those that are not None."""
    named = {name: value for name, value in settings.items() if value is not None}
    return {**PRESETS[preset], **named}


def head_counts(words: str) -> tuple[int, int | None]:
    """Attention heads of the image and of the text tower: (12, 8) of "12,8", (12, None) of "12"."""
    parts = [part.strip() for part in words.split(",")]
    if len(parts) > 2 or not all(p.isascii() and p.isdigit() and 0 < int(p[:9]) for p in parts):
        raise click.BadParameter(f"{words!r}: pass the heads of the image tower, or of both: 12,8")
    return int(parts[0][:9]), int(parts[1][:9]) if len(parts) == 2 else None


def tower_options(command: Function) -> Function:
    """Adds --heads and --activation, which the command gets as `towers`."""

    @functools.wraps(command)
    def with_towers(*args: Any, heads: Any, activation: str | None, **others: Any) -> Any:
        image, text = heads or (None, None)
        return command(*args, towers=Towers(image, text, activation), **others)

    return together(
        option(
            "--heads", type=head_counts, metavar="IMAGE[,TEXT]", section=DATA,
            note="one for every 64 of the width",
            help="Number of attention heads of a model in a file.",
        ),
        option(
            "--activation", type=click.Choice(ACTIVATIONS), section=DATA,
            note="from config.json beside it, else quickgelu",
            help="Activation function of a model in a file.",
        ),
    )(with_towers)  # fmt: skip


root_option = option(
    "--root", "--root-dir", type=PATH, section=DATA, note="data",
    help="Folder that holds the data sets.",
)  # fmt: skip
model_option = option(
    "--model", "--net", section=DATA, note="ViT-B/32; demo for the data set demo",
    help="An OpenAI model such as ViT-B/32; a file or folder of weights (OpenAI, Hugging Face, "
    "open_clip); hf:ORG/NAME or open_clip:NAME/PRETRAINED; or demo.",
)  # fmt: skip
device_option = option(
    "--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]), show_default=True,
    section=HARDWARE, help="Device to compute on.",
)  # fmt: skip
backend_option = option(
    "--backend", default="auto", show_default=True, metavar="NAME", section=HARDWARE,
    help="Kernels to compute with: auto, torch, numba or triton; numba-bf16 trains with bfloat16 "
    "products on processors with AMX: faster, with slightly different results.",
)  # fmt: skip
workers_option = option(
    "--workers", type=click.IntRange(0), section=HARDWARE, note="one for each CPU",
    help="Number of processes that decode images; 0 decodes in the main process.",
)  # fmt: skip
limit_options = together(
    option(
        "--max-megapixels", type=float, default=100, show_default=True, section=DATA,
        help="Treat images with more pixels as unreadable.",
    ),
    option(
        "--max-image-seconds", type=float, default=60, show_default=True, section=DATA,
        help="Treat images that take longer to decode as unreadable.",
    ),
    option(
        "--max-image-mib", type=float, default=1024, show_default=True, section=DATA,
        help="Treat images that need more memory to decode as unreadable: pixels times channels "
        "times bytes, as their codec holds them.",
    ),
)  # fmt: skip
csv_option = option(
    "--csv", metavar="FILE", type=PATH,
    help="Also add the results to this CSV file, a line for each training with all its "
    "settings; existing lines of the same training are replaced.",
)  # fmt: skip
ray_options = (
    option(
        "--ray", metavar="auto|local|HOST:PORT", section=HARDWARE,
        help="Use the workers of a Ray cluster: a running one, a new one on this machine, or "
        "one by its address.",
    ),
    option(
        "--ray-worker", metavar="cpus=N,gpus=N", section=HARDWARE,
        note="gpus=1, without GPUs a whole node",
        help="Resources of one worker.",
    ),
)  # fmt: skip
json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object.")
layout_options = together(
    option(
        "--layout", type=click.Choice(LAYOUTS), section=DATA,
        note="guessed; an ambiguous guess is refused",
        help="What the levels of folders mean.",
    ),
    option(
        "--class-names", metavar="FILE|folder", section=DATA,
        help="A file with a name for each class folder, or `folder` to use the folders' names.",
    ),
    option(
        "--accept", multiple=True, type=click.Choice(ACCEPT), section=DATA,
        help="Accept a peculiarity of the data that is refused by default; can be repeated.",
    ),
)  # fmt: skip


@contextlib.contextmanager
def connection(ray: str | None, worker: str | None) -> Iterator["Size | None"]:
    """Connects to the cluster of --ray and yields the size of its workers; None without --ray."""
    if ray is None:
        if worker is not None:
            raise ConfigError("--ray-worker sets the size of --ray's workers; pass --ray as well")
        yield None
        return
    from pipeline.cluster.connect import connected, parse_size

    size = parse_size(worker)
    with connected(ray):
        yield size


@dataclass(frozen=True)
class Job:
    """The arguments that federate and sweep share.

    cache  its file; or None, and dataset, model, root and towers find or extract it
    """

    cache: Path | None
    dataset: str | None
    model: str | None
    root: Path | None
    towers: Towers
    held_out: tuple[str, ...]
    test_envs: tuple[int, ...]
    device: str
    backend: str
    out: Path | None
    force: bool
    as_json: bool
    name: str | None
    tags: tuple[str, ...]
    csv: Path | None

    def folds(self, table: "FeatureTable") -> tuple[tuple[str, ...], ...]:
        """The folds to train on that table; see choose_held_out."""
        return choose_held_out(table, self.held_out, self.test_envs)


def job_options(*first: Function, out: str) -> Function:
    """Adds the options of a command that trains on a cache; it gets them as `job` and `given`.

    first  the command's own options that are shown before the settings
    out    description of --out's default
    """

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_job(*args: Any, **words: Any) -> Any:
            asked = {each.name: words.pop(each.name) for each in dataclasses.fields(Job)}
            return command(*args, job=Job(**asked), **words)

        return together(
            click.argument(
                "cache", required=False, type=PATH, help="Cache file. [default: found by --dataset]"
            ),
            option(
                "--dataset",
                metavar="NAME|FOLDER",
                section=DATA,
                note="demo",
                help="Use the cache of this data set; it is extracted first if missing.",
            ),
            model_option,
            tower_options,
            root_option,
            *first,
            fold_options,
            setting_options,
            device_option,
            backend_option,
            option("--out", type=PATH, note=out, help="Folder to write to."),
            option("--force", is_flag=True, help="Replace results that are already there."),
            option("--name", help="Name to list and show the results by."),
            option(
                "--tag",
                "tags",
                multiple=True,
                metavar="TAG",
                help="Tag to filter `./run.sh runs` by; can be repeated.",
            ),
            csv_option,
            json_option,
        )(with_job)

    return decorate


fold_options = together(
    option(
        "--held-out", multiple=True, metavar="DOMAIN|all|none", note="all",
        section="What is held out",
        help="Domain that no client trains on; can be repeated. `a,b` holds out both in one "
        "training; `all` holds out each domain in turn.",
    ),
    option(
        "--test-envs", multiple=True, type=int, metavar="INT...", section="What is held out",
        help="The released spelling of --held-out: numbers of domains in sorted order, held out "
        "together.",
    ),
)  # fmt: skip
"""The two arguments of choose_held_out."""


def choose_held_out(
    table: "FeatureTable", held_out: Sequence[str], test_envs: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
    """The folds to train: one tuple of held-out domain names for each.

    By default every domain in turn, or none if there is only one; `all` and `none` request these.
    "a,b" holds out two in one training; repeating the option trains several times. Raises
    ConfigError or CacheError for domains that the table does not have.
    """
    from cache.table import domain_index

    names = table.domain_names
    if held_out and test_envs:
        raise ConfigError("--held-out and --test-envs are equivalent; pass only one of them")
    if test_envs:
        wrong = [number for number in test_envs if not 0 <= number < len(names)]
        if wrong:
            listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
            raise ConfigError(f"--test-envs {wrong[0]}: {table.source} has the domains {listed}")
        return (tuple(dict.fromkeys(names[number] for number in test_envs)),)
    if not held_out:
        held_out = ("all",) if len(names) > 1 else ("none",)
    folds: list[tuple[str, ...]] = []
    for choice in held_out:
        if choice in names:
            folds.append((choice,))
        elif choice == "all":
            folds += [(name,) for name in names]
        elif choice == "none":
            folds.append(())
        else:
            parts = [part.strip() for part in choice.split(",")]
            folds.append(tuple(names[domain_index(table, part)] for part in dict.fromkeys(parts)))
    return tuple(dict.fromkeys(folds))
