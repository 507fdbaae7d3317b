"""Other loaders, each with the way to packed rows that its documentation recommends, as far as it has one.

A peer reads one dataset into which jets and showers were mixed when it was written, which is cheaper for it than mixing
while it reads. A loader that does not pack whole sequences itself gets `RowPacker`.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from loaders.contender import Contender, Read, blocks, each, permuted_blocks
from loaders.samples import BLOCK, RowPacker, Rows, Samples

SHARDS = 20
CHUNK_BYTES = 2**21
NPY_HEADER = 128
"""Bytes before the numbers in a small one-dimensional .npy."""
Block = tuple[NDArray, NDArray]
PER_SAMPLE = "webdataset, a sequence per member"
BY_ARROW = " by our gather"


def raw(data: bytes, kind: type) -> NDArray:
    """The numbers of a small .npy without the cost of reading its header."""
    return np.frombuffer(data, kind, offset=NPY_HEADER)


# webdataset


def _write_tars(samples: Iterable[dict[str, NDArray]], count: int, folder: Path) -> None:
    import webdataset

    pattern, size = str(folder / "%06d.tar"), -(-count // SHARDS)
    with webdataset.ShardWriter(pattern, maxcount=size, mtime=0, verbose=0) as sink:
        for number, arrays in enumerate(samples):
            sink.write({"__key__": f"{number:09d}", **arrays})


def write_tars(samples: Samples, folder: Path) -> None:
    """One sequence per member."""
    _write_tars(({"tokens.npy": tokens} for tokens in samples.each()), len(samples), folder)


def write_block_tars(samples: Samples, folder: Path) -> None:
    """One block per member."""
    found = ({"tokens.npy": t, "offsets.npy": o.astype(np.uint32)} for t, o in samples.blocks())
    _write_tars(found, -(-len(samples) // BLOCK), folder)


def _tars(folder: Path, epoch: int) -> Iterable[dict]:
    import webdataset

    paths = sorted(map(str, folder.glob("*.tar")))
    return webdataset.WebDataset(paths, shardshuffle=len(paths), detshuffle=True, seed=epoch)


def webdataset_decoded(folder: Path, epoch: int) -> Iterator[NDArray]:
    return (s["tokens.npy"] for s in _tars(folder, epoch).decode())  # type: ignore[attr-defined]


def webdataset_raw(folder: Path, epoch: int) -> Iterator[NDArray]:
    return (raw(s["tokens.npy"], np.uint16) for s in _tars(folder, epoch))


def webdataset_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    return ((s["tokens.npy"], s["offsets.npy"]) for s in _tars(folder, epoch).decode())  # type: ignore[attr-defined]


# Megatron-Energon: tars as above with an index of its own


def _index_for_energon(folder: Path) -> None:
    from megatron.energon.flavors import BaseWebdatasetFactory

    names = sorted(path.name for path in folder.glob("*.tar"))
    BaseWebdatasetFactory.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)
    settings = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(settings)


def write_energon(samples: Samples, folder: Path) -> None:
    write_tars(samples, folder)
    _index_for_energon(folder)


def write_block_energon(samples: Samples, folder: Path) -> None:
    write_block_tars(samples, folder)
    _index_for_energon(folder)


@cache
def _energon(folder: Path) -> Iterable[dict]:
    from megatron import energon

    class Encoder(energon.DefaultTaskEncoder):
        cookers = [energon.Cooker(energon.stateless(lambda sample: sample))]
        decoder = None

    alone = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    source = energon.get_train_dataset(
        folder, worker_config=alone, batch_size=None, shuffle_buffer_size=None, max_samples_per_sequence=None,
        task_encoder=Encoder(), repeat=False)  # fmt: skip
    return energon.get_loader(source)


def energon_sequences(folder: Path, epoch: int) -> Iterator[NDArray]:
    return (raw(s["tokens.npy"], np.uint16) for s in _energon(folder))


def energon_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    return ((raw(s["tokens.npy"], np.uint16), raw(s["offsets.npy"], np.uint32)) for s in _energon(folder))


# MosaicML Streaming


def _streaming() -> ModuleType:
    """The package. It imports torchvision, which is not used here and does not fit every build of torch."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__dict__.update(VisionDataset=object, CIFAR10=object, to_tensor=None)
        module.__spec__ = ModuleSpec(name, None)
    return importlib.import_module("streaming")


