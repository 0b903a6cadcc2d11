"""Image files: the formats that are read, and what a file is by its first bytes, whatever its suffix says."""

import re

HEAD = 512  # bytes that tell what a file is
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".avif", ".tga"),
}
READ = {  # Pillow's names, each with its first bytes; MPO counts as JPEG, APNG as PNG; TGA is known by its suffix alone
    "JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG\r\n\x1a\n", "WEBP": rb"RIFF....WEBP", "BMP": rb"BM.{4}\x00{4}",
    "GIF": rb"GIF8[79]a", "TIFF": rb"II[*+]\x00|MM\x00[*+]", "PPM": rb"P[1-6]\s+[#\d]", "TGA": rb"(?!)",
    "AVIF": rb".{4}ftyp(.{4}){0,16}avi[fs]",
}  # fmt: skip
OTHER_IMAGES = {
    "HEIC": rb".{4}ftyp(hei|hev|mif1|msf1)", "JPEG 2000": rb"\x00{3}\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\x00{3}\x0cJXL |\xff\x0a", "camera raw": rb".{4}ftypcrx|FUJIFILMCCD-RAW|IIRO|IIU\x00",
    "DICOM": rb".{128}DICM", "Photoshop": rb"8BPS", "SVG": rb"(\xef\xbb\xbf)?\s*<(\?xml.*?<)?svg",
}  # fmt: skip
NO_IMAGES = {
    "HTML": rb"(\xef\xbb\xbf)?\s*<", "Git LFS pointer": rb"version https://git-lfs", "PDF": rb"%PDF-",
    "icon": rb"\x00\x00\x01\x00[^\x00]", "video": rb".{4}ftyp|RIFF....AVI |\x1aE\xdf\xa3|\x00\x00\x01[\xb3\xba]",
    "archive": rb"PK\x03\x04|\x1f\x8b\x08|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|.{257}ustar",
}  # fmt: skip
KINDS = {name: re.compile(begin, re.DOTALL) for name, begin in (READ | OTHER_IMAGES | NO_IMAGES).items()}


def kind_of(head: bytes) -> str:
    """Return what a file is that begins with these bytes (HEAD are enough); "" for none of KINDS."""
    return next((name for name, begin in KINDS.items() if begin.match(head)), "")


def misnamed(encoded: bytes) -> str:
    """Return what a file is instead of an image that can be read, and the way out; "" where its bytes do not tell."""
    kind = kind_of(encoded[:HEAD])
    if kind in OTHER_IMAGES:
        return f"{kind} by its content, which is not read; convert it, e.g. to JPEG"
    way_out = "; run `git lfs pull`" if kind == "Git LFS pointer" else ""
    return f"not an image, but {kind} by its content{way_out}" if kind in NO_IMAGES else ""
