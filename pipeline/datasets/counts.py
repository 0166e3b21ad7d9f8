"""Published image counts of the known data sets, with which folders are compared."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """One data set as its authors count it, and the usual spellings of its folders."""

    title: str  # the usual name of the folder
    source: str  # where the counts are published
    spellings: tuple[str, ...]  # of the folder, as `plain` gives them
    class_names: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]  # by domain: every valid count
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by (domain, class)
    aliases: Mapping[str, str] = field(default_factory=dict)  # plain spelling -> domain
    totals: tuple[int, ...] = ()  # of releases whose total alone is published
    urls: tuple[str, ...] = ()  # one zip, or one for each domain
    hub: str | None = None  # repository of the Hugging Face hub with the images as parquet

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in sorted order."""
        return tuple(sorted(self.rows))


def plain(name: str) -> str:
    """`name` in lower case with only letters and digits: "Real World" -> "realworld"."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _published(
    domains: tuple[str, ...] = (), counts: Mapping[str, list[int]] | None = None, **rest: Any
) -> Published:
    """An entry of published.json; counts  {class: images in each of `domains`}."""
    lists = ("spellings", "class_names", "totals", "urls")
    rest = {name: tuple(value) if name in lists else value for name, value in rest.items()}
    if counts is None:
        rest["rows"] = {domain: tuple(right) for domain, right in rest["rows"].items()}
        return Published(**rest)
    by_domain = list(zip(*counts.values(), strict=True))
    return Published(
        **rest,
        class_names=tuple(sorted(counts)),
        rows={domain: (sum(n),) for domain, n in zip(domains, by_domain, strict=True)},
        counts={
            (domain, name): n
            for name, numbers in counts.items()
            for domain, n in zip(domains, numbers, strict=True)
        },
    )


KNOWN: Mapping[str, Published] = {
    key: _published(**found)
    for key, found in json.loads(
        Path(__file__).with_name("published.json").read_text("utf-8")
    ).items()
}
DOWNLOADS = tuple(key for key, known in KNOWN.items() if known.urls)
"""What `download` fetches."""
