"""The engine on Ray: stages and work units become one Ray Data graph.

One row of the graph is one work unit and becomes one shard. The actors of the first pool read a
unit from the source index, those of the last pool write its shard, and only the driver commits
shards to the manifest, as they are finished. Ray keeps 100 KB for every block that waits, so the
units enter in blocks of many.
"""

import logging
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset, from_arrow
from ray.exceptions import RayError, RayTaskError
from ray.util import list_named_actors, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sgpipe.errors import EngineError, MachinesLostError, UserError, WorkersLostError
from sgpipe.generation.engine import (
    Engine,
    LabelledUnit,
    Patience,
    PostponedUnit,
    StageBuilder,
    UnitReader,
    UnitWriter,
    WorkUnit,
    cut_units,
    limits_of,
    open_units_of,
    unlabelled,
)
from sgpipe.generation.metrics import LAST_DIGITS
from sgpipe.generation.ray_growth import Growth, await_machines
from sgpipe.generation.ray_limit import (
    ANSWER,
    WORK,
    Entrance,
    TurnedAway,
    UnitLimit,
    block_of,
    relay,
)
from sgpipe.generation.ray_pools import (
    Pool,
    gpus_of,
    is_placed,
    plan_pools,
    reserve,
    smallest_pools,
    streamed_requests,
)
from sgpipe.generation.ray_replicas import Directory, RayReplicas
from sgpipe.recipe import EngineConfig
from sgpipe.stages.runner import IsolatedRunner, StageRunner, Usage
from sgpipe.stages.served import waiting
from sgpipe.utils.console import Progress, count
from sgpipe.utils.devices import hide_gpus
from sgpipe.utils.numerics import machine_software, unequal_libraries, unequal_protocols
from sgpipe.utils.ray_cluster import on_driver_node, start_ray, tell_losses, worker_failure

# Units in progress: one being computed, one that Ray has assigned, and two in the queue. Where
# there is one pool, units that wait have cost nothing yet, and quick stages want more.
_UNITS_PER_ACTOR = 4
_UNITS_PER_ONLY_ACTOR = 16
# before the entrance, and through it
_UNITS_PER_BLOCK = 512
_UNITS_AT_ONCE = 64
_POLL_SECONDS = 5
_POLLS_WITHOUT_ROOM = 6
_LEAVE_SECONDS = 10
# Ray is lost; or the thread of an earlier graph still asks
_LOST = (RayError, OSError, ValueError)
_WORKER_OPTIONS = {"max_restarts": 8, "max_task_retries": 1}
# If the actor of the limit is killed, it starts with none in progress.
_LIMIT_OPTIONS = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


@dataclass
class Worker:
    """The actor of a pool: it runs stages, with the reader before them or the writer after them.

    What a user should read travels to the driver as data, because Ray wraps exceptions in pages of
    its own frames.
    """

    runner: StageRunner | IsolatedRunner
    reader: UnitReader | None
    writer: UnitWriter | None
    gpus: float
    directory: Directory | None  # of the servers of engines
    limit: ActorHandle  # gets what it says, knows the software of other machines
    allow_skew: bool

    def __post_init__(self) -> None:
        if not self.gpus:
            hide_gpus()
        waiting.listen(lambda line: self.limit.say.remote(line))
        if self.directory is not None:
            self.directory.follow()

    def __call__(self, block: pa.Table) -> pa.Table:
        if WORK not in block.column_names:
            return block
        unit, records, usage = block[WORK][0].as_py()
        try:
            if self._unequal_software:
                raise UserError(self._unequal_software)
            if self.reader:
                records = self.reader(unit)
            records, more_usage = self.runner(records)
            usage.add(more_usage)
            if self.writer:
                return block_of(ANSWER, self.writer(unit, records, usage))
            return block_of(WORK, (unit, records, usage))
        except (UserError, EngineError, OSError) as error:
            return block_of(ANSWER, unlabelled(unit, error))

    @cached_property
    def _unequal_software(self) -> str:
        """Return in one line how the software of this machine differs from that of others; empty:
        it may take part.
        """
        software = machine_software(has_gpu=self.gpus > 0)
        asked: ray.ObjectRef[dict[str, str]] = self.limit.common_software.remote(software)
        reference = ray.get(asked)
        machine = f"machine {socket.gethostname()} has"
        unequal = unequal_protocols(software, reference)
        if unequal:
            return f"{machine} {unequal}: install the same on all"
        unequal = unequal_libraries(software, reference)
        if not unequal:
            return ""
        if self.allow_skew:
            self.limit.say_once.remote(f"{machine} {unequal}: {LAST_DIGITS}")
            return ""
        return (
            f"{machine} {unequal}: install the same on all, or add --set engine.allow_skew=true if"
            f" {LAST_DIGITS}"
        )


