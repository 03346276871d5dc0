"""The batch at which a run came apart, in a file to look at, and the error that names it.

safetensors.torch.load_file(FILE)                               images float32 [B, C, h, w], labels uint8 [B, h, w]
safetensors.safe_open(FILE, "pt").metadata()["batch"]           JSON: step, seed, and each image's name and number
"""

import json
import sys

from segmenter.checkpoint import write_tensors
from segmenter.errors import FAILED, ConfigError, SegmenterError
from segmenter.ranks import Ranks
from segmenter.training.data import Augmented, Order, batches
from segmenter.training.options import TrainOptions
from segmenter.training.state import RunFolder, reporting

_NAMED = 3  # images, in the error


def came_apart(samples: Augmented, order: Order, folder: RunFolder, options: TrainOptions, ranks: Ranks) -> ConfigError:
    """The error to raise where the loss before an update is no number, its batch written into the run's folder.

    order: of that update alone; its batch is made once more, which gives the same one. The first process of many writes
    and speaks; the others end here.
    """
    if not ranks.first:
        sys.exit(FAILED)
    (places,), step = order, order.first
    sources = [_source(samples, index) for _, index in places]
    path = folder.root / f"bad-batch-{step:08d}.safetensors"
    # the number of a sample, with the seed, decides how it was augmented
    facts = {
        "step": step,
        "seed": options.seed,
        "samples": [
            {"source": source, "index": index, "number": number}
            for source, (number, index) in zip(sources, places, strict=True)
        ],
    }
    try:
        images, labels = next(batches(samples, order, workers=0))
        with reporting(path, "cannot be written"):
            write_tensors({"images": images, "labels": labels}, path, {"batch": json.dumps(facts)})
        where = f"saved as {path}"
    except SegmenterError as error:
        where = f"not saved: {error}"
    named = ", ".join(sources[:_NAMED]) + (f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else "")
    good = f"{folder.last} (step {folder.read_record().step}) is good" if folder.holds_run else "no state was saved yet"
    return ConfigError(
        f"training came apart at step {step + 1}: the loss or a weight is no longer a number, with {named}"
        f" ({where}); {good}; go on with --resume always and a lower --lr ({options.optimizer.lr}), --clip-grad 1, or"
        " --amp off"
    )


def _source(samples: Augmented, index: int) -> str:
    try:
        return samples.dataset[index].source
    except SegmenterError:  # skipped, in this run
        return f"what took the place of image {index}"
