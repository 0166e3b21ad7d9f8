"""Image files -> pixels in order, by supervised processes: a dead or hung one is replaced."""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.contained import shown
from pipeline.encoder.blocks import Decoded, answers, ask, read_image, wait_until_ready
from pipeline.encoder.pixels import Limits
from pipeline.errors import ConfigError, DataError, Interrupted

LOG = logging.getLogger(__name__)

IMAGES_A_JOB = 32  # for a worker at a time; fewer if each worker would get less than SHARES jobs
SHARES = 4
TICK = 0.2  # seconds between checks of workers and signals
SAY_AFTER = 10.0  # seconds without an image until a warning; the next comes after twice that
START_SECONDS = 60.0  # for a process to start, with interpreter and Pillow on a slow disk
KILL_SECONDS = 2.0  # a killed process that lives longer is waiting for a device, and is abandoned
MOST_STUCK = 4  # abandoned processes before the storage counts as dead
PIPE_BYTES = 1 << 18  # an image of 224 x 224; with the default of 64 KB workers wait twice for each
# Workers do not use numpy's BLAS, which would start threads and reserve memory.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SERVE = "import sys; sys.path[:] = sys.argv[1:]; from pipeline.encoder.blocks import serve; serve()"


@dataclass(eq=False)
class _Job:
    number: int
    files: Sequence[str]
    results: list[Decoded] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return len(self.results) >= len(self.files)


@dataclass(eq=False)
class _Worker:
    """A process, or with None a thread of this one, and its current job."""

    process: subprocess.Popen | None
    is_ready: bool = False
    given_up: bool = False  # its thread ends, and further results are dropped
    job: _Job | None = None
    seen: int = 0  # images of the job at the last check
    waited: float = 0.0  # seconds spent waiting for the next one
    error: Exception | None = None  # that ended a thread of this process
    said: float = field(default_factory=lambda: SAY_AFTER)


@contextlib.contextmanager
def decoded_images(
    files: Sequence[str],
    resolution: int,
    *,
    workers: int,
    limits: Limits,
    ahead: int = 0,
    stop: Sequence[int] = (),
) -> Iterator[Iterator[Decoded]]:
    """Yield read_image of every file, in order, from workers that end with the context.

    workers  processes; -n: n threads of this process instead; 0: one thread
    limits   an image that takes longer than `seconds` is unreadable; its worker is killed
    ahead    images to decode before they are asked for; at least two jobs per worker
    stop     signal numbers: once there is one, waiting ends with Interrupted

    A process that dies is replaced and its image tried again; if the next one dies at the same
    image, that is unreadable. If no process can be started, a thread of this one decodes.
    Neither shared memory nor disks are used.
    Raises DataError when processes are killed from outside or storage does not respond.
    """
    with contextlib.closing(_Pool(files, resolution, workers, limits, ahead, stop)) as pool:
        yield pool.images()


