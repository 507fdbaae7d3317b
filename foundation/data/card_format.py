"""How a dataset's files hold its point clouds: the `format` section of a card.

Everything is declared, nothing is evaluated. A file's arrays are first given our names (`points`, `objects`), then put
into our units and conventions (`conversions`, `categories`); what a card's features ask for beyond that is derived by
the field's textbook formulas (`kinematics`). The same section, read backwards, writes files.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foundation.data.section import Section


class RaggedPoints(Section):
    """One jagged array per quantity: vector branches of ROOT, list columns of Parquet."""

    layout: Literal["ragged"]
    keys: dict[str, str] = Field(min_length=1)
    """Our name of a quantity -> branch or column."""


class LinkedPoints(Section):
    """Objects of an event that point at the event's particles by index (NanoAOD): one object per entry of the link."""

    layout: Literal["linked"]
    object_index: str
    """Branch with one entry per constituent: to which object of the event it belongs."""
    point_index: str
    """Branch with one entry per constituent: which particle of the event it is."""
    keys: dict[str, str] = Field(min_length=1)
    """Our name of a quantity -> branch with one entry per particle of the event."""
    link_keys: dict[str, str] = {}
    """Our name of a quantity -> branch with one entry per constituent, beside the link itself."""


class PaddedPoints(Section):
    """One array [objects, places, columns], or several arrays [objects, places]; some places hold no point."""

    layout: Literal["padded"]
    key: str | None = None
    """Array with all columns."""
    columns: tuple[str, ...] = ()
    """Our names of the columns of `key`; "" for one that is not read."""
    keys: dict[str, str] = {}
    """Our name of a quantity -> its own array [objects, places]."""
    axes: tuple[Literal["object", "place", "column"], ...] = ("object", "place", "column")
    """Order of the axes of `key`. Without "place", `places` times the columns lie one after the other."""
    places: int | None = Field(None, ge=1)
    """Places of an object: needed to unfold a flat array, and to write files of a fixed size."""
    real: str | None = None
    """Name of a column that is not zero where a place holds a point, wherever in the row it is."""
    count: str | None = None
    """Name of a quantity of the object: so many places hold a point."""
    empty: Literal["last", "first"] = "last"
    """Where the places without a point are: after the points, or before them ("left padding"). With `real` they may be
    anywhere when files are read; files are written like this."""
    keep_mask: bool = False
    """The column `real` is a mask without a meaning of its own: it is not read as a quantity, only written."""

    @model_validator(mode="after")
    def _check(self) -> PaddedPoints:
        if (self.key is None) == (not self.keys) or (self.key is not None) != bool(self.columns):
            raise ValueError("give either key and columns (one array) or keys (one array per quantity)")
        if (self.real is None) == (self.count is None):
            raise ValueError("say which places hold points: real (a column) or count (a quantity of the object)")
        names = set(self.columns) | set(self.keys)
        if self.real is not None and self.real not in names:
            raise ValueError(f"real names '{self.real}', which is not a column")
        if self.axes[0] != "object":
            raise ValueError("the first axis must be that of the objects")
        if "place" not in self.axes and self.places is None:
            raise ValueError("a flat array needs the number of places")
        return self


class VoxelImages(Section):
    """Dense images: each voxel of the card's geometry that is not empty becomes a hit, and back."""

    layout: Literal["voxels"]
    key: str
    """Array [objects, voxels] or [objects, ...]. Names in braces, as in "Angle_{angle}/{incident_energy}", stand for
    numbers in the names of many arrays, which then are quantities of their objects."""
    axes: tuple[str, ...] = ()
    """Order of the axes after the first, slowest first; the geometry's own where it is not given."""
    value: str = "energy"
    """Our name of what a voxel holds."""


class PointRows(Section):
    """One vector per object that holds its points one after the other: vlen datasets of HDF5."""

    layout: Literal["rows"]
    key: str
    columns: tuple[str, ...] = Field(min_length=1)


Points = Annotated[RaggedPoints | LinkedPoints | PaddedPoints | VoxelImages | PointRows, Field(discriminator="layout")]


class Conversion(Section):
    """From a number in the file to our number. Steps are taken in the order of these settings."""

    missing: float | None = None
    """Value that means "none": becomes 0, and is counted. Where all is well a card says what 0 then means."""
    undo: Literal["log", "log1p", "tanh"] | None = None
    """Function that the file's number is of ours."""
    unit: str | None = None
    """Unit in the file; the card's own unit where it is not given."""
    factor: float = 1.0
    """Our number is the file's times this; -1 for another sign convention."""
    offset: float = 0.0
    """Added after the factor."""
    sign_of: str | None = None
    """Quantity of the object whose sign our number is multiplied with."""
    times: str | None = None
    """Quantity of the object that our number is relative to in the file."""


