"""Names of models on the Hugging Face hub -> files of weights, with their configs."""

import json
import re
from pathlib import Path

from pipeline.encoder.shards import INDEX, names_in
from pipeline.errors import WeightsError
from pipeline.transfer.hub import HubError, hub_file

HUB_PREFIXES = ("hf:", "open_clip:")
CONFIGS = ("open_clip_config.json", "config.json", "preprocessor_config.json")
MODELS = Path(__file__).with_name("open_clip_models.json")  # of open_clip_torch 3.3
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def fetch(name: str, wanted: tuple[str, ...]) -> Path:
    """The first of the files `wanted` that the repository has, with its CONFIGS beside it.

    With an index of shards they come too.

    name  hf:ORG/NAME, hf:ORG/NAME@REVISION or open_clip:NAME/PRETRAINED

    Files lie where huggingface_hub keeps them and are not fetched twice; HF_HUB_OFFLINE=1 takes
    those that are there. Raises WeightsError when the package, the network, the repository or such
    a file is missing.
    """
    repository, revision = repository_of(name)

    def have(file: str) -> Path | None:
        try:
            return hub_file(repository, file, revision)
        except HubError as error:
            raise WeightsError(f"--model {name}: {error}, or name a file of weights") from error

    for config in CONFIGS:
        have(config)
    for file in wanted:
        if path := have(file):
            for shard in names_in(path) if file.endswith(INDEX) else ():
                have(shard)  # a missing one is named by who reads them
            return path
    raise WeightsError(
        f"--model {name}: the repository {repository} has none of {', '.join(wanted)}; download "
        "its weights and name the file"
    )


def open_clip_models() -> dict[str, str]:
    """{"NAME/PRETRAINED": repository} of open_clip's models whose towers are OpenAI's kind."""
    models: dict[str, str] = json.loads(MODELS.read_text("utf-8"))
    return models


def repository_of(name: str) -> tuple[str, str | None]:
    """Repository and revision of a name with a prefix of HUB_PREFIXES. Raises WeightsError."""
    prefix, _, rest = name.partition(":")
    if prefix == "open_clip":
        known = open_clip_models()
        if rest in known:
            return known[rest], None
        same = [one for one in known if one.split("/")[0] == rest.split("/")[0]]
        shown = ", ".join(same or sorted({one.split("/")[0] for one in known}))
        raise WeightsError(
            f"--model {name}: not one of open_clip's models with towers of OpenAI's kind; "
            f"{'with that name' if same else 'by name'} there are {shown}; or hf:ORG/NAME"
        )
    if not _REPOSITORY.fullmatch(rest):
        raise WeightsError(f"--model {name}: expected hf:ORG/NAME or hf:ORG/NAME@REVISION")
    repository, _, revision = rest.partition("@")
    return repository, revision or None