class RayEngine(Engine):
    """See `Engine`."""

    def __init__(self, engine: EngineConfig, replicas: RayReplicas | None = None) -> None:
        """`replicas`: the servers of stages with engines on a cluster."""
        self.workers: dict[tuple[str, ...], int] = {}
        self._config = engine
        self._replicas = replicas

    def start(
        self, stages: StageBuilder, units: Sequence[WorkUnit], progress: Progress, run_rows: int
    ) -> list[WorkUnit]:
        self._stages = stages()
        engine = self._config
        start_ray(engine.address, engine.cpus, progress.say)
        self._say = progress.say
        self._losses = tell_losses(progress.say)
        rows = sum(unit.rows for unit in units)
        self._await_machines(rows)
        actors = max(pool.actors for pool in self._plan_pools(rows))
        units = cut_units(units, engine.unit_size, actors, run_rows)
        pools, placed = reserve(self._plan_pools(len(units)))
        remove_placement_group(placed)  # this was a test
        self._take(pools)
        cluster_gpus = int(ray.cluster_resources().get("GPU", 0))
        if cluster_gpus and not self.gpus and self._replicas is None:
            progress.say(
                f"NOTE: no stage uses the {count(cluster_gpus, 'GPU')} of Ray: set"
                " caption.resources.gpus and tag.resources.gpus"
            )
        return units

    def _await_machines(self, units: int) -> None:
        """Wait until a cluster has machines for the fewest actors.

        Raises:
            UserError: there are none for as long as the recipe allows.
        """
        pools = smallest_pools(self._stages, units)
        await_machines(pools, self._nodes, self._config.machines_timeout, self._say)

    def _nodes(self) -> Sequence[Mapping[str, Any]]:
        """Return the machines, with what the servers of engines leave of them."""
        return self._replicas.nodes_left() if self._replicas else ray.nodes()

    def _plan_pools(self, units: int) -> list[Pool]:
        """Return the pools for what the servers of engines leave of the cluster."""
        return plan_pools(self._stages, units, self._nodes())

    def _take(self, pools: Sequence[Pool]) -> None:
        """Note the sizes of the pools, and say those that have changed."""
        before = self.workers.copy()
        self.workers.clear()
        for pool in pools:
            self.workers[pool.stage_names] = pool.actors
            if before.get(pool.stage_names) == pool.actors:
                continue
            share = f" of {pool.resources.gpus:g} GPU" if pool.resources.gpus else ""
            self._say(f"{count(pool.actors, 'actor')}{share}: {pool.name}")
        self.gpus = gpus_of(pools)

    def run(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
    ) -> Generator[LabelledUnit]:
        """As `Engine.run`.

        When workers or machines are lost more often than Ray replaces them, the remaining units
        start again on what is left of the cluster, as long as that makes progress; an image that
        kills its worker becomes an error row. Requests do not stream across the units that were in
        progress then. Units whose store did not answer start again, too.

        When machines have come, no further unit enters; once those in progress are finished, the
        remaining ones start on larger pools.
        """
        left = {(unit.split, unit.start): unit for unit in units}
        open_units = open_units_of(units, streamed_requests(self._stages))
        patience = Patience(max(self.workers.values()) * open_units)
        kind: type[StageRunner | IsolatedRunner] = StageRunner
        while left:
            before = len(left)
            units = list(left.values())
            if kind is IsolatedRunner and open_units > 1:
                units = units[: self._most_in_progress]
            try:
                with closing(self._run_once(units, reader, writer, kind)) as answers:
                    for answer in answers:
                        if isinstance(answer, PostponedUnit):
                            patience.postpone(answer)
                            continue
                        patience.restore()
                        del left[answer.shard.split, answer.shard.start]
                        yield answer
            except MachinesLostError:
                continue
            except WorkersLostError:
                if kind is IsolatedRunner and len(left) == before:
                    raise
                kind = IsolatedRunner
            else:
                kind = StageRunner

    def _run_once(
        self, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter, kind: type[Any]
    ) -> Generator[LabelledUnit | PostponedUnit]:
        self._await_machines(len(units))
        entering = _enter(units)  # by a task, for which `reserve` leaves no CPU
        planned = self._plan_pools(len(units))
        pools, placed = reserve(planned)
        self._take(pools)
        name = f"sgpipe {uuid4().hex} "
        open_units = [
            1 if kind is IsolatedRunner else open_units_of(units, pool.streamed_requests)
            for pool in pools
        ]
        self._most_in_progress = _most_in_progress(pools, max(open_units))
        limit = _start_limit(self._most_in_progress)
        threading.Thread(target=relay, args=(limit, self._say), daemon=True).start()
        graph = _mapped(entering, Entrance, (limit,), {}, name, [on_driver_node()])
        first_bundle = 0
        for pool, at_once in zip(pools, open_units, strict=True):
            arguments = (
                kind(pool.stages_of_actor, limits_of(self._config)),
                reader if pool is pools[0] else None,
                writer if pool is pools[-1] else None,
                pool.resources.gpus or 0,
                self._replicas.directory if self._replicas else None,
                limit,
                self._config.allow_skew,
            )
            places = _bundles(placed, first_bundle, pool.actors)
            first_bundle += pool.actors
            graph = _mapped(graph, Worker, arguments, pool.needs, name, places, at_once)
        growth = Growth(
            pools,
            planned,
            self._plan_pools,
            waiting_units=len(units) - self._most_in_progress,
            close=limit.close.remote,
        )

        def look() -> None:
            next(self._losses, None)
            growth.look(is_placed(placed))

        try:
            with _watch(name, placed, look) as advanced:
                for answer in _answers(graph, limit, advanced):
                    growth.waiting_units -= 1
                    yield answer
            if growth.has_begun:
                self._say("machines have come: the run continues on more actors")
        except RayError as error:
            kill_actors(name)
            raise _failure(error, placed) from None
        finally:
            growth.end()
            if growth.has_begun:
                kill_actors(name)  # Ray Data leaves them for the units that were turned away
            ray.kill(limit)  # whoever still waits for it would keep the actors of this graph alive
            remove_placement_group(placed)


