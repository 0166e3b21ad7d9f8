"""The bayes search: Optuna's TPE, asked and told in batches; the only importer of optuna.

trials.jsonl is authoritative. The study stores suggestions, so that a killed sweep resumes with the
same configurations; if its file is lost they are suggested again.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, ConflictError
from pipeline.files import LOG, read_plain
from pipeline.settings import RunConfig
from pipeline.sweeps.search import Search
from pipeline.sweeps.space import Choices, Domain, Normal, Range, Steps, Value, at_step, in_range
from pipeline.sweeps.spec import SweepSpec, rank_of, ranks_by_loss, seeded
from pipeline.sweeps.trials import Record, Trial, configuration_id

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise ConfigError(
        "method bayes needs Optuna: pip install -r requirements-sweep.txt, or use method random"
    ) from error

JOURNAL = "study.journal"
TRIES = 20
"""Consecutive suggestions without a new configuration after which the space counts as searched."""
WORST = {False: 0.0, True: -1e30}
"""By whether trials are compared by loss: below every value; TPE uses only the order."""


def bayes(spec: SweepSpec, base: RunConfig, folder: Path, ended: Mapping[str, Record]) -> Search:
    """A search by TPE over spec.parameters for the best mean validation accuracy over the seeds.

    Suggestion i is drawn by a sampler seeded with (draw_seed, i) from all results before its batch.
    The same spec, batch size, results and Optuna version therefore give the same suggestions, also
    after a kill; results in another order, or another Optuna, may give different ones.

    A diverged configuration is reported as accuracy 0: TPE ignores FAILed ones and would keep
    suggesting their neighbours. A failed one is reported as FAIL, since an error says nothing about
    accuracy; a pruned one as PRUNED, with its accuracy when it was cut. Conflicting settings are
    reported as FAIL at once, and become trials after the spec's count that fail when planned. If
    trials are compared by validation loss, minus the mean loss is reported, and -1e30 for a
    diverged one.

    Raises ConfigError for a parameter that TPE cannot draw.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = _Bayes(spec, base, folder / JOURNAL, ended)
    return Search(search.ask, search.tell, search.most)


def distributions(spec: SweepSpec) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's distribution of each parameter with several values; ConfigError if there is none."""
    return {
        name: _distribution(name, domain)
        for name, domain in spec.parameters
        if not (isinstance(domain, Choices) and len(domain.values) == 1)
    }


