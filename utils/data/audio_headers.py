"""What an audio file says of its own length, held against its size.

libsndfile takes the smaller of the two and says nothing: half a WAV file reads as a whole, shorter one. The layouts
are those of EBU Tech 3285 and 3306 (WAV, RF64), Sony's Wave64, Apple's AIFF and CAF, Sun's AU, NIST's SPHERE, RFC 3533
(OGG) and the Xing and VBRI frames of MP3. FLAC needs nothing of this: what is cut off there cannot be decoded.
"""

import os
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_TAGS = (b"TAG", b"ID3", b"APETAGEX")  # which players append to any file
_MAX_CHUNKS = 10_000  # a real file has some ten before its samples
# Bytes: a tail of zeros that is padding, not sound; also what holds the last page of an OGG.
_LITTLE = 64 * 1024


@dataclass
class Length:
    """What is known of the length of a file, before anything is decoded."""

    fault: str | None = None
    """What is wrong with it, as the end of "x.wav: ..."."""
    unsaid: bool = False
    """The file does not say how long it is, as what comes out of a pipe."""
    counting: bool = False
    """Only decoding to the end tells how many samples there are."""
    patches: dict[int, bytes] = field(default_factory=dict)
    """Bytes by their offset that make the header true, or that take the index out of an MP3."""
    tail: int = 0
    """Bytes at the end of an MP3 that are tags."""


class _Layout(NamedTuple):
    """A format of chunks: each an ID, a size, and the content."""

    start: int  # offset of the first chunk
    header: struct.Struct  # of a chunk
    samples: bytes  # the ID of the chunk with the samples
    padding: int = 2  # chunks begin at multiples of this
    inclusive: bool = False  # sizes count the header


_LITTLE_ENDIAN = _Layout(12, struct.Struct("<4sI"), b"data")
_LAYOUTS = {
    b"RIFF": _LITTLE_ENDIAN,
    b"RF64": _LITTLE_ENDIAN,
    b"BW64": _LITTLE_ENDIAN,
    b"RIFX": _Layout(12, struct.Struct(">4sI"), b"data"),
    b"FORM": _Layout(12, struct.Struct(">4sI"), b"SSND"),
    b"riff": _Layout(40, struct.Struct("<16sQ"), _W64_DATA, padding=8, inclusive=True),
    b"caff": _Layout(8, struct.Struct(">4sq"), b"data", padding=1),
}


