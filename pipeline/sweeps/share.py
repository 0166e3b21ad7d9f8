"""Trials that several processes train, each what no other has claimed; one alone is the usual case.

Successive halving is not shared: a cut compares all trials of a rung, and the state of those that
go on lies in the memory of whoever trained them.
"""

import math
import time
from collections.abc import Callable, Sequence

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.claims import Claims
from pipeline.sweeps.context import Floor, Running, Stopped, chunks_of, end_trial, foresee, planned
from pipeline.sweeps.search import Search
from pipeline.sweeps.spec import SweepSpec
from pipeline.sweeps.train import advance_to, end_running
from pipeline.sweeps.trials import Record, Trial

SHARES = 2
"""A member takes at most 1/(SHARES * members) of what is free, so that towards the end batches get
small and nobody waits long for the last one; at most a chunk, which is what its memory holds."""
LONGEST_WAIT = 2.0
"""Seconds between two looks at the folder while others train the last trials."""


def train_shared(
    search: Search,
    spec: SweepSpec,
    base: RunConfig,
    floor: Floor,
    batch: int,
    claims: Claims,
    again: dict[str, Record],
) -> None:
    """Trains what the search asks for and nobody else has claimed, until all of it has ended.

    again  failed trials that this start tries again: on record, and not ended yet

    Every trial becomes one line of this member's file as it ends. Raises Stopped between two
    rounds; ConfigError when another member was given another trial of the same number.
    """
    while asked := search.ask(batch):
        before = dict(floor.folder.records)
        _train(asked, spec, base, floor, claims, again)
        search.tell([r for i, r in floor.folder.records.items() if before.get(i) is not r])


def _train(
    asked: Sequence[Trial],
    spec: SweepSpec,
    base: RunConfig,
    floor: Floor,
    claims: Claims,
    again: dict[str, Record],
) -> None:
    def open_(trial: Trial) -> bool:
        found = floor.folder.records.get(trial.id)
        return found is None or found is again.get(trial.id)

    floor.folder.refresh()
    _refuse_others(asked, floor)
    live, broken = planned([trial for trial in asked if open_(trial)], base, floor)
    foresee(live, spec, live[0].config.rounds if live else base.rounds, floor)
    wait = 0.05
    while True:
        floor.folder.refresh()
        live = [each for each in live if open_(each.trial)]
        broken = [(trial, why) for trial, why in broken if open_(trial)]
        if not live and not broken:
            return
        mine = set(claims.take([trial.id for trial, _ in broken])) if broken else set()
        for trial, why in broken:
            if trial.id in mine:
                end_trial(floor, trial, "failed", error=why)
        chunk = _claimed(live, floor, claims, open_)
        if chunk:
            _train_chunk(chunk, floor, claims, open_)
            wait = 0.05
        elif live or any(open_(trial) for trial, _ in broken):
            _pause(wait, floor)
            wait = min(LONGEST_WAIT, 1.5 * wait)


def _claimed(
    live: list[Running], floor: Floor, claims: Claims, open_: Callable[[Trial], bool]
) -> list[Running]:
    """The next trials to train side by side, claimed; [] when others train all that are left."""
    free = set(claims.free([each.trial.id for each in live]))
    chunks = chunks_of([each for each in live if each.trial.id in free], floor)
    if not chunks:
        return []
    members = claims.living()
    most = len(free) if members == 1 else math.ceil(len(free) / (SHARES * members))
    mine = set(claims.take([each.trial.id for each in chunks[0][:most]]))
    floor.folder.refresh()  # a claim may be free because its trial has ended meanwhile
    return [each for each in chunks[0] if each.trial.id in mine and open_(each.trial)]


def _train_chunk(
    chunk: list[Running], floor: Floor, claims: Claims, open_: Callable[[Trial], bool]
) -> None:
    advance_to(chunk, None, floor)
    floor.folder.refresh()
    # A member that stood still for long was taken for dead, and others train or have its trials.
    still = set(claims.free([each.trial.id for each in chunk]))
    for each in chunk:
        if each.trial.id in still and open_(each.trial):
            end_running(floor, each, "diverged" if each.died else "done", each.died)
    floor.folder.sync()


def _pause(seconds: float, floor: Floor) -> None:
    if floor.stop or time.monotonic() > floor.deadline:
        raise Stopped
    time.sleep(seconds)


def _refuse_others(asked: Sequence[Trial], floor: Floor) -> None:
    """A bayes search suggests the same to every member, but not with another Optuna."""
    known = {record.number: record.id for record in floor.folder.records.values()}
    for trial in asked:
        if known.get(trial.number, trial.id) != trial.id:
            raise ConfigError(
                f"{floor.folder.folder}: trial {trial.number} on record has other settings than "
                "were suggested here; the versions of Optuna differ between members"
            )
