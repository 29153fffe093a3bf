"""The engine: takes chunks up the ladder, judges, and puts everything on file."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from maep_lightning.attacks.target import isolated_rng
from maep_lightning.evaluation.binding import bind, chunk_fingerprints
from maep_lightning.evaluation.cache import AttackCache, Made
from maep_lightning.evaluation.cost import clean_seconds, price
from maep_lightning.evaluation.inputs import class_mismatch, pixels
from maep_lightning.evaluation.judging import confine, judge, suspects
from maep_lightning.evaluation.ladder import fixed
from maep_lightning.evaluation.ledger import Ledger, LedgerError, Status, Unit, empty_images
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.progress import Progress, Timings
from maep_lightning.evaluation.results import Results, Subject, collect, name_attacks, title_of
from maep_lightning.evaluation.rungs import Batch, Candidates, Rung, judge_seed, unit_seed
from maep_lightning.evaluation.sanity.battery import battery, read, write
from maep_lightning.evaluation.sanity.findings import Case
from maep_lightning.evaluation.sources import Sources
from maep_lightning.evaluation.summary import alive, kept, standing
from maep_lightning.evaluation.workers import Workers, find_workers


def evaluate(
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    run_dir: str | Path,
    *,
    subject: Subject | None = None,
    sources: Sources | None = None,
    cache_dir: str | Path | None = None,
    reference: str | Path | None = None,
    device: torch.device | str | None = None,
    workers: Workers | None = None,
    progress: bool = True,
    surrogate: nn.Module | None = None,
    sanity: int = 64,
    strict: bool = False,
) -> Results:
    """Attack, judge and report; go on where an earlier call with the same arguments was killed.

    Every process of a distributed run calls this with the same arguments and gets the same results; `run_dir` must be
    on a file system that all of them see.

    Args:
        classifier: Frozen classifier, images in [0, 1] to logits `(B, K)`, in evaluation mode.
        purifier: Images in [0, 1] to images in [0, 1], in evaluation mode; None evaluates the bare classifier, under
            the threats `none`, `blind` and `whitebox` only.
        images: `(N, C, H, W)`, uint8, or floating point in [0, 1].
        labels: `(N,)` int64.
        plan: What to measure.
        run_dir: Where the ledger, `results.json`, the reports and `audit.csv` go.
        subject: Names for the report.
        sources: Files of the networks and images, kept in `run_dir` for `maep verify`; None keeps none.
        cache_dir: Where attacks on the bare classifier are kept across runs; None for no such place.
        reference: A JSON file of published rows that the report prints beside these.
        device: Where to compute; by default where the classifier is, or the purifier, if the classifier has no weights.
        workers: The processes; by default those of `torch.distributed`.
        progress: Whether to print progress on stderr.
        surrogate: The frozen classifier that the transfer threat attacks; needed for that one only.
        sanity: The first so many images go through the sanity battery; 0 leaves it out.
        strict: Whether a failed check of the battery withholds the headline.

    Returns:
        The results, which are also on file.

    Raises:
        ValueError: If the networks or the data cannot be evaluated as they are.
        PlanChangedError: If `run_dir` holds an evaluation of something else.
        LedgerError: If a file of the ledger is damaged or was edited.
    """
    run_dir, workers = Path(run_dir), workers or find_workers()
    started = time.monotonic()
    bound = bind(classifier, purifier, images, labels, plan, run_dir, device, surrogate)
    images, labels, device, manifest = bound.images, bound.labels, bound.device, bound.manifest
    bare, defended, ledger, rungs = bound.bare, bound.defended, bound.ledger, bound.rungs
    subject = subject or Subject()
    mismatch = class_mismatch(manifest.values["num_classes"], subject.class_names)
    manifest.pin(run_dir)
    if sources is not None and workers.rank == 0:
        sources.write(run_dir)
    chunks = -(-len(labels) // plan.chunk_size)
    bar = Progress(progress and workers.rank == 0, chunks, workers.world_size)
    cache = AttackCache(Path(cache_dir)) if cache_dir is not None else None
    engine = _Engine(
        plan, rungs, images, labels, ledger, cache, Timings(run_dir), bar, device, min(sanity, len(labels))
    )
    attacks = name_attacks(title_of(rung, manifest) for rung in rungs if rung.baseline is not None)
    bar.say(f"{len(labels)} images in {chunks} chunks, {plan.norm} eps {plan.eps}: {attacks}")
    if mismatch:
        bar.say(f"warning: {mismatch}")
    for number in workers.chunks(chunks):
        engine.climb(number)
    workers.join()
    if not (run_dir / "plan.json").exists():
        raise FileNotFoundError(f"{run_dir} is not the same folder for every process; use a shared file system.")
    results = collect(plan, manifest, rungs, ledger, run_dir, subject, time.monotonic() - started)
    if sanity > 0:
        sample = pixels(images[:sanity], device), labels[:sanity].to(device)
        random = defended if defended is not None and defended.draws > 1 else None
        case = Case(
            bare, defended if random is None else fixed(random, plan, bare), *sample, plan, results.outcomes, random
        )
        if workers.rank == 0 and read(manifest, results.ledger_hash, run_dir, len(sample[1]), strict) is None:
            bar.say(f"sanity battery on {len(sample[1])} images")
            write(battery(case, strict), manifest, results.ledger_hash, run_dir)
        workers.join()
        checked = read(manifest, results.ledger_hash, run_dir, len(sample[1]), strict)
        assert checked is not None
        for check in checked.failed:
            bar.say(f"{check.id} {check.name} FAILED: {check.detail}")
        results = results.checked(checked)
    if workers.rank == 0:
        from maep_lightning.evaluation.report.write import write_pictures, write_report

        write_report(results, rungs, ledger, images, labels, run_dir, reference)
        with isolated_rng(plan.seed, device):
            write_pictures(results, rungs, ledger, images, labels, run_dir)
        bar.say(f"report: {run_dir / 'report.md'}")
    workers.join()
    return results


@dataclass(frozen=True)
class _Engine:
    plan: Plan
    rungs: list[Rung]
    images: Tensor
    labels: Tensor
    ledger: Ledger
    cache: AttackCache | None
    timings: Timings
    bar: Progress
    device: torch.device
    sanity: int

    def climb(self, number: int) -> None:
        """Take one chunk up all rungs."""
        started = time.monotonic()
        indices = self._indices(number)
        images, labels = pixels(self.images[indices], self.device), self.labels[indices].to(self.device)
        chunk, data = Batch(number, indices, images, labels, 0), self._data[number]
        made: set[str] = set()
        for rung in self.rungs:
            stale = bool(made & {rung.baseline, rung.source})
            if self._climb_rung(rung, chunk, data, stale):
                made.add(rung.name)
            if rung.baseline is None and self.bar.upper_bound is None:
                self._preview()
        self.bar.chunk_done(time.monotonic() - started, recalled=not made)

    def _indices(self, number: int) -> Tensor:
        start = number * self.plan.chunk_size
        return torch.arange(start, min(start + self.plan.chunk_size, len(self.labels)))

    @cached_property
    def _data(self) -> list[str]:
        return chunk_fingerprints(self.images, self.labels, self.plan.chunk_size)

    def _preview(self) -> None:
        seconds = clean_seconds(self.rungs, self.timings)
        if seconds is None:
            return
        bound = price(
            self.rungs, self.plan, self._data, len(self.labels), self.sanity, seconds, self.ledger, self.cache
        )
        self.bar.expect(bound.attacks / self.bar.world_size, bound.sanity, bound.milliseconds)

    def _climb_rung(self, rung: Rung, chunk: Batch, data: str, stale: bool) -> bool:
        """Take a chunk up one rung; true if something had to be made.

        What follows from a unit that is made anew is made anew: a unit that ended in an exception is tried again. What
        follows from such a one is no other run's, and not cached.
        """
        clean = None if rung.baseline is None else self.ledger.read(rung.baseline, "clean", chunk.chunk)
        made = False
        units: list[Unit | None] = []
        for attack in rung.attacks:
            if stale or made:
                self.ledger.drop(rung.name, attack, chunk.chunk)
            rows = alive(rung, clean, standing(rung, clean, units, chunk.indices)).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            unit = self._recall(rung, attack, chunk, data, rows)
            if unit is None:
                self.bar.at(rung.name, attack, chunk.chunk, len(rows), len(chunk))
                unit = self._make(rung, attack, chunk, data, rows, clean)
                made = True
                sound = all(before is None or before.error is None for before in (clean, *units))
                if self.cache is not None and rung.cached and sound:
                    self.cache.write(unit)
            units.append(unit)
        return made

    def _recall(self, rung: Rung, attack: str, chunk: Batch, data: str, rows: Tensor) -> Unit | None:
        """The unit from the ledger or the cache, if it is of this plan and did not end in an exception."""
        unit = self.ledger.read(rung.name, attack, chunk.chunk)
        if unit is None and self.cache is not None and rung.cached:
            unit = self.cache.read(Unit, rung.name, rung.context_hash, attack, chunk.chunk, data)
            if unit is None or not torch.equal(unit.indices, chunk.indices[rows]):
                return None  # made where an exception had ended an attack before it
            self.ledger.write(unit)
        if unit is None or unit.error is not None:
            return None
        expected = {
            "context": rung.context_hash,
            "data": data,
            "seed": unit_seed(self.plan.seed, rung.name, attack, chunk.chunk),
        }
        for name, value in expected.items():
            if getattr(unit, name) != value:
                raise LedgerError(f"{self.ledger.root / unit.path} is of another evaluation: its {name} differs.")
        if not torch.equal(unit.indices, chunk.indices[rows]):
            raise LedgerError(f"{self.ledger.root / unit.path} does not follow from the files before it.")
        return unit

    def _make(self, rung: Rung, attack: str, chunk: Batch, data: str, rows: Tensor, clean: Unit | None) -> Unit:
        seed = unit_seed(self.plan.seed, rung.name, attack, chunk.chunk)
        whole = replace(chunk, seed=seed)
        batch = whole.part(rows)
        watches, started = {id(target): target.watch for target in (rung.watched, rung.judge)}, time.monotonic()
        for watch in watches.values():
            watch.reset()
        error = None
        status = torch.full((len(batch),), int(Status.ERROR), dtype=torch.uint8)
        prediction = torch.full((len(batch),), -1, dtype=torch.int64)
        margin, right = torch.zeros(len(batch)), torch.zeros(len(batch), dtype=torch.int32)
        stored = torch.zeros(len(batch), dtype=torch.bool)
        adversarial = empty_images(batch.images)
        notes: dict[str, object] = {}
        try:
            if rung.origin is None:
                made = self._attack(rung, attack, batch, data)
                found, unreliable = made.images, made.unreliable
            else:
                made = self._attack_once(rung, attack, whole, data)
                found, unreliable = made.images[rows], made.unreliable[rows]
            found, unreliable = found.to(self.device), unreliable.to(self.device)
            images, inside = confine(found, batch.images, self.plan.norm, float(self.plan.eps))
            with isolated_rng(judge_seed(seed), self.device):
                verdict = judge(rung.judge, images, batch.labels)
            trusted = inside & verdict.finite
            wrong = trusted & (verdict.prediction != batch.labels)
            was_wrong = torch.ones_like(wrong)
            if clean is not None:
                was_wrong = (clean.status[rows] != Status.ROBUST).to(self.device)
            status[:] = int(Status.ROBUST)
            status[(~trusted | (unreliable & ~wrong)).cpu()] = int(Status.ERROR)
            status[wrong.cpu()] = int(Status.BROKEN)
            status[(wrong & was_wrong).cpu()] = int(Status.CLEAN_WRONG)
            prediction, margin, right = verdict.prediction.cpu(), verdict.margin.cpu(), verdict.right.cpu()
            stored = kept(rung, status, right)
            adversarial = images[stored.to(self.device)].cpu()
            notes = made.notes
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            self.bar.say(f"chunk {chunk.chunk + 1}, {rung.name} {attack}: {error}")
        unit = Unit(
            rung.name, attack, chunk.chunk, rung.context_hash, data, seed,
            batch.indices, status, prediction, margin, right, stored, adversarial, rung.judge.draws, error, notes,
        )  # fmt: skip
        self.ledger.write(unit)
        forwards, backwards = (sum(getattr(w, name) for w in watches.values()) for name in ("forwards", "backwards"))
        self.timings.add(unit, time.monotonic() - started, forwards, backwards)
        return unit

    def _attack_once(self, rung: Rung, attack: str, whole: Batch, data: str) -> Made:
        """What an attack that no judge has a part in makes of a whole chunk, from the cache where that has it."""
        if self.cache is None:
            return self._attack(rung, attack, whole, data)
        made = self.cache.read(Made, rung.name, rung.origin_hash, attack, whole.chunk, data)
        if made is None:
            made = self._attack(rung, attack, whole, data)
            self.cache.write(made)
        return made

    def _attack(self, rung: Rung, attack: str, batch: Batch, data: str) -> Made:
        candidates, splits = self._generate(rung, attack, batch)
        watch = rung.watched.watch
        unreliable = suspects(watch.suspects, batch.images, self.plan.norm, float(self.plan.eps))
        if candidates.unreliable is not None:
            unreliable |= candidates.unreliable
        warnings = [*candidates.warnings, *([f"{attack}: gradients were not finite"] if watch.nonfinite else [])]
        notes: dict[str, object] = {"warnings": warnings, "splits": splits}
        notes |= {"zero_gradients": watch.zero, "nonfinite_gradients": watch.nonfinite}
        context = rung.origin_hash if rung.origin is not None else rung.context_hash
        images = candidates.images
        return Made(rung.name, attack, batch.chunk, context, data, batch.seed, images, unreliable, notes)

    def _generate(self, rung: Rung, attack: str, batch: Batch) -> tuple[Candidates, int]:
        """Candidates, on half of the batch at a time when the memory does not suffice; and into how many parts."""
        try:
            return rung.generate(batch, attack), 1
        except RuntimeError as problem:
            if "out of memory" not in str(problem).lower() or len(batch) == 1:
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.bar.say(f"{rung.name} {attack}: out of memory with {len(batch)} images, going on with half of them")
        half = len(batch) // 2
        (first, a), (second, b) = (
            self._generate(rung, attack, batch.part(rows)) for rows in (slice(0, half), slice(half, None))
        )
        unreliable = [
            part.unreliable if part.unreliable is not None else torch.zeros(len(part.images), dtype=torch.bool)
            for part in (first, second)
        ]
        warnings = list(dict.fromkeys(first.warnings + second.warnings))
        joined = torch.cat([mask.to(batch.images.device) for mask in unreliable])
        return Candidates(torch.cat([first.images, second.images]), joined, warnings), a + b