def _write_mds(samples: Iterable[dict[str, NDArray]], columns: dict[str, str], folder: Path) -> None:
    with _streaming().MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as sink:
        for arrays in samples:
            sink.write(arrays)


def write_mds(samples: Samples, folder: Path) -> None:
    _write_mds(({"tokens": tokens} for tokens in samples.each()), {"tokens": "ndarray:uint16"}, folder)


def write_block_mds(samples: Samples, folder: Path) -> None:
    found = ({"tokens": tokens, "offsets": offsets.astype(np.uint32)} for tokens, offsets in samples.blocks())
    _write_mds(found, {"tokens": "ndarray:uint16", "offsets": "ndarray:uint32"}, folder)


@cache
def _mds(folder: Path) -> Iterable[dict[str, NDArray]]:
    streaming = _streaming()
    streaming.base.util.clean_stale_shared_memory()  # of a run before, on which this one would stumble
    return streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=1)


def mds_sequences(folder: Path, epoch: int) -> Iterator[NDArray]:
    return (sample["tokens"] for sample in _mds(folder))


def mds_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    return ((sample["tokens"], sample["offsets"]) for sample in _mds(folder))


# litdata


def _litdata_sequence(place: tuple[str, int, int]) -> NDArray:
    path, start, end = place
    return np.array(np.load(path, mmap_mode="r")[start:end])


def _litdata_block(place: tuple[str, int, int]) -> dict[str, NDArray]:
    path, first, last = place
    offsets = np.load(Path(path).with_name("offsets.npy"), mmap_mode="r")[first : last + 1]
    tokens = _litdata_sequence((path, int(offsets[0]), int(offsets[-1])))
    return {"tokens": tokens, "offsets": (offsets - offsets[0]).astype(np.uint32)}


def _optimize(work: Callable, places: list[tuple[int, int]], folder: Path, loader: object = None) -> None:
    import litdata

    source = str(folder.parent / "samples" / "tokens.npy")
    litdata.optimize(work, [(source, *place) for place in places], str(folder), chunk_bytes=CHUNK_BYTES,
                     num_workers=1, item_loader=loader)  # fmt: skip


def write_litdata(samples: Samples, folder: Path) -> None:
    ends = samples.offsets.tolist()
    _optimize(_litdata_sequence, list(itertools.pairwise(ends)), folder)


def write_block_litdata(samples: Samples, folder: Path) -> None:
    n = len(samples)
    _optimize(_litdata_block, [(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK)], folder)


@cache
def _litdata(folder: Path) -> Iterable:
    import litdata

    return litdata.StreamingDataset(str(folder), shuffle=True)


def litdata_sequences(folder: Path, epoch: int) -> Iterator[NDArray]:
    yield from _litdata(folder)


def litdata_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    return ((s["tokens"], s["offsets"]) for s in _litdata(folder))


# grain, with ArrayRecord files, its own format


def _write_records(records: Iterable[bytes], folder: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "data.array_record"), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def write_records(samples: Samples, folder: Path) -> None:
    _write_records((tokens.tobytes() for tokens in samples.each()), folder)


def write_block_records(samples: Samples, folder: Path) -> None:
    found = ((np.uint32(len(o)).tobytes() + o.astype(np.uint32).tobytes() + t.tobytes()) for t, o in samples.blocks())
    _write_records(found, folder)


def _grain(folder: Path, epoch: int) -> grain.MapDataset:  # type: ignore[name-defined]  # noqa: F821
    import grain

    source = grain.sources.ArrayRecordDataSource(str(folder / "data.array_record"))
    return grain.MapDataset.source(source).shuffle(seed=epoch)


def grain_sequences(folder: Path, epoch: int) -> Iterator[NDArray]:
    found = _grain(folder, epoch)
    return (np.frombuffer(found[i], np.uint16) for i in range(len(found)))


