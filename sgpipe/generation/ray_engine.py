"""The engine: a list of stages and a list of work units become one Ray Data graph.

One row is one work unit is one shard. Consecutive stages with equal resources share a pool of actors; the
first pool reads a unit from the source index, the last one writes its shard, and the driver alone commits
shards to the manifest, in the order in which they are done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from sgpipe.errors import EngineError, MachinesLostError, UserError, WorkersLostError, refusal
from sgpipe.generation.backpressure import beside_driver, open_turnstile
from sgpipe.recipe import EngineConfig, Resources
from sgpipe.records import Record, from_table, to_table
from sgpipe.stages.base import Stage
from sgpipe.stages.runner import IsolatedRunner, StageRunner
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shards import shard_name
from sgpipe.storage.source_index import read_records
from sgpipe.storage.storage import Shelf

_UNIT, _SECONDS, _RECORDS, _ENTRY, _REFUSAL, _FAILURE = "unit", "seconds", "records", "entry", "refusal", "failure"
_UNITS_AHEAD = 4  # for each actor: one at work, one that Ray has given it, and two in the queue before it
_SECONDS_BETWEEN_LOOKS, _LOOKS = 5, 6
_WORKER_ARGS = {"max_restarts": 8, "max_task_retries": 1}
_SECONDS_TO_CONNECT = 5


@dataclass(frozen=True)
class WorkUnit:
    """Rows `start` to `stop` of a split.

    `revises` names an earlier shard of these rows: one that was lost, or, with `redo`, one whose error rows (and
    only these) are done again.
    """

    split: str
    start: int
    stop: int
    revises: str | None = None
    redo: bool = False
    revision: int = 0


@dataclass(frozen=True)
class Pool:
    """Stages that run in the same actors."""

    stages: tuple[Stage, ...]
    resources: Resources
    actors: int


@dataclass(frozen=True)
class UnitReader:
    """Work unit → its records, from the source index of its split."""

    shelf: Shelf
    indexes: dict[str, str]

    def __call__(self, unit: WorkUnit) -> list[Record]:
        name = self.indexes[unit.split]
        with self.shelf.open(name) as index:
            records = read_records(index, unit.start, unit.stop, name)
        if not (unit.redo and unit.revises):
            return records
        failed = self.shelf.read_shard(unit.revises, ["status"])["status"].to_pylist()
        return [record for record, status in zip(records, failed, strict=True) if status == "error"]


class Entrance:
    """The body of the actor before the first pool: passes a unit on once the turnstile lets it in.

    What it passes on is small and lies with the driver. If the workers waited themselves, one that has to do a lost
    unit again could wait for that very unit to leave. Actors that a lost machine took along keep their units until they
    start again; if there is no room for them any more, nobody might ever leave.
    """

    def __init__(self, turnstile: ActorHandle, needs: Mapping[str, float]) -> None:
        self.turnstile = turnstile
        self.needs = needs

    def __call__(self, block: pa.Table) -> pa.Table:
        """Raises MachinesLostError: for half a minute there was neither room for the unit nor for all actors."""
        entered: ray.ObjectRef[None] = self.turnstile.enter.remote(_key(_unit(block)))
        looks = 0
        while not ray.wait([entered], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            looks = 0 if _has_room(self.needs) else looks + 1
            if looks == _LOOKS:
                raise MachinesLostError
        ray.get(entered)
        return block


@dataclass(frozen=True)
class UnitWriter:
    """The finished records of a unit → its shard."""

    shelf: Shelf

    def __call__(self, unit: WorkUnit, records: list[Record], seconds: dict[str, float]) -> ShardEntry:
        if unit.redo and unit.revises:
            again = iter(records)
            earlier = from_table(self.shelf.read_shard(unit.revises))
            records = [record if record.ok else next(again) for record in earlier]
        name = shard_name(unit.split, unit.start, unit.stop, unit.revision)
        return self.shelf.write_shard(name, unit.split, unit.start, records, seconds)


class Worker:
    """The body of an actor: a run of stages, with the reader before them or the writer after them.

    What a user should know travels to the driver as data, because Ray wraps exceptions in pages of its own frames.
    """

    def __init__(
        self, runner: StageRunner | IsolatedRunner, reader: UnitReader | None, writer: UnitWriter | None
    ) -> None:
        self.runner = runner
        self.reader = reader
        self.writer = writer

    def __call__(self, block: pa.Table) -> pa.Table:
        if _UNIT not in block.column_names:
            return block
        try:
            return self._run(block)
        except UserError as error:
            return pa.table({_REFUSAL: [str(error)]})
        except OSError as error:
            return pa.table({_FAILURE: [refusal(error)]})

    def _run(self, block: pa.Table) -> pa.Table:
        unit = _unit(block)
        records = self.reader(unit) if self.reader else _records(block)
        records, own = self.runner(records)
        seconds = {**json.loads(block[_SECONDS][0].as_py()), **own}
        if self.writer:
            entry = self.writer(unit, records, {k: round(v, 3) for k, v in seconds.items()})
            return pa.table({_ENTRY: [json.dumps(asdict(entry))]})
        return _block(unit, seconds, records)


def _key(unit: WorkUnit | ShardEntry) -> str:
    return f"{unit.split} {unit.start}"


def _block(unit: WorkUnit, seconds: dict[str, float], records: Sequence[Record] = ()) -> pa.Table:
    """What carries a unit from pool to pool: a row with all of its records in it."""
    rows = to_table(records).to_struct_array().combine_chunks()
    return pa.table(
        {
            _UNIT: [json.dumps(asdict(unit))],
            _SECONDS: [json.dumps(seconds)],
            _RECORDS: pa.ListArray.from_arrays([0, len(rows)], rows),
        }
    )


def _unit(block: pa.Table) -> WorkUnit:
    return WorkUnit(**json.loads(block[_UNIT][0].as_py()))


def _records(block: pa.Table) -> list[Record]:
    return from_table(pa.Table.from_struct_array(block[_RECORDS].combine_chunks().flatten()))


def start_ray(config: EngineConfig) -> None:
    """Join the cluster at `config.address`, or start one on this machine. Raises EngineError."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    local: dict[str, Any] = {} if config.address else {"num_cpus": config.cpus, "include_dashboard": False}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _reach(config.address)
        with _quiet_stderr():
            ray.init(address=config.address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # noqa: BLE001 - that a machine is too slow for Ray comes as a plain Exception
        what = f"the Ray cluster at {config.address} cannot be joined" if config.address else "Ray did not start here"
        raise EngineError(f"{what}: {getattr(error, 'strerror', None) or _first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in its place


def _reach(address: str | None) -> None:
    """Raises OSError: nobody answers at HOST:PORT. Ray itself would try for a minute, and then end the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Ray's core announces its log level on the process's stderr, whatever that level is."""
    saved = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def idle_gpus(stages: Sequence[Stage]) -> str:
    """What to tell a user whose GPUs no stage asks for; nothing to anybody else."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if not gpus or any(stage.resources.gpus for stage in stages):
        return ""
    return f"NOTE: Ray has {gpus:g} GPUs and no stage asks for one: see caption.resources.gpus, tag.resources.gpus"


def plan_pools(stages: Sequence[Stage], units: int) -> list[Pool]:
    """Group stages of equal resources and size their pools to the machine.

    Pools without a fixed number of actors share what the others leave, so that all pools run at once.

    Raises UserError: the recipe asks for more than the cluster has.
    """
    groups = [(resources, tuple(g)) for resources, g in groupby(stages, key=lambda s: s.resources)]
    available = ray.cluster_resources()
    room = {"cpus": available.get("CPU", 0.0), "gpus": available.get("GPU", 0.0)}
    for resources, members in groups:
        for kind in room:
            room[kind] -= getattr(resources, kind) * (resources.actors or 1)
            if room[kind] < -1e-6:
                raise UserError(_too_much(groups, kind, available, members))
    pools = [Pool(members, resources, resources.actors or 1) for resources, members in groups]
    while grown := _grow(pools, room, units):
        pools = grown
    return pools


def _needs(pools: Sequence[Pool]) -> dict[str, float]:
    """What all actors together take, as Ray names it."""
    return {
        kind.upper().removesuffix("S"): sum(getattr(pool.resources, kind) * pool.actors for pool in pools)
        for kind in ("cpus", "gpus")
    }


def _has_room(needs: Mapping[str, float]) -> bool:
    available = ray.cluster_resources()
    return all(available.get(kind, 0.0) >= need - 1e-6 for kind, need in needs.items())


def _grow(pools: list[Pool], room: dict[str, float], units: int) -> list[Pool] | None:
    """One more actor for the smallest growable pool that fits into `room`."""
    for pool in sorted(pools, key=lambda pool: pool.actors):
        need = {kind: getattr(pool.resources, kind) for kind in room}
        if pool.resources.actors or pool.actors >= units or any(need[k] > room[k] + 1e-6 for k in room):
            continue
        for kind in room:
            room[kind] -= need[kind]
        return [replace(p, actors=p.actors + 1) if p is pool else p for p in pools]
    return None


def _too_much(
    groups: Sequence[tuple[Resources, tuple[Stage, ...]]],
    kind: str,
    available: dict[str, float],
    members: tuple[Stage, ...],
) -> str:
    wanted = sum(getattr(resources, kind) * (resources.actors or 1) for resources, _ in groups)
    has = available.get(kind[:-1].upper(), 0.0)
    return (
        f"the recipe asks for {wanted:g} {kind} at once, Ray has {has:g}; "
        f"lower {members[0].name}.resources.{kind} or .actors"
    )


def run_units(
    stages: Sequence[Stage], units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
) -> Generator[ShardEntry, None, None]:
    """Run every unit through the stages; yields each shard as soon as it lies in its place.

    When workers or machines are lost more often than Ray makes up for, what is left begins anew on what is there,
    as long as that gets further, and with images that kill a worker as error rows.

    Raises:
        UserError: a stage could not be set up or refused its input.
        EngineError: the disk is full, a stage failed, or Ray gave up on a unit.
    """
    left = {(unit.split, unit.start): unit for unit in units}
    isolated = False
    while left:
        before = len(left)
        try:
            with closing(_run_once(stages, list(left.values()), reader, writer, isolated)) as shards:
                for shard in shards:
                    del left[shard.split, shard.start]
                    yield shard
        except MachinesLostError:
            continue
        except WorkersLostError:
            if isolated and len(left) == before:
                raise
            isolated = True


def _run_once(
    stages: Sequence[Stage], units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter, isolated: bool
) -> Generator[ShardEntry, None, None]:
    pools = plan_pools(stages, len(units))
    turnstile = open_turnstile(_UNITS_AHEAD * sum(pool.actors for pool in pools)) if len(pools) > 1 else None
    try:
        for row in _graph(pools, units, reader, writer, isolated, turnstile).iter_rows():
            if _REFUSAL in row:
                raise UserError(row[_REFUSAL])
            if _FAILURE in row:
                raise EngineError(row[_FAILURE])
            shard = ShardEntry(**json.loads(row[_ENTRY]))
            yield shard
            if turnstile:
                turnstile.leave.remote(_key(shard))
    except RayTaskError as error:
        if not _has_room(_needs(pools)):
            raise MachinesLostError(reason(error)) from None
        raise EngineError(reason(error)) from None
    except RayError as error:
        raise WorkersLostError(reason(error)) from None
    finally:
        if turnstile:
            ray.kill(turnstile)  # whoever waits there would keep the actors of this graph alive


def _graph(
    pools: Sequence[Pool],
    units: Sequence[WorkUnit],
    reader: UnitReader,
    writer: UnitWriter,
    isolated: bool,
    turnstile: ActorHandle | None = None,
) -> ray.data.Dataset:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a unit is never split
    runner = IsolatedRunner if isolated else StageRunner
    dataset: ray.data.Dataset = ray.data.from_arrow([_block(unit, {}) for unit in units])
    if turnstile:
        entrance = (turnstile, _needs(pools))
        dataset = _mapped(dataset, Entrance, entrance, 1, 0, 0, scheduling_strategy=beside_driver())
    for i, pool in enumerate(pools):
        arguments = (runner(pool.stages), reader if i == 0 else None, writer if i == len(pools) - 1 else None)
        dataset = _mapped(dataset, Worker, arguments, pool.actors, pool.resources.cpus, pool.resources.gpus)
    return dataset


def _mapped(
    dataset: ray.data.Dataset,
    worker: type[Worker] | type[Entrance],
    arguments: tuple[Any, ...],
    actors: int,
    cpus: float,
    gpus: float,
    **options: Any,
) -> ray.data.Dataset:
    """The units after they went through so many actors; `options`: further ones of Ray's for an actor."""
    with warnings.catch_warnings():
        # Ray offers no other way to bound the retries of a unit that kills its worker.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,  # a unit; Ray insists on a number where there are GPUs
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus or None,
            ray_remote_args_fn=partial(dict, **_WORKER_ARGS, **options),
        )


def reason(error: BaseException) -> str:
    """The innermost message of what Ray raised, in one line."""
    named = [line for line in str(error).splitlines() if re.match(r"[\w.]+([Ee]rror|Exception)(: |$)", line)]
    inner = [line for line in named if not line.startswith(("ray.", "UserCodeException"))]
    return f"a worker failed: {(inner or [_first_line(error)])[0]}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
