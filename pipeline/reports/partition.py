"""The page that shows a partition before anything trains."""

import numpy as np

from pipeline.reports.charts.counts import NARROW, count_chart
from pipeline.reports.charts.svg import Markup
from pipeline.reports.render import Figure, Tile, page, render, sentence
from pipeline.runs.partition import USES, Partition, costs_of, duration, size
from pipeline.terminal import counted

NAME = "partition.html"
DRAWN = 300  # clients in the picture and the table


def partition_html(found: Partition, command: str = "") -> bytes:
    """The page of a partition, as UTF-8.

    command  that trains it; "" for none
    """
    title = f"Partition of {found.dataset}: {len(found.clients):,} clients"
    return page(title, [], [partition_part(found, title, command)])


def partition_part(found: Partition, title: str, command: str = "") -> Markup:
    """The article: what it costs, clients x classes as a picture, and a row a client."""
    clients = found.clients[:DRAWN]
    rows = [sum(client.rows.values()) for client in found.clients]
    tiles = [
        Tile("Clients", f"{len(found.clients):,}", counted(len(found.folds), "training")),
        Tile("Rows of a client", f"{int(np.median(rows)) if rows else 0:,}",
             f"median; {min(rows, default=0):,} to {max(rows, default=0):,}"),
        Tile("Steps a round", f"{found.steps:,}", counted(found.rounds, "round")),
    ]  # fmt: skip
    if found.up or found.down:
        tiles.append(Tile("Sent in all", size(found.up + found.down), "up and down"))
    if found.seconds is not None:
        expected = duration(found.seconds).removeprefix("about ")
        tiles.append(Tile("Expected time", expected, "about; measured on a few steps"))
    name = "Rows of each class at each client"
    picture = count_chart(
        name, f"{len(clients)} clients, {len(found.class_names)} classes",
        [client.name for client in clients], found.class_names,
        [client.classes.tolist() for client in clients],
    )  # fmt: skip
    return render(
        "partition.html",
        anchor="partition",
        title=title,
        found=found,
        tiles=tiles,
        notes=[sentence(note) for note in found.notes],
        costs=[sentence(each) for each in costs_of(found)],
        command=command,
        figures=[Figure(name, picture, note="Train, validation and test rows together.",
                        full=len(found.class_names) > NARROW)],
        uses=USES,
        clients=clients,
        held=[int(np.count_nonzero(client.classes)) for client in clients],
        left=len(found.clients) - len(clients),
    )  # fmt: skip