class _Bayes:
    def __init__(
        self, spec: SweepSpec, base: RunConfig, journal: Path, ended: Mapping[str, Record]
    ) -> None:
        self.spec, self.base, self.records = spec, base, dict(ended)
        self.space = distributions(spec)
        self.running: list[tuple[optuna.Trial, tuple[Trial, ...]]] = []
        self.study = _open_study(journal)
        if self._is_ahead():
            # A power loss took lines of trials.jsonl that the study, which syncs, already knows:
            # an empty study learns what is left and suggests the lost ones again.
            journal.unlink()
            self.study = _open_study(journal)
        self._enqueue_again()
        trials = self.study.get_trials(deepcopy=False)
        begun = [t for t in trials if "index" in t.user_attrs and t.state != TrialState.WAITING]
        self.seen = {configuration_id(self._settings(trial)) for trial in begun}
        self.conflicts = [self._settings(t) for t in trials if "conflict" in t.user_attrs]
        self.seen |= {configuration_id(settings) for settings in self.conflicts}
        self.untold = list(range(len(self.conflicts)))
        self.next = 1 + max(self._latest(), default=-1)

    def ask(self, n: int) -> tuple[Trial, ...]:
        while True:
            self._settle()
            batch = self._batch(n) + self._conflicting()
            trials = [t for seeds in batch for t in seeds if t.id not in self.records]
            if trials or not batch:
                return tuple(trials)

    def tell(self, records: Sequence[Record]) -> None:
        self.records |= {record.id: record for record in records}
        self._settle()

    def most(self) -> int:
        return (self.spec.count + len(self.conflicts)) * len(self.spec.seeds)

    def _batch(self, n: int) -> list[tuple[Trial, ...]]:
        """Configurations that an earlier start began, and new ones up to the next multiple of n."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        batch = [self._begin(self.study.ask(self.space)) for _ in waiting]
        missing = -self.next % n if waiting else n - self.next % n
        for _ in range(min(missing, self.spec.count - self.next)):
            trial = self._suggest()
            if trial is None:
                break
            batch.append(self._begin(trial))
        return batch

    def _begin(self, trial: optuna.Trial) -> tuple[Trial, ...]:
        seeds = seeded(self.spec, trial.user_attrs["index"], self._settings(trial))
        self.running.append((trial, seeds))
        return seeds

    def _suggest(self) -> optuna.Trial | None:
        """A new, valid configuration; None after TRIES attempts."""
        for attempt in range(TRIES):
            self.study.sampler = _sampler(self.spec.draw_seed, self.next, attempt)
            trial = self.study.ask(self.space)
            settings = self._settings(trial)
            if configuration_id(settings) not in self.seen:
                self.seen.add(configuration_id(settings))
                if self._is_valid(trial, settings):
                    trial.set_user_attr("index", self.next)  # last: it marks a trial as complete
                    self.next += 1
                    return trial
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _is_valid(self, trial: optuna.Trial, settings: dict) -> bool:
        try:
            dataclasses.replace(self.base, **settings)
        except ConflictError:
            trial.set_user_attr("conflict", True)
            self.untold.append(len(self.conflicts))
            self.conflicts.append(settings)
            return False
        except ConfigError:
            return False
        return True

    def _conflicting(self) -> list[tuple[Trial, ...]]:
        """Trials of conflicting settings, each once: they fail when planned."""
        places, self.untold = self.untold, []
        return [seeded(self.spec, self.spec.count + k, self.conflicts[k]) for k in places]

    def _settle(self) -> None:
        """Reports to the study every running configuration whose seeds have all ended."""
        open_, self.running = self.running, []
        for trial, seeds in open_:
            ended = [self.records.get(each.id) for each in seeds]
            if None in ended:
                self.running.append((trial, seeds))
            else:
                _tell(self.study, trial, ended, ranks_by_loss(self.spec, self.base))

    def _enqueue_again(self) -> None:
        """Enqueues again what a killed process left RUNNING, and what failed."""
        latest = self._latest()
        for trial in self.study.get_trials(deepcopy=False):
            index = trial.user_attrs.get("index")
            begun = index is not None and latest[index].number == trial.number
            failed = begun and trial.state == TrialState.FAIL and not self._known(trial)
            if failed or (begun and trial.state == TrialState.RUNNING):
                self.study.enqueue_trial(trial.params, user_attrs={"index": index})
            if (
                trial.state == TrialState.RUNNING
            ):  # after enqueuing, or a kill in between would lose it
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _is_ahead(self) -> bool:
        told = (TrialState.COMPLETE, TrialState.PRUNED)
        return any(t.state in told and not self._known(t) for t in self._latest().values())

    def _known(self, trial: FrozenTrial) -> bool:
        seeds = seeded(self.spec, trial.user_attrs["index"], self._settings(trial))
        return all(each.id in self.records for each in seeds)

    def _latest(self) -> dict[int, FrozenTrial]:
        """The latest trial of each configuration, by its index."""
        trials = self.study.get_trials(deepcopy=False)
        return {t.user_attrs["index"]: t for t in trials if "index" in t.user_attrs}

    def _settings(self, trial: optuna.Trial | FrozenTrial) -> dict:
        params = trial.params  # a property that reads the storage
        return {name: _value(name, domain, params) for name, domain in self.spec.parameters}


def _open_study(journal: Path) -> optuna.Study:
    # Only a kill leaves Optuna's lock behind, as the sweep's own lock is held; Optuna would wait
    # 30 s for it.
    journal.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
    if journal.exists() and not read_plain(journal, LOG).endswith(b"\n"):
        journal.unlink()  # a torn line, onto which Optuna would append
    try:
        return _study(journal)
    # Replaying a damaged journal can raise anything. trials.jsonl and the spec contain all that it
    # does.
    except Exception:
        journal.unlink()
        return _study(journal)


def _study(journal: Path) -> optuna.Study:
    backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="sweep",
        direction="maximize",
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


def _sampler(seed: int, index: int, attempt: int) -> optuna.samplers.TPESampler:
    digest = hashlib.sha256(f"{seed}/{index}/{attempt}".encode()).digest()
    return optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4]))


def _tell(study: optuna.Study, trial: optuna.Trial, ended: Sequence[Record], by_loss: bool) -> None:
    statuses = {record.status for record in ended}
    if "failed" in statuses:
        study.tell(trial, state=TrialState.FAIL)
        return
    values = [rank_of(record, by_loss) for record in ended if record.status != "diverged"]
    whole = len(values) == len(ended) and all(v is not None and math.isfinite(v) for v in values)
    value = math.fsum(values) / len(values) if whole else WORST[by_loss]
    if "pruned" in statuses and "diverged" not in statuses:
        trial.report(value, step=max(record.rounds for record in ended))
        study.tell(trial, state=TrialState.PRUNED)
        return
    study.tell(trial, value)


def _distribution(
    name: str, domain: Domain
) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    match domain:
        case Choices(values):
            return CategoricalDistribution(values)
        case Range(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Steps(first, last, log=log):
            return IntDistribution(first, last, log=log)
        case Normal():
            raise ConfigError(
                f"{name}: bayes does not support normal distributions; set min and max"
            )


def _value(name: str, domain: Domain, params: Mapping[str, Value]) -> Value:
    if name not in params:
        return domain.values[0]
    match domain:
        case Range():
            return in_range(domain, params[name])
        case Steps():
            return at_step(name, domain, params[name])
    return params[name]
