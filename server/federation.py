"""The rounds of a federation: sample, send, aggregate one reply at a time, evaluate, checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from client.arrays import tensor_record
from fedpara.aggregate import StreamingMean, check_update, check_weight, squared_distance
from fedpara.checkpoint import Checkpoint
from fedpara.codec import codec
from fedpara.config import Recipe
from fedpara.device import find_device
from fedpara.errors import ConfigError, FederationError, FedparaError, UpdateError
from fedpara.parametrize import merge_
from fedpara.run import Row, Run, only_writer
from fedpara.seeds import derive
from fedpara.sharing import frozen_state, personal_names, shared_state, trained_parameters
from fedpara.slices import SlicedMean, cut, rank_sides
from fedpara.task import Metrics, Task, build_model, build_task
from fedpara.wire import ARRAYS, CONFIG, CONTROL, EVALUATION, EXAMPLES, FINE_TUNE, LATE, RETRY, ROUND

from .averaging import FactorAveraging
from .cohort import Cohort
from .evaluation import Evaluator
from .grid import CodedGrid, NotHeldError, Update
from .memory import ClientMemory
from .roster import Roster
from .strategies import CohortMean, build_strategy

State = dict[str, Tensor]
LOST_ROUNDS = 3  # in a row, that end a federation
log = logging.getLogger("fedpara")


class Observer(Protocol):
    """Told what happens, round by round."""

    def started(self, recipe: Recipe, task: Task, facts: Mapping[str, Any], rows: list[Row]) -> None: ...

    def progressed(self, share: float) -> None:
        """Called when a client has answered: the share of the round's cohort that has."""
        ...

    def finished_round(self, row: Row) -> None: ...

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None: ...

    def close(self) -> None:
        """Called at the end of a run, also of one that was cut off."""
        ...


@dataclass
class _Round:
    """What one round brought in."""

    mean: SlicedMean
    control: StreamingMean
    weights: StreamingMean | None  # of the composed weights, where they are wanted
    held: Cohort  # updates, until it is their turn to enter the means
    trained: list[Metrics] = field(default_factory=list)
    judged: list[Metrics] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    seconds: list[Mapping[str, float]] = field(default_factory=list)  # that clients took, by phase


