"""The engine: takes chunks up the ladder, judges, and puts everything on file."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from maep_lightning.attacks.autoattack import check_inputs
from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.findings import Case
from maep_lightning.evaluation.ledger import Ledger, LedgerError, Status, Unit, UnitCache, empty_images
from maep_lightning.evaluation.plan import Manifest, Plan
from maep_lightning.evaluation.progress import Progress, Timings, clock
from maep_lightning.evaluation.results import Results, Subject, collect
from maep_lightning.evaluation.rungs import Batch, Candidates, Rung, ladder, unit_seed
from maep_lightning.evaluation.sanity import battery, read, write
from maep_lightning.evaluation.summary import alive, merge
from maep_lightning.evaluation.verify import confine, judge, suspects
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
        purifier: Images in [0, 1] to images in [0, 1], in evaluation mode; None evaluates the bare classifier.
        images: `(N, C, H, W)`, uint8, or floating point in [0, 1].
        labels: `(N,)` int64.
        plan: What to measure.
        run_dir: Where the ledger, `results.json`, the reports and `audit.csv` go.
        subject: Names for the report.
        cache_dir: Where attacks on the bare classifier are kept across runs; None for no such place.
        reference: A JSON file of published rows that the report prints beside these.
        device: Where to compute; by default where the classifier is.
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
    images, labels = _data(images, labels, plan.n)
    bare, defended = Target(classifier), None if purifier is None else Target(purifier, classifier)
    device = torch.device(device) if device is not None else bare.device
    surrogate = surrogate if "transfer" in plan.threats else None
    other = None if surrogate is None else Target(surrogate)
    _preflight(bare, defended, other, images, labels, plan, device)
    manifest = Manifest.bind(
        plan,
        classifier,
        purifier,
        images,
        labels,
        bare.num_classes(_pixels(images[:1], device)),
        device.type,
        surrogate,
    )
    ledger = Ledger(run_dir / "ledger")
    rungs = ladder(plan, manifest, bare, defended, ledger, other)
    manifest.pin(run_dir)
    chunks = -(-len(labels) // plan.chunk_size)
    bar = Progress(progress and workers.rank == 0, chunks, workers.world_size)
    cache = UnitCache(Path(cache_dir)) if cache_dir is not None else None
    engine = _Engine(plan, ledger, cache, Timings(run_dir), bar, device)
    bar.say(f"{len(labels)} images in {chunks} chunks, {manifest.values['attack_title']}, {plan.norm} eps {plan.eps}")
    for number in workers.chunks(chunks):
        engine.climb(rungs, images, labels, number)
    workers.join()
    if not (run_dir / "plan.json").exists():
        raise FileNotFoundError(f"{run_dir} is not the same folder for every process; use a shared file system.")
    results = collect(plan, manifest, rungs, ledger, run_dir, subject or Subject(), time.monotonic() - started)
    if sanity > 0:
        sample = _pixels(images[:sanity], device), labels[:sanity].to(device)
        case = Case(bare, defended, *sample, plan, results.outcomes)
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
        from maep_lightning.evaluation.report import write_report

        results.write(run_dir / "results.json")
        write_report(results, rungs, ledger, images, labels, run_dir, reference)
        bar.say(f"report: {run_dir / 'report.md'}")
    workers.join()
    return results


class _Engine:
    def __init__(
        self, plan: Plan, ledger: Ledger, cache: UnitCache | None, timings: Timings, bar: Progress, device: torch.device
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.cache = cache
        self.timings = timings
        self.bar = bar
        self.device = device

    def climb(self, rungs: list[Rung], images: Tensor, labels: Tensor, number: int) -> None:
        """Take one chunk up all rungs."""
        started = time.monotonic()
        start = number * self.plan.chunk_size
        indices = torch.arange(start, min(start + self.plan.chunk_size, len(labels)))
        chunk = Batch(number, indices, _pixels(images[indices], self.device), labels[indices].to(self.device), 0)
        data = fingerprint.of_tensors({"images": images[indices], "labels": labels[indices]})
        made: set[str] = set()
        for rung in rungs:
            stale = bool(made & {rung.baseline, rung.source})
            if self._climb_rung(rung, chunk, data, stale):
                made.add(rung.name)
            if self.bar.upper_bound is None and all(self.ledger.has(r.name, "clean", number) for r in _clean(rungs)):
                self._preview(rungs, len(labels))
        self.bar.chunk_done(time.monotonic() - started, recalled=not made)

    def _climb_rung(self, rung: Rung, chunk: Batch, data: str, stale: bool) -> bool:
        """Take a chunk up one rung; true if something had to be made.

        What follows from a unit that is made anew is made anew: a unit that ended in an exception is tried again.
        """
        baseline = None
        if rung.baseline is not None:
            clean = self.ledger.read(rung.baseline, "clean", chunk.chunk)
            assert clean is not None
            baseline = clean.status
        made = False
        units: list[Unit | None] = []
        for attack in rung.attacks:
            if stale or made:
                self.ledger.drop(rung.name, attack, chunk.chunk)
            rows = alive(rung, baseline, merge(rung, baseline, units, chunk.indices)).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            unit = self._recall(rung, attack, chunk, data, rows)
            if unit is None:
                self.bar.at(rung.name, attack, chunk.chunk, len(rows), len(chunk))
                unit = self._make(rung, attack, chunk, data, rows, baseline)
                made = True
            units.append(unit)
        return made

    def _recall(self, rung: Rung, attack: str, chunk: Batch, data: str, rows: Tensor) -> Unit | None:
        """The unit from the ledger or the cache, if it is of this plan and did not end in an exception."""
        unit = self.ledger.read(rung.name, attack, chunk.chunk)
        if unit is None and self.cache is not None and rung.cached:
            unit = self.cache.read(rung.name, rung.context_hash, attack, chunk.chunk, data)
            if unit is not None and torch.equal(unit.indices, chunk.indices[rows]):
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

    def _make(self, rung: Rung, attack: str, chunk: Batch, data: str, rows: Tensor, baseline: Tensor | None) -> Unit:
        seed = unit_seed(self.plan.seed, rung.name, attack, chunk.chunk)
        where = rows.to(self.device)
        batch = Batch(chunk.chunk, chunk.indices[rows], chunk.images[where], chunk.labels[where], seed)
        watch, started = rung.watched.watch, time.monotonic()
        watch.reset()
        error = None
        status = torch.full((len(batch),), int(Status.ERROR), dtype=torch.uint8)
        prediction = torch.full((len(batch),), -1, dtype=torch.int64)
        margin = torch.zeros(len(batch))
        adversarial = empty_images(batch.images)
        notes: dict[str, object] = {}
        try:
            candidates, splits = self._generate(rung, attack, batch)
            images, inside = confine(candidates.images, batch.images, self.plan.norm, float(self.plan.eps))
            with isolated_rng(seed, self.device):
                verdict = judge(rung.judge, images, batch.labels)
            trusted = inside & verdict.finite
            unreliable = torch.zeros_like(trusted) if candidates.unreliable is None else candidates.unreliable
            unreliable = unreliable | suspects(watch.suspects, batch.images, self.plan.norm, float(self.plan.eps))
            wrong = trusted & (verdict.prediction != batch.labels)
            was_wrong = torch.ones_like(wrong)
            if baseline is not None:
                was_wrong = (baseline[rows] != Status.ROBUST).to(self.device)
            status[:] = int(Status.ROBUST)
            status[(~trusted | (unreliable & ~wrong)).cpu()] = int(Status.ERROR)
            status[wrong.cpu()] = int(Status.BROKEN)
            status[(wrong & was_wrong).cpu()] = int(Status.CLEAN_WRONG)
            prediction, margin = verdict.prediction.cpu(), verdict.margin.cpu()
            adversarial = images[(wrong & ~was_wrong)].cpu()
            warnings = [*candidates.warnings, *([f"{attack}: gradients were not finite"] if watch.nonfinite else [])]
            notes = {"warnings": warnings, "splits": splits}
            notes |= {"zero_gradients": watch.zero, "nonfinite_gradients": watch.nonfinite}
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            self.bar.say(f"chunk {chunk.chunk + 1}, {rung.name} {attack}: {error}")
        unit = Unit(
            rung.name, attack, chunk.chunk, rung.context_hash, data, seed,
            batch.indices, status, prediction, margin, adversarial, error, notes,
        )  # fmt: skip
        self.ledger.write(unit)
        if self.cache is not None and rung.cached:
            self.cache.write(unit)
        self.timings.add(unit, time.monotonic() - started, watch.forwards, watch.backwards)
        return unit

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

    def _preview(self, rungs: list[Rung], n: int) -> None:
        """Bound the time from the measured time of the clean passes; a backward pass costs about two forward ones."""
        seconds = {
            entry["rung"]: entry["seconds"] / max(entry["samples"], 1)
            for entry in self.timings.read()
            if entry["attack"] == "clean"
        }
        total = 0.0
        for rung in rungs:
            forward = seconds.get(rung.baseline or rung.name)
            if forward is None:
                return
            total += n * forward * sum(forwards + 2 * backwards for forwards, backwards in rung.cost.values())
        self.bar.upper_bound = total / self.bar.world_size
        self.bar.say(f"at most about {clock(self.bar.upper_bound)} if no image breaks; broken ones cost far less")


def _clean(rungs: list[Rung]) -> list[Rung]:
    return [rung for rung in rungs if rung.baseline is None]


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    """Images as float32 in [0, 1] on the device, outside inference mode."""
    with torch.inference_mode(False):
        moved = images.clone().to(device)
        return moved.float().div(255) if moved.dtype == torch.uint8 else moved.float()


def _data(images: Tensor, labels: Tensor, n: int | None) -> tuple[Tensor, Tensor]:
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Give images (N, C, H, W) and labels (N,); got {tuple(images.shape)} and {tuple(labels.shape)}."
        )
    if n is not None and n > len(labels):
        raise ValueError(f"n = {n}, but there are only {len(labels)} images.")
    if len(labels) == 0:
        raise ValueError("There is no image to evaluate.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"Images must be uint8, or floating point in [0, 1], not {images.dtype}.")
    return images[:n].cpu(), labels[:n].long().cpu()


def _preflight(
    bare: Target,
    defended: Target | None,
    surrogate: Target | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    device: torch.device,
) -> None:
    """Find out before the first attack what would spoil all of them."""
    named = {"The classifier": bare, "The purifier": defended, "The surrogate": surrogate}
    targets = {name: target for name, target in named.items() if target is not None}
    for name, target in targets.items():
        if target.device != device:
            raise ValueError(f"{name} is on {target.device}, but the evaluation on {device}; move it with .to(...).")
    if set(plan.threats) - {"none", "noise"}:
        plan.settings.check_image_size(*images.shape[-2:])
    differentiated = [bare] if {"blind", "blind_worst", "bpda", "whitebox"} & set(plan.threats) else []
    differentiated += [surrogate] if surrogate is not None else []
    differentiated += [defended] if defended is not None and "whitebox" in plan.threats else []
    first = _pixels(images[:1], device)
    for target in targets.values():
        with target.guarded(), isolated_rng(plan.seed, device):
            check_inputs(_pixels(images, torch.device("cpu")), labels, target.num_classes(first))
            if target not in differentiated:
                continue
            point = first.clone().requires_grad_()
            with torch.enable_grad():
                logits = target(point)
            if not logits.requires_grad:
                through = "the purifier and the classifier" if target is defended else "the classifier"
                raise ValueError(
                    f"No gradient flows through {through}: a gradient attack would find nothing, and that is no"
                    " robustness. Look for detach(), no_grad or integer operations, or leave out the white-box threat."
                )
