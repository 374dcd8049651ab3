"""Runs that send no requests to served models: these are written to files, and answers are read from
files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.resolve import RunPlan
from sgpipe.generation.spending import asks_endpoint
from sgpipe.stages.served.answers import RequestCache
from sgpipe.stages.served.batch import BatchMode, BatchPart, BatchSpool, check_target
from sgpipe.stages.served.batch_answers import ANSWERED, BatchAnswer, read_answers
from sgpipe.storage.run_folder import check_output
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.console import Progress, count, listed

_NOWHERE = "http://localhost/v1"  # in place of servers that a run would start
_OPTIONS = "--batch-file and --batch-answers"


@dataclass(frozen=True)
class BatchFiles:
    """What a command has in place of a server.

    Attributes:
        requests: the file for requests without an answer; None: they are not written.
        answers: the output and error files of batches.
    """

    requests: Path | None = None
    answers: Sequence[Path] = ()

    def local_plan(self, plan: RunPlan) -> RunPlan:
        """Return the plan for worker processes of this machine, which share the files.

        Raises:
            UserError: the run asks no served model, or is to run on Ray.
        """
        if not asks_endpoint(plan.stages):
            raise UserError(f"{_OPTIONS}: no stage of this run asks an endpoint; omit them")
        if plan.engine.kind == "ray" or plan.engine.address is not None:
            raise UserError(
                f"{_OPTIONS} need worker processes of this machine, not Ray: omit engine.address,"
                " and set engine.kind=local"
            )
        nowhere = dict.fromkeys(plan.stages.with_engines, _NOWHERE)
        return replace(
            plan,
            stages=plan.stages.with_endpoints(nowhere),
            engine=plan.engine.model_copy(update={"kind": "local"}),
        )

    @contextmanager
    def opened(self, progress: Progress) -> Iterator[Batch]:
        """Yield what takes the place of the server; files that are not published are deleted at the end.

        Raises:
            UserError: the file for requests exists.
        """
        if self.requests is None:
            yield Batch(self, BatchMode(), progress)
            return
        target = check_output(self.requests)
        check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent) as folder:
            yield Batch(self, BatchMode(BatchSpool.create(folder, target)), progress)


class Batch:
    """The answers that a command takes in, and the requests that it writes.

    Attributes:
        mode: of the workers.
        images: have requests without an answer.
    """

    def __init__(self, files: BatchFiles, mode: BatchMode, progress: Progress) -> None:
        self.mode = mode
        self.images = 0
        self._files = files
        self._progress = progress
        self._new = 0

    @contextmanager
    def exchanged(self, cache: RequestCache) -> Iterator[None]:
        """Take the answers in before units are labelled, and publish the requests thereafter.

        Raises:
            UserError, EngineError: as `_take_in` and `_finish`.
        """
        self._take_in(cache)
        yield
        self._finish(cache)

    def _take_in(self, cache: RequestCache) -> None:
        """Keep the answers of all files.

        Raises:
            UserError: a file has a line that is not an answer, or no request was answered.
        """
        counts = Counter[str]()
        first_reason = ""
        for file in self._files.answers:
            outcome = _Outcome()
            new = cache.add_batch(outcome.final(read_answers(file)))
            outcome.known = outcome.counts["answered"] + outcome.counts["refused"] - new
            counts["new"] += new
            counts["answered"] += outcome.counts["answered"]
            counts["lines"] += outcome.counts.total()
            self._progress.say(f"{file}: {outcome}")
            first_reason = first_reason or outcome.reason
        if self._files.answers and not counts["answered"]:
            cache.forget_batch()
            files = listed(list(map(str, self._files.answers)))
            if not counts["lines"]:
                raise UserError(f"{files}: there are no answers in it (yet?)")
            raise UserError(f"{files}: no request was answered: {first_reason}")
        self._new = counts["new"]

    def _finish(self, cache: RequestCache) -> None:
        """Publish the requests that were written, and say what comes next.

        Raises:
            UserError: the answers are to requests of other runs.
            EngineError: requests have no answer, and are not written.
        """
        self._check_use(cache)
        if self.mode.spool is not None:
            self._say_parts(self.mode.spool.publish())
        elif self.images:
            raise EngineError(
                f"answers are missing for {count(self.images, 'image')}; what is answered is kept:"
                " write the requests that are left with --batch-file, or omit --batch-answers to"
                " send them"
            )

    def _check_use(self, cache: RequestCache) -> None:
        """Say, or raise UserError if it is all, what no request of the run has got."""
        unused = cache.count_unused()
        if not unused:
            return
        files = listed(list(map(str, self._files.answers)))
        if unused == self._new:
            cache.forget_batch()
            raise UserError(
                f"{files}: none of {count(unused, 'answer')} is to a request of this run: pass"
                " those to its --batch-file, with the same images, models and settings"
            )
        self._progress.say(
            f"NOTE: {unused:,} of {count(self._new, 'answer')} in {files} are to no request of the"
            " images that were labelled"
        )

    def _say_parts(self, parts: Sequence[BatchPart]) -> None:
        if not parts:
            self._progress.say("no request lacks an answer: no batch was written")
            return
        for part in parts:
            size = f"{part.size / 1e6:,.1f} MB"
            self._progress.say(
                f"{part.file}: {count(part.requests, 'request')} to {part.model}, {size}"
            )
        self._progress.say(
            "have these answered, and pass the answers with --batch-answers; if stages have further"
            " questions then, another --batch-file takes them"
        )


class _Outcome:
    """What a file of answers has.

    Attributes:
        counts: of requests that were answered, refused, and failed.
        known: how many of them are in the run already, or twice in the file.
        reason: why the first one has no answer.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.known = 0
        self.reason = ""

    def final(self, answers: Iterator[BatchAnswer]) -> Iterator[BatchAnswer]:
        """Yield the answers that are kept; other requests are asked again."""
        for answer in answers:
            if answer.status == ANSWERED:
                self.counts["answered"] += 1
            else:
                self.counts["refused" if answer.is_final else "failed"] += 1
                self.reason = self.reason or answer.content
            if answer.is_final:
                yield answer

    def __str__(self) -> str:
        text = count(self.counts["answered"], "answer")
        if self.counts["refused"]:
            text += f", {count(self.counts['refused'], 'refused request')}"
        if self.counts["failed"]:
            text += f", {count(self.counts['failed'], 'failed request')}, to be asked again"
        if self.known:
            text += f", {self.known:,} of them known already"
        return f"{text} ({self.reason})" if self.reason else text