class OneHot(Section):
    """A category of ours as several flags in the file."""

    one_hot: dict[str, str]
    """Category -> quantity that is 1 (or true) for it."""
    other: str | None = None
    """Category where no flag is set; without it, that is an error."""


class ByValue(Section):
    """A category of ours as numbers in the file, PDG codes for example."""

    of: str
    """Quantity with the numbers."""
    values: dict[int, str]
    """Number -> category. A category with several numbers is written as the first of them."""
    other: str | None = None
    """Category of all other numbers; without it, another number is an error."""


class LabelOneHot(Section):
    """One flag per class."""

    one_hot: dict[str, str] = Field(min_length=1)
    """Class -> key of its flag."""


class LabelNumber(Section):
    """A number per object."""

    key: str
    values: dict[int, str] = {}
    """Number -> class; without it the number is the position in `classes`."""


class LabelFile(Section):
    """The file's name says it."""

    file: dict[str, str] = Field(min_length=1)
    """Pattern of file names -> class; the first that fits counts."""


class LabelConstant(Section):
    """All objects are of one class."""

    constant: str


Label = LabelOneHot | LabelNumber | LabelFile | LabelConstant


class FileFormat(Section):
    """How files of this dataset are laid out."""

    container: Literal["root", "parquet", "hdf5", "npz", "showerdata"]
    tree: str | None = None
    """ROOT: name of the TTree or RNTuple."""
    points: Points
    objects: dict[str, str] = {}
    """Quantity of the object -> key; "key[3]" is a column of an array [objects, columns]."""
    from_file_name: str | None = None
    """File name with numbers in braces, "showers_angle_{angle}.h5": quantities of all objects of the file."""
    conversions: dict[str, Conversion] = {}
    """Quantity of a point or object -> how the file's number becomes ours."""
    categories: dict[str, OneHot | ByValue] = {}
    """Feature that is a category -> how the file says it."""
    axis: Literal["file", "constituents"] = "file"
    """Jets: what eta_rel, phi_rel and pt_rel are relative to: the file's own jet, or the sum of its constituents."""
    label: Label | None = None
    constants: dict[str, float] = {}
    """Quantities of the object that are the same for the whole dataset and are not in the files."""
    collisions: Literal["sum", "shift"] = "sum"
    """Hits that fall into one voxel when clouds are written as images: add them, or move the weaker ones to the nearest
    free voxel of the layer."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the numbers in files that are written; what is read is float32 in any case."""

    def container_of_file(self, found: str | None) -> str:
        """The container of one file: jagged columns are the same in ROOT and in Parquet, so either will do."""
        either = ("root", "parquet")
        interchangeable = self.points.layout == "ragged" and self.container in either and found in either
        return str(found) if interchangeable else self.container

    @model_validator(mode="after")
    def _check(self) -> FileFormat:
        if (self.container == "root") != (self.tree is not None):
            raise ValueError("tree names the TTree or RNTuple of a ROOT file, and only of that")
        own = {"jet_pt", "jet_eta", "jet_phi"} & (set(self.objects) | set(self.constants))
        if self.axis == "constituents" and own:
            raise ValueError(f"axis: constituents makes {', '.join(sorted(own))}; give the file's own another name")
        return self


class Download(Section):
    """A file to be fetched."""

    name: str
    """File name, or path below the chosen folder."""
    url: str | None = None
    """Where it is; without it, in the archive of the card's `doi`."""
    checksum: str | None = None
    """"md5:..." or "sha256:..."; without it, the archive's own record is asked."""
    bytes: int | None = None


class RandomSplit(Section):
    """Objects are dealt out at random: all files in the order of the classes, one permutation, consecutive shares."""

    shares: dict[str, float]
    seed: int = 42
    """Of numpy's default_rng(seed).permutation(N)."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> RandomSplit:
        if abs(sum(self.shares.values()) - 1) > 1e-9 or min(self.shares.values()) <= 0:
            raise ValueError("shares must be positive and add up to 1")
        return self


class Files(Section):
    """The files of a dataset: how to recognise, get and split them."""

    pattern: str
    """Glob of file names, relative to the folder that holds the dataset."""
    splits: dict[str, str] = {}
    """Split -> glob of its files, relative to the folder; several globs with spaces between them."""
    random_split: RandomSplit | None = None
    """For datasets whose files are not split."""
    download: tuple[Download, ...] = ()
    manual: str | None = None
    """What to do by hand where files cannot be fetched by a program."""