class Federation:
    """One run of one recipe over a Grid, from its folder's last checkpoint or from the start."""

    def __init__(
        self,
        grid: Grid,
        recipe: Recipe,
        folder: Path,
        observer: Observer,
        *,
        resume: bool = False,
        task: Task | None = None,
    ) -> None:
        self.recipe = recipe
        self.task = task or build_task(recipe)
        self.evaluator = Evaluator(recipe, self.task, find_device(recipe.device))
        self.initial = {name: self.evaluator.initial[name] for name in shared_state(self.evaluator.model)}
        trained = {name: self.initial[name] for name in trained_parameters(self.evaluator.model)}
        self.strategy = build_strategy(recipe, trained)
        self.averaging = FactorAveraging(self.evaluator.model)
        self.personal = bool(personal_names(self.evaluator.model))  # no one model for the server to judge
        self.measure = f"client_{self.task.measure}" if self.personal else self.task.measure
        self.composes = bool(self.averaging) and (recipe.measure_gap or recipe.averaging == "weights")
        dense = build_model(recipe, self.task, parametrization="none").state_dict()
        self.dense_payload = codec("fp32").size(dense)
        self.observer = observer
        self.sides = rank_sides(self.evaluator.model)
        self.grid = CodedGrid(grid, recipe, self.initial, control=trained, sides=self.sides)
        self._only_writer = partial(only_writer, folder, recipe, resume=resume)
        self.grid.memory = ClientMemory(folder / "held")
        self.model = dict(self.initial)

    def run(self) -> Run:
        """Every round that is left, then the merged model and the summary.

        Raises:
            ConfigError: the folder holds a run that is not to be resumed, or another process writes it.
        """
        with self._only_writer() as self.writer:
            self._restore()
            return self._run()

    def _restore(self) -> None:
        """Everything as it was after the folder's last checkpoint."""
        self.grid.ledger = self.writer.ledger
        if self.writer.start:
            self.grid.memory.load(self.writer.start.extra.get("held", {}))
            self.grid.run_name = self.writer.start.extra.get("run", self.grid.run_name)
            self.model = dict(self.writer.start.model)
            self.strategy.load_state_dict(self.writer.start.strategy)

    def _run(self) -> Run:
        self.observer.started(self.recipe, self.task, self._facts(), self.writer.rows)
        if not self._done():
            roster = Roster(self.grid, self.recipe, frozen=frozen_state(self.evaluator.model))
            roster.call()
            lost = 0
            while not self._done():
                here = roster.look()
                self._check_shares()
                self._round(len(self.writer.rows) + 1, here, roster.refused)
                lost = lost + 1 if self.writer.rows[-1]["replies"] < self.recipe.min_replies else 0
                if lost >= LOST_ROUNDS and not self._done():
                    raise self._lost()
        elif self.recipe.final_evaluation and not self.writer.judged_everywhere:
            log.warning("final_evaluation comes with the last round, and that is done: add rounds to have it")
        summary = self._summary()
        self.writer.finish(summary, merge_(self.evaluator.load(self.model)))
        self.observer.finished(summary, self.writer.folder)
        return Run(self.writer.folder, self.task)

    def _check_shares(self) -> None:
        """Raises ConfigError where clients of unequal rank meet a method that cannot do with them."""
        if set(self.grid.shares.values()) <= {0.0, 1.0}:
            return
        self.composes = False  # weights of unequal rank have no common mean to compare with
        for key, value, trouble in (
            ("strategy", self.recipe.strategy, self.strategy.sends_control),
            ("averaging", self.recipe.averaging, self.recipe.averaging == "weights"),
        ):
            if trouble:
                raise ConfigError(f"{key} = '{value}' needs every client at its full rank: leave rank-shares out")

    def _lost(self) -> FederationError:
        """Round after round brought too few replies: waiting on would be for nothing."""
        dropped, least = self.writer.rows[-1]["dropped"], self.recipe.min_replies
        why = dropped[-1]["reason"] if dropped else "nobody was asked"
        return FederationError(
            f"{LOST_ROUNDS} rounds in a row with fewer than {least} usable replies ({why}): "
            "see that clients are running, then resume"
        )

    def _done(self) -> bool:
        """Whether every round is done, or the measure has come as far as it is wanted."""
        rows = self.writer.rows
        return len(rows) >= self.recipe.rounds or (bool(rows) and self._reached(rows[-1]))

    def _reached(self, row: Mapping[str, Any]) -> bool:
        goal, found = self.recipe.stop_at, row.get(self.measure)
        return goal is not None and found is not None and self.task.reached(found, goal)

    def _round(self, round: int, roster: Mapping[str, int], refused: list[dict[str, str]]) -> None:
        started = time.perf_counter()
        recorded = len(self.writer.ledger)
        self.grid.count_late(round)
        cohort = sample(self.recipe, round, list(roster))
        asked = self._ask(round, cohort, roster)
        sent_at = time.perf_counter()
        result = self._new_round(cohort)
        result.dropped += refused
        lacking = self._collect(asked, cohort, result)
        if lacking:  # what these held is lost: all of the model, once more
            self._collect(self._ask(round, lacking, roster, again=True), lacking, result, again=True)
        collected_at = time.perf_counter()
        self.writer.settled()  # the strategy's tensors, which are being written, change with the next step
        settled_at = time.perf_counter()
        self._settle(result)  # what waited for clients that never answered
        gap = self._aggregate(round, result, len(roster))
        aggregated_at = time.perf_counter()
        evaluated = self._evaluate(round)
        if self.recipe.final_evaluation and (round == self.recipe.rounds or self._reached(evaluated.values)):
            self._judge_everywhere(round, roster, result)
        self.writer.ledger.arrange(recorded)
        result.dropped.sort(key=lambda entry: entry["client"])
        row = self._row(round, cohort, result, evaluated, recorded)
        if gap is not None:
            row["factor_gap"] = float(f"{gap:.3g}")
        row["seconds"] = round_to(time.perf_counter() - started)
        row["phases"] = {
            "send": round_to(sent_at - started),
            **_client_phases(result.seconds, collected_at - sent_at),
            "checkpoint": round_to(settled_at - collected_at),
            "aggregate": round_to(aggregated_at - settled_at),
            "evaluate": round_to(time.perf_counter() - aggregated_at),
        }
        row["client_seconds"] = _all_phases(result.seconds)
        held = self.grid.memory.save()
        extra = {"held": held, "run": self.grid.run_name}
        self.writer.finish_round(row, Checkpoint(round, self.model, self.strategy.state_dict(), extra))
        self.grid.memory.prune()
        self.observer.finished_round(row)

    def _ask(self, round: int, cohort: list[str], roster: Mapping[str, int], *, again: bool = False) -> dict[str, str]:
        """Send the model to these clients: message id -> client."""
        config = ConfigRecord({ROUND: round, RETRY: 1} if again else {ROUND: round})
        return self._send(MessageType.TRAIN, cohort, roster, config, self.strategy.broadcast())

    def _send(
        self, kind: str, cohort: list[str], roster: Mapping[str, int], config: ConfigRecord, control: State
    ) -> dict[str, str]:
        content = RecordDict({CONFIG: config})
        if self.model:  # nothing is shared where each client trains alone
            content[ARRAYS] = tensor_record(self.model)
        if control:
            content[CONTROL] = tensor_record(control)
        ttl = self.recipe.deadline + LATE  # Flower discards a reply older than this
        group = str(config[ROUND])
        messages = [Message(content, roster[name], kind, ttl=ttl, group_id=group) for name in cohort]
        ids = self.grid.push_messages(messages)
        return {message_id: client for message_id, client in zip(ids, cohort, strict=True) if message_id is not None}

    def _collect(
        self, asked: Mapping[str, str], clients: list[str], result: _Round, *, again: bool = False
    ) -> list[str]:
        """Hold every good reply; name the others. Returns who lacks a model and was not asked ``again`` yet."""
        enough = self.recipe.cohort if self.recipe.over_selection else None
        take = partial(self._hold, result)

        def drop(client: str, reason: str) -> None:
            _drop(result.dropped, client, reason)
            result.held.forget(client)
            self._add_ready(result)

        return self._receive(asked, clients, take, drop, again=again, enough=enough)

    def _receive(
        self,
        asked: Mapping[str, str],
        clients: list[str],
        take: Callable[[Update], int],
        drop: Callable[[str, str], None],
        *,
        again: bool,
        enough: int | None = None,
    ) -> list[str]:
        """Hand over every good reply until ``take`` has enough; name the others. Returns who lacks a model."""
        waiting = dict.fromkeys(clients, f"no answer within {self.recipe.deadline:g} s")
        lacking: list[str] = []
        taken = 0
        for reply in self.grid.replies(asked, self.recipe.deadline):
            self.writer.settled(wait=False)  # nobody trains on for a disk that is full
            client = asked.get(reply.metadata.reply_to_message_id, "unknown")
            waiting.pop(client, None)
            try:
                taken = take(self.grid.open(reply))
            except FedparaError as error:
                if isinstance(error, NotHeldError) and not again:
                    lacking.append(client)
                    log.warning("%s: %s", client, error)
                else:
                    drop(client, str(error))
            if enough is not None and taken >= enough:
                waiting = dict.fromkeys(waiting, f"not waited for: {taken} others were faster")
                break
        for client, reason in waiting.items():
            drop(client, reason)
        return lacking

    def _hold(self, result: _Round, update: Update) -> int:
        """Check an update and hold it; how many are held. Raises UpdateError where it must not touch the model."""
        check_weight(update.examples)
        before = cut(self.model, self.sides, update.share)
        check_update(update.state, before)
        if self.strategy.sends_control:
            check_update(update.control, self.strategy.trained)
        result.seconds.append(update.seconds)
        trained = {name: update.state[name] for name in self.strategy.trained}
        bound = self.recipe.norm_bound
        result.held.add(update, math.sqrt(squared_distance(trained, before)) if bound else 0.0)
        self._add_ready(result)
        self.observer.progressed(min(len(result.held) / self.recipe.cohort, 1.0))
        return len(result.held)

    def _add_ready(self, result: _Round) -> None:
        """Add those updates to the means whose turn it is, while other clients train."""
        for update in result.held.ready():
            self._add(result, update)

    def _settle(self, result: _Round) -> None:
        """Add what is still held to the means, but for what stands out."""
        for update, refused in result.held.settle():
            if refused:
                _drop(result.dropped, update.client, refused)
            else:
                self._add(result, update)

    def _new_round(self, cohort: list[str]) -> _Round:
        weights = StreamingMean(self.averaging.like()) if self.composes else None
        means = SlicedMean(self.initial, self.sides), StreamingMean(self.strategy.trained), weights
        return _Round(*means, Cohort(cohort, self.recipe.norm_bound))

    def _aggregate(self, round: int, result: _Round, clients: int) -> float | None:
        """Make the cohort's means the next model; how far the factors' mean is from the weights', if it is measured."""
        if result.mean.count < self.recipe.min_replies:
            found, least = result.mean.count, self.recipe.min_replies
            log.warning("round %d: %d usable replies of %d at least, the model stays as it was", round, found, least)
            return None
        model, gap = result.mean.result(self.model), None
        if result.weights is not None:
            weights = result.weights.result()
            gap = self.averaging.gap(self.model, model, weights)
            if self.recipe.averaging == "weights":
                model = self.averaging.refit(model, weights)
        control = result.control.result() if result.control.count else {}
        self.model = self.strategy.step(self.model, CohortMean(model, result.mean.count, clients, control))
        return gap

    def _add(self, result: _Round, update: Update) -> None:
        """Take one checked update into the round's means, unless the weights it composes are not finite."""
        weight = min(update.examples, 1) if self.strategy.uniform else update.examples
        composed: State = {}
        if result.weights is not None:
            composed = self.averaging.compose(update.state)
            try:
                check_update(composed, composed)  # finite factors may have a product that is not
            except UpdateError as error:
                return _drop(result.dropped, update.client, str(error))
        result.mean.add(update.state, weight, update.share, checked=True)  # from here on nothing can be refused
        if self.strategy.sends_control:
            result.control.add(update.control, weight, checked=True)
        if result.weights is not None:
            result.weights.add(composed, weight, checked=True)
        judged = {k.removeprefix(EVALUATION): v for k, v in update.metrics.items() if k.startswith(EVALUATION)}
        trained = {k: v for k, v in update.metrics.items() if not k.startswith(EVALUATION)}
        result.trained.append(Metrics(update.examples, trained))
        if judged:
            result.judged.append(Metrics(int(judged.pop(EXAMPLES, 0)), judged))

    def _evaluate(self, round: int) -> Metrics:
        due = round % self.recipe.evaluate_every == 0 or round == self.recipe.rounds
        return self.evaluator(self.model) if due and not self.personal else Metrics(0, {})

    def _judge_everywhere(self, round: int, roster: Mapping[str, int], result: _Round) -> None:
        """Every client's judgement of what it ends up with, on its own held-out data, in place of the cohort's."""
        config = ConfigRecord({ROUND: round, FINE_TUNE: self.recipe.fine_tune})
        found: dict[str, Metrics] = {}

        def take(update: Update) -> int:
            found[update.client] = Metrics(update.examples, update.metrics)
            return len(found)

        def judge(clients: list[str], *, again: bool) -> list[str]:
            asked = self._send(MessageType.EVALUATE, clients, roster, config, {})
            return self._receive(asked, clients, take, partial(_drop, result.dropped), again=again)

        lacking = judge(list(roster), again=False)
        if lacking:  # what these held is lost: all of the model, once more
            judge(lacking, again=True)
        result.judged = list(found.values())
        rows = [{"client": name, "examples": own.examples, **own.values} for name, own in sorted(found.items())]
        self.writer.write_clients(rows)

    def _row(self, round: int, cohort: list[str], result: _Round, evaluated: Metrics, recorded: int) -> Row:
        """One line of the run's log."""
        ledger = self.writer.ledger
        rows = ledger.to_rows(recorded)
        before = self.writer.rows[-1] if self.writer.rows else {"total": 0, "dense_total": 0}
        sums = {
            f"{direction}{suffix}": sum(entry[unit] for entry in rows if entry["direction"] == direction)
            for direction in ("up", "down")
            for unit, suffix in (("payload", ""), ("message", "_message"))
        }
        dense = sum(self._of_dense_twin(entry) for entry in rows)
        return {
            "round": round,
            **evaluated.values,
            "train_loss": None,
            **{f"train_{name}": value for name, value in Metrics.mean(result.trained).values.items()},
            **{f"client_{name}": value for name, value in Metrics.mean(result.judged).values.items()},
            "cohort": cohort,
            "replies": result.mean.count,
            "dropped": result.dropped,
            **sums,
            "total": before["total"] + sums["up"] + sums["down"],
            "dense_total": before["dense_total"] + dense,
        }

    def _of_dense_twin(self, entry: Row) -> int:
        """What the same transfer takes without factors and in float32."""
        purpose, model = entry["purpose"], self.dense_payload
        return {"weights": model, "control": model, "scales": 0}.get(purpose, entry["payload"])

    def _facts(self) -> dict[str, Any]:
        """Sizes that do not change from round to round."""
        return {
            "shared_parameters": sum(tensor.numel() for tensor in self.initial.values()),
            "uplink_payload": codec(self.recipe.uplink).size(self.initial),
            "dense_twin_model": self.dense_payload,
        }

    def _summary(self) -> dict[str, Any]:
        """The run in a few figures, with its dense fp32 twin beside it."""
        rows, ledger = self.writer.rows, self.writer.ledger
        last = next((row for row in reversed(rows) if self.measure in row), {})
        return {
            "recipe": self.recipe.name,
            "measure": self.measure,
            "higher_is_better": self.task.higher_is_better,
            "value": last.get(self.measure),
            "client_value": rows[-1].get(f"client_{self.measure}") if rows else None,
            "rounds": len(rows),
            "payload_up": ledger.total("up"),
            "payload_down": ledger.total("down"),
            "message_up": ledger.total("up", "message"),
            "message_down": ledger.total("down", "message"),
            "dense_payload": rows[-1]["dense_total"] if rows else 0,
            "paper_gib": ledger.paper(4 * self._facts()["shared_parameters"], self.recipe.cohort, len(rows)),
            "seconds": round_to(sum(row["seconds"] for row in rows)),
            "dropped": sum(len(row["dropped"]) for row in rows),
            **self._facts(),
        }


