"""How much faster a second purifier is judged blind, when the first one's evaluation has left its attacks on file.

usage: python benchmarks/blind_cache.py CLASSIFIER [--classifier_name resnet56] [--n 100] [--out FILE]

One run evaluates two purifiers (the shipped one, and the same with every weight moved by a hundredth, which is as
expensive and about as good) under the threats blind and blind_worst with one cache. Timed is all of `evaluate`:
fingerprints, attacks, judging, the report and its figure; imports and the loading of networks and data are not. On a
CPU the clock is that of the process, so that what else runs on the machine does not count.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pyautoattack  # noqa: F401  imported here so that it is not timed
import torch

from maep_lightning.data import get_spec
from maep_lightning.evaluation import Plan, evaluate
from maep_lightning.evaluation.provenance import describe_run
from maep_lightning.evaluation.report import write  # noqa: F401  as pyautoattack
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.purifier import Purifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="file of a CIFAR-10 classifier")
    parser.add_argument("--classifier_name", help="what network it holds, if the file does not say it")
    parser.add_argument("--n", type=int, default=100, help="test images (100)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the row")
    options = parser.parse_args()
    root = Path(os.environ.get("MAEP_DATA_DIR", "data")).expanduser()
    images, labels = get_spec("cifar10").load("test", root, download=False)
    classifier = load_classifier(options.classifier, options.classifier_name, 10).to(options.device)
    first = Purifier.from_pretrained("maep_conv_patch4_32_cifar10")
    second, generator = copy.deepcopy(first), torch.Generator().manual_seed(0)
    for weight in second.parameters():
        weight.data *= 1 + 0.01 * torch.randn(weight.shape, generator=generator)
    plan = Plan(eps="8/255", threats=("none", "blind", "blind_worst"), n=options.n, chunk_size=100)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    begun, seconds = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, purifier in enumerate((first, second)):
            started = clock()
            evaluate(
                classifier,
                purifier.to(options.device),
                images,
                labels,
                plan,
                Path(folder, str(number)),
                cache_dir=Path(folder, "cache"),
                sanity=0,
            )
            seconds.append(clock() - started)
    row = {
        "row": f"blind and blind_worst, second purifier, n = {options.n}, {Path(options.classifier).stem}",
        "ours": round(seconds[1], 2),
        "peer": round(seconds[0], 2),
        "peer_version": f"the first purifier, maep-lightning {version('maep-lightning')}",
        "ratio": round(seconds[0] / seconds[1], 1),
        "spread": None,
        "limit_share": None,
    }
    print(f"first {row['peer']} s, second {row['ours']} s: {row['ratio']} times faster ({row['row']})")
    if options.out is not None:
        run = describe_run(plan.seed, time.monotonic() - begun)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"schema": 1, "run": run, "rows": [row]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