def _enter(units: Sequence[WorkUnit]) -> Dataset:
    """Return a dataset of a row for each unit, which keeps the settings that are made here."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # There are more actors than units, if few units are left.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: every row is a block of its own
    # Otherwise it is two, and only 20 units a second pass.
    context._max_num_blocks_in_streaming_gen_buffer = _UNITS_AT_ONCE
    blocks: list[pa.Table] = []
    for start in range(0, len(units), _UNITS_PER_BLOCK):
        part = units[start : start + _UNITS_PER_BLOCK]
        blocks.append(block_of(WORK, *((unit, [], Usage()) for unit in part)))
    return from_arrow(blocks)


def _most_in_progress(pools: Sequence[Pool], open_units: int) -> int:
    """Return how many units are in progress at once.

    Args:
        open_units: the most that an actor labels at once.
    """
    per_actor = _UNITS_PER_ONLY_ACTOR if len(pools) == 1 else _UNITS_PER_ACTOR
    per_actor = max(per_actor, open_units + _UNITS_PER_ACTOR)
    return per_actor * sum(pool.actors for pool in pools)


def _start_limit(units: int) -> Any:
    """Start the `UnitLimit` of a graph, on the driver's machine."""
    actor = ray.remote(UnitLimit).options(scheduling_strategy=on_driver_node(), **_LIMIT_OPTIONS)
    return actor.remote(units, machine_software(has_gpu=False))