def _client_phases(clients: list[Mapping[str, float]], elapsed: float) -> dict[str, float]:
    """Seconds by phase of the client that took longest, and what is left: on the way, waiting for polls, in queues."""
    slowest = max(clients, key=lambda phases: sum(phases.values()), default={})
    wait = max(elapsed - sum(slowest.values()), 0.0)
    return {name: round_to(seconds) for name, seconds in {**slowest, "wait": wait}.items()}


def _all_phases(clients: list[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by phase, of all clients together."""
    names = dict.fromkeys(name for phases in clients for name in phases)
    return {name: round_to(sum(phases.get(name, 0.0) for phases in clients)) for name in names}


def _drop(dropped: list[dict[str, str]], client: str, reason: str) -> None:
    dropped.append({"client": client, "reason": reason})
    log.warning("%s dropped: %s", client, reason)


def sample(recipe: Recipe, round: int, clients: list[str]) -> list[str]:
    """The round's cohort: drawn without replacement from the clients' names by the recipe's seed."""
    generator = np.random.default_rng(derive(recipe.seed, "cohort", round))
    size = min(recipe.cohort + recipe.over_selection, len(clients))
    return [clients[index] for index in sorted(generator.choice(len(clients), size, replace=False))]


def round_to(seconds: float) -> float:
    """Milliseconds are as fine as a wall clock is worth writing down."""
    return float(f"{seconds:.3f}")