def grain_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    found = _grain(folder, epoch)
    for i in range(len(found)):
        record = found[i]
        count = int(np.frombuffer(record, np.uint32, 1)[0])
        yield np.frombuffer(record, np.uint16, offset=4 + 4 * count), np.frombuffer(record, np.uint32, count, offset=4)


def grain_packing(folder: Path, epoch: int, packer: RowPacker) -> Iterator[Rows]:
    """grain's own first-fit packing."""
    import grain

    found = _grain(folder, epoch).map(lambda record: {"tokens": np.frombuffer(record, np.uint16).astype(np.int64)})
    packed = grain.experimental.FirstFitPackIterDataset(
        found.to_iter_dataset(), length_struct={"tokens": packer.row_tokens}, num_packing_bins=8)  # fmt: skip
    for batch in packed.batch(packer.rows):
        yield batch["tokens"], int((batch["tokens_segment_ids"] > 0).sum())


# Hugging Face datasets, streaming a Parquet file


def write_parquet(samples: Samples, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = pyarrow.ListArray.from_arrays(samples.offsets.astype(np.int32), pyarrow.array(samples.tokens))
    table = pyarrow.table({"tokens": rows})
    parquet.write_table(table, folder / "data.parquet", row_group_size=BLOCK, compression="none")


def huggingface_blocks(folder: Path, epoch: int) -> Iterator[Block]:
    from datasets import load_dataset

    source = load_dataset("parquet", data_files=str(folder / "data.parquet"), streaming=True, split="train")
    for batch in source.with_format("arrow").iter(batch_size=BLOCK):
        column = batch["tokens"].combine_chunks()
        offsets = column.offsets.to_numpy()
        yield column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _family(library: str, package: str, guarantees: str, environment: str, sequences: list[Contender],
            block_files: str, write: Callable[[Samples, Path], None], read: Callable[[Path, int], Iterable[Block]]
            ) -> list[Contender]:  # fmt: skip
    """Single sequences, blocks, and blocks with their sequences shuffled in two ways, of one library."""
    block = Contender(f"{library}, blocks", block_files, blocks(read), guarantees, write)
    shuffled = replace(block, name=f"{library}, blocks and sequences shuffled", read=permuted_blocks(read),
                       guarantees=guarantees + "S")  # fmt: skip
    by_arrow = replace(shuffled, name=shuffled.name + BY_ARROW, read=permuted_blocks(read, by_arrow=True))
    return [replace(c, package=package, environment=environment) for c in [*sequences, block, shuffled, by_arrow]]


def _single(name: str, files: str, read: Read, guarantees: str, write: Callable[[Samples, Path], None]) -> Contender:
    return Contender(name, files, read, guarantees, write, per_sample=True)


CONTENDERS = [
    *_family("webdataset", "webdataset", "M", "most", [
        _single(PER_SAMPLE, "tars", each(webdataset_decoded), "M", write_tars),
        _single(f"{PER_SAMPLE}, np.frombuffer", "tars", each(webdataset_raw), "M", write_tars),
    ], "block_tars", write_block_tars, webdataset_blocks),
    *_family("Energon", "megatron-energon", "ORM", "most", [
        _single("Energon, a sequence per member", "energon", each(energon_sequences), "ORMS", write_energon),
    ], "block_energon", write_block_energon, energon_blocks),
    *_family("MosaicML Streaming", "mosaicml-streaming", "OREM", "mosaicml", [
        _single("MosaicML Streaming, a sequence per sample", "mds", each(mds_sequences), "OREMS", write_mds),
    ], "block_mds", write_block_mds, mds_blocks),
    *_family("litdata", "litdata", "OR", "most", [
        _single("litdata, a sequence per sample", "litdata", each(litdata_sequences), "ORS", write_litdata),
    ], "block_litdata", write_block_litdata, litdata_blocks),
    *_family("grain", "grain", "OREM", "most", [
        _single("grain, a sequence per record", "records", each(grain_sequences), "OREMS", write_records),
        _single("grain, a sequence per record, its own packing", "records", grain_packing, "ORWMS", write_records),
    ], "block_records", write_block_records, grain_blocks),
    Contender("Hugging Face datasets, streaming", "parquet", blocks(huggingface_blocks), "M", write_parquet, "datasets",
              "most"),
]  # fmt: skip