def _bundles(
    placed: PlacementGroup, first: int, number: int
) -> list[PlacementGroupSchedulingStrategy]:
    """Return the places of the actors of a pool: consecutive bundles of the placement group."""
    return [
        PlacementGroupSchedulingStrategy(placed, bundle) for bundle in range(first, first + number)
    ]


def _answers(
    graph: Dataset, limit: ActorHandle, advanced: threading.Event
) -> Iterator[LabelledUnit | PostponedUnit]:
    """Yield the answer to each unit, which leaves the limit once the caller has committed it.

    Raises:
        UserError, EngineError: what a worker raised.
        RayError: workers are lost.
    """
    leaving: list[ray.ObjectRef[Any]] = []
    for row in graph.iter_rows():
        advanced.set()
        answer = row[ANSWER]
        if isinstance(answer, TurnedAway):
            in_progress: ray.ObjectRef[int] = limit.in_progress.remote()
            if not ray.get(in_progress):
                break
            continue
        if isinstance(answer, Exception):
            raise answer
        yield answer
        done = answer.unit if isinstance(answer, PostponedUnit) else answer.shard
        leaving = [limit.leave.remote((done.split, done.start))]
    # Otherwise Ray reports that a call of a killed actor failed.
    if leaving:
        ray.wait(leaving, timeout=_LEAVE_SECONDS)


def _failure(error: RayError, placed: PlacementGroup) -> EngineError:
    """Return what ended a graph: lost machines, lost workers, or an error in a worker."""
    message = worker_failure(error)
    if not is_placed(placed):
        return MachinesLostError(message)
    return EngineError(message) if isinstance(error, RayTaskError) else WorkersLostError(message)


@contextmanager
def _watch(
    name: str, placed: PlacementGroup, look: Callable[[], None]
) -> Iterator[threading.Event]:
    """Kill the actors of a graph, which ends it with an error, when it stands still on a cluster
    that is too small.

    Actors of a lost machine keep their units until they restart elsewhere; without room for them
    Ray waits forever. Yields what to set with each advance.

    Args:
        name: begins the names of all actors.
        look: is called now and then, to see which machines have gone and come.
    """
    advanced = threading.Event()
    ended = threading.Event()

    def poll() -> None:
        polls = 0
        while not ended.wait(_POLL_SECONDS):
            with suppress(*_LOST):
                look()
            with suppress(*_LOST):
                polls = 0 if advanced.is_set() or is_placed(placed) else polls + 1
                advanced.clear()
                if polls >= _POLLS_WITHOUT_ROOM:
                    # again and again: Ray Data replaces a few that had not started yet
                    kill_actors(name)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield advanced
    finally:
        ended.set()
        thread.join(_POLL_SECONDS)


def kill_actors(name: str) -> None:
    """Kill the actors of a name for good: after an error Ray Data leaves some alive, which keep
    their CPUs forever.
    """
    for actor in list_named_actors():
        if actor.startswith(name):
            with suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(actor))


def _mapped(
    dataset: Dataset,
    worker: Any,
    arguments: tuple[Any, ...],
    needs: Mapping[str, float],
    name: str,
    places: list[Any],
    at_once: int = 1,
) -> Dataset:
    """Return the units, mapped by actors at these places. If a machine is lost, Ray places its
    actors elsewhere.

    Args:
        at_once: how many units an actor maps at once, in threads.
    """
    at = cycle(places)
    threads: dict[str, Any] = {"max_concurrency": at_once} if at_once > 1 else {}

    def options() -> dict[str, Any]:
        return {"name": name + uuid4().hex, "scheduling_strategy": next(at), **_WORKER_OPTIONS}

    with warnings.catch_warnings():
        # Ray offers no other way to limit the retries of a unit that kills its worker.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,  # one unit; Ray requires a number where there are GPUs
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=len(places), enable_true_multi_threading=at_once > 1),
            num_cpus=needs.get("CPU", 0),
            num_gpus=needs.get("GPU"),
            memory=needs.get("memory"),
            ray_remote_args_fn=options,
            **threads,
        )
