"""`image`: checked by a full decode; kept as it came, or resized and encoded; its metadata cut out; SVG becomes PNG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ByteSize, Field, StringConstraints, model_validator

from mmdata.sample import Member, Modality
from mmdata.steps.base import Ingest
from mmdata.steps.exchange import Declared, Ref

_GROUNDS = {"white": "#ffffff", "black": "#000000"}
Ground = Literal["white", "black"] | Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]


class Image(Ingest):
    """Images: limits, a full decode to be sure, width and height. SVG is drawn as PNG; GIF, APNG and WebP may move.

    Pixels stay as they came where nothing asks for others; what EXIF says of how a picture lies is applied, and what it
    and its like say of owner, place and time is cut out. Pixels that change become sRGB, 8 bits.
    """

    step: ClassVar[str] = "image"
    version: ClassVar[int] = 2
    modality: ClassVar[Modality] = "image"
    # 50 megapixels take some seconds, encoded anew too; filters in 14 KB of SVG, or scans of a JPEG, what they want.
    most_cpu_s: ClassVar[float | None] = 60.0
    max_bytes: ByteSize = Field(ByteSize(50 << 20), description="larger files have failed, unread")
    max_pixels: int = Field(50_000_000, ge=1, description="larger images have failed, undecoded")
    svg_side_px: int = Field(512, ge=16, le=8192, description="longer side that an SVG is drawn at")
    resize: Literal["keep", "keep_ratio", "longest", "center_crop", "border"] = Field(
        "keep",
        description="side_px becomes the shorter side (keep_ratio), the longest, or that of a square: cut out of the "
        "middle (center_crop) or with the whole image on it (border)",
    )
    side_px: int | None = Field(None, ge=1, le=16384, description="see resize")
    only_if_bigger: bool = Field(False, description="leave smaller images in their size")
    encode: Literal["keep", "jpeg", "webp", "png"] = Field("keep", description="format that is stored")
    quality: int = Field(95, ge=1, le=100, description="of JPEG and WebP, where pixels are encoded")
    alpha_ground: Ground | None = Field(
        None, description="white, black or #rrggbb that transparent pixels lie on; default: white, where JPEG has none"
    )
    reduced_decode: bool = Field(
        True, description="decode large JPEG files at a half, a quarter or an eighth, at least twice as large as wanted"
    )
    frames: int = Field(
        0,
        ge=0,
        le=32,
        description="of a picture that moves make so many members, frames evenly over its time: image_frame_0, ...",
    )
    keep_metadata: bool = Field(False, description="keep files whose pixels do not change byte for byte, GPS and all")

    blur_faces: bool = Field(
        False,
        description="take faces out: of each a few colours are left (NudeNet's detector, weights inside of the package "
        "nudenet); the column `faces` counts them",
    )
    face_side_px: int = Field(
        960,
        ge=320,
        le=1920,
        description="longer side at which faces are looked for; they are found where they are 25 to 30 px wide then",
    )

    @model_validator(mode="after")
    def _side_fits(self) -> Image:
        if (self.resize == "keep") != (self.side_px is None):
            raise ValueError("`resize` and `side_px` go together: the one says how, the other to what")
        return self

    @property
    def keeps_values(self) -> bool:
        """Unless pixels are resized, encoded anew, laid on a ground or blurred."""
        return (self.resize, self.encode, self.alpha_ground, self.blur_faces) == ("keep", "keep", None, False)

    def decode(self, ref: Ref, data: bytes) -> Member:
        """The member, measured. Raises SampleError as `mmdata.media.image` does."""
        from mmdata.media.image import FORMATS, is_svg, rasterise_svg
        from mmdata.media.image_write import normalise

        if is_svg(data):
            data = rasterise_svg(data, self.svg_side_px, self.max_pixels)
        faces = self._faces()
        stored = normalise(data, self._target(), self.max_pixels, faces)
        mime, extension = FORMATS[stored.format]
        measures = {"width": stored.width, "height": stored.height, **({"faces": faces.count} if faces else {})}
        return Member(ref.name, "image", mime, extension, stored.data, ref.lang, measures)

    def more_members(self, name: str) -> dict[str, Declared]:
        """Frames."""
        return {f"{name}_frame_{number}": Declared("image", False) for number in range(self.frames)}

    def more(self, ref: Ref, data: bytes) -> Iterator[Member]:
        """The frames of a picture that moves, measured. Raises SampleError `too_many_frames`, `bad_image`."""
        from mmdata.media.image import FORMATS, is_svg
        from mmdata.media.image_frames import frames

        if not self.frames or is_svg(data):
            return
        faces = self._faces()
        for number, stored in enumerate(frames(data, self.frames, self._target(), self.max_pixels, faces)):
            mime, extension = FORMATS[stored.format]
            measures = {"width": stored.width, "height": stored.height, **({"faces": faces.count} if faces else {})}
            yield Member(f"{ref.name}_frame_{number}", "image", mime, extension, stored.data, ref.lang, measures)

    def _faces(self) -> _Faces | None:
        return _Faces(self.face_side_px) if self.blur_faces else None

    def needs(self) -> tuple[str, ...]:
        """What finds faces."""
        return ("safety",) if self.blur_faces else ()

    def identity(self) -> dict[str, Any]:
        """With the weights that find faces. Raises MissingExtraError."""
        if not self.blur_faces:
            return super().identity()
        from mmdata.models.bodies import locate

        return {**super().identity(), "weights": locate("blur_faces").identity}

    def _target(self) -> Any:
        from mmdata.media.image_write import Target

        colour = _GROUNDS.get(self.alpha_ground or "", self.alpha_ground or "")
        ground = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)) if colour else None
        return Target(
            resize=self.resize,
            side_px=self.side_px or 0,
            only_if_bigger=self.only_if_bigger,
            encode=self.encode,
            quality=self.quality,
            ground=ground,
            reduced_decode=self.reduced_decode,
            keep_metadata=self.keep_metadata,
        )


class _Faces:
    """Takes the faces out of a picture, and counts them."""

    def __init__(self, side_px: int) -> None:
        self.count = 0
        self._side_px = side_px

    def __call__(self, image: Any) -> Any:
        """The picture without faces; None where there is none."""
        from mmdata.media.blur import blur_boxes
        from mmdata.media.image import to_rgb
        from mmdata.models.bodies import FACES, load

        seen = load("blur_faces", self._side_px).detect(to_rgb(image))
        boxes = [one.box for one in seen if one.name in FACES]
        self.count = len(boxes)
        if not boxes:
            return None
        return blur_boxes(image.convert("RGBA") if image.has_transparency_data else to_rgb(image), boxes)