class _Pool:
    """Workers and their jobs. Each worker has a thread of this process that waits for it."""

    def __init__(
        self,
        files: Sequence[str],
        resolution: int,
        workers: int,
        limits: Limits,
        ahead: int,
        stop: Sequence[int],
    ) -> None:
        self.resolution, self.limits, self.stop = resolution, limits, stop
        count = max(1, abs(workers))
        size = max(1, min(IMAGES_A_JOB, len(files) // (SHARES * count)))
        self.todo = [
            _Job(n, files[at : at + size]) for n, at in enumerate(range(0, len(files), size))
        ]
        self.window = max(2 * count, -(-ahead // size))
        self.in_processes = workers > 0
        self.workers: list[_Worker] = []
        self.queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()  # None: a job is done
        self.deaths: Counter[str] = Counter()
        self.stuck: list[_Worker] = []  # given up, and perhaps still working
        for _ in range(min(count, len(self.todo))):
            if not self._start():
                break

    def images(self) -> Iterator[Decoded]:
        for number in range(len(self.todo)):
            first = 0 if number == 0 else number + self.window - 1
            for job in self.todo[first : number + self.window]:
                self.queue.put(job)
            yield from self._wait(number)
            self.todo[number] = _Job(number, ())  # frees its pixels

    def close(self) -> None:
        for worker in self.workers:
            worker.given_up = True
            self.queue.put(None)
            if worker.process:
                worker.process.kill()
        for worker in self.workers:
            if worker.process and not _end(worker.process):
                break  # the others may wait for the same disk

    def _wait(self, number: int) -> list[Decoded]:
        looked = time.monotonic()
        while not self.todo[number].is_done:
            if self.stop:
                raise Interrupted("stopped", self.stop[0])
            with contextlib.suppress(queue.Empty):
                if lost := self.events.get(timeout=TICK):
                    self._replace(lost)
            since = time.monotonic() - looked
            if since >= TICK:
                # This process itself may have been stopped for hours: that time does not count.
                self._look(min(since, 5 * TICK))
                looked = time.monotonic()
        return self.todo[number].results

    def _look(self, seconds: float) -> None:
        for worker in list(self.workers):
            job = worker.job
            done = len(job.results) if job else 0
            if worker.is_ready and (job is None or done != worker.seen or done == len(job.files)):
                worker.seen, worker.waited, worker.said = done, 0.0, SAY_AFTER
                continue
            worker.waited += seconds
            if worker.waited > (self.limits.seconds if worker.is_ready else START_SECONDS):
                self._give_up(worker, job, done)
            elif worker.waited > worker.said:
                what = shown(job.files[done]) if job else "a decoding process to start"
                LOG.warning(f"waiting for {what} for {worker.waited:.0f} s")
                worker.said *= 2

    def _give_up(self, worker: _Worker, job: _Job | None, done: int) -> None:
        """Kill a worker that takes too long; its image is unreadable, and another does the rest."""
        worker.given_up = True
        self.workers.remove(worker)
        if worker.process is None or not _end(worker.process):
            self.stuck.append(worker)
        if job is None:
            self._carry_on("a decoding process did not start", replace=False)
            return
        self._refuse_many_stuck(shown(job.files[done]))
        reason = f"took longer than {self.limits.seconds:g} s to decode (--max-image-seconds)"
        self._retry(job, job.results[:done], Decoded(None, reason=reason))
        self._start()

    def _refuse_many_stuck(self, file: str) -> None:
        stuck = [w for w in self.stuck if (w.process.poll() is None if w.process else w.job)]
        if len(stuck) < MOST_STUCK:
            return
        if self.in_processes:
            raise DataError(
                f"{len(stuck)} processes wait for storage that does not respond, the last one for "
                f"{file}; check the file system, then run the same command to resume"
            )
        raise DataError(
            f"{len(stuck)} images take longer than {self.limits.seconds:g} s and are still being "
            f"decoded in this process, the last one {file}; repair or delete them"
        )

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in place of one that died by itself."""
        if worker.given_up:
            return
        if worker.process is None:
            raise worker.error or RuntimeError("a thread that decodes images ended")
        worker.given_up = True
        self.workers.remove(worker)
        _end(worker.process)
        job, how = worker.job, _cause(worker.process.returncode)
        if job is None:
            self._carry_on(f"a decoding process could not start ({how})", replace=False)
            return
        file = job.files[len(job.results)]
        self.deaths[file] += 1
        if self.deaths[file] == 1:
            self._retry(job, job.results)
            self._carry_on(
                f"a decoding process died ({how}) at {shown(file)}; trying that image again"
            )
            return
        if how == "SIGKILL":
            raise DataError(
                "a process that decodes images was killed twice, usually by running out of "
                f"memory, at {shown(file)}; pass fewer --workers, or --workers 0"
            )
        self._retry(job, job.results, Decoded(None, reason=f"its decoder crashes ({how})"))
        self._start()

    def _retry(self, old: _Job, done: list[Decoded], *more: Decoded) -> None:
        """Queue the rest of a job; further results of its former worker stay in the old job."""
        job = _Job(old.number, old.files, [*done, *more])
        self.todo[job.number] = job
        if not job.is_done:
            self.queue.put(job)

    def _carry_on(self, why: str, replace: bool = True) -> None:
        LOG.warning(why)
        if not (replace and self._start()) and not self.workers:
            self.in_processes = False
            LOG.warning("decoding in this process instead")
            self._start()

    def _start(self) -> bool:
        """Start a worker; False, after a warning, if the system cannot start another process."""
        process = None
        try:
            if self.in_processes:
                process = _spawn()
            worker = _Worker(process, is_ready=process is None)
            threading.Thread(target=self._serve, args=(worker,), name="decode", daemon=True).start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            why = " ".join(str(error).split())
            if process:
                _end(process)
                _close_pipes(process)
            if self.workers:
                LOG.warning(
                    f"decoding with {len(self.workers)} workers; another cannot start: {why}"
                )
                return False
            if not self.in_processes:
                raise ConfigError(f"no thread can be started to decode images: {why}") from error
            self.in_processes = False
            LOG.warning(f"decoding in this process, because no other can be started: {why}")
            return self._start()
        self.workers.append(worker)
        return True

    def _serve(self, worker: _Worker) -> None:
        """Run a worker's thread: take jobs from the queue until it is closed."""
        try:
            decode = self._through(worker) if worker.process else self._here
            while (job := self.queue.get()) is not None:
                worker.seen, worker.waited, worker.said = len(job.results), 0.0, SAY_AFTER
                worker.job = job
                for one in decode(job):
                    job.results.append(one)
                    if worker.given_up:
                        break
                worker.job = None
                if worker.given_up:
                    break
                self.events.put(None)
        except Exception as error:  # whatever the reason, this worker has ended
            worker.error = None if worker.process else error
            self.events.put(worker)
        finally:
            if worker.process:
                _close_pipes(worker.process)

    def _here(self, job: _Job) -> Iterator[Decoded]:
        for file in job.files[len(job.results) :]:
            yield read_image(file, self.resolution, self.limits)

    def _through(self, worker: _Worker) -> Callable[[_Job], Iterator[Decoded]]:
        process = worker.process
        assert process and process.stdin and process.stdout
        wait_until_ready(process.stdout)
        worker.is_ready = True
        jobs, found = process.stdin, answers(process.stdout, self.resolution)

        def decode(job: _Job) -> Iterator[Decoded]:
            left = job.files[len(job.results) :]
            ask(jobs, left, self.resolution, self.limits)
            for _ in left:
                yield next(found)

        return decode


def _spawn() -> subprocess.Popen:
    """Start a process that runs blocks.serve and ignores signals sent to the whole group.

    A fresh interpreter, not a fork: it holds none of our locks, pipes and memory, and its stdin
    ends when this process is killed.
    """
    with _signals_held():
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
        )
    with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux, within its limit
        import fcntl

        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM; a process started meanwhile inherits that for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: subprocess.Popen) -> bool:
    """Kill a process, stopped or not; False if it survives, as one waiting for a disk can.

    Its pipes are closed by the thread that reads them, which the kill releases.
    """
    process.kill()
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _close_pipes(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


def _cause(code: int | None) -> str:
    """The cause of death in words, as "SIGSEGV" or "exit code 1"."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