def examine(descriptor: int) -> Length:
    """Compare the header of an open file with the size of the file; an unknown format has no fault."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 4096, 0)
    magic = head[:4]
    if magic in _LAYOUTS:
        return _examine_chunks(descriptor, size, _LAYOUTS[magic])
    if magic == b".snd" and len(head) >= 12:
        begin, declared = struct.unpack(">II", head[4:12])
        patch = struct.pack(">I", min(max(size - begin, 0), 2**32 - 1))
        return _compare(descriptor, declared, begin, size, {8: patch})
    if magic == b"NIST":
        return _examine_sphere(descriptor, head, size)
    if magic == b"OggS":
        return _examine_ogg(descriptor, size)
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return _examine_mp3(descriptor, head, size)
    return Length()


def _examine_chunks(descriptor: int, size: int, layout: _Layout) -> Length:
    ds64 = None  # of RF64: where it holds the size of the samples
    for name, begin, declared in _chunks(descriptor, size, layout):
        if name == b"ds64":
            ds64 = begin + 8
        if name != layout.samples:
            continue
        width = layout.header.size - len(name)
        true_size = size - begin
        if layout.inclusive:
            true_size += layout.header.size
        if ds64 is not None and declared == 2**32 - 1:
            declared = int.from_bytes(os.pread(descriptor, 8, ds64), "little")
            patch = struct.pack("<Q", true_size)
            return _compare(descriptor, declared, begin, size, {ds64: patch}, layout)
        number = layout.header.format[0] + ("I" if width == 4 else "Q")
        patch = struct.pack(number, min(true_size, 2 ** (8 * width) - 1))
        return _compare(descriptor, declared, begin, size, {begin - width: patch}, layout)
    return Length()


def _chunks(descriptor: int, size: int, layout: _Layout, start: int | None = None):
    """(ID, offset of the content, size of the content as declared) of each chunk."""
    position = layout.start if start is None else start
    for _ in range(_MAX_CHUNKS):
        header = os.pread(descriptor, layout.header.size, position)
        if len(header) < layout.header.size:
            return
        name, declared = layout.header.unpack(header)
        begin = position + layout.header.size
        if layout.inclusive:
            declared = max(declared - layout.header.size, 0)
        yield name, begin, declared
        end = begin + max(declared, 0)
        position = end + -end % layout.padding
        if position >= size:
            return


def _compare(
    descriptor: int,
    declared: int,
    begin: int,
    size: int,
    patches: dict[int, bytes],
    layout: _Layout | None = None,
) -> Length:
    """`declared` bytes of samples from `begin`, in a file of `size` bytes; `patches` would say what is there."""
    present = max(size - begin, 0)
    if declared < 0 or declared > 2**62:  # libsndfile takes this for damage
        return Length(unsaid=True, patches=patches)
    if declared > present + 1:  # one more is the padding that some programs leave out
        if _means_unknown(declared):
            return Length(unsaid=True)
        return Length(
            f"is cut off: its header announces {declared:,} bytes of samples, {present:,} are there",
            patches=patches,
        )
    if _is_appendix(descriptor, begin + declared, size, layout):
        return Length()
    return Length(
        f"its header announces {declared:,} bytes of samples, but {present:,} follow. If the recording was not "
        "closed, `sox --ignore-length` reads them all; if something was appended, `sox` drops it",
        patches=patches,
    )


def _means_unknown(declared: int) -> bool:
    """Programs that write to a pipe say the largest size that they can, sometimes less the header."""
    return any(0 <= limit - declared <= 0x1200 for limit in (2**31 - 1, 2**32 - 1))


def _is_appendix(descriptor: int, end: int, size: int, layout: _Layout | None) -> bool:
    """Whether what follows the samples is something else: nothing, padding, a tag, or chunks up to the end."""
    if size - end < 8:
        return True
    tail = os.pread(descriptor, _LITTLE, end)
    if tail.lstrip(b"\0").startswith(_TAGS):
        return True
    if size - end <= len(tail) and not tail.strip(b"\0"):
        return True
    if layout is None:
        return False
    next_chunk = end + -end % layout.padding
    for name, begin, declared in _chunks(descriptor, size, layout, next_chunk):
        is_text = all(0x20 <= byte < 0x7F for byte in name[:4])
        if not is_text or declared < 0 or begin + declared > size + 1:
            return False
    return True


def _examine_sphere(descriptor: int, head: bytes, size: int) -> Length:
    """NIST SPHERE: a header of text, then samples; only those that are not compressed come here."""
    numbers = {}
    for key in (b"sample_count", b"channel_count", b"sample_n_bytes"):
        value = re.search(rb"^%s -i (\d+)" % key, head, re.MULTILINE)
        if value is None:
            return Length()
        numbers[key] = int(value[1])
    size_of_header = head[8:16].strip()
    begin = int(size_of_header) if size_of_header.isdigit() else 1024
    product = 1
    for number in numbers.values():
        product *= number
    return _compare(descriptor, product, begin, size, {})


def _examine_ogg(descriptor: int, size: int) -> Length:
    """The last page must be whole, and carry the mark of the end of the stream (bit 4 of its flags)."""
    start = max(size - 2 * _LITTLE, 0)  # a page has at most 65,307 bytes
    tail = os.pread(descriptor, 2 * _LITTLE, start)
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]
    fault = "is cut off, or was recorded from a stream: its last page is not the end of one"
    if page < 0 or len(header) < 27:
        return Length(fault)
    # A table of the sizes of its segments, then these.
    n_segments = header[26]
    sizes = tail[page + 27 : page + 27 + n_segments]
    page_size = 27 + n_segments + sum(sizes)
    is_whole = len(sizes) == n_segments and len(tail) - page >= page_size
    is_last = bool(header[5] & 4)
    return Length() if is_whole and is_last else Length(fault)


def _examine_mp3(descriptor: int, head: bytes, size: int) -> Length:
    """Without an index in its first frame, the length of an MP3 is an estimate from the first bit rate."""
    begin = 0
    if head[:3] == b"ID3":
        # The size of the tag: four bytes of seven bits each, without its header of ten bytes.
        tag_size = 0
        for byte in head[6:10]:
            tag_size = tag_size << 7 | byte
        begin = 10 + tag_size
    frame = os.pread(descriptor, 256, begin)
    index, announced = _mp3_index(frame)
    tail = _tags_at_the_end(descriptor, size)
    if index is None:
        return Length(counting=True, tail=tail)
    present = size - begin - tail
    tolerance = 2048 + present // 100  # programs differ in what they count
    if announced is None or abs(announced - present) <= tolerance:
        return Length()
    if announced > present:
        return Length(f"is cut off: its index announces {announced:,} bytes, {present:,} are there")
    # Something follows. Whether it is sound, the decoder must tell, without the index.
    return Length(counting=True, patches={begin + index: bytes(4)}, tail=tail)


def _tags_at_the_end(descriptor: int, size: int) -> int:
    """The bytes of an ID3v1 tag, and of an APE tag before it, which has a footer of 32 bytes with its size."""
    if size < 256:
        return 0
    tail = 0
    if os.pread(descriptor, 3, size - 128) == b"TAG":
        tail = 128
    footer = os.pread(descriptor, 32, size - tail - 32)
    if footer[:8] == b"APETAGEX":
        tail += int.from_bytes(footer[12:16], "little")
        if footer[23] & 0x80:  # it has a header as well, which is not counted
            tail += 32
    return min(tail, size)


def _mp3_index(frame: bytes) -> tuple[int | None, int | None]:
    """Offset in the first frame of an index that counts frames, and the number of bytes that it announces."""
    if frame[36:40] == b"VBRI":
        return 36, int.from_bytes(frame[46:50])
    offset = max(frame.find(b"Xing"), frame.find(b"Info"))
    if offset < 0:
        return None, None
    flags = int.from_bytes(frame[offset + 4 : offset + 8])
    # Bit 0: the number of frames follows. Bit 1: then the number of bytes.
    counts_frames = bool(flags & 1)
    counts_bytes = bool(flags & 2)
    if not counts_frames:
        return None, None
    if not counts_bytes:
        return offset, None
    n_bytes = int.from_bytes(frame[offset + 12 : offset + 16])
    return offset, n_bytes
