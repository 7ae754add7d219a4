"""What bytes are that are none of the pictures, tables or archives they were taken for."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Container, Iterable

from PIL import Image

# Endings of pictures that are not read. In a folder they count as undecodable, unless the same
# picture is beside them in a format that is read.
UNREAD_ENDINGS = (
    ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".svg", ".tga", ".psd", ".qoi", ".pcx",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr",
)  # fmt: skip


# Endings of archives; of these only ZIP is looked into, by imports.
ARCHIVES = (".zip", ".7z", ".rar", ".lz4", ".z")


def pictures_among(names: Iterable[str], read: Container[str]) -> set[str]:
    """Those of the names of a folder's files that are pictures by their endings.

    Args:
      names: of files.
      read: endings of pictures that are read, in small letters.
    """
    taken = [(name, *os.path.splitext(name)) for name in names]
    found = {name for name, _, ending in taken if ending.lower() in read}
    stems = {stem for name, stem, _ in taken if name in found}
    return found | {
        name for name, stem, end in taken if end.lower() in UNREAD_ENDINGS and stem not in stems
    }


# How files begin that are met in the place of pictures, in small letters, and what to do.
_OTHERS = {
    b"<error": "an error of a store, not the picture: the download failed",
    b"{": "JSON, perhaps an error of a server: the download failed",
    b"404": "an error of a server, not the picture: the download failed",
    b"<html": "a page of the web, not the picture: the download failed",
    b"<!doctype html": "a page of the web, not the picture: the download failed",
    b"<?xml": "XML; if it is an SVG drawing, make a PNG of it first",
    b"\x00\x00\x00\x0cjp": "JPEG 2000; convert it to PNG or JPEG first",
    b"\xffo\xffq": "JPEG 2000; convert it to PNG or JPEG first",
    b"\xff\xd8\xff\xf7": "JPEG-LS; convert it to PNG first",
    b"\xff\x0a": "JPEG XL; convert it to PNG or JPEG first, say with djxl",
    b"\x00\x00\x00\x0cjxl": "JPEG XL; convert it to PNG or JPEG first, say with djxl",
    b"8bps": "a Photoshop file",
    b"gimp xcf": "a GIMP file",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript drawing",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"\x1ae\xdf\xa3": "a film (WebM or Matroska)",
    b"\x93numpy": "an array of NumPy",
    b"\x89hdf": "an HDF5 file",
    b"v/1\x01": "OpenEXR",
    b"#?radiance": "a Radiance HDR picture",
    b"qoif": "QOI; convert it to PNG first",
    b"p7\n": "PAM; convert it to PNG first",
    b"pf\n": "a PFM of 32-bit samples without a known range",
    b"icns": "an Apple icon; convert it to PNG first",
    b"/* xpm": "XPM; convert it to PNG first",
    b"#define": "XBM or a C header; convert it to PNG first",
    b"\x01\xda": "an SGI picture; convert it to PNG first",
    b"flif": "FLIF; convert it to PNG first",
    b"bpg\xfb": "BPG; convert it to PNG first",
    b"at&tform": "a DjVu document",
    b"simple  =": "FITS",
    b"\xabktx": "a KTX texture",
    b"dds ": "a DirectDraw surface",
    b"\x00\x05\x16\x07": "what macOS leaves beside a file (._NAME), not the picture",
    b"rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"/9j/": "a JPEG written as base64; decode it first",
    b"_9j_": "a JPEG written as base64; decode it first",
    b"ivborw0kgg": "a PNG written as base64; decode it first",
    b"data:image": "a picture written as a data: address; decode it first",
    b"\x1f\x8b": "gzip-compressed; unpack it first, say with gunzip",
    b"pk\x03\x04": "a ZIP archive, which only `jaxclip data import` reads",
    b"par1": "a Parquet file",
    b"pare": "an encrypted Parquet file; write it again without a key",
    b"arrow1": "an Arrow file",
    b"orc": "an ORC file; write it as Parquet",
    b"obj\x01": "an Avro file; write it as Parquet",
    b"sqlite format 3": "an SQLite database; write its pictures as tars or Parquet",
    b"matlab": "a file of MATLAB; write its pictures as tars or Parquet",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
}
# Those whose first bytes must be taken as they are.
_EXACT = {
    b"MM\0+": "a big-endian BigTIFF; write it as little-endian or as an ordinary TIFF",
    b"\n\x05\x01": "PCX; convert it to PNG first",
    b"\n#\xd7\xce": "MXNet's RecordIO; write its pictures as tars or Parquet",
    b"\0\0\x08\x03": "an array of pictures (IDX, as MNIST's); write them as Parquet",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a pickle, which may run any program; write its pictures as tars or Parquet",
    ),
}
# By the endings of their names, which is all that tells.
_BY_ENDING = {
    ".mds": "a shard of MosaicML's streaming; write its records as tars or Parquet",
    ".beton": "a file of FFCV; write its records as tars or Parquet",
    ".mdb": "an LMDB database; write its records as tars or Parquet",
    ".npz": "arrays of NumPy; write their pictures as tars or Parquet",
}
# How pictures begin whose format is read, though not each of its kinds.
_READ = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF",
    b"BM": "BMP", b"\0\0\1\0": "ICO",
}  # fmt: skip
# Markers of JPEGs that hardly any program reads.
_PROCESSES = {
    b"\xc3": "a lossless JPEG",
    **dict.fromkeys((b"\xc5", b"\xc6", b"\xc7"), "a hierarchical JPEG"),
    **dict.fromkeys((b"\xc9", b"\xca", b"\xcb", b"\xcd", b"\xce", b"\xcf"), "an arithmetic JPEG"),
}
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
_SHORT = 100


def check_is_file(path: str | os.PathLike[str]) -> os.stat_result:
    """What the system says of a local file that is about to be opened.

    Raises:
      FileNotFoundError: there is none, or it is a link to one that is not there.
      PermissionError: it may not be read.
      ValueError: it is a folder, or a pipe, which would be waited for without end.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        raise FileNotFoundError(
            f"{os.fspath(path)} is a link to {os.readlink(path)!r}, which is not there: mount or "
            "fetch what it points to, or remove the link"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{os.fspath(path)} is a folder, not a file; name the folder alone")
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        raise ValueError(
            f"{os.fspath(path)} is a pipe, which can't be read by number: write it to a file first"
        )
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return found


def kind_by_name(name: str) -> str:
    """What a file is by its name, for a message; empty where that does not tell."""
    return _BY_ENDING.get(os.path.splitext(name)[1].lower(), "")


def kind_of(data: bytes) -> str:
    """What bytes seem to be that are no picture we read, for a message."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        data = data[:2048].decode("utf-16", "ignore").encode()
    begin = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data and not begin.strip(b"\0"):
        return "nothing but zeros where it should begin: the copy was cut off"
    if begin[4:8] == b"ftyp":
        return _of_boxes(begin[8:12])
    if begin.startswith(b"<") and b"<svg" in begin:
        return "an SVG drawing; make a PNG of it first"
    for magic, kind in _OTHERS.items():
        if begin.startswith(magic):
            return kind
    for magic, kind in _EXACT.items():
        if data.startswith(magic):
            return kind
    if data[-18:-2] == b"TRUEVISION-XFILE":
        return "TGA; convert it to PNG first"
    if data[40:44] == b" EMF":
        return "a Windows metafile"
    if begin.startswith(b"riff") and begin[8:12] != b"webp":
        return "sound or a film (WAV, AVI)"
    for magic, format in _READ.items():
        if data.startswith(magic):
            problem = _refused(format, data)
            kind = f"{format} that is damaged or of a kind that is not read: {problem}"
            return kind if problem else f"a picture ({format})"
    behind = data.find(b"\xff\xd8\xff", 0, 1024)
    if behind > 0:
        return f"a JPEG behind {behind} bytes of something else"
    what = "text" if begin and _TEXT.issuperset(begin[:_SHORT]) else "no known kind of picture"
    return f"{what} (it begins with {data[:12]!r})"


def _of_boxes(brand: bytes) -> str:
    """A file of MPEG's kind of boxes by its brand."""
    if brand in (b"avif", b"avis"):
        return "an AVIF that is damaged, or this Pillow reads none"
    if brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
        return (
            "HEIC; convert it to JPEG first, say with heif-convert (Pillow alone, without its "
            "plug-in pillow-heif, has no decoder)"
        )
    return "a film (MP4, QuickTime) or raw data"


def _refused(format: str, data: bytes) -> str:
    """Why Pillow does not read a picture of a format; empty if it does."""
    if data[12:16] == b"CgBI":
        return "Apple's own, out of an iPhone's program; undo it with pngcrush"
    Image.init()
    try:
        Image.OPEN[format][0](io.BytesIO(data), "")  # type: ignore[arg-type]
    except Exception as error:  # it raises almost anything on hostile bytes
        return " ".join(str(error).split())[:_SHORT] or type(error).__name__
    return ""


def jpeg_process(data: bytes) -> str:
    """What is unusual about how a JPEG is compressed, for a message; empty if nothing is."""
    position = 2
    while data.startswith(b"\xff\xd8") and data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker in _PROCESSES:
            return f"{_PROCESSES[marker]}; convert it to an ordinary JPEG or PNG first: "
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return ""
