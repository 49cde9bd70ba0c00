"""Feed the shards of a build to a training loop, by webdataset: python examples/read_shards.py builds/stamps/shards.

The manifest says how many samples there are, so no loader has to be told.
"""

import json
import sys
from pathlib import Path

import webdataset

SHOWN = 3


def main(folder: Path) -> None:
    """Read the training split once and say what came."""
    manifest = json.loads((folder / "manifest.json").read_text())
    split = manifest["splits"]["train"]
    shards = [str(folder / shard["path"]) for shard in split["shards"]]
    pairs = webdataset.WebDataset(shards, shardshuffle=False).decode("pilrgb").to_tuple("png;jpg;webp", "txt", "json")
    seen = 0
    for image, caption, about in pairs:
        if seen < SHOWN:
            print(image.size, repr(caption), about.get("scores"))
        seen += 1
    print(f"{seen} of {split['samples']} samples")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
