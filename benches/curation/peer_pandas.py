"""The peer of the analysis: the same tasks in pandas, as somebody writes them who knows it. Prints seconds and megabytes.

`python peer_pandas.py counts|together|whole FOLDER`, with tags.parquet, tags.pictures.parquet and selection.csv there. It does
not measure captions, nor look for knees, both of which the analysis does.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

THRESHOLDS = [0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
MIN_SCORE = np.float32(0.3)


def read(folder):
    """The columns that are needed, text as categories: several times faster than as strings."""
    columns = ["image", "tag", "score"]
    table = pq.read_table(folder / "tags.parquet", columns=columns, read_dictionary=["image", "tag"])
    rows = table.unify_dictionaries().to_pandas()
    del table
    wrong = rows[~rows["score"].between(0, 1)]
    assert wrong.empty, wrong.head()
    return rows


def counts(rows, selection):
    """Frequencies, histograms, quantiles and the shares of a group."""
    names = rows["tag"].cat.categories
    canonical = names.str.lower().str.split().str.join("_")
    assert len(set(canonical)) == len(names), "tags are spelled in several ways"
    found = {"images": rows["image"].nunique(), "lowest": rows["score"].min()}
    selected = rows[rows["tag"].isin(selection)]
    selected = selected.assign(tag=selected["tag"].cat.remove_unused_categories())
    by_tag = selected.groupby("tag", observed=True)["score"]
    found["tags"] = by_tag.agg(["size", "mean"])
    found["at"] = {t: (selected["score"] >= np.float32(t)).groupby(selected["tag"], observed=True).sum() for t in THRESHOLDS}
    bucket = np.minimum((selected["score"] * 20).astype("int8"), 19)
    found["histogram"] = pd.crosstab(selected["tag"], bucket)
    found["quantiles"] = by_tag.quantile([k / 10 for k in range(11)]).unstack()
    group = [name for name in names if "_blurry_" in f"_{name}_"]
    of_group = rows[rows["tag"].isin(group)]
    highest = of_group.groupby("image", observed=True)["score"].max()
    found["group"] = {t: int((highest >= np.float32(t)).sum()) for t in [0.0, *THRESHOLDS]}
    return found, selected


def together(selected, selection):
    """How many pictures have each two of the selected tags: by a sparse matrix of pictures by tags, in blocks."""
    there = selected[selected["score"] >= MIN_SCORE]
    images, _ = pd.factorize(there["image"].cat.codes)
    tags = there["tag"].cat.codes.to_numpy()
    pairs = np.zeros((len(selection), len(selection)), dtype="int64")
    order = np.argsort(images, kind="stable")
    images, tags = images[order], tags[order]
    block = 50_000
    for first in range(0, images.max() + 1, block):
        here = slice(*np.searchsorted(images, [first, first + block]))
        table = np.zeros((block, len(selection)), dtype="float32")
        table[images[here] - first, tags[here]] = 1
        pairs += (table.T @ table).astype("int64")
    return pairs


def sharpness(rows, folder):
    """Spearman and the area under the curve of blurry and measured sharpness."""
    pictures = pd.read_parquet(folder / "tags.pictures.parquet", columns=["image", "sharpness"])
    blurry = rows[rows["tag"] == "blurry"]
    scores = pd.Series(blurry["score"].to_numpy(), index=blurry["image"].astype("str"))
    pictures["score"] = scores.reindex(pictures["image"]).fillna(0.0).to_numpy()
    ranks = pictures[["score", "sharpness"]].rank()
    without = pictures["score"] < MIN_SCORE
    n, m = int(without.sum()), int((~without).sum())
    auc = (ranks["sharpness"][without].sum() - n * (n + 1) / 2) / (n * m)
    medians = pictures["sharpness"].groupby((pictures["score"] * 10).astype("int8")).median()
    return ranks["score"].corr(ranks["sharpness"]), auc, medians


def main():
    task, folder = sys.argv[1], Path(sys.argv[2])
    start = time.perf_counter()
    selection = pd.read_csv(folder / "selection.csv").query("include == 1")["name"].tolist()
    rows = read(folder)
    found, selected = counts(rows, selection)
    print(len(rows), [int(at["blurry"]) for at in found["at"].values()], list(found["group"].values())[1:])
    if task != "counts":
        print(together(selected, selection).sum())
    if task == "whole":
        spearman, auc, _ = sharpness(rows, folder)
        print(f"{spearman:.9f} {auc:.9f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(time.perf_counter() - start, peak)


if __name__ == "__main__":
    main()
